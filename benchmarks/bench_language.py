"""Which options make a policy listen: each scene of the embedded simulator played with two instructions.

    python benchmarks/bench_language.py                      # every row and seed; hours of one core
    python benchmarks/bench_language.py --rows margin --seeds 0
    python benchmarks/bench_language.py --seconds 600        # stop after so long; the same command goes on

Rows differ in one choice each and train on the same recordings, in which every second episode shows the scene of the
one before and is told of another object; `single` has as many recordings of as many different scenes. What counts is
how many scenes are solved with both instructions, on scenes that no training saw. Everything that is finished is
reused, so the script can be stopped at any time. The first seed of every row comes before the second of any; the table
is written after every row, losers included, with the exact test against the reference on the same scenes and seeds.
"""

import dataclasses
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from athena_vla.bench.facts import device_facts
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.errors import UnknownName
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.closedloop import Store
from athena_vla.evaluate.instruction_pairs import PairConfig, instruction_pairs, paired_scenes
from athena_vla.evaluate.pair_summary import ENOUGH
from athena_vla.evaluate.results import Setup
from athena_vla.evaluate.statistics import paired_test, wilson
from athena_vla.finetune import PRESETS, finetune
from athena_vla.sim.record import RecordConfig, record


@dataclass(frozen=True)
class Row:
    """One choice."""

    choice: str
    changes: dict[str, Any]
    twins: bool = True  # recordings with two instructions in each scene


ROWS: dict[str, Row] = {
    "reference": Row("recordings of twins, drawn as they come", {}),
    "single": Row("as many recordings, each of a scene of its own", {}, twins=False),
    "pairs": Row("the twin of every second draw in the same batch", {"pair_instructions": True}),
    "margin_0.1": Row("margin of 0.1 to another instruction", {"language_margin": 0.1}),
    "margin_0.3": Row("margin of 0.3 to another instruction", {"language_margin": 0.3}),
    "pairs_margin_0.1": Row("both", {"pair_instructions": True, "language_margin": 0.1}),
    "single_margin_0.1": Row("a margin of 0.1 without twins", {"language_margin": 0.1}, twins=False),
}
PAIRED = list[tuple[bool, bool]]


@dataclass(frozen=True)
class LanguageConfig:
    work: Path = Path("runs/language")
    """Recordings, datasets, bundles and episodes; reused."""
    out: Path = Path("benchmarks/language.json")
    """Where the table goes."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which rows to run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Trainings per row."""
    steps: int = 600
    """Optimiser steps per training; 600 are the demo's."""
    pairs: int = ENOUGH
    """Scenes, each played with two instructions."""
    recordings: int = 400
    """Demonstrations to learn from."""
    scene_seed: int = 7
    """Which scenes are played; the demo's and `athena evaluate`'s are of seed 0."""
    workers: int = 1
    """Processes."""
    seconds: float = 0.0
    """[s] Start no further part after so long; 0 = no limit."""


def dataset(row: Row, config: LanguageConfig) -> Path:
    """The built set of a row."""
    name = f"{'twins' if row.twins else 'single'}_{config.recordings}"
    recordings, out = config.work / f"{name}_recordings", config.work / f"{name}_set"
    if not out.exists():
        record(
            RecordConfig(
                out=recordings, episodes=config.recordings, workers=config.workers, quiet=True, twins=row.twins
            )
        )
        build(BuildConfig(input=recordings, out=out, robot="athena", horizon=8, workers=config.workers))
    return out


def trained(name: str, seed: int, config: LanguageConfig) -> Path:
    """The bundle of a row and seed."""
    row, preset = ROWS[name], PRESETS["demo"]
    run = dataclasses.replace(
        preset,
        data=dataset(row, config),
        out=config.work / f"{name}_{config.recordings}_{config.steps}" / f"seed{seed}",
        max_steps=config.steps,
        warmup_steps=min(preset.warmup_steps, max(1, config.steps // 4)),
        evaluate_every=config.steps,
        seed=seed,
        tensorboard=False,
        progress=False,
        **row.changes,
    )
    if not (run.run_folder / "result.json").is_file():
        finetune(run)
    return run.out


def solved(name: str, seed: int, config: LanguageConfig) -> PAIRED:
    """Of each scene, whether it was solved with the one and with the other instruction."""
    actor = ActorSpec("tuned", source=str(trained(name, seed, config)))
    folder = config.work / f"{name}_{config.recordings}_{config.steps}" / f"seed{seed}.pairs"
    asked = PairConfig(
        out=folder, pairs=config.pairs, seed=config.scene_seed, workers=config.workers, setup=Setup(robot="athena")
    )
    instruction_pairs([actor], asked, "tuned")
    own, other = (Store(folder / part, actor, asked.setup).rows for part in ("own", "other"))
    return [(own[s].success, other[s].success) for s in paired_scenes(asked)]


def table(found: dict[str, dict[int, PAIRED]], config: LanguageConfig) -> dict[str, Any]:
    """Every row beside the first, on the seeds that both have."""
    first = next(iter(found))
    rows: dict[str, Any] = {}
    for name, seeds in found.items():
        every = [pair for seed in sorted(seeds) for pair in seeds[seed]]
        both = {seed: [a and b for a, b in pairs] for seed, pairs in seeds.items()}
        common = sorted(set(seeds) & set(found[first]))
        mine = [x for s in common for x in both[s]]
        theirs = [a and b for s in common for a, b in found[first][s]]
        rows[name] = {
            "choice": ROWS[name].choice,
            "changes": ROWS[name].changes,
            "seeds": sorted(seeds),
            "both": wilson(sum(a and b for a, b in every), len(every)).to_dict(),
            "own": wilson(sum(a for a, _ in every), len(every)).to_dict(),
            "other": wilson(sum(b for _, b in every), len(every)).to_dict(),
            "both_by_seed": {s: sum(both[s]) / len(both[s]) for s in sorted(seeds)},
            "against_first": None if name == first else asdict(paired_test(mine, theirs)),
        }
    whole = config.steps >= 600 and config.pairs >= ENOUGH and len(config.seeds) >= 3
    return {
        "what": "scenes solved with both of two instructions, closed loop on unseen scenes, measured here",
        "reduced": "" if whole else "fewer steps, pairs or seeds than the default: rows are not to be told apart by it",
        "settings": {k: getattr(config, k) for k in ("steps", "pairs", "recordings", "scene_seed")},
        "note": "intervals of several seeds pool scenes that the seeds share, and are too narrow for that",
        "command": " ".join(sys.argv),
        "machine": device_facts(),
        "rows": rows,
    }


def main(config: LanguageConfig) -> None:
    for name in config.rows:
        if name not in ROWS:
            raise UnknownName("row", name, ROWS)
    config.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    found: dict[str, dict[int, PAIRED]] = {}
    for seed in config.seeds:
        for name in config.rows:
            if 0 < config.seconds < time.monotonic() - started:
                print(f"Stopped after {config.seconds:g} s; the same command goes on.", flush=True)
                return
            pairs = solved(name, seed, config)
            found.setdefault(name, {})[seed] = pairs
            temporary = config.out.with_suffix(".tmp")
            temporary.write_text(json.dumps(table(found, config), indent=1) + "\n")
            temporary.replace(config.out)
            print(f"{name} seed {seed}: {sum(a and b for a, b in pairs)} of {len(pairs)} both", flush=True)


if __name__ == "__main__":
    main(tyro.cli(LanguageConfig))
