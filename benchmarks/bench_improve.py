"""Corrections beside plain demonstrations: three rounds of `athena improve` in the embedded simulator, three seeds.

    python benchmarks/bench_improve.py                       # every seed and round; about three hours of one core
    python benchmarks/bench_improve.py --seeds 0 --rounds 1
    python benchmarks/bench_improve.py --seconds 600         # stop after so long; the same command goes on

Each seed starts with a policy from 100 demonstrations. Arm `corrections`: rounds of `athena improve` with the scripted
corrector. Arm `demonstrations`: as many rounds, each with whole demonstrations of as many expert-labelled control steps
as the corrections have by then, or up to one episode more. Both arms go through `athena improve`: same steps, replay
share and keeping rule; only the recordings differ. After every round the policy that was kept plays the same scenes of
the test split, which neither training nor keeping ever saw. What is finished is reused; a seed is finished before the
next one begins, and the table is written after every piece, whatever it says.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from athena_vla.bench.facts import device_facts
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.embodiment import load
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.closedloop import ClosedLoopConfig, closed_loop
from athena_vla.evaluate.results import Setup, driven_by_policy
from athena_vla.evaluate.statistics import paired_test, wilson
from athena_vla.finetune import PRESETS, finetune
from athena_vla.improve import ImproveConfig, RoundResult, improve
from athena_vla.sim.record import RecordConfig, record
from bench_precision import instruction_sets

ENOUGH = 200
MARGIN = ImproveConfig.margin  # [points]
TEST_SEED = 1_500  # its scenes are no seed's recordings (below 1,000) and none of a round (2,000 and more)
SECONDS = {"start": 300.0, "corrections": 500.0, "demonstrations": 420.0, "test": 130.0}  # first guess, one core
Arm = Literal["corrections", "demonstrations"]
ARMS: tuple[Arm, ...] = ("corrections", "demonstrations")
Solved = list[bool]
T = TypeVar("T")


@dataclass(frozen=True)
class ImproveBenchConfig:
    work: Path = Path("runs/improve_bench")
    """Recordings, sets, policies and episodes; reused."""
    out: Path = Path("benchmarks/improve.json")
    """Where the table goes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Repetitions, each with demonstrations, scenes and trainings of its own."""
    rounds: int = 3
    """Rounds of each arm."""
    scenes: int = 210
    """Scenes of the test, the same for every policy; each round is judged on as many others."""
    played: int = 60
    """Scenes that a round of corrections plays to learn from."""
    recordings: int = 100
    """Demonstrations of the first policy."""
    first_steps: int = 600
    """Optimiser steps of the first policy."""
    steps: int = 200
    """Optimiser steps of a round."""
    workers: int = 1
    """Processes."""
    seconds: float = 0.0
    """[s] Start no further piece after so long; 0 = no limit."""


@dataclass(frozen=True)
class Round:
    """What a round of an arm gave."""

    steps: int  # labelled by the expert, in all rounds until now
    kept: bool
    lost_margin: list[str]  # old tasks 5 points or more below, by the bare number: with --tasks observed a refusal
    policy: Path  # after the round

    @classmethod
    def of(cls, result: RoundResult, steps: int) -> "Round":
        lost = [t.task for t in result.decision.tasks if t.old and t.points <= -MARGIN]
        return cls(steps, result.decision.keep, lost, Path(result.kept))


@dataclass
class Seed:
    """One repetition, as far as it is."""

    number: int
    start: Solved
    rounds: dict[Arm, list[Round]]
    solved: dict[Arm, list[Solved]]  # by the policy after each round


class Clock:
    """Runs pieces, says what each took and what is left, and stops where the time that was given is over."""

    def __init__(self, config: ImproveBenchConfig) -> None:
        self._began, self._limit = time.monotonic(), config.seconds
        self._measured: dict[str, list[float]] = {}
        seeds, each = len(config.seeds), len(config.seeds) * config.rounds
        self._left = {"start": seeds, "corrections": each, "demonstrations": each, "test": seeds + 2 * each}

    def run(self, kind: str, what: str, done: bool, work: Callable[[], T]) -> T:
        """`done`: the piece is finished and only read, so it says nothing about how long one takes."""
        if not done and 0 < self._limit < time.monotonic() - self._began:
            raise TimeoutError
        began = time.monotonic()
        result = work()
        took = time.monotonic() - began
        self._left[kind] -= 1
        if not done:
            self._measured.setdefault(kind, []).append(took)
            print(f"{what}: {took:.0f} s; about {self.left / 60:.0f} min left", flush=True)
        return result

    @property
    def left(self) -> float:
        """[s]"""
        return sum(n * self._each(kind) for kind, n in self._left.items())

    def _each(self, kind: str) -> float:
        found = self._measured.get(kind)
        return sum(found) / len(found) if found else SECONDS[kind]


def first_policy(config: ImproveBenchConfig, folder: Path, seed: int) -> Path:
    """Demonstrations, their set and the policy trained on them."""
    recordings, data, out = folder / "recordings", folder / "set", folder / "start"
    record(
        RecordConfig(
            out=recordings, episodes=config.recordings, seed=seed, failures=0.0, workers=config.workers, quiet=True
        )
    )
    if not data.exists():
        build(BuildConfig(input=recordings, out=data, robot="athena", horizon=8, workers=config.workers))
    preset = PRESETS["demo"]
    run = dataclasses.replace(
        preset,
        data=data,
        out=out,
        max_steps=config.first_steps,
        warmup_steps=min(preset.warmup_steps, max(1, config.first_steps // 4)),
        evaluate_every=config.first_steps,
        seed=seed,
        tensorboard=False,
        progress=False,
    )
    if not (run.run_folder / "result.json").is_file():
        finetune(run)
    return out


def settings(config: ImproveBenchConfig, folder: Path) -> ImproveConfig:
    """What both arms share."""
    return ImproveConfig(
        bundle=folder / "start",
        data=folder / "set",
        out=folder / "corrections",
        scenes=config.played,
        test_scenes=config.scenes,
        steps=config.steps,
        task_scenes=0,  # both ways are judged on the same scenes
        workers=config.workers,
    )


def corrections(config: ImproveBenchConfig, folder: Path, seed: int, number: int) -> list[Round]:
    """The rounds until this one; those before are read. Fewer where a round found nothing to correct."""
    result = improve(dataclasses.replace(settings(config, folder), rounds=number, seed=seed))
    return [Round.of(r, r.all_steps) for r in result.rounds]


def demonstrations(config: ImproveBenchConfig, folder: Path, seed: int, number: int, policy: Path, steps: int) -> Round:
    """`athena improve` from this policy with plain demonstrations of at least so many control steps."""
    home = folder / "demonstrations" / f"round_{number}"
    found = demonstrated(home / "recordings", 100 + seed, steps, config.workers)
    own = 100 + 10 * seed + number  # of the scenes that judge: other ones in every round, as in the other arm
    result = improve(
        dataclasses.replace(
            settings(config, folder),
            bundle=policy,
            corrector=("recordings", str(home / "recordings")),
            out=home / "improve",
            seed=own,
        )
    )
    return Round.of(result.rounds[0], found)


def demonstrated(out: Path, seed: int, steps: int, workers: int) -> int:
    """Record demonstrations until they have so many control steps; how many they have."""
    episodes = frames = 0
    while frames < steps:
        episodes += max(1, int(0.7 * (steps - frames) / (frames / episodes if frames else 100.0)))
        made = record(RecordConfig(out=out, episodes=episodes, seed=seed, failures=0.0, workers=workers, quiet=True))
        frames = made.frames
    return frames


def tested(config: ImproveBenchConfig, policy: Path, out: Path) -> Solved:
    """Of each scene of the test, whether it was solved."""
    setup = Setup(robot="athena", replan_every=8, owners=driven_by_policy(load("athena")))
    asked = ClosedLoopConfig(out=out, episodes=config.scenes, seed=TEST_SEED, workers=config.workers, setup=setup)
    played = closed_loop([ActorSpec("policy", source=str(policy))], asked)
    won = played.successes("policy")
    return [won[s] for s in played.scenes]


def pieces(config: ImproveBenchConfig, clock: Clock, number: int) -> Iterator[Seed]:
    """One seed; after every piece what there is of it."""
    folder = config.work / f"seed_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    done = Marks(folder / "pieces.json")

    def piece(kind: str, name: str, work: Callable[[], T]) -> T:
        result = clock.run(kind, f"seed {number}, {name}", name in done, work)
        done.add(name)
        return result

    start = piece("start", "first policy", lambda: first_policy(config, folder, number))
    solved = piece("test", "test of the first policy", lambda: tested(config, start, folder / "tests" / "start"))
    seed = Seed(number, solved, {a: [] for a in ARMS}, {a: [] for a in ARMS})
    yield seed
    policy = start
    for n in range(1, config.rounds + 1):
        rounds = piece("corrections", f"corrections {n}", lambda n=n: corrections(config, folder, number, n))
        if len(rounds) < n:
            print(f"seed {number}: round {n} found nothing to correct", flush=True)
            return
        seed.rounds["corrections"] = rounds
        mine, want = rounds[-1].policy, rounds[-1].steps
        where = folder / "tests" / f"corrections_{n}"
        seed.solved["corrections"].append(
            piece("test", f"test of corrections {n}", lambda p=mine, w=where: tested(config, p, w))
        )
        yield seed
        made = piece(
            "demonstrations",
            f"demonstrations {n}",
            lambda n=n, p=policy, w=want: demonstrations(config, folder, number, n, p, w),
        )
        seed.rounds["demonstrations"].append(made)
        policy, where = made.policy, folder / "tests" / f"demonstrations_{n}"
        seed.solved["demonstrations"].append(
            piece("test", f"test of demonstrations {n}", lambda p=policy, w=where: tested(config, p, w))
        )
        yield seed


class Marks:
    """Names of finished pieces, on disk: they alone say what a run really did and what it only read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = json.loads(path.read_text()) if path.is_file() else []

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str) -> None:
        if name not in self._names:
            self._names.append(name)
            write(self._path, self._names)


