"""What the texts of segments do in training: the demo's recordings with and without them, three training seeds.

    python benchmarks/bench_segments.py --out benchmarks/segments.json

400 demonstrations, 600 steps each on the small base that ships, 210 unseen scenes of seed 7, of which the object tasks
are counted apart. Both sets rest on the same recordings and the same cached vision features. What is finished in
FOLDER is reused, so a run can be interrupted at any time.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from athena_vla.bench.facts import device_facts
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.closedloop import ClosedLoopConfig, closed_loop
from athena_vla.finetune import PRESETS, finetune
from athena_vla.sim.record import RecordConfig, record


@dataclass(frozen=True)
class SegmentsBenchConfig:
    out: Path = Path("benchmarks/segments.json")
    """Where the numbers go."""
    folder: Path = Path("runs/segments")
    """Recordings, sets, bundles and episodes."""
    demonstrations: int = 400
    steps: int = 600
    scenes: int = 210
    scene_seed: int = 7
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    workers: int = 1


def main(config: SegmentsBenchConfig) -> None:
    """Record, build twice, train and evaluate all; writes the table after every policy."""
    folder, began = config.folder, time.perf_counter()
    if not (folder / "rec").exists():
        record(RecordConfig(out=folder / "rec", episodes=config.demonstrations))
    rows = []
    for seed in config.seeds:
        for name, texts in (("without", False), ("with", True)):
            data, out = folder / f"set-{name}", folder / f"{name}-{seed}"
            if not data.exists():
                build(BuildConfig(input=folder / "rec", out=data, robot="athena", segment_texts=texts))
            preset = replace(PRESETS["demo"], data=data, out=out, max_steps=config.steps, seed=seed)
            finetune(replace(preset, progress=False))
            loop = ClosedLoopConfig(
                out=folder / "episodes", episodes=config.scenes, seed=config.scene_seed, workers=config.workers
            )
            actor = ActorSpec(f"{name}-{seed}", source=str(out))
            result = closed_loop([actor], loop).actors[actor.name]
            kept = ("success", "object_tasks", "per_task", "violations", "commands")
            found = result.to_dict()
            rows.append({"segments": texts, "seed": seed, **{k: found[k] for k in kept}})
            print(name, seed, result.success, result.object_tasks, f"{time.perf_counter() - began:.0f} s", flush=True)
            write(config, rows)


def write(config: SegmentsBenchConfig, rows: list[dict]) -> None:
    content = {
        "command": "python benchmarks/bench_segments.py",
        "kind": "measured_here",
        "machine": device_facts(),
        "demonstrations": config.demonstrations,
        "steps": config.steps,
        "scenes": config.scenes,
        "scene_seed": config.scene_seed,
        "rows": rows,
    }
    config.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(SegmentsBenchConfig))
