"""The server beside clients that hang up, flood, stall and lie: nothing they cost may reach the others."""

import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from athena_vla.embodiment import Observation
from athena_vla.errors import InvalidObservation, WireError
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.codec import MAX_VALUES, pack, require_few_values, to_json, unpack
from athena_vla.wire.effort import ADDRESS_RATE, BURST, TOTAL_RATE, Effort
from athena_vla.wire.frames import FrameScanner
from athena_vla.wire.serve_config import ServeConfig
from athena_vla.wire.server import PolicyServer, background
from echo_policy import TOY, Echo, expected, observe
from wire_faults import UPGRADE, masked


def question(seed: int = 0, **changes: Any) -> bytes:
    seen = observe(seed)
    message = {
        "observation/front": seen.images["front"],
        "observation/state": seen.state,
        "prompt": seen.instruction,
        "request_id": seed,
    }
    return pack(message | changes)


def body(**changes: Any) -> bytes:
    seen = observe()
    return to_json({"image": seen.images["front"], "instruction": "go", "state": seen.state} | changes).encode()


def post(content: bytes) -> bytes:
    return b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content


def opened(server: PolicyServer, *, origin: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5, source_address=(origin, 0))


def websocket(server: PolicyServer) -> socket.socket:
    s = opened(server)
    s.sendall(UPGRADE)
    received = b""
    while b"protocol" not in received:  # the metadata
        received += s.recv(65536)
    return s


def until_closed(s: socket.socket, wait: float = 5.0) -> bytes:
    s.settimeout(wait)
    received = b""
    try:
        while data := s.recv(65536):
            received += data
    except ConnectionError:
        pass
    return received


def health(server: PolicyServer) -> float:
    """[s] until a monitor has its answer."""
    began = time.perf_counter()
    with opened(server) as s:
        s.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert until_closed(s).startswith(b"HTTP/1.1 200")
    return time.perf_counter() - began


# Questions that nobody waits for


@pytest.mark.parametrize("protocol", ["http", "websocket"])
def test_questions_of_clients_that_hung_up_are_not_computed(protocol: str) -> None:
    actor = Echo(delay=0.2)
    with background(PolicyServer(actor, TOY)) as server, RemotePolicy(server.address, TOY) as remote:
        remote.act(observe())
        for n in range(14):
            s = opened(server) if protocol == "http" else websocket(server)
            s.sendall(post(body()) if protocol == "http" else masked(question(n)))
            time.sleep(0.01)
            s.close()
        computed = actor.calls
        began = time.perf_counter()
        remote.act(observe(1))
        took = time.perf_counter() - began
        assert server.service.queue.waiting == 0
    # The model has at most one question in work that it cannot drop, and one may have come before its end was seen.
    assert actor.calls - computed <= 3
    assert took < 3 * 0.2 + 0.5


def test_the_newest_question_of_a_connection_wins_and_every_question_gets_one_reply_in_order() -> None:
    actor = Echo(delay=0.2)
    with background(PolicyServer(actor, TOY)) as server, connect(server.address, compression=None) as client:
        client.recv()
        client.send(question(0))
        time.sleep(0.1)  # the model has begun with it
        for n in range(1, 5):
            client.send(question(n))
        replies = [client.recv(timeout=5) for _ in range(5)]
    kinds = [json.loads(r)["error"]["type"] if isinstance(r, str) else unpack(r)["request_id"] for r in replies]
    assert kinds == [0, "Superseded", "Superseded", "Superseded", 4]
    assert isinstance(replies[4], bytes)
    np.testing.assert_array_equal(unpack(replies[4])["actions"], expected(observe(4)).positions)
    assert actor.calls == 2


def test_a_question_that_left_the_line_leaves_its_place() -> None:
    config = ServeConfig(port=0, max_waiting=1)
    with background(PolicyServer(Echo(delay=0.4), TOY, config)) as server, ExitStack() as open_ones:
        first, second = (open_ones.enter_context(opened(server)) for _ in range(2))
        for s in (first, second):
            s.sendall(post(body()))
            time.sleep(0.1)
        second.close()
        time.sleep(0.05)
        with RemotePolicy(server.address, TOY) as remote:
            remote.act(observe())  # not Busy