def table(seeds: list[Seed], config: ImproveBenchConfig) -> dict[str, Any]:
    """Success by round, seed by seed and over all seeds that have the round in both arms."""
    whole = len(seeds) >= 3 and config.rounds >= 3 and config.scenes >= ENOUGH
    whole = whole and all(len(s.solved["demonstrations"]) == config.rounds for s in seeds)
    return {
        "what": "corrections beside demonstrations of as many expert-labelled steps, closed loop, measured here",
        "kind": "measured_here",
        "reduced": "" if whole else "not whole yet, or fewer seeds, rounds or scenes than the default",
        "note": "intervals of all seeds pool scenes that the seeds share, and are too narrow for that",
        "command": " ".join(sys.argv),
        "settings": {k: v for k, v in asdict(config).items() if k not in ("work", "out", "seconds", "workers")},
        "machine": {**device_facts(), "instruction_sets": instruction_sets()},
        "seeds": {str(s.number): of_seed(s) for s in seeds},
        "all": [pooled(seeds, n) for n in range(config.rounds + 1) if any(has(s, n) for s in seeds)],
    }


def beside(first: Solved, second: Solved) -> dict[str, Any]:
    return paired_test(first, second).to_dict()


def has(seed: Seed, number: int) -> bool:
    return number == 0 or all(len(seed.solved[a]) >= number for a in ARMS)


