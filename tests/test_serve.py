"""The policy server as its clients see it: openpi's own client, OpenVLA's two forms, hostile ones, and shutdown."""

import hmac
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from athena_vla import embodiment
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import Busy, InvalidObservation, ServerError
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.codec import from_json, pack, to_json, unpack
from athena_vla.wire.server import PolicyServer, background
from athena_vla.wire.service import ServeConfig
from echo_policy import IMAGE, TOY, Echo, expected, observe


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with background(PolicyServer(Echo(), TOY, metadata={"bundle_hash": "abc"})) as running:
        yield running


def http(server: PolicyServer, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    data = None if body is None else body if isinstance(body, bytes) else to_json(body).encode()
    url = server.address.replace("ws", "http", 1) + path
    try:
        with urlopen(Request(url, data, headers or {}), timeout=10) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_the_remote_policy_is_the_policy(server: PolicyServer) -> None:
    with RemotePolicy(server.address, TOY) as remote:
        for seed in range(5):
            chunk = remote.act(observe(seed))
            want = expected(observe(seed))
            assert chunk.positions.tobytes() == want.positions.tobytes()
            assert (chunk.joint_names, chunk.dt, chunk.time) == (want.joint_names, want.dt, want.time)
        assert remote.metadata["bundle_hash"] == "abc"
        assert remote.metadata["action_names"] == list(TOY.joint_names)
        assert remote.metadata["units"] == ["rad"] * 3


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
def test_the_real_openpi_client_drives_it(server: PolicyServer) -> None:
    theirs = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")
    client = theirs.WebsocketClientPolicy("127.0.0.1", server.port)
    assert client.get_server_metadata()["robot"] == "toy"
    seen = observe(3)
    question = {"observation/image": seen.images["front"], "observation/state": seen.state, "prompt": seen.instruction}
    reply = client.infer(question)
    np.testing.assert_array_equal(reply["actions"], expected(seen).positions)
    assert reply["server_timing"]["infer_ms"] >= 0
    with pytest.raises(RuntimeError, match="InvalidObservation.*prompt"):
        client.infer(question | {"prompt": 3})
    np.testing.assert_array_equal(client.infer(question)["actions"], expected(seen).positions)  # still usable


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("form", ["single", "oft"])
def test_openvla_clients(server: PolicyServer, form: str, encoded: bool) -> None:
    json_numpy = pytest.importorskip("json_numpy", reason="json_numpy is not installed")
    seen = observe(4)
    key = "image" if form == "single" else "full_image"
    payload = {key: seen.images["front"], "instruction": seen.instruction, "state": seen.state}
    body = json_numpy.dumps({"encoded": json_numpy.dumps(payload)} if encoded else payload)
    status, text = http(server, "/act", body.encode(), {"Content-Type": "application/json"})
    assert status == 200
    reply = json_numpy.loads(json.loads(text)) if encoded else json_numpy.loads(text)
    want = expected(seen).positions
    np.testing.assert_array_equal(reply, want[0] if form == "single" else want)
    assert isinstance(reply, np.ndarray if form == "single" else list)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({}, "InvalidObservation"),
        ({"image": IMAGE, "instruction": "go"}, "InvalidObservation"),  # this policy needs the state
        ({"image": IMAGE.astype(float), "instruction": "go", "state": np.zeros(3)}, "InvalidObservation"),
        ({"image": IMAGE[..., 0], "instruction": "go", "state": np.zeros(3)}, "InvalidObservation"),
        ({"image": IMAGE, "instruction": " ", "state": np.zeros(3)}, "InvalidObservation"),
        ({"image": IMAGE, "instruction": "go" * 2000, "state": np.zeros(3)}, "InvalidObservation"),
        ({"image": IMAGE, "instruction": "go", "state": np.zeros(4)}, "InvalidObservation"),
        ({"image": IMAGE, "instruction": "go", "state": np.array([0, np.nan, 0])}, "InvalidObservation"),
        (
            {"image": IMAGE, "instruction": "go", "state": np.zeros(3), "unnorm_key": "bridge_orig"},
            "InvalidObservation",
        ),
        ({"image": IMAGE, "instruction": "go", "state": np.zeros(3), "surprise": 1}, "InvalidObservation"),
        ([1, 2], "InvalidObservation"),
        (b"\xff\xfe", "WireError"),
        (b'{"image": {"__numpy__": "AA", "dtype": "|O", "shape": [1]}}', "WireError"),
        ({"image": IMAGE, "instruction": "crash", "state": np.zeros(3)}, "InternalError"),
    ],
)
def test_wrong_questions_get_typed_errors(server: PolicyServer, message: Any, kind: str) -> None:
    status, text = http(server, "/act", message)
    fault = json.loads(text)["error"]
    assert fault["type"] == kind
    assert len(fault["message"]) > 10
    assert "secret" not in text
    assert status == {"InvalidObservation": 422, "WireError": 400, "InternalError": 500}[kind]


