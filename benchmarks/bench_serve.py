"""The policy server under load and under attack: lost or mixed-up answers, latency, memory, fuzzed messages.

    python benchmarks/bench_serve.py                                  # writes benchmarks/serve.json
    python benchmarks/bench_serve.py --requests 800 --fuzz 2000       # a quick look

The server runs in a process of its own with a policy that answers at once, so the figures are those of the protocol,
the line and the codec; every answer is computed from its question, so one that belongs to somebody else is seen.
"""

import argparse
import contextlib
import json
import multiprocessing
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import connect

from athena_vla import __version__, embodiment
from athena_vla.bench.facts import device_facts
from athena_vla.embodiment import ActionChunk, Observation
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.codec import pack
from athena_vla.wire.server import PolicyServer, serve
from athena_vla.wire.service import ServeConfig

ROBOT = embodiment.load("athena")
IMAGE = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)


def answer(observation: Observation) -> np.ndarray:
    rows = observation.state[ROBOT.action_index] + len(observation.instruction)
    return rows + np.arange(16)[:, None] * 0.01


class Instant:
    def act(self, observation: Observation) -> ActionChunk:
        return ActionChunk(answer(observation), ROBOT.action_joints, 1 / ROBOT.control_hz, observation.time)


def server_process(pipe: Any) -> None:
    config = ServeConfig(port=0, rate_limit=1e6, message_timeout=5.0, head_timeout=5.0)
    serve(PolicyServer(Instant(), ROBOT, config), pipe.send)