# Places


@pytest.fixture
def crowded() -> Iterator[PolicyServer]:
    config = ServeConfig(port=0, max_connections=8)
    with background(PolicyServer(Echo(), TOY, config)) as server:
        yield server


def test_one_address_cannot_take_every_place_and_health_needs_none(crowded: PolicyServer) -> None:
    with ExitStack() as open_ones:
        used = [open_ones.enter_context(RemotePolicy(crowded.address, TOY)) for _ in range(6)]
        for remote in used:
            remote.act(observe())  # clients at work, which give no place up
        with opened(crowded) as refused:
            refused.sendall(UPGRADE)
            assert until_closed(refused).startswith(b"HTTP/1.1 503")
        assert health(crowded) < 1.0
        with opened(crowded, origin="127.0.0.2") as other:
            other.sendall(UPGRADE)
            assert other.recv(4096).startswith(b"HTTP/1.1 101")
        for remote in used:
            remote.act(observe())
            assert remote.reconnects == 0


def test_sockets_that_never_asked_anything_make_room(crowded: PolicyServer) -> None:
    with ExitStack() as open_ones:
        for _ in range(6):
            open_ones.enter_context(websocket(crowded))
        time.sleep(0.6)
        with RemotePolicy(crowded.address, TOY) as remote:
            remote.act(observe())
            assert health(crowded) < 1.0
            remote.act(observe())
            assert remote.reconnects == 0


def test_silent_websockets_are_pinged_and_given_up() -> None:
    config = ServeConfig(port=0, ping_interval=0.2, ping_timeout=0.3)
    with (
        background(PolicyServer(Echo(), TOY, config)) as server,
        websocket(server) as mute,
        connect(server.address, compression=None, ping_interval=None) as alive,
    ):
        began = time.monotonic()
        received = until_closed(mute)
        assert received.startswith(b"\x89\x06athena")
        assert b"no answer to a ping" in received
        assert 0.4 < time.monotonic() - began < 2.0
        time.sleep(1.0)
        alive.recv()  # the metadata: this one has answered its pings
        alive.send(question())
        assert isinstance(alive.recv(timeout=5), bytes)


# What a message costs


@pytest.mark.parametrize("size", [(1, 400_000), (400_000, 1), (100, 900), (5000, 1000), (4097, 600)])
def test_pictures_whose_shape_makes_them_dear_are_refused_before_the_model_sees_them(size: tuple[int, int]) -> None:
    actor = Echo()
    thin = np.zeros((*size, 3), np.uint8)
    with background(PolicyServer(actor, TOY)) as server, connect(server.address, compression=None) as client:
        client.recv()
        client.send(question(0, **{"observation/front": thin}))
        fault = json.loads(client.recv(timeout=5))["error"]
        client.send(question(0, **{"observation/front": np.zeros((480, 640, 3), np.uint8)}))
        assert isinstance(client.recv(timeout=5), bytes)
    assert fault["type"] == "InvalidObservation"
    assert f"{size[1]} x {size[0]} pixels" in fault["message"]
    assert actor.calls == 1
    with pytest.raises(InvalidObservation, match="pixels"):
        Observation({"front": thin}, TOY.default, "go").require(TOY)


