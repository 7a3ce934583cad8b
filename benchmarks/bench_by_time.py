"""The promise by time, by an independent witness: simulated clocks with recorded jitter, and the wall clock.

    python benchmarks/bench_by_time.py                        # writes benchmarks/by_time.json
    python benchmarks/bench_by_time.py --steps 200000 --commands 2000

Simulated: many copies of a robot in one vector follow hostile targets while the intervals between commands are drawn
from jitter recorded on this machine, mixed with 0.1 to 50 ms and with suspensions of seconds. Wall clock: the control
loop drives a puppet with hostile chunks beside a thread that computes; the witness stamps at the driver.
"""

import argparse
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla import __version__, embodiment
from athena_vla.bench.facts import device_facts
from athena_vla.control.limits_by_time import SHORTEST
from athena_vla.control.run.pacing import ON_TIME, Pacer
from athena_vla.control.runtime import Runtime, RuntimeConfig
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation

L = np.longdouble
READ = 5e-6  # [s] between the loop's stamp and the witness's: a call and the reading of a clock
SHARE = 0.01  # of the velocity limit: the most that a witness's error may excuse


def recorded_jitter(period: float, count: int) -> Array:
    """Intervals of a loop that sleeps until its slot, on this machine as busy as it is. [s]"""
    pacer, stamps = Pacer(period), []
    for _ in range(count):
        pacer.wait()
        stamps.append(pacer.last)
    return np.diff(np.array(stamps))


