"""How fast the simulator records, how good its experts are, and what luck achieves: writes benchmarks/recorder.json.

Run: python benchmarks/bench_recorder.py [--episodes 84] [--scenes 210] [--out benchmarks/recorder.json]
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from athena_vla.bench.facts import device_facts
from athena_vla.sim.experts import Expert
from athena_vla.sim.grounding import render_grounding
from athena_vla.sim.record import RecordConfig, record
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.task_language import OBJECT_FAMILIES
from athena_vla.sim.tasks import sample_scene

SIZES = (64, 96, 128, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=84)
    parser.add_argument("--scenes", type=int, default=210)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/recorder.json"))
    chosen = parser.parse_args()
    result: dict[str, Any] = {
        "command": f"python benchmarks/bench_recorder.py --episodes {chosen.episodes} --scenes {chosen.scenes}",
        "kind": "measured here",
        "machine": {**device_facts(), "mujoco": mujoco.__version__},
        "renderer": renderer(),
        "recorder": [recorder(chosen.episodes, workers) for workers in (1, 2)],
        "grounding": grounding(),
        "experts": {split: experts(split, chosen.scenes) for split in ("train", "test", "base")},
        "experts_with_joint_error": {
            f"{size} rad": experts("test", chosen.scenes, error=size) for size in (0.01, 0.02, 0.03, 0.05)
        },
        "luck": luck(chosen.scenes // 2),
        "drift": drift(),
    }
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def renderer() -> dict[str, Any]:
    """Images per second of the ray caster alone, one core: wall clock and processor time."""
    scene = sample_scene(0, "train")
    robot = SimRobot(scene)
    found = {}
    for size in SIZES:
        robot.render("head", size, size)
        wall, cpu, count = time.perf_counter(), time.process_time(), 100
        for _ in range(count):
            robot.render("head", size, size)
        found[str(size)] = {
            "per_second": count / (time.perf_counter() - wall),
            "per_cpu_second": count / (time.process_time() - cpu),
        }
    return found


def recorder(episodes: int, workers: int) -> dict[str, Any]:
    """The whole recorder: physics, images, PNG, files; worker start included."""
    with tempfile.TemporaryDirectory() as folder:
        done = record(RecordConfig(out=Path(folder) / "r", episodes=episodes, workers=workers, quiet=True))
        size = sum(f.stat().st_size for f in done.path.rglob("*") if f.is_file())
    return {
        "workers": workers,
        "episodes": done.episodes,
        "frames": done.frames,
        "seconds": done.seconds,
        "frames_per_second": done.frames_per_second,
        "frames_per_episode": done.frames / done.episodes,
        "successes": done.successes,
        "failed_on_purpose": done.failed_on_purpose,
        "megabytes": size / 1e6,
    }


def grounding(count: int = 2048) -> dict[str, float]:
    started = time.perf_counter()
    scenes = sum(len(batch) for batch in render_grounding(count, workers=2))
    seconds = time.perf_counter() - started
    return {"scenes": scenes, "workers": 2, "seconds": seconds, "per_second": scenes / seconds}


def experts(split: Any, scenes: int, error: float = 0.0) -> dict[str, Any]:
    """Success of the demonstrators, with a constant random error in every joint where asked for."""
    robot = SimRobot(sample_scene(0, split), image_size=(8, 8))
    expert = Expert(robot.world)
    won: dict[str, list[bool]] = {}
    for seed in range(scenes):
        scene = sample_scene(seed, split)
        robot.reset(scene)
        plan = expert.plan(scene)
        offset = np.random.default_rng(seed).normal(0.0, error, robot.embodiment.state_dim)
        _act(robot, lambda t, p=plan, o=offset: p.at(t) + o * min(1.0, t), plan.duration)
        won.setdefault(scene.goal.family, []).append(robot.success())
    return _rates(won)


def luck(scenes: int) -> dict[str, Any]:
    """What needs no eyes or no ears, on the test split: still, mean pose, median pose of the task, another object."""
    robot = SimRobot(sample_scene(0, "test"), image_size=(8, 8))
    expert = Expert(robot.world)
    finals: dict[str, list[np.ndarray]] = {}
    for seed in range(140):
        scene = sample_scene(seed, "train")
        robot.reset(scene)
        finals.setdefault(scene.goal.family, []).append(expert.plan(scene).at(99.0))
    everything = np.mean([pose for poses in finals.values() for pose in poses], axis=0)
    median = {family: np.median(poses, axis=0) for family, poses in finals.items()}
    found: dict[str, Any] = {}
    for name in ("hold_still", "mean_pose", "median_pose_of_the_task", "the_same_motion_to_another_object"):
        won: dict[str, list[bool]] = {}
        for seed in range(scenes):
            scene = sample_scene(seed, "test")
            if name.startswith(("median", "the_same")) and scene.goal.family not in OBJECT_FAMILIES:
                continue
            robot.reset(scene)
            start = robot.world.joint_positions
            if name == "the_same_motion_to_another_object":
                assert scene.goal.target is not None
                plan = expert.plan(replace(scene, goal=replace(scene.goal, target=(scene.goal.target + 1) % 3)))
                _act(robot, plan.at, plan.duration)
            else:
                goal = {"hold_still": start, "mean_pose": everything}.get(name, median[scene.goal.family])
                _act(robot, lambda t, s=start, g=goal: s + (g - s) * min(1.0, t / 2.4), 4.0)
            won.setdefault(scene.goal.family, []).append(robot.success())
        found[name] = _rates(won)
    return found


def drift(seconds: float = 30.0) -> dict[str, float]:
    """Largest change of anything while the robot holds a pose. [rad or m]"""
    robot = SimRobot(sample_scene(1, "train"), image_size=(8, 8))
    before, pose = robot.world.data.qpos.copy(), robot.world.joint_positions
    for _ in range(int(seconds * robot.embodiment.command_hz)):
        robot.world.step(pose)
    return {"seconds": seconds, "largest": float(np.abs(robot.world.data.qpos - before).max())}


def _act(robot: SimRobot, target: Any, seconds: float) -> None:
    body = robot.embodiment
    while not robot.is_over() and robot.time < seconds:
        robot.command(np.clip(target(robot.time), body.lower, body.upper))


def _rates(won: dict[str, list[bool]]) -> dict[str, Any]:
    everything = [x for results in won.values() for x in results]
    return {
        "success": float(np.mean(everything)),
        "n": len(everything),
        "families": {family: {"success": float(np.mean(x)), "n": len(x)} for family, x in sorted(won.items())},
    }


if __name__ == "__main__":
    main()