def test_state_may_be_left_out_only_where_the_policy_does_not_look_at_it() -> None:
    with background(PolicyServer(Echo(), TOY, state_optional=True)) as running:
        status, text = http(running, "/act", {"image": IMAGE, "instruction": "go"})
    assert status == 200
    want = expected(Observation({"front": IMAGE}, TOY.default, "go")).positions[0]
    np.testing.assert_array_equal(from_json(text), want)


def test_health_metrics_metadata_and_unknown_paths(server: PolicyServer) -> None:
    assert http(server, "/healthz") == (200, "OK\n")
    status, text = http(server, "/metrics")
    assert status == 200
    assert 'athena_requests_total{outcome="ok",protocol="openpi"}' in text
    assert 'athena_answer_seconds_bucket{le="+Inf"}' in text
    assert json.loads(http(server, "/metadata")[1])["embodiment_hash"] == TOY.hash
    assert http(server, "/nothing")[0] == 404
    assert http(server, "/act")[0] == 405


def test_eight_clients_get_their_own_answers(server: PolicyServer) -> None:
    def work(client: int) -> int:
        with RemotePolicy(server.address, TOY, timeout=30) as remote:
            for n in range(40):
                seen = observe(client * 1000 + n, "x" * (client + 1))
                np.testing.assert_array_equal(remote.act(seen).positions, expected(seen).positions)
            return remote.reconnects

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [0] * 8