def of_seed(seed: Seed) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [{"round": 0, "start": wilson(sum(seed.start), len(seed.start)).to_dict()}]
    for n in range(len(seed.solved["corrections"])):
        row: dict[str, Any] = {"round": n + 1}
        for arm in ARMS:
            if n < len(seed.solved[arm]):
                won, made = seed.solved[arm][n], seed.rounds[arm][n]
                against = beside(won, seed.start)
                success = wilson(sum(won), len(won)).to_dict()
                facts = {"steps": made.steps, "kept": made.kept, "lost_margin": made.lost_margin}
                row[arm] = {**facts, "success": success, "against_start": against}
        if has(seed, n + 1):
            row["corrections_against_demonstrations"] = beside(
                seed.solved["corrections"][n], seed.solved["demonstrations"][n]
            )
        rows.append(row)
    return {"rounds": rows}


def pooled(seeds: list[Seed], number: int) -> dict[str, Any]:
    """All seeds that have this round."""
    there = [s for s in seeds if has(s, number)]
    row: dict[str, Any] = {"round": number, "seeds": [s.number for s in there]}
    if not number:
        start = [x for s in there for x in s.start]
        return {**row, "start": wilson(sum(start), len(start)).to_dict()}
    won = {a: [x for s in there for x in s.solved[a][number - 1]] for a in ARMS}
    for arm in ARMS:
        row[arm] = wilson(sum(won[arm]), len(won[arm])).to_dict()
    return {**row, "corrections_against_demonstrations": beside(won["corrections"], won["demonstrations"])}


def write(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def main(config: ImproveBenchConfig) -> None:
    config.work.mkdir(parents=True, exist_ok=True)
    clock = Clock(config)
    print(f"about {clock.left / 60:.0f} min of one core, before anything is measured or reused", flush=True)
    seeds: list[Seed] = []
    try:
        for number in config.seeds:
            for i, seed in enumerate(pieces(config, clock, number)):
                seeds = seeds if i else [*seeds, seed]
                write(config.out, table(seeds, config))
    except TimeoutError:
        print(f"Stopped after {config.seconds:g} s; the same command goes on.", flush=True)
        return
    for row in table(seeds, config)["all"]:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(tyro.cli(ImproveBenchConfig))
