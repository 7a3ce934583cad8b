"""Two channels from recording to closed loop: the robot on a rail, its task, and what that costs here.

    python benchmarks/bench_rail.py --out benchmarks/rail.json

80 demonstrations of one task (face the named object and kneel, by a yaw rate and a base height), 150 training steps on
the small base that ships, 120 unseen scenes with objects that training never kneels before. One training seed.
"""

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from athena_vla.bench.facts import device_facts
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.evaluate.commands import EvaluateConfig, Loop, evaluate
from athena_vla.finetune import PRESETS, finetune
from athena_vla.sim.record import RecordConfig, record


@dataclass(frozen=True)
class RailBenchConfig:
    out: Path = Path("benchmarks/rail.json")
    """Where the numbers go."""
    demonstrations: int = 80
    steps: int = 150
    scenes: int = 120


def main(config: RailBenchConfig) -> None:
    """Run all of it in a folder that is removed again."""
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        record(RecordConfig(out=folder / "rec", episodes=config.demonstrations, robot="athena_rail"))
        build(BuildConfig(input=folder / "rec", out=folder / "set", robot="athena_rail"))
        seconds["record and build"], began = time.perf_counter() - began, time.perf_counter()
        preset = replace(PRESETS["demo"], data=folder / "set", out=folder / "tuned", max_steps=config.steps)
        finetune(replace(preset, evaluate_every=config.steps, warmup_steps=config.steps // 5))
        seconds["train"], began = time.perf_counter() - began, time.perf_counter()
        loop = Loop(episodes=config.scenes)
        result = evaluate(EvaluateConfig(bundle=folder / "tuned", data=folder / "set", out=folder / "ev", loop=loop))
        seconds["evaluate"] = time.perf_counter() - began
    content = {
        "command": "python benchmarks/bench_rail.py",
        "kind": "measured_here",
        "machine": device_facts(),
        "demonstrations": config.demonstrations,
        "steps": config.steps,
        "scenes": config.scenes,
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "success": {k: v.success.to_dict() for k, v in result.closed.items()},
        "violations": {k: v.violations for k, v in result.closed.items()},
        "commands": {k: v.commands for k, v in result.closed.items()},
    }
    config.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["success"], indent=1))


if __name__ == "__main__":
    main(tyro.cli(RailBenchConfig))