def memory_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def load(address: str, requests: int, clients: int, pid: int) -> dict[str, Any]:
    latencies: list[float] = []
    memory: list[float] = []
    wrong, lost = [0] * clients, [0] * clients
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            memory.append(round(memory_mib(pid), 1))

    def work(client: int) -> None:
        rng = np.random.default_rng(client)
        with RemotePolicy(address, ROBOT, timeout=60) as remote:
            for n in range(requests // clients):
                seen = Observation({"head": IMAGE}, rng.normal(size=23), "x" * (client * 50 + n % 50 + 1), float(n))
                began = time.perf_counter()
                try:
                    chunk = remote.act(seen)
                except Exception:
                    lost[client] += 1
                    continue
                latencies.append(time.perf_counter() - began)
                wrong[client] += not np.array_equal(chunk.positions, answer(seen))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    milliseconds = np.array(latencies) * 1e3
    return {
        "clients": clients,
        "requests": requests // clients * clients,
        "answered": len(latencies),
        "lost": sum(lost),
        "wrong": sum(wrong),
        "message_bytes": IMAGE.nbytes,
        "per_second": round(len(latencies) / seconds, 1),
        "latency_ms": {f"p{p}": round(float(np.percentile(milliseconds, p)), 2) for p in (50, 95, 99)},
        "server_memory_mib": {"first": memory[0], "last": memory[-1], "most": max(memory)} if memory else {},
    }


def fuzz(address: str, messages: int) -> dict[str, Any]:
    """Random and damaged messages over websockets, while another client goes on asking."""
    rng = np.random.default_rng(7)
    small = np.zeros((24, 32, 3), np.uint8)
    right = {"observation/head": small, "observation/state": np.zeros(23), "prompt": "go", "request_id": 3}
    good = pack(right)
    wrong: tuple[dict[str, Any], ...] = (  # well-formed messages that are no observation
        {},
        {"prompt": "go"},
        right | {"observation/state": np.zeros(7)},
        right | {"observation/state": np.full(23, np.nan)},
        right | {"observation/head": small.astype(np.float32)},
        right | {"observation/head": small[..., :1]},
        right | {"prompt": 3},
        right | {"observation/elbow": small},
        right | {"observation/state": "zeros"},
    )
    wrong_messages, wrong_answered = [pack(w) for w in wrong], 0
    errors = answers = 0
    began = time.perf_counter()
    with connect(address, compression=None) as client:
        client.recv()
        for n in range(messages):
            if n % 2:
                message = bytearray(good)
                for place in rng.integers(0, 220, rng.integers(1, 6)):
                    message[place] = rng.integers(256)
                message = message[: rng.integers(1, len(message) + 1)] if n % 4 == 1 else message
            else:
                message = rng.integers(0, 256, rng.integers(0, 120)).astype(np.uint8).tobytes()
            client.send(bytes(message))
            reply = client.recv(timeout=60)
            if isinstance(reply, bytes):
                answers += 1
            else:
                errors += bool(json.loads(reply)["error"]["type"])
        for message in wrong_messages * 20:
            client.send(message)
            wrong_answered += isinstance(client.recv(timeout=60), bytes)
        client.send(good)
        still_usable = isinstance(client.recv(timeout=60), bytes)
    return {
        "messages": messages,
        "typed_errors": errors,
        "answered": answers,
        "unanswered": messages - errors - answers,
        "wrong_schemas": {"messages": 20 * len(wrong), "answered_with_actions": wrong_answered},
        "still_usable": still_usable,
        "seconds": round(time.perf_counter() - began, 1),
    }


def raw_attacks(port: int, count: int) -> dict[str, int]:
    """Random bytes, broken and half frames on fresh connections; counts what the server did with them."""
    rng = np.random.default_rng(9)
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    closed = 0
    for n in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
            junk = rng.integers(0, 256, rng.integers(1, 400)).astype(np.uint8).tobytes()
            try:
                if n % 3 == 2:  # half a frame: announces 65,535 bytes, sends a few, and goes
                    s.sendall(upgrade + b"\x82\xfe\xff\xff" + junk)
                else:
                    s.sendall((upgrade if n % 3 else b"") + junk + b"\r\n\r\n")
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
                closed += 1
            except ConnectionError:
                closed += 1
            except TimeoutError:
                pass
    return {"connections": count, "ended": closed}


def hostile_neighbours(address: str, port: int, pid: int) -> dict[str, Any]:
    """A client that announces and sends 1 GB, and slow ones, while a good client keeps asking."""
    before, most = memory_mib(pid), 0.0
    stop = threading.Event()
    sent = [0]

    def gigabyte(head: bytes) -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
                s.sendall(head)
                block = bytes(1 << 20)
                while sent[0] < 1 << 30 and not stop.is_set():
                    s.sendall(block)
                    sent[0] += len(block)
        except OSError:
            pass

    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(16)]
    threads = [
        threading.Thread(target=gigabyte, args=(b"POST /act HTTP/1.1\r\nContent-Length: 1073741824\r\n\r\n",)),
        threading.Thread(target=gigabyte, args=(b"POST /act HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",)),
    ]
    for thread in threads:
        thread.start()
    latencies = []
    end = time.monotonic() + 8.0
    with RemotePolicy(address, ROBOT, timeout=60) as remote:
        while time.monotonic() < end:
            for s in slow:
                with contextlib.suppress(OSError):
                    s.send(b"a")  # one byte of a head at a time
            seen = Observation({"head": IMAGE}, np.zeros(23), "go", 0.0)
            began = time.perf_counter()
            remote.act(seen)
            latencies.append((time.perf_counter() - began) * 1e3)
            most = max(most, memory_mib(pid))
            time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    cut = 0
    for s in slow:
        s.settimeout(2)
        try:
            while s.recv(4096):
                pass
            cut += 1
        except ConnectionError:
            cut += 1
        except TimeoutError:
            pass
        s.close()
    return {
        "good_answers": len(latencies),
        "good_latency_ms": {f"p{p}": round(float(np.percentile(latencies, p)), 2) for p in (50, 99)},
        "bytes_taken_of_two_gigabytes": sent[0],
        "slow_clients_cut_off": f"{cut} of {len(slow)}",
        "memory_mib": {"before": round(before, 1), "most": round(most, 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--fuzz", type=int, default=100_000, help="damaged messages on one connection")
    parser.add_argument("--raw", type=int, default=2000, help="connections that send junk")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "serve.json")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=server_process, args=(theirs,), daemon=True)
    process.start()
    assert process.pid is not None
    address = ours.recv()
    port = int(address.rsplit(":", 1)[1])
    result: dict[str, Any] = {
        "command": "python benchmarks/bench_serve.py",
        "what": "measured here",
        "version": __version__,
        "machine": device_facts(),
    }
    result["load"] = load(address, arguments.requests, arguments.clients, process.pid)
    print(result["load"], flush=True)
    result["neighbours"] = hostile_neighbours(address, port, process.pid)
    print(result["neighbours"], flush=True)
    result["raw"] = raw_attacks(port, arguments.raw)
    print(result["raw"], flush=True)
    result["fuzz"] = fuzz(address, arguments.fuzz)
    print(result["fuzz"], flush=True)
    result["after"] = load(address, arguments.clients * 25, arguments.clients, process.pid)
    result["memory_mib_at_the_end"] = round(memory_mib(process.pid), 1)
    began = time.perf_counter()
    process.terminate()
    process.join(20)
    result["shutdown"] = {"exit_code": process.exitcode, "seconds": round(time.perf_counter() - began, 2)}
    print(result["after"], result["memory_mib_at_the_end"], result["shutdown"])
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