def raw(server: PolicyServer, *pieces: bytes, wait: float = 2.0) -> bytes:
    """Send bytes as they are and read until the server closes or the wait is over."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as s:
        received = b""
        try:
            for piece in pieces:
                s.sendall(piece)
            while data := s.recv(65536):
                received += data
        except (TimeoutError, ConnectionError):
            pass
        return received


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        ([b"\x00\x01\x02\r\n\r\n"], b"400"),
        ([b"GET / HTTP/9.9\r\n\r\n"], b"400"),
        ([b"GET /healthz HTTP/1.1\r\nbroken header\r\n\r\n"], b"400"),
        ([b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n"], b"431"),
        ([b"GET /" + b"a" * 600_000], b"431"),
        ([b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n"], b"431"),
        ([b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 16_360 + b"\r\n\r\n"], b"431"),
        ([b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 50_000 + b"\r\n"], b"431"),
        ([b"POST /act HTTP/1.1\r\nHost: x\r\n\r\n"], b"411"),
        ([b"POST /act HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"], b"411"),
        ([b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n"], b"413"),
        ([b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde"], b"400"),
        ([b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"], b"400"),
        ([b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"], b"400"),
        ([UPGRADE, b"\xff\xff\xff\xff"], b"101"),
        ([UPGRADE, b"\x82\xff\x00\x00\x00\x00\x40\x00\x00\x00abcd"], b"101"),  # a frame that announces 1 GiB
        ([UPGRADE, b"\x82\x05hello"], b"101"),  # not masked
    ],
)
def test_broken_clients_are_told_and_do_no_harm(server: PolicyServer, pieces: list[bytes], answer: bytes) -> None:
    assert raw(server, *pieces)[:40].split(b" ")[1] == answer
    with RemotePolicy(server.address, TOY) as remote:
        remote.act(observe())


def test_a_message_in_fragments_arrives_whole(server: PolicyServer) -> None:
    seen = observe(2)
    message = pack({"observation/front": seen.images["front"], "observation/state": seen.state, "prompt": "go"})
    with connect(server.address, compression=None) as client:
        unpack(client.recv())  # pyright: ignore[reportArgumentType]
        client.send(iter([message[:100], message[100:5000], message[5000:]]))
        reply = unpack(client.recv(timeout=5))  # pyright: ignore[reportArgumentType]
    want = expected(Observation(seen.images, seen.state, "go")).positions
    np.testing.assert_array_equal(reply["actions"], want)


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_messages_get_errors_and_leave_the_connection_usable(server: PolicyServer, count: int) -> None:
    rng = np.random.default_rng(0)
    seen = observe()
    good = pack({"observation/front": seen.images["front"], "observation/state": seen.state, "prompt": "go"})
    with connect(server.address, compression=None) as client:
        client.recv()
        for n in range(count):
            if n % 3:
                fuzz = bytearray(good)
                for place in rng.integers(len(fuzz), size=4):
                    fuzz[place] = rng.integers(256)
                fuzz = fuzz[: rng.integers(1, len(fuzz) + 1)]
            else:
                fuzz = rng.integers(0, 256, rng.integers(0, 64)).astype(np.uint8).tobytes()
            client.send(bytes(fuzz))
            reply = client.recv(timeout=5)
            assert "actions" in unpack(reply) if isinstance(reply, bytes) else json.loads(reply)["error"]["type"]
        client.send(good)
        assert isinstance(client.recv(timeout=5), bytes)


def test_slow_clients_are_cut_off_while_others_are_served() -> None:
    config = ServeConfig(port=0, head_timeout=0.4, message_timeout=0.4, idle_timeout=0.6)
    with background(PolicyServer(Echo(), TOY, config)) as running, RemotePolicy(running.address, TOY) as remote:
        slow = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(4)]
        slow[0].sendall(b"GET /heal")  # never finishes its head
        slow[1].sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")  # never finishes its body
        slow[2].sendall(UPGRADE + b"\x82\xfe\x10\x00abcdef")  # never finishes its message
        slow[3].sendall(UPGRADE)  # never asks anything
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            remote.act(observe())
            time.sleep(0.05)
        for s in slow:
            s.settimeout(1.0)
            while s.recv(65536):
                pass
            s.close()


def test_the_line_is_bounded_and_the_busy_say_so() -> None:
    config = ServeConfig(port=0, max_waiting=2)
    with background(PolicyServer(Echo(delay=0.15), TOY, config)) as running:

        def work(client: int) -> str:
            try:
                with RemotePolicy(running.address, TOY) as remote:
                    remote.act(observe(client))
                return "answered"
            except Busy:
                return "busy"

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(work, range(8)))
        assert outcomes.count("busy") >= 3
        assert outcomes.count("answered") >= 3
        assert running.service.counted("websocket", "Busy") == outcomes.count("busy")


def test_too_many_clients_are_refused() -> None:
    with background(PolicyServer(Echo(), TOY, ServeConfig(port=0, max_connections=2))) as running:
        clients = [RemotePolicy(running.address, TOY) for _ in range(3)]
        clients[0].connect()
        clients[1].connect()
        with pytest.raises(ServerError, match="503"):
            clients[2].connect()
        for client in clients:
            client.close()


class Batching(Echo):
    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.sizes = [*getattr(self, "sizes", []), len(observations)]
        time.sleep(0.05)
        return [expected(o) for o in observations]


def test_questions_are_answered_in_batches_where_asked_for() -> None:
    actor = Batching(delay=0.05)
    with background(PolicyServer(actor, TOY, ServeConfig(port=0, batch=4))) as running:

        def work(client: int) -> None:
            with RemotePolicy(running.address, TOY, timeout=20) as remote:
                for n in range(4):
                    seen = observe(client * 10 + n)
                    np.testing.assert_array_equal(remote.act(seen).positions, expected(seen).positions)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
    assert 2 <= max(actor.sizes) <= 4
    with pytest.raises(ServerError, match="one observation at a time"):
        PolicyServer(Echo(), TOY, ServeConfig(port=0, batch=2))


def test_a_slow_policy_is_a_timeout_and_bad_health() -> None:
    with background(PolicyServer(Echo(delay=0.6), TOY, ServeConfig(port=0, answer_timeout=0.1, grace=1.0))) as running:
        with RemotePolicy(running.address, TOY) as remote, pytest.raises(ServerError, match="Timeout"):
            remote.act(observe())
        time.sleep(0.1)
        assert http(running, "/healthz")[0] == 503
        time.sleep(0.6)
        assert http(running, "/healthz")[0] == 200


def test_a_failing_policy_is_named_and_the_next_question_is_answered() -> None:
    actor = Echo()
    with background(PolicyServer(actor, TOY)) as running, RemotePolicy(running.address, TOY) as remote:
        actor.failing = True
        with pytest.raises(ServerError, match="ModelError: the weights are gone"):
            remote.act(observe())
        with pytest.raises(InvalidObservation, match="instruction"):
            remote.act(observe(instruction=""))
        actor.failing = False
        remote.act(observe())


TOKEN = "correct horse battery"


def test_a_token_is_needed_where_one_is_set() -> None:
    with background(PolicyServer(Echo(), TOY, ServeConfig(port=0, token=TOKEN))) as running:
        with RemotePolicy(running.address, TOY, token=TOKEN) as remote:
            remote.act(observe())
        for wrong in ("", "correct horse batterx", TOKEN + "x"):
            with pytest.raises(ServerError, match="401"):
                RemotePolicy(running.address, TOY, token=wrong).connect()
        payload = {"image": IMAGE, "instruction": "go", "state": np.zeros(3)}
        assert http(running, "/act", payload)[0] == 401
        assert http(running, "/act", payload, {"Authorization": f"Bearer {TOKEN}"})[0] == 200
        assert http(running, "/metrics")[0] == 401
        assert http(running, "/healthz")[0] == 200
    assert TOKEN not in repr(running.config)


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison of a token goes through `hmac.compare_digest`, right and wrong ones alike."""
    compared: list[tuple[bytes, bytes]] = []
    plain = hmac.compare_digest

    def watched(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return plain(given, right)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    with background(PolicyServer(Echo(), TOY, ServeConfig(port=0, token=TOKEN))) as running:
        for given, status in ((TOKEN, 200), ("wrong horse battery", 401)):
            assert http(running, "/metadata", headers={"Authorization": f"Bearer {given}"})[0] == status
    assert [given for given, _ in compared] == [TOKEN.encode(), b"wrong horse battery"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "0.0.0.0"},
        {"token": "short"},
        {"port": 70000},
        {"certificate": "x.pem"},
        {"max_waiting": 0},
        {"rate_limit": 0.0},
    ],
)
def test_the_configuration_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ServerError):
        ServeConfig(**wrong)


