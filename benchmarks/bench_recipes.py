"""Which choices of a recipe help: rows of one changed choice each, on the embedded simulator, with seeds and intervals.

    python benchmarks/bench_recipes.py                       # every row and seed; about 90 minutes of one core
    python benchmarks/bench_recipes.py --rows rank_8 --seeds 0
    python benchmarks/bench_recipes.py --steps 0             # the preset's own number of steps

Everything goes through `athena record`, `athena data build` and `athena sweep`; what is finished is reused, so the
script can be stopped at any time and started again. The first seed of every row comes before the second of any; after
every training the table is written, losers included, with the paired difference to the first row on the same scenes.
The default is REDUCED: a third of the demo's optimiser steps (200), so that a row costs minutes; read rows against the
reference of the same table, not against the demo.
"""

import json
import re
import sys
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tyro

from athena_vla.bench.facts import device_facts
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.errors import UnknownName
from athena_vla.sim.record import RecordConfig, record
from athena_vla.sweep import SweepConfig, SweepRow, compared, sweep


@dataclass(frozen=True)
class Row:
    """One choice that differs from the reference."""

    choice: str
    variant: str = ""  # fields of FinetuneConfig, as `athena sweep --variants` takes them
    horizon: int = 8
    delta: tuple[str, ...] = ()  # joint groups whose targets are learned relative to the state


ROWS: dict[str, Row] = {
    "reference": Row("chunk of 8 rows, state input, no augmentation, absolute targets, rank 32, vision frozen"),
    "chunk_4": Row("chunk of 4 rows", horizon=4),
    "chunk_16": Row("chunk of 16 rows", horizon=16),
    "no_proprio": Row("no state input", "proprio=false"),
    "oft_head": Row("OFT's placeholders and L1 head on the same body", "family=openvla_oft"),
    "delta_arms": Row("arms and torso relative to the state", delta=("arms", "torso")),
    "augmented": Row("crops and colours, two fixed variants per picture", "augment=true"),
    "heads_only": Row("no adapter, the robot's heads only", "method=heads"),
    "rank_4": Row("rank 4, alpha 8", "rank=4,alpha=8"),
    "rank_128": Row("rank 128, alpha 256", "rank=128,alpha=256"),
    "state_noise_0": Row("no noise on the state input", "state_noise=0"),
    "state_noise_15": Row("noise of 0.15 instead of 0.02 on the state input", "state_noise=0.15"),
    "dora": Row("DoRA", "dora=true"),
    "unbalanced": Row("recordings drawn as they come, not by kind of task", "balance=false"),
    "vision_trained": Row("towers and projector train too", "vision=true,projector=true"),
}


@dataclass(frozen=True)
class RecipesConfig:
    work: Path = Path("runs/recipes")
    """Recordings, datasets and runs; reused."""
    out: Path = Path("benchmarks/recipes.json")
    """Where the table goes."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which rows to run."""
    seeds: tuple[int, ...] = (0, 1)
    """Trainings per row."""
    steps: int = 200
    """Optimiser steps per training; 0 is the preset's."""
    scenes: int = 105
    """Scenes per training, the same for every row."""
    recordings: int = 400
    """Demonstrations to learn from."""
    workers: int = 1
    """Processes."""


def dataset(row: Row, config: RecipesConfig) -> tuple[Path, str]:
    """The built set of this row, and the robot it is for."""
    recordings = config.work / "recordings"
    record(RecordConfig(out=recordings, episodes=config.recordings, workers=config.workers, quiet=True))
    robot = delta_robot(row.delta, config.work) if row.delta else "athena"
    out = config.work / f"set_h{row.horizon}{'_' + '_'.join(row.delta) if row.delta else ''}"
    if not out.exists():
        build(BuildConfig(input=recordings, out=out, robot=robot, horizon=row.horizon, workers=config.workers))
    return out, robot


def delta_robot(groups: tuple[str, ...], folder: Path) -> str:
    """athena's description with `mode = "delta"` for the joints of these groups."""
    text = (resources.files("athena_vla") / "robots" / "athena.toml").read_text()
    for group in groups:
        text, changed = re.subn(rf'^group = "{group}"$', f'group = "{group}"\nmode = "delta"', text, flags=re.M)
        if not changed:
            raise UnknownName("joint group of athena", group, sorted(set(re.findall(r'^group = "(\w+)"$', text, re.M))))
    path = folder / f"athena_delta_{'_'.join(groups)}.toml"
    path.write_text(text)
    return str(path)


def measure(name: str, seeds: tuple[int, ...], config: RecipesConfig) -> SweepRow:
    row = ROWS[name]
    data, robot = dataset(row, config)
    result = sweep(
        SweepConfig(
            out=config.work / "runs" / name,
            data=data,
            variants=(",".join(filter(None, (row.variant, "tensorboard=false,progress=false"))),),
            seeds=seeds,
            max_steps=config.steps,
            episodes=config.scenes,
            robot=robot,
            workers=config.workers,
        )
    )
    return result.rows[0]


def table(rows: dict[str, SweepRow], config: RecipesConfig) -> dict[str, Any]:
    """Every row beside the reference: the first of the rows that were run."""
    known = {name: rows[name] for name in ROWS if name in rows}
    tested = zip(known, compared(list(known.values())), strict=True)
    return {
        "what": "one changed choice per row, closed loop on unseen scenes, measured here",
        "reduced": f"{config.steps} optimiser steps (0: the preset's own), {config.recordings} recordings",
        "command": " ".join(sys.argv),
        "machine": device_facts(),
        "rows": {
            name: {"choice": ROWS[name].choice, "seeds": list(config.seeds[: len(row.solved)]), **asdict(row)}
            for name, row in tested
        },
    }


def main(config: RecipesConfig) -> None:
    for name in config.rows:
        if name not in ROWS:
            raise UnknownName("row", name, ROWS)
    config.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, SweepRow] = {}
    for count in range(1, 1 + len(config.seeds)):
        for name in config.rows:
            rows[name] = measure(name, config.seeds[:count], config)
            temporary = config.out.with_suffix(".tmp")
            temporary.write_text(json.dumps(table(rows, config), indent=1) + "\n")
            temporary.replace(config.out)
            print(name, config.seeds[:count], rows[name].success, flush=True)


if __name__ == "__main__":
    main(tyro.cli(RecipesConfig))
