"""From a fault to standstill, by the wall clock: what happens to a robot when something around it fails.

    python benchmarks/bench_faults.py                 # writes benchmarks/faults.json

Athena at 200 Hz as a puppet that is where it was told to be, a policy in another process behind a socket, and a
witness at the driver that stamps every command. Each fault comes 1.5 s into a run in which the arms move; repeated.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla import __version__, embodiment
from athena_vla.bench.facts import device_facts
from athena_vla.control.runtime import LEVELS, Runtime, RuntimeConfig
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.server import PolicyServer, background

AT = 1.5  # [s] of the run at which the fault comes
LASTS = 6.0  # [s] of a run
HORIZON = 8  # rows of a chunk
PICTURE = (48, 64, 3)


class Swinging:
    """Moves the arms for ever, from wherever the clock of the observation is."""

    def __init__(self, body: Embodiment) -> None:
        self.body, self.arms = body, body.index(body.groups["arms"])

    def act(self, observation: Observation) -> ActionChunk:
        body = self.body
        t = observation.time + np.arange(1, HORIZON + 1) / body.control_hz
        rows = np.tile(body.default, (HORIZON, 1))
        room = 0.3 * np.minimum(body.upper - body.default, body.default - body.lower)[self.arms]
        rows[:, self.arms] += room * np.sin(2.0 * t)[:, None]
        return ActionChunk(rows[:, body.action_index], body.action_joints, 1 / body.control_hz, observation.time)


class Puppet:
    """Where it was told to be; the witness of stamps and commands, and the place where drivers fail."""

    def __init__(self, body: Embodiment) -> None:
        self.embodiment, self.q = body, body.default.copy()
        self.begun, self.shift = time.perf_counter(), 0.0
        self.stamps: list[float] = []
        self.commands: list[Array] = []
        self.spoil: Callable[[Observation], Observation] | None = None
        self.frozen: Observation | None = None

    @property
    def time(self) -> float:
        return time.perf_counter() - self.begun + self.shift

    def observe(self) -> Observation:
        if self.frozen is not None:
            return self.frozen
        images = {c: np.zeros(PICTURE, np.uint8) for c in self.embodiment.camera_names}
        seen = Observation(images, self.q.copy(), "swing", self.time)
        return seen if self.spoil is None else self.spoil(seen)

    def command(self, positions: Array) -> None:
        self.stamps.append(time.perf_counter())
        self.commands.append(positions.copy())
        self.q = positions.copy()


def unplugged(seen: Observation) -> Observation:
    raise OSError("camera unplugged")


def in_degrees(seen: Observation) -> Observation:
    return replace(seen, state=np.degrees(seen.state) + 300.0)


Fault = Callable[[Puppet, Runtime, subprocess.Popen[str]], object]


def freeze(robot: Puppet, runtime: Runtime, server: subprocess.Popen[str]) -> None:
    robot.frozen = robot.observe()


def spoiled(how: Callable[[Observation], Observation]) -> Fault:
    return lambda robot, runtime, server: setattr(robot, "spoil", how)


def shifted(by: float) -> Fault:
    return lambda robot, runtime, server: setattr(robot, "shift", by)


def suspend(robot: Puppet, runtime: Runtime, server: subprocess.Popen[str]) -> None:
    """Stop this process for 0.7 s, from a child that outlives the stop."""
    me = os.getpid()
    subprocess.Popen(["sh", "-c", f"kill -STOP {me}; sleep 0.7; kill -CONT {me}"])


FAULTS: dict[str, Fault] = {
    "policy server killed": lambda robot, runtime, server: server.kill(),
    "policy server frozen": lambda robot, runtime, server: server.send_signal(signal.SIGSTOP),
    "camera frozen": freeze,
    "camera unplugged": spoiled(unplugged),
    "state in other units": spoiled(in_degrees),
    "robot clock set ahead by an hour": shifted(3600.0),
    "robot clock set back by 10 s": shifted(-10.0),
    "loop suspended for 0.7 s": suspend,
    "emergency stop": lambda robot, runtime, server: runtime.stop("benchmark"),
    "Ctrl-C": lambda robot, runtime, server: os.kill(os.getpid(), signal.SIGINT),
}


def measure(name: str, body: Embodiment) -> dict[str, Any]:
    """One run with one fault: [s] to standstill, by the witness; levels in the order of their first use."""
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    moment: list[float] = []
    try:
        with RemotePolicy(address, body, timeout=1.0) as policy:
            policy.connect()
            robot = Puppet(body)
            runtime = Runtime(robot, policy, SafetyFilter(body), RuntimeConfig(replan_every=4))

            def strike() -> None:
                moment.append(time.perf_counter())
                FAULTS[name](robot, runtime, server)

            timer = threading.Timer(AT, strike)
            timer.start()
            with contextlib.suppress(KeyboardInterrupt):
                runtime.run(LASTS, real_time=True)
            timer.join()
    finally:
        server.kill()
        server.wait()
    trace = runtime.trace
    assert trace is not None
    stamps, commands = np.array(robot.stamps), np.array(robot.commands)
    after = stamps > moment[0]
    moving = np.abs(np.diff(commands, axis=0, prepend=commands[:1])).max(axis=1) > 1e-12
    stopped = (
        trace.ended_by != "duration" or any(e.kind in ("latched",) for e in trace.events) or name == "emergency stop"
    )
    last = stamps[after & moving]
    fell = trace.levels[: trace.braking_from][stamps[: trace.braking_from] > moment[0]]
    h = np.diff(stamps)[:, None]
    return {
        "fault": name,
        "standstill_s": round(float(last[-1] - moment[0]), 3) if stopped and len(last) else (0.0 if stopped else None),
        "levels": [LEVELS[k] for k in dict.fromkeys(fell.tolist())],
        "latched": any(e.kind == "latched" for e in trace.events),
        "longest_gap_ms": round(float(h.max() * 1e3), 1),
        "speed_over_limit": round(float((np.abs(np.diff(commands, axis=0)) / h / body.max_velocity).max()), 4),
        "first_error": trace.errors[0] if trace.errors else "",
    }


def serve() -> None:
    body = embodiment.load("athena")
    with background(PolicyServer(Swinging(body), body)) as server:
        print(server.address, flush=True)
        threading.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=sorted(FAULTS))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "faults.json")
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
    body = embodiment.load("athena")
    rows = []
    for name in [arguments.only] if arguments.only else FAULTS:
        for _ in range(arguments.repeats):
            rows.append(measure(name, body))
            print(rows[-1], flush=True)
    worst: dict[str, float | None] = {}
    for name in dict.fromkeys(r["fault"] for r in rows):
        times = [r["standstill_s"] for r in rows if r["fault"] == name]
        worst[name] = None if None in times else max(times)
    result = {
        "command": "python benchmarks/bench_faults.py",
        "what": "measured here",
        "version": __version__,
        "machine": device_facts(),
        "settings": {"robot": body.name, "chunk_s": HORIZON / body.control_hz, "replan_every": 4, "timeout_s": 1.0},
        "worst_standstill_s": worst,
        "runs": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