def test_tls(tmp_path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is not there to make a certificate")
    config = ServeConfig(port=0, certificate=str(cert), key=str(key))
    with background(PolicyServer(Echo(), TOY, config)) as running:
        with RemotePolicy(running.address, TOY, certificate=str(cert)) as remote:
            np.testing.assert_array_equal(remote.act(observe(1)).positions, expected(observe(1)).positions)
        with pytest.raises(ServerError, match="certificate"):
            RemotePolicy(running.address, TOY).connect()  # signed by nobody it knows
        with pytest.raises(ServerError):
            RemotePolicy(running.address.replace("wss", "ws"), TOY, timeout=1).connect()
    cert.write_text("nonsense")
    with pytest.raises(ServerError, match="certificate"):
        PolicyServer(Echo(), TOY, config)
    assert ssl.HAS_TLSv1_2


def test_a_taken_port_is_a_sentence(server: PolicyServer) -> None:
    with (
        pytest.raises(ServerError, match=f"{server.port}"),
        background(PolicyServer(Echo(), TOY, ServeConfig(port=server.port))),
    ):
        pass


def test_shutdown_answers_what_was_asked() -> None:
    answers: list[Any] = []
    with background(PolicyServer(Echo(delay=0.5), TOY, ServeConfig(port=0, grace=5.0))) as running:
        remote, idle = RemotePolicy(running.address, TOY), RemotePolicy(running.address, TOY)
        idle.connect()
        thread = threading.Thread(target=lambda: answers.append(remote.act(observe(6))))
        thread.start()
        time.sleep(0.2)
    thread.join(5)
    np.testing.assert_array_equal(answers[0].positions, expected(observe(6)).positions)
    with pytest.raises(ServerError, match="refused|1001|closed"):
        idle.act(observe())


def test_the_client_reconnects_and_keeps_its_deadline(toy: Embodiment) -> None:
    with background(PolicyServer(Echo(), TOY)) as first:
        port = first.port
        remote = RemotePolicy(first.address, TOY, timeout=1.0)
        remote.act(observe())
    with pytest.raises(ServerError):
        remote.act(observe())
    with background(PolicyServer(Echo(), TOY, ServeConfig(port=port))):
        remote.act(observe())
        assert remote.reconnects == 1
    remote.close()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and says nothing
        mute = RemotePolicy(f"ws://127.0.0.1:{silent.getsockname()[1]}", TOY, timeout=0.3)
        began = time.monotonic()
        with pytest.raises(ServerError):
            mute.act(observe())
        assert time.monotonic() - began < 2.0


def test_the_client_refuses_a_server_of_another_robot(server: PolicyServer) -> None:
    with pytest.raises(ServerError, match=r"drives 'toy'.*'athena'"):
        RemotePolicy(server.address, embodiment.load("athena")).connect()
    for address in ("127.0.0.1:8000", "http://127.0.0.1"):
        with pytest.raises(ServerError, match="ws://"):
            RemotePolicy(address, TOY)


def test_a_lying_server_is_found_out() -> None:
    """Answers that are no chunk, of the wrong width, for another question, or no numbers."""
    from websockets.sync.server import serve

    good = {"actions": np.zeros((4, 3)), "request_id": 1}
    lies: list[Any] = [
        b"\xc1",
        pack({"hello": 1}),
        pack(good | {"actions": np.zeros((4, 2))}),
        pack(good | {"actions": np.zeros((0, 3))}),
        pack(good | {"actions": np.zeros((4, 3), dtype=np.int64)}),
        pack(good | {"request_id": 7}),
        "error",
        '{"error": {"type": "Busy", "message": "later"}}',
    ]
    metadata = {"embodiment_hash": TOY.hash, "action_names": list(TOY.joint_names), "dt": 0.1}

    def handler(connection: Any) -> None:
        connection.send(pack(metadata))
        try:
            connection.recv()
            connection.send(lies[0])
        except ConnectionClosed:
            pass

    with serve(handler, "127.0.0.1", 0) as liar:
        threading.Thread(target=liar.serve_forever, daemon=True).start()
        address = f"ws://127.0.0.1:{liar.socket.getsockname()[1]}"
        while lies:
            with pytest.raises(ServerError), RemotePolicy(address, TOY, timeout=2) as remote:
                remote.act(observe())
            lies.pop(0)
        liar.shutdown()


def test_the_robot_side_never_imports_torch() -> None:
    code = (
        "import sys, athena_vla.wire.server, athena_vla.wire.client, athena_vla.control.runtime;"
        "heavy = {'torch', 'transformers', 'mujoco', 'rclpy', 'scipy', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
