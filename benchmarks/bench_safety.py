"""The safety filter under attack, and its cost: violations in ten million hostile steps, microseconds per step.

    python benchmarks/bench_safety.py                 # writes benchmarks/safety.json
    python benchmarks/bench_safety.py --steps 100000  # a quick look
    python benchmarks/bench_safety.py --only latency  # the times again, the attack's figures as they are

Many copies of a robot are stacked into one vector, so one call filters `copies` robot steps; joints do not interact
in the filter; faults of the whole vector (NaN, clock) hit all copies at once. Limits are checked on the outputs alone.
Latency is measured on the single robot; `cpu_us` is the time of this thread, which a busy machine does not distort.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla import __version__, embodiment
from athena_vla.bench.facts import device_facts
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Embodiment

ROBOTS = ("toy", "athena", "unitree_g1_23dof")
TOLERANCE = 1e-9


def stacked(robot: Embodiment, copies: int) -> Embodiment:
    joints = tuple(replace(j, name=f"{c}/{j.name}") for c in range(copies) for j in robot.joints)
    return replace(robot, joints=joints)


def attack(robot: Embodiment, copies: int, robot_steps: int, jerk: bool, seed: int) -> dict[str, Any]:
    """Every copy follows its own mix of hostile targets; returns the worst excess over each limit."""
    body = stacked(robot, copies)
    rng = np.random.default_rng(seed)
    guard = SafetyFilter(body, rate_hz=body.command_hz, jerk=jerk)
    q = rng.uniform(body.lower, body.upper)
    guard.reset(q)
    width, rate, dt = body.upper - body.lower, body.command_hz, 1.0 / body.command_hz
    v, a = np.zeros_like(q), np.zeros_like(q)
    target, period, phase = q.copy(), rng.integers(2, 90, len(q)), rng.integers(0, 90, len(q))
    worst: dict[str, float] = dict.fromkeys(("position", "velocity", "acceleration", "jerk", "stop"), -np.inf)
    violations, clock = 0, 0.0
    steps = -(-robot_steps // copies)
    begun = time.perf_counter()
    for k in range(steps):
        kind = (k // 64) % 6
        if kind == 0:  # random jumps, in and far out of range
            jump = rng.random(len(q)) < 0.05
            target = np.where(jump, body.lower + width * rng.uniform(-0.5, 1.5, len(q)), target)
        elif kind == 1:  # bang-bang with a period of its own for every joint
            target = np.where(((k + phase) // period) % 2 == 0, body.lower - 1.0, body.upper + 1.0)
        elif kind == 2:  # run at a limit and turn in the last moment
            near = body.upper - q < width * 0.1
            target = np.where(near & (rng.random(len(q)) < 0.3), body.lower, body.upper)
        elif kind == 3:  # chatter around the present command
            target = q + rng.normal(scale=2.0, size=len(q)) * body.max_velocity * dt
        elif kind == 4:  # huge, tiny and denormal
            target = rng.choice(np.array([1e308, -1e308, 1e16, 0.0, 5e-324, -1e-300]), len(q))
        else:  # poisoned, missing
            target = rng.uniform(body.lower, body.upper)
            if k % 7 == 0:
                target[rng.integers(len(q))] = rng.choice(np.array([np.nan, np.inf, -np.inf]))
        clock += dt * (1.0 if k % 50 else rng.choice(np.array([0.0, -5.0, 1e6, 1.0])))
        measured = None if k % 97 else q + rng.choice(np.array([0.0, 2.0, 1e12, np.nan]))
        out = guard.step(None if k % 211 == 0 else target, clock, measured)
        velocity = (out - q) * rate
        acceleration = (velocity - v) * rate
        # How far a stop with full braking, done step by step in closed form, would end outside the limits.
        units = np.abs(velocity) / (body.max_acceleration * dt)
        n = np.floor(units)
        end = out + np.sign(velocity) * (n * units - 0.5 * n * (n + 1)) * body.max_acceleration * dt * dt
        excess: dict[str, np.ndarray] = {
            "position": np.maximum(out - body.upper, body.lower - out),
            "velocity": np.abs(velocity) - body.max_velocity,
            "acceleration": np.abs(acceleration) - body.max_acceleration,
        }
        if jerk:
            excess["jerk"] = np.abs(acceleration - a) * rate - body.max_jerk
        else:  # with jerk limits the witness is the filter's own braking law, which the tests run to its end
            excess["stop"] = np.maximum(end - body.upper, body.lower - end)
        bad = np.zeros(len(q), dtype=bool)
        for name, value in excess.items():
            worst[name] = max(worst[name], float(value.max()))
            bad |= ~(value <= TOLERANCE)
        violations += int(bad.reshape(copies, -1).any(axis=1).sum())
        q, v, a = out, velocity, acceleration
    return {
        "robot": robot.name,
        "jerk": jerk,
        "copies": copies,
        "robot_steps": steps * copies,
        "joint_steps": steps * len(q),
        "violations": violations,
        "worst_excess": {k: x for k, x in worst.items() if np.isfinite(x)},
        "interventions": dict(guard.interventions),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def percentiles(samples: list[int]) -> dict[str, float]:
    shares = {f"p{p}": round(float(np.percentile(samples, p)) / 1e3, 2) for p in (50, 95, 99)}
    return shares | {"max": round(max(samples) / 1e3, 2)}


def latency(robot: Embodiment, steps: int, jerk: bool, hostile: bool) -> dict[str, Any]:
    """[us] per step, one robot."""
    rng = np.random.default_rng(1)
    guard = SafetyFilter(robot, rate_hz=robot.command_hz, jerk=jerk)
    t = np.arange(steps) / robot.command_hz
    middle, room = (robot.lower + robot.upper) / 2, (robot.upper - robot.lower) / 2
    targets = middle + 0.5 * room * np.sin(0.5 * t)[:, None]
    if hostile:
        targets = np.repeat(rng.uniform(robot.lower - 1, robot.upper + 1, (steps // 20 + 1, len(room))), 20, axis=0)
    guard.reset(middle)
    wall, cpu = [], []
    for k in range(steps):
        w, c = time.perf_counter_ns(), time.thread_time_ns()
        guard.step(targets[k], t[k])
        cpu.append(time.thread_time_ns() - c)
        wall.append(time.perf_counter_ns() - w)
    return {
        "robot": robot.name,
        "joints": len(robot.joints),
        "jerk": jerk,
        "hostile": hostile,
        "steps": steps,
        "wall_us": percentiles(wall),
        "cpu_us": percentiles(cpu),
    }


def chunk_latency(robot: Embodiment, rows: int, chunks: int, hostile: bool) -> dict[str, Any]:
    """[us] per step when the steps of one control period are filtered together."""
    rng = np.random.default_rng(2)
    guard = SafetyFilter(robot, rate_hz=robot.command_hz)
    middle, room = (robot.lower + robot.upper) / 2, (robot.upper - robot.lower) / 2
    guard.reset(middle)
    wall, cpu = [], []
    for n in range(chunks):
        t = (n * rows + np.arange(rows)) / robot.command_hz
        targets = middle + 0.5 * room * np.sin(0.5 * t)[:, None]
        if hostile:
            targets = np.repeat(rng.uniform(robot.lower - 1, robot.upper + 1, (1, len(room))), rows, axis=0)
        w, c = time.perf_counter_ns(), time.thread_time_ns()
        guard.chunk(targets, float(t[0]))
        cpu.append((time.thread_time_ns() - c) // rows)
        wall.append((time.perf_counter_ns() - w) // rows)
    return {
        "robot": robot.name,
        "rows": rows,
        "chunks": chunks,
        "hostile": hostile,
        "wall_us": percentiles(wall),
        "cpu_us": percentiles(cpu),
    }


def attacks(robots: list[Embodiment], arguments: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for jerk, total in ((False, arguments.steps), (True, arguments.jerk_steps)):
        for number, robot in enumerate(robots):
            share = total // 3 + (total % 3 if number == 0 else 0)
            rows.append(attack(robot, arguments.copies, share, jerk, seed=number))
            print(rows[-1], flush=True)
    return {
        "attack_machine": device_facts(),
        "robot_steps": sum(a["robot_steps"] for a in rows if not a["jerk"]),
        "violations": sum(a["violations"] for a in rows),
        "attacks": rows,
    }


def times(athena: Embodiment) -> dict[str, Any]:
    return {
        "machine": device_facts(),
        "latency": [latency(athena, 5000, jerk, hostile) for jerk in (False, True) for hostile in (False, True)],
        "chunk": [chunk_latency(athena, 20, 500, hostile) for hostile in (False, True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000, help="robot steps over the three robots")
    parser.add_argument("--jerk-steps", type=int, default=300_000, help="robot steps with the jerk stage on")
    parser.add_argument("--copies", type=int, default=64, help="copies of a robot in one vector")
    parser.add_argument("--only", choices=("attack", "latency"), help="measure one part and keep the other's figures")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "safety.json")
    arguments = parser.parse_args()
    robots = [embodiment.load(name) for name in ROBOTS]
    result: dict[str, Any] = {
        "command": "python benchmarks/bench_safety.py",
        "what": "measured here",
        "version": __version__,
    }
    if arguments.only:
        if not arguments.out.is_file():
            parser.error(f"--only keeps the other part's figures, and there is no '{arguments.out}' with them yet.")
        result = json.loads(arguments.out.read_text())
    if arguments.only != "latency":
        result |= attacks(robots, arguments)
    if arguments.only != "attack":
        result |= times(robots[1])
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in (*result["latency"], *result["chunk"]):
        print(row)
    print("violations:", result["violations"], "in", result["robot_steps"], "steps")


if __name__ == "__main__":
    main()