def simulated(robot: Embodiment, copies: int, steps: int, jitter: Array, seed: int) -> dict[str, Any]:
    """Worst shares of the limits over `steps` robot steps, and how many steps exceeded one."""
    joints = tuple(replace(j, name=f"{c}/{j.name}") for c in range(copies) for j in robot.joints)
    body = replace(robot, joints=joints)
    rng = np.random.default_rng(seed)
    guard = SafetyFilter(body)
    q = rng.uniform(body.lower, body.upper)
    guard.reset(q, by_time=True)
    period = 1.0 / body.command_hz
    width, target = body.upper - body.lower, q.copy()
    v, before = np.zeros(len(q), dtype=L), L(period)
    worst, violations, count = {"velocity": 0.0, "acceleration": 0.0, "position": -np.inf}, 0, -(-steps // copies)
    phase, cycle = rng.integers(0, 90, len(q)), rng.integers(2, 90, len(q))
    for k in range(count):
        kind = rng.random()
        h = float(jitter[rng.integers(len(jitter))])
        if kind < 0.2:
            h = max(10 ** rng.uniform(-4, np.log10(0.05)), 1.001 * SHORTEST * period)
        elif kind < 0.201:
            h = rng.uniform(1, 10)
        if (k // 64) % 3 == 0:
            target = np.where(rng.random(len(q)) < 0.05, body.lower + width * rng.uniform(-0.5, 1.5, len(q)), target)
        elif (k // 64) % 3 == 1:
            target = np.where(((k + phase) // cycle) % 2 == 0, body.lower - 1.0, body.upper + 1.0)
        else:
            target = q + rng.normal(scale=2.0, size=len(q)) * body.max_velocity * period
        out = guard.step(None if k % 211 == 0 else target, k * period, elapsed=h)
        if k % 17 == 0:
            h += 10 ** rng.uniform(-4, -2)
            out = guard.retime(h)
        speed = (out.astype(L) - q.astype(L)) / L(h)
        change = np.abs(speed - v) / (0.5 * (before + L(h)))
        shares = {
            "velocity": np.abs(speed) / body.max_velocity,
            "acceleration": change / body.max_acceleration,
            "position": np.maximum(out - body.upper, body.lower - out),
        }
        bad = shares["position"] > 1e-9
        for name in ("velocity", "acceleration"):
            bad |= shares[name] > 1.0 + 1e-9
        for name, value in shares.items():
            worst[name] = max(worst[name], float(value.max()))
        violations += int(bad.reshape(copies, -1).any(axis=1).sum())
        q, v, before = out, speed, L(h)
    return {"robot": robot.name, "robot_steps": count * copies, "violations": violations, "worst": worst}


class Witness:
    """A puppet that stamps what reaches it."""

    def __init__(self, body: Embodiment) -> None:
        self.embodiment, self.q, self.begun = body, body.default.copy(), time.perf_counter()
        self.stamps: list[float] = []
        self.commands: list[Array] = []

    @property
    def time(self) -> float:
        return time.perf_counter() - self.begun

    def observe(self) -> Observation:
        images = {c: np.zeros((8, 8, 3), np.uint8) for c in self.embodiment.camera_names}
        return Observation(images, self.q, "wild", self.time)

    def command(self, positions: Array) -> None:
        self.stamps.append(time.perf_counter())
        self.commands.append(positions)
        self.q = positions


class Wild:
    """One limit after the other, as far as the joints go."""

    def __init__(self, body: Embodiment) -> None:
        self.body, self.calls = body, 0

    def act(self, observation: Observation) -> ActionChunk:
        self.calls += 1
        body = self.body
        rows = np.tile((body.upper if self.calls % 2 else body.lower)[body.action_index], (16, 1))
        return ActionChunk(rows, body.action_joints, 1 / body.control_hz, observation.time)


def by_the_wall(robot: Embodiment, commands: int) -> dict[str, Any]:
    """The loop as it drives a robot, with a thread that computes beside it."""
    done = threading.Event()

    def compute() -> None:
        while not done.is_set():
            sum(range(2000))
            time.sleep(0.001)

    busy = threading.Thread(target=compute)
    busy.start()
    witness = Witness(robot)
    config = RuntimeConfig(
        replan_every=2, owners=dict.fromkeys(robot.groups, "policy"), keep=commands / robot.command_hz
    )
    runtime = Runtime(witness, Wild(robot), SafetyFilter(robot, max_tracking_error=None), config)
    try:
        trace = runtime.run(commands / robot.command_hz, real_time=True)
    finally:
        done.set()
        busy.join()
    stamps, path = np.array(witness.stamps, dtype=L), np.array(witness.commands, dtype=L)
    h = np.diff(stamps)[:, None]
    speed = np.diff(path, axis=0) / h
    share = np.abs(speed) / robot.max_velocity
    beyond = (share > 1.0 + SHARE).any(axis=1)
    middle = 0.5 * (h[1:] + h[:-1])
    change = np.abs(np.diff(speed, axis=0)) / middle
    # What a stamp that is off by READ at both ends of both intervals, and a command late by ON_TIME, can make of it.
    error = (READ + ON_TIME) * 2 * (np.abs(speed[1:]) / h[1:] + np.abs(speed[:-1]) / h[:-1]) / middle
    hard = (change > robot.max_acceleration + error).any(axis=1)
    first = len(path) - len(trace.commands)
    known = np.ones(len(path), dtype=bool)
    known[[first + i for i in trace.interrupted]] = False  # the kernel took the processor away at the driver
    sure = known[1:] & known[:-1]
    return {
        "robot": robot.name,
        "rate_hz": robot.command_hz,
        "commands": len(path),
        "overruns": trace.overruns,
        "interrupted_at_the_driver": int((~known).sum()),
        "shortest_interval_ms": float(h.min() * 1e3),
        "longest_interval_ms": float(h.max() * 1e3),
        "velocity_share_worst": float(share.max()),
        "velocity_share_p9999": float(np.percentile(share.max(axis=1), 99.99)),
        "velocity_violations": int(beyond.sum()),
        "velocity_violations_where_known": int((beyond & sure).sum()),
        "acceleration_violations_where_known": int((hard & sure[1:] & sure[:-1]).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000, help="robot steps on simulated clocks")
    parser.add_argument("--commands", type=int, default=100_000, help="commands by the wall clock, for each robot")
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "by_time.json")
    arguments = parser.parse_args()
    athena, toy = embodiment.load("athena"), replace(embodiment.load("toy"), command_hz=1000.0)
    result: dict[str, Any] = {
        "command": "python benchmarks/bench_by_time.py",
        "what": "measured here",
        "version": __version__,
        "machine": device_facts(),
        "simulated": [],
        "wall_clock": [],
    }
    for number, robot in enumerate((athena, toy)):
        jitter = recorded_jitter(1.0 / robot.command_hz, 2000)
        row = simulated(robot, arguments.copies, arguments.steps // 2, jitter, number)
        row["recorded_ms"] = [round(float(np.percentile(jitter, p) * 1e3), 3) for p in (0, 50, 99, 100)]
        result["simulated"].append(row)
        print(row, flush=True)
    for robot in (athena, toy):
        result["wall_clock"].append(by_the_wall(robot, arguments.commands))
        print(result["wall_clock"][-1], flush=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