MANY = 1 << 20
DEAR: dict[str, bytes] = {
    "empty maps": b"\xdd" + MANY.to_bytes(4, "big") + b"\x80" * MANY,
    "nested lists": (b"\xdc\x10\x00" + b"\xc0" * 4095) * (MANY // 4096),
    "a list that is announced": b"\xdd\xff\xff\xff\xff",
    "maps in maps": b"\x81\xa1a" * MANY,
    "a state of millions": pack({"observation/state": np.zeros(MANY, np.uint8)}),
    "numbers in a list": b"\xdd" + MANY.to_bytes(4, "big") + b"\x01" * MANY,
    "JSON lists": b"[" + b"[]," * MANY + b"1]",
    "JSON numbers": b'{"state":[' + b"1," * MANY + b"1]}",
    "JSON maps": b'{"a":' * MANY,
}


@pytest.mark.parametrize("name", DEAR)
def test_many_small_values_are_refused_before_they_are_made(name: str) -> None:
    content = DEAR[name]
    with background(PolicyServer(Echo(), TOY)) as server, opened(server) as s:
        began = time.process_time()
        if name.startswith("JSON"):
            s.sendall(post(content))
            assert b" 400 " in s.recv(4096)
        else:
            s.close()
            with connect(server.address, compression=None, max_size=None) as client:
                client.recv()
                client.send(content)
                assert json.loads(client.recv(timeout=5))["error"]["type"] in ("WireError", "InvalidObservation")
        # Making a million objects takes a second and more; this is sending, receiving and looking at a few thousand.
        assert time.process_time() - began < 0.5


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


def count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(count(k) + count(v) for k, v in value.items())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


@settings(max_examples=60, deadline=None)
@given(plain, st.integers(0, 40))
def test_values_are_counted_as_the_parser_makes_them(value: Any, filling: int) -> None:
    whole = [value] * (MAX_VALUES // max(count(value), 1) - 20 + filling)
    packed = msgpack.packb(whole)
    assert packed is not None
    if count(whole) <= MAX_VALUES:
        require_few_values(packed)
        assert count(unpack(packed)) == count(whole)
    else:
        with pytest.raises(WireError, match="more than"):
            require_few_values(packed)


@pytest.mark.parametrize(
    "extra", [msgpack.ExtType(3, b"x" * n) for n in (1, 2, 3, 4, 8, 16, 300, 70_000)] + [msgpack.Timestamp(1, 2)]
)
def test_extension_types_are_stepped_over(extra: Any) -> None:
    packed = msgpack.packb([extra, [0] * (MAX_VALUES - 3)])
    assert packed is not None
    require_few_values(packed)
    longer = msgpack.packb([extra, [0] * (MAX_VALUES - 2)])
    assert longer is not None
    with pytest.raises(WireError):
        require_few_values(longer)


FLOODS = {
    "pings, answers never read": masked(b"", 0x89),
    "empty continuations": masked(b"", 0x00),
    "tiny continuations": masked(b"ab", 0x00),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_of_tiny_frames_delay_nobody(name: str) -> None:
    with background(PolicyServer(Echo(), TOY)) as server, RemotePolicy(server.address, TOY) as remote:
        remote.act(observe())
        flood = websocket(server)
        flood.settimeout(0.05)
        stop = threading.Event()

        def send() -> None:
            try:
                flood.sendall(b"" if "pings" in name else masked(b"x", 0x02))
            except OSError:
                return
            while not stop.is_set():
                try:
                    flood.sendall(FLOODS[name] * 5000)
                except TimeoutError:
                    continue
                except OSError:
                    return

        thread = threading.Thread(target=send)
        thread.start()
        waits = []
        for n in range(20):
            began = time.perf_counter()
            remote.act(observe(n))
            waits.append(time.perf_counter() - began)
            time.sleep(0.02)
        stop.set()
        thread.join()
        flood.close()
    assert np.median(waits) < 0.1  # without a bound on frames: seconds
    assert max(waits) < 0.5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=6), st.data())
def test_frames_are_found_where_they_begin(lengths: list[int], data: st.DataObject) -> None:
    """Whatever the pieces the network cuts the stream into, each frame begins once and its pieces end at its end."""
    frames = [masked(bytes(n)) for n in lengths]
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    scanner, begun, place, ends = FrameScanner(), 0, 0, []
    for piece in (stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)):
        at = 0
        while at < len(piece):
            end, begins = scanner.cut(piece, at)
            assert end > at
            begun += begins
            place += end - at
            at = end
            if not scanner.inside:
                ends.append(place)
    assert begun == len(frames)
    assert ends == np.cumsum([len(f) for f in frames]).tolist()


