"""The client of a policy server where everything fails: deadlines hold, nothing is left behind or forwarded."""

import gc
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from athena_vla.embodiment import Observation
from athena_vla.errors import ServerError
from athena_vla.wire import client_socket
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.serve_config import ServeConfig
from athena_vla.wire.server import PolicyServer, background
from echo_policy import TOY, Echo, expected, observe
from wire_faults import FAILING, introduce, scripted

DESCRIPTORS = Path("/proc/self/fd")
CI, ALL = 12, 560  # failures of each sort; 560 of each of 18 sorts are more than 10,000


def held() -> tuple[int, int]:
    gc.collect()
    return threading.active_count(), len(os.listdir(DESCRIPTORS))


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="this system does not list a process's descriptors")
@pytest.mark.parametrize("count", [CI, pytest.param(ALL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sort", FAILING)
def test_failures_leave_no_thread_and_no_descriptor(sort: str, count: int) -> None:
    timeout = 0.05
    with scripted(FAILING[sort]) as address:
        remote = RemotePolicy(address, TOY, timeout=timeout)
        before, longest = (0, 0), 0.0
        for n in range(count):
            began = time.perf_counter()
            with pytest.raises(ServerError, match=address):
                remote.act(observe())
            longest = max(longest, time.perf_counter() - began)
            if n == 4:
                before = held()
        after = held()
        remote.close()
    assert after[0] == before[0]
    assert abs(after[1] - before[1]) <= 3  # the script holds up to three connections
    assert longest < timeout + 1.0  # of a busy machine


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="this system does not list a process's descriptors")
@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_after_any_number_of_refused_busy_and_failed_questions_the_next_is_answered(count: int) -> None:
    actor = Echo()
    with background(PolicyServer(actor, TOY)) as server:
        with RemotePolicy(server.address, TOY) as remote:
            remote.act(observe())
            before = held()
            for kind in ("the weights are gone", "instruction"):
                actor.failing = kind != "instruction"
                for _ in range(count):
                    with pytest.raises(Exception, match=kind):
                        remote.act(observe(instruction="push" if actor.failing else " "))
            actor.failing = False
            assert held() == before
            np.testing.assert_array_equal(remote.act(observe(1)).positions, expected(observe(1)).positions)
            assert remote.reconnects == 0  # an error is an answer: the connection stays
        port = server.port
    refused = RemotePolicy(f"ws://127.0.0.1:{port}", TOY, timeout=0.2)
    before = held()
    for _ in range(count):
        with pytest.raises(ServerError, match="refused"):
            refused.act(observe())
    assert held() == before


def test_sending_has_a_deadline_too() -> None:
    """A server that takes the handshake and never reads again, while 40 MB are on their way to it."""
    seen = Observation({"front": np.zeros((3600, 3700, 3), np.uint8)}, TOY.default, "go")
    with scripted(introduce) as address, RemotePolicy(address, TOY, timeout=0.4) as remote:
        began = time.perf_counter()
        with pytest.raises(ServerError, match="no answer within 0.4 s"):
            remote.act(seen)
        assert 0.35 < time.perf_counter() - began < 1.5


def test_a_second_thread_waits_no_longer_than_its_own_deadline() -> None:
    with background(PolicyServer(Echo(delay=1.5), TOY)) as server, RemotePolicy(server.address, TOY) as remote:
        first = threading.Thread(target=remote.act, args=(observe(),))
        first.start()
        time.sleep(0.2)
        remote._timeout = 0.3
        began = time.perf_counter()
        with pytest.raises(ServerError, match="another thread's question took 0.3 s"):
            remote.act(observe())
        assert time.perf_counter() - began < 1.0
        first.join()


def test_closing_ends_a_question_that_another_thread_waits_for() -> None:
    problems: list[Exception] = []
    with scripted(FAILING["no answer"]) as address:
        remote = RemotePolicy(address, TOY, timeout=20)

        def ask() -> None:
            try:
                remote.act(observe())
            except ServerError as problem:
                problems.append(problem)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.3)
        began = time.perf_counter()
        remote.close()
        thread.join(5)
        assert time.perf_counter() - began < 2.0
    assert len(problems) == 1


def test_a_name_server_that_never_answers_costs_the_deadline_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    real = socket.getaddrinfo

    def stuck(host: str, port: int, *rest: int, **more: int) -> object:
        if more.get("flags") == socket.AI_NUMERICHOST:
            return real(host, port, *rest, **more)
        answer.wait(10)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(client_socket.socket, "getaddrinfo", stuck)
    remote = RemotePolicy("ws://robot.invalid:8000", TOY, timeout=0.1)
    threads = threading.active_count()
    for _ in range(5):
        began = time.perf_counter()
        with pytest.raises(ServerError, match="no answer within 0.1 s"):
            remote.act(observe())
        assert time.perf_counter() - began < 1.0
    assert threading.active_count() == threads + 1
    answer.set()
    time.sleep(0.1)
    assert threading.active_count() == threads
    monkeypatch.undo()


def test_no_redirect_is_followed_and_no_token_leaves() -> None:
    with scripted(FAILING["redirects"]) as address:
        remote = RemotePolicy(address, TOY, token="a token of the robot", timeout=1)
        with pytest.raises(ServerError, match=r"302.*points to 'ws://127.0.0.2:1/'"):
            remote.act(observe())
    assert "a token" not in repr(vars(remote).get("metadata"))


def test_what_came_while_nobody_asked_is_taken_in_before_the_next_question() -> None:
    """Pings are answered; a connection that ended, or that holds an answer nobody asked for, is replaced."""
    config = ServeConfig(port=0, ping_interval=0.1, ping_timeout=0.3)
    with background(PolicyServer(Echo(), TOY, config)) as server, RemotePolicy(server.address, TOY) as remote:
        remote.act(observe())
        time.sleep(0.2)  # pinged, and not late yet
        remote.act(observe())
        assert remote.reconnects == 0
        time.sleep(0.8)  # given up by the server
        np.testing.assert_array_equal(remote.act(observe(2)).positions, expected(observe(2)).positions)
        assert remote.reconnects == 1


@pytest.mark.parametrize(
    "address", ["ws://", "ws://host:port", "ws://host:99999", "ws:///x", "wss://[::1", "ws://a b:1", "127.0.0.1:8000"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ServerError, match="is not an address|not found|no answer"):
        RemotePolicy(address, TOY, timeout=0.5).connect()


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHENA_TOKEN", "correct horse battery")
    with background(PolicyServer(Echo(), TOY)) as server:
        assert server.config.token == "correct horse battery"
        with RemotePolicy(server.address, TOY) as remote:
            remote.act(observe())
        with pytest.raises(ServerError, match="401.*ATHENA_TOKEN"):
            RemotePolicy(server.address, TOY, token="").connect()
    ServeConfig(host="0.0.0.0")  # the token is there
    monkeypatch.delenv("ATHENA_TOKEN")
    with pytest.raises(ServerError, match="environment variable ATHENA_TOKEN"):
        ServeConfig(host="0.0.0.0")
