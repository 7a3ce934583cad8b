"""Looks at changes of the demo's recipe: training seed 0 on 420 scenes first, what looks best on three seeds after.

    python benchmarks/bench_looks.py SET --out benchmarks/looks.json

SET is a built set of the demo's recordings. Scenes of the looks are those of seed 0; the final rows play 210 scenes of
seed 7. What is in FOLDER already is not trained again, so a run can be interrupted at any time.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from athena_vla.bench.facts import device_facts
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.closedloop import ClosedLoopConfig, closed_loop
from athena_vla.finetune import PRESETS, finetune

STEPS = 600
NOISE, WIDE = {"state_noise": 0.15}, {"rank": 128, "alpha": 256.0}
LOOKS: dict[str, dict[str, Any]] = {
    "the demo's recipe": {},
    "noise of 0.15 on the state": NOISE,
    "noise of 0.08 on the state": {"state_noise": 0.08},
    "recordings drawn as they come": {"balance": False},
    "rank 128": WIDE,
    "rank 128, noise of 0.15": {**NOISE, **WIDE},
}
FINAL = ("the demo's recipe", "rank 128, noise of 0.15")


def played(data: Path, folder: Path, name: str, seed: int, scenes: int, scene_seed: int) -> dict[str, Any]:
    short = f"{list(LOOKS).index(name)}-{seed}"
    out = folder / short
    if not (out / "manifest.json").exists():
        recipe = replace(PRESETS["demo"], data=data, out=out, max_steps=STEPS, seed=seed, progress=False)
        finetune(replace(recipe, **LOOKS[name]))
    loop = ClosedLoopConfig(out=folder / f"episodes-{scene_seed}", episodes=scenes, seed=scene_seed, workers=1)
    found = closed_loop([ActorSpec(short, source=str(out))], loop).actors[short].to_dict()
    row = {"recipe": name, "seed": seed, **{k: found[k] for k in ("success", "object_tasks", "per_task")}}
    print(name, seed, found["success"], found["object_tasks"], flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/looks"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "looks.json")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "command": "python benchmarks/bench_looks.py SET",
        "kind": "measured_here",
        "machine": device_facts(),
        "steps": STEPS,
        "looks": [played(arguments.data, arguments.folder, name, 0, 420, 0) for name in LOOKS],
        "final": [played(arguments.data, arguments.folder, n, seed, 210, 7) for n in FINAL for seed in (0, 1, 2)],
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
