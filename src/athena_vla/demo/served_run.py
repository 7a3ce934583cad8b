"""A deployed policy in a process of its own, asked over a socket by the simulated robot, behind the safety filter.

The same `athena serve` that a robot's computer runs; the port is free and local, the process is stopped at the end.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import athena_vla.embodiment as embodiment
from athena_vla.control.runtime import RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.demo.run import Run
from athena_vla.errors import ServerError
from athena_vla.evaluate.rollout import Timed
from athena_vla.evaluate.violations import count_violations
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.tasks import sample_scene
from athena_vla.wire.client import RemotePolicy

START_TIMEOUT = 90.0  # [s] torch and ONNX Runtime load on a slow disk
ADDRESS = re.compile(r"wss?://[^\s]+")


@contextmanager
def server(bundle: Path, log: Path) -> Iterator[str]:
    """`athena serve` on a free local port; yields its address. Raises `ServerError` with the server's last words."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "athena_vla.cli", "serve", str(bundle), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            found = ADDRESS.search(log.read_text())
            if found:
                break
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text().strip()[-600:] or "nothing"
                raise ServerError(f"The policy server for '{bundle}' did not start. It said: {said}")
            time.sleep(0.1)
        yield found.group().rstrip(".,;")
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve_one_episode(run: Run, name: str) -> dict[str, Any]:
    """Play the first test scene with an object, driven by the run's bundle `name`.

    Raises `ServerError` when the server does not answer.
    """
    robot = embodiment.load(run.setup.robot)
    first = run.config.seed * 1_000_000
    number = next(s for s in range(first, first + 1000) if sample_scene(s, run.setup.split).target is not None)
    scene = sample_scene(number, run.setup.split)
    sim = SimRobot(scene, robot, run.setup.renderer, run.setup.image_size)
    guard = SafetyFilter(robot)
    config = RuntimeConfig(replan_every=run.setup.replan_every, owners=run.setup.owners, latch=False)
    with server(run.bundle(name), run.folder / "serve.log") as address, RemotePolicy(address, robot) as remote:
        told = remote.connect()
        actor = Timed(remote)
        trace = run_episode(sim, actor, guard, duration=run.setup.duration, config=config, until=sim.is_over)
    columns = robot.command_columns
    start = np.clip(robot.command_of(trace.states[0]), columns.lower, columns.upper)
    violations = count_violations(trace.commands, start, robot).total
    return {
        "address": re.sub(r":\d+", "", address),  # the port differs from run to run
        "scene": number,
        "instruction": scene.instruction,
        "success": sim.success(),
        "asked": actor.calls,
        "median_seconds": float(np.median(trace.latencies)),
        "p95_seconds": float(np.quantile(trace.latencies, 0.95)),
        "commands": len(trace.commands),
        "touched": trace.touched_steps,
        "violations": violations,
        "errors": list(trace.errors),
        "server": {k: told[k] for k in sorted(told) if isinstance(told[k], str | int | float)},
    }