def test_work_that_led_nowhere_is_booked_by_address_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("athena_vla.wire.effort.time.monotonic", lambda: now[0])
    effort = Effort()
    assert effort.book("a", BURST * ADDRESS_RATE) <= 0  # what an idle address has in hand
    assert effort.book("a", ADDRESS_RATE) == pytest.approx(1.0)
    assert effort.book("b", 1) <= 0  # who cost nothing does not wait for others
    assert effort.book("b", 1) == pytest.approx((BURST + 1) * ADDRESS_RATE / TOTAL_RATE - BURST, abs=1e-3)
    effort.give_back("a", ADDRESS_RATE)
    assert effort.book("a", 0) == pytest.approx(0.0, abs=1e-3)
    now[0] += 10
    delays = [effort.book(f"address {n % 40}", 0.1 * TOTAL_RATE) for n in range(80)]
    assert delays[-1] == pytest.approx(80 * 0.1 - BURST)  # together they get no more than all may have


def test_a_robot_connects_while_others_open_and_reset_connections() -> None:
    """From an address of its own: what the others cost is theirs to wait for."""
    stop = threading.Event()
    with background(PolicyServer(Echo(), TOY)) as server:

        def storm(client: int) -> None:
            while not stop.is_set():
                try:
                    with opened(server, origin=f"127.0.1.{client + 1}") as s:
                        s.sendall(post(body()))
                        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                except OSError:
                    continue

        threads = [threading.Thread(target=storm, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        try:
            for n in range(10):
                with RemotePolicy(server.address, TOY, timeout=2.0) as remote:
                    remote.act(observe(n))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert (
            max(server.service.effort.book(f"127.0.1.{n + 1}", 0) for n in range(4)) < 5.0
        )  # a storm ends when it ends


# Who may come, and what is said


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"POST /act HTTP/1.1", b"GET /metadata HTTP/1.1"])
def test_web_pages_are_refused_unless_they_are_named(request_line: bytes) -> None:
    config = ServeConfig(port=0, origins=("https://robot.example",))
    more = (
        UPGRADE.split(b"\r\n", 1)[1] if request_line == b"GET / HTTP/1.1" else b"Host: x\r\nContent-Length: 0\r\n\r\n"
    )
    with background(PolicyServer(Echo(), TOY, config)) as server:
        statuses = []
        for origin in (b"https://evil.example", b"null", b"http://127.0.0.1:8000", b"https://robot.example", None):
            with opened(server) as s:
                header = b"" if origin is None else b"Origin: " + origin + b"\r\n"
                s.sendall(request_line + b"\r\n" + header + more)
                statuses.append(s.recv(4096).split(b" ")[1])
    assert statuses[:3] == [b"403"] * 3
    assert b"403" not in statuses[3:]


def test_a_hang_up_is_one_line_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    linger = struct.pack("ii", 1, 0)
    with background(PolicyServer(Echo(), TOY)) as server:
        caplog.clear()
        for n in range(24):
            s = websocket(server) if n % 2 else opened(server)
            s.sendall([b"GET /hea", b"\x82\x85abcdab", post(body())[:200], masked(question(n))][n % 4])
            if n % 3:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # a reset
            s.close()
        time.sleep(1.0)
        lines = [r for r in caplog.records if r.levelno >= logging.INFO]
    assert not [r for r in lines if r.exc_info or r.levelno > logging.INFO]
    assert len([r for r in lines if "ended" in r.getMessage()]) == 24
    assert len(lines) <= 25  # and the server's own end


def test_half_a_character_is_the_client_s_mistake() -> None:
    with background(PolicyServer(Echo(), TOY)) as server, opened(server) as s:
        for content in (
            body().replace(b'"go"', b'"go \\ud800"'),
            to_json({"encoded": body().decode().replace('"go"', '"go \\ud800"')}).encode(),
        ):
            s.sendall(post(content))
            answer = s.recv(65536)
            assert answer.startswith(b"HTTP/1.1 422")
            assert b"no text" in answer


def test_states_in_other_units_are_refused_with_the_joints_and_the_likely_unit() -> None:
    degrees = np.degrees(np.array([0.5, 0.5, 0.5]))
    with background(PolicyServer(Echo(), TOY)) as server, opened(server) as s:
        for state, sentence in ((degrees, b"degrees"), (np.full(3, 1e30), TOY.joint_names[0].encode())):
            s.sendall(post(body(state=state)))
            answer = s.recv(65536)
            assert answer.startswith(b"HTTP/1.1 422")
            assert sentence in answer
        s.sendall(post(body(state=TOY.upper)))
        assert s.recv(65536).startswith(b"HTTP/1.1 200")
