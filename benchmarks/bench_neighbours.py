"""One robot beside 64 hostile clients: server pinned to one core, all clients to another; the robot's latency.

    python benchmarks/bench_neighbours.py                  # writes the entry "hostile" of benchmarks/serve.json
    python benchmarks/bench_neighbours.py --seconds 5      # a quick look

The robot asks twice a second, as a chunk policy does, with an image of 640 x 480 and a deadline of one second. The
policy takes 50 ms of the server's core. Measured alone and beside the hostile clients, in turn, so that a busy machine
burdens both; hostile clients come from one address (the robot's own) and from one address each.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla import __version__, embodiment
from athena_vla.bench.facts import device_facts
from athena_vla.embodiment import ActionChunk, Observation
from athena_vla.errors import ServerError
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.codec import pack, to_json
from athena_vla.wire.serve_config import ServeConfig
from athena_vla.wire.server import PolicyServer, serve

ROBOT = embodiment.load("athena")
IMAGE = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
SERVER_CORE, CLIENT_CORE = 0, 1
HOSTILE = 64
DEADLINE = 1.0  # [s]
PERIOD = 0.5  # [s] between the robot's questions
MODEL_SECONDS = 0.05
PRIORITY = 10  # of server and robot, among real-time processes
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MASK = b"\x00\x00\x00\x00"
THIN = pack(
    {"observation/head": np.zeros((1, 3_000_000, 3), np.uint8), "observation/state": np.zeros(23), "prompt": "x"}
)
QUESTION = to_json({"image": np.zeros((48, 64, 3), np.uint8), "instruction": "x", "state": ROBOT.default}).encode()


class Busy:
    """Takes the processor, as a model does, and lets other threads in between."""

    def act(self, observation: Observation) -> ActionChunk:
        until = time.perf_counter() + MODEL_SECONDS
        matrix = np.ones((256, 256), np.float32)
        while time.perf_counter() < until:
            _ = matrix @ matrix
        rows = np.tile(observation.state[ROBOT.action_index], (16, 1))
        return ActionChunk(np.asarray(rows, np.float64), ROBOT.action_joints, 1 / ROBOT.control_hz, observation.time)


def go_first() -> None:
    """Before whatever else runs on this machine, where that is permitted: its load is not what is measured."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))


def server_process(pipe: Any) -> None:
    os.sched_setaffinity(0, {SERVER_CORE})
    go_first()
    serve(PolicyServer(Busy(), ROBOT, ServeConfig(port=0)), pipe.send)


# What hostile clients do, again and again until they are stopped


def frame(payload: bytes, first: int = 0x82) -> bytes:
    n = len(payload)
    head = (
        bytes([0x80 | n])
        if n < 126
        else b"\xfe" + n.to_bytes(2, "big")
        if n < 65536
        else b"\xff" + n.to_bytes(8, "big")
    )
    return bytes([first]) + head + MASK + payload


def idle(s: socket.socket) -> None:
    s.sendall(UPGRADE)
    while s.recv(65536):
        pass


def half_a_head(s: socket.socket) -> None:
    for byte in UPGRADE:
        s.sendall(bytes([byte]))
        time.sleep(0.05)


def slow_body(s: socket.socket) -> None:
    s.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        s.sendall(b"x" * 100)
        time.sleep(0.05)


def pings(s: socket.socket) -> None:
    s.sendall(UPGRADE)
    while True:
        s.sendall(frame(b"", 0x89) * 1000)


def continuations(s: socket.socket) -> None:
    s.sendall(UPGRADE + frame(b"x", 0x02))
    while True:
        s.sendall(frame(b"", 0x00) * 1000)


def junk(s: socket.socket) -> None:
    s.sendall(UPGRADE)
    while True:
        s.sendall(frame(os.urandom(random.randrange(1, 2000))))


def thin_pictures(s: socket.socket) -> None:
    s.sendall(UPGRADE)
    while True:
        s.sendall(frame(THIN))


def hang_up(s: socket.socket) -> None:
    s.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(QUESTION) + QUESTION)
    time.sleep(random.choice((0.0, 0.02)))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def connects(s: socket.socket) -> None:
    s.sendall(b"GET /nothing HTTP/1.1\r\n\r\n")


def large_bodies(s: socket.socket) -> None:
    s.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 16000000\r\n\r\n" + bytes(15_000_000))


KINDS: tuple[Callable[[socket.socket], None], ...] = (
    idle, half_a_head, slow_body, pings, continuations, junk, thin_pictures, hang_up, connects, large_bodies,
)  # fmt: skip


def hostile_process(port: int, number: int, one_address: bool, stop: Any) -> None:
    """Eight hostile clients, each a thread of its own kind."""
    os.sched_setaffinity(0, {CLIENT_CORE})
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # as others' computers do not slow the robot's

    def run(client: int) -> None:
        kind = KINDS[client % len(KINDS)]
        source = "127.0.0.1" if one_address else f"127.0.1.{client + 1}"
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.socket() as s:
                s.settimeout(2.0)
                s.bind((source, 0))
                s.connect(("127.0.0.1", port))
                kind(s)

    for client in range(8 * number, 8 * number + 8):
        threading.Thread(target=run, args=(client,), daemon=True).start()
    stop.wait()


def drive(remote: RemotePolicy, seconds: float) -> list[float | None]:
    """[s] from question to answer; None where the deadline was missed."""
    times: list[float | None] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        try:
            remote.act(Observation({"head": IMAGE}, ROBOT.default, "go", 0.0))
            times.append(time.perf_counter() - began)
        except ServerError as problem:
            print(problem, file=sys.stderr)
            times.append(None)
        time.sleep(max(0.0, PERIOD - (time.perf_counter() - began)))
    return times


def summary(times: list[float | None]) -> dict[str, Any]:
    answered = np.array([t for t in times if t is not None]) * 1e3
    if not len(answered):
        return {"questions": len(times), "missed": len(times), "p99": float("inf")}
    points = {f"p{p}": round(float(np.percentile(answered, p)), 1) for p in (50, 95, 99)}
    return {
        "questions": len(times),
        "missed": len(times) - len(answered),
        **points,
        "most": round(float(answered.max()), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "serve.json")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=server_process, args=(theirs,), daemon=True)
    server.start()
    address = ours.recv()
    port = int(address.rsplit(":", 1)[1])
    os.sched_setaffinity(0, {CLIENT_CORE})
    go_first()
    times: dict[str, list[float | None]] = {"alone": [], "beside_one_address": [], "beside_64_addresses": []}
    for _ in range(arguments.turns):
        for name, measured in times.items():
            stop = context.Event()
            remote = RemotePolicy(address, ROBOT, timeout=DEADLINE)
            drive(remote, 2 * PERIOD)  # at work before the others come
            processes = [
                context.Process(target=hostile_process, args=(port, n, name == "beside_one_address", stop), daemon=True)
                for n in range(0 if name == "alone" else HOSTILE // 8)
            ]
            for process in processes:
                process.start()
            drive(remote, 6.0 if processes else 1.0)  # while they start
            measured += drive(remote, arguments.seconds)
            stop.set()
            remote.close()
            time.sleep(2.0)  # what the hostile ones left is cleared away
            for process in processes:
                process.join(5)
                process.kill()
            print(name, summary(measured), flush=True)
    server.terminate()
    server.join(15)
    result = {name: summary(measured) for name, measured in times.items()}
    alone = result["alone"]["p99"]
    entry = {
        "command": "python benchmarks/bench_neighbours.py",
        "what": "measured here",
        "version": __version__,
        "machine": device_facts(),
        "server_and_robot_are_real_time": os.sched_getscheduler(0) == os.SCHED_FIFO,
        "cores": {"server": SERVER_CORE, "clients": CLIENT_CORE},
        "hostile_clients": HOSTILE,
        "kinds": [k.__name__ for k in KINDS],
        "deadline_ms": DEADLINE * 1e3,
        "model_ms": MODEL_SECONDS * 1e3,
        "latency_ms": result,
        "p99_over_alone": {k: round(v["p99"] / alone, 2) for k, v in result.items() if k != "alone"},
    }
    whole = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    arguments.out.write_text(json.dumps(whole | {"hostile": entry}, indent=1) + "\n")
    print(json.dumps(entry["p99_over_alone"]))


if __name__ == "__main__":
    main()
