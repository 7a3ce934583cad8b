"""Policies beside each other and beside what knows nothing: one table with intervals, paired tests, and plain words.

A comparison always says what its "untuned" row is: a base model has either driven this very robot before, or its
statistics and heads were bound to it without any training, and then it cannot be expected to do anything sensible.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from athena_vla.bundle import Bundle
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import EvaluationError, MissingDependency, UnknownName
from athena_vla.evaluate import tables
from athena_vla.evaluate.actors import ABLATIONS, BASELINES, Ablation, ActorFactory, ActorSpec
from athena_vla.evaluate.baselines import Actor, Library
from athena_vla.evaluate.openloop import FRAMES, OpenLoopResult, open_loop, other_instructions, spread
from athena_vla.evaluate.pair_summary import PAIR_LEGEND, InstructionPairs
from athena_vla.evaluate.results import SCENES, EpisodeResult, Setup
from athena_vla.evaluate.statistics import PairedTest
from athena_vla.evaluate.summary import ActorSummary, Kept, Lost, compare_pair, kept_by_task
from athena_vla.jobs import Place
from athena_vla.progress import Progress, quiet

LIBRARY = "library.npz"
EPISODE_SECONDS, FRAME_SECONDS = 0.15, 0.008  # [s] of one actor, for progress
LIBRARY_SAMPLES = 6000  # of the training split, evenly spread: enough for neighbours, and a few tens of MB
LEGEND = (
    "success: Wilson interval. +/-: scenes that only the reference, or only the row, solved; p: exact McNemar test.\n"
    "modified: share of motor commands the safety filter changed. violations: counted from the commands behind it."
)
ABLATED = (
    "black image, other instruction: the same actor without its eyes, or told something else. Closed loop: its\n"
    "success on scenes with an object to find, in brackets the change there. Open loop: the error this adds, how far\n"
    "the answer moves. Whoever loses nothing does not look, or does not listen. -: not tried; --ablations tries them."
)


@dataclass(frozen=True)
class Comparison:
    """All rows of one comparison; `reference` is the row the paired tests compare the others with."""

    reference: str
    rows: tuple[ActorSpec, ...]
    closed: dict[str, ActorSummary]  # empty without a simulator
    paired: dict[str, PairedTest]  # the reference against every other row, on the scenes both played
    open: OpenLoopResult | None
    notes: tuple[str, ...]
    dataset_hash: str = ""
    setup: Setup | None = None
    episodes: dict[str, tuple[EpisodeResult, ...]] = field(default_factory=dict, repr=False)
    reused: dict[str, int] = field(default_factory=dict)
    pairs: InstructionPairs | None = None  # the same scenes with two instructions, where they were asked for

    @property
    def ablations(self) -> dict[str, dict[Ablation, Lost]]:
        """What each actor loses, by actor and by what was taken away; empty where nothing was tried."""
        found: dict[str, dict[Ablation, Lost]] = {}
        for row in self.rows:
            if row.ablation != "none":
                found.setdefault(row.ablates, {})[row.ablation] = self._lost(row)
        return found

    @property
    def kept(self) -> dict[str, dict[str, Kept]]:
        """By each other policy and task: what the reference kept of it, lost and gained; empty without a simulator."""
        others = [r.name for r in self.rows if r.kind == "policy" and r.ablation == "none" and r.name != self.reference]
        if self.reference not in self.episodes:
            return {}
        mine = self.episodes[self.reference]
        return {n: kept_by_task(self.episodes[n], mine) for n in others if n in self.episodes}

    def _lost(self, row: ActorSpec) -> Lost:
        closed, lost = self.closed.get(row.name), None
        if row.name in self.episodes:
            own, theirs = ({e.scene: e.success for e in self.episodes[n]} for n in (row.ablates, row.name))
            lost = compare_pair(own, theirs).difference
        errors = None if self.open is None else self.open.actors.get(row.name)
        success = None if closed is None else closed.success
        return Lost(success, lost, None if errors is None else errors.added, None if errors is None else errors.change)

    def to_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "rows": [r.__dict__ for r in self.rows],
            "closed_loop": {k: v.to_dict() for k, v in self.closed.items()},
            "paired": {k: v.to_dict() for k, v in self.paired.items()},
            "kept": {n: {t: k.to_dict() for t, k in tasks.items()} for n, tasks in self.kept.items()},
            "ablations": {k: {a: x.to_dict() for a, x in v.items()} for k, v in self.ablations.items()},
            "open_loop": None if self.open is None else self.open.to_dict(),
            "notes": list(self.notes),
            "dataset_hash": self.dataset_hash,
            "setup": None if self.setup is None else {**self.setup.__dict__, "owners": dict(self.setup.owners)},
            "reused": self.reused,
            **({} if self.pairs is None else {"instruction_pairs": self.pairs.to_dict()}),
        }

    def __str__(self) -> str:
        parts = []
        whole = [r.name for r in self.rows if r.ablation == "none"]
        lost = self.ablations
        if self.closed:
            closed = {n: self.closed[n] for n in whole}
            parts += [tables.closed_table(closed, self.paired, self.reference, lost), tables.task_table(closed)]
            parts += [text for text in ["\n".join(tables.failure_lines(closed))] if text]
            parts += [tables.kept_table(self.reference, n, tasks) for n, tasks in self.kept.items() if tasks]
        if self.pairs is not None:
            parts.append(str(self.pairs))
        if self.open is not None:
            policies = [r.name for r in self.rows if r.kind == "policy" and r.ablation == "none"]
            parts += [tables.open_table(self.open, whole, lost), tables.task_error_table(self.open, whole)]
            parts += [tables.joint_table(self.open, policies), tables.horizon_table(self.open, policies)]
        parts += [LEGEND] if self.closed else []
        parts += [ABLATED] if lost else []
        parts += [PAIR_LEGEND] if self.pairs is not None else []
        return "\n\n".join([*parts, *self.notes])


def baseline_specs(library: Path, kinds: Sequence[str]) -> list[ActorSpec]:
    """A row for each baseline. Raises `UnknownName`."""
    for kind in kinds:
        if kind not in BASELINES:
            raise UnknownName("baseline", kind, BASELINES)
    known: Any = kinds
    return [ActorSpec(kind, kind, "" if kind == "hold" else str(library)) for kind in known]


def ablation_specs(spec: ActorSpec) -> list[ActorSpec]:
    """The same actor without its eyes, and told something else."""
    return [replace(spec, name=f"{spec.name}.{a}", ablation=a) for a in ABLATIONS]


def write_library(dataset: Dataset, path: Path) -> Path:
    """What the baselines know, from the training split; an existing file of the same set is kept."""
    chosen = [dataset[int(dataset.train[i])] for i in spread(len(dataset.train), LIBRARY_SAMPLES)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Library.fit(chosen, dataset.robot).save(path)
    return path


def compare_open(
    specs: Sequence[ActorSpec],
    dataset: Dataset,
    *,
    reference: str,
    samples: int = 400,
    seed: int = 0,
    progress: Progress = quiet,
) -> OpenLoopResult:
    """All rows on the validation split of a dataset; ablated rows are compared with the row they ablate."""
    factory = ActorFactory(dataset.robot)
    chosen = [int(dataset.validation[i]) for i in spread(len(dataset.validation), samples)]
    if not chosen:
        raise EvaluationError(
            f"'{dataset.path}' has no validation episode: build it with more episodes or a larger --validation share."
        )
    kind_of = {str(t): e["kind"] or t for e in dataset.episodes for t in e["instructions"]}
    instead = other_instructions(kind_of)
    deaf = [s.name for s in specs if s.ablation == "other_instruction"]
    usable = [s for s in specs if s.name not in deaf or instead]
    actors: dict[str, Actor] = {s.name: factory.actor(s, instead, remember=False) for s in usable}
    ablations = {s.name: s.ablates for s in usable if s.ablation != "none"}
    return open_loop(
        actors,
        (dataset[i] for i in chosen),
        dataset.robot,
        reference=reference,
        ablation_of={k: v for k, v in ablations.items() if v in actors},
        tasks=[dataset.kinds[i] for i in chosen],
        seed=seed,
        progress=progress,
    )


def compare_all(
    policies: Sequence[ActorSpec],
    *,
    reference: str,
    out: Path,
    dataset: Dataset | None = None,
    baselines: Sequence[str] = ("hold", "mean_action", "nearest_neighbour", "replay"),
    ablate: Sequence[str] = (),
    episodes: int = 105,
    samples: int = 400,
    seed: int = 0,
    workers: int = 0,
    on: Place = "here",
    setup: Setup | None = None,
    progress: Progress = quiet,
    pairs: int = 0,
) -> Comparison:
    """Policies, baselines and ablations in one comparison; `setup` None plays no closed loop.

    `ablate` names the policies that are also tried blind and told something else; `pairs` scenes are also played with
    two instructions. Raises `EvaluationError`, and `MissingDependency` where the simulator is asked for and not
    installed.
    """
    if setup is not None and dataset is not None:
        progress.plan({SCENES: EPISODE_SECONDS * episodes, FRAMES: FRAME_SECONDS * samples})
    notes: list[str] = []
    kinds = list(baselines)
    library = out / LIBRARY
    if dataset is None:
        left_out = [k for k in kinds if k != "hold"]
        kinds = [k for k in kinds if k == "hold"]
        if left_out:
            notes.append(f"Without a dataset there is no {', '.join(left_out)}: they are made from its training split.")
    elif any(k != "hold" for k in kinds):
        write_library(dataset, library)
    by_name = {p.name: p for p in policies}
    ablated = [a for name in ablate for a in ablation_specs(by_name[name])]
    rows = [*policies, *baseline_specs(library, kinds), *ablated]
    notes += [untuned_note(p) for p in policies if Bundle.open(p.source, verify=False).manifest.stage == "base"]
    closed: dict[str, ActorSummary] = {}
    played: dict[str, tuple[EpisodeResult, ...]] = {}
    paired: dict[str, PairedTest] = {}
    reused: dict[str, int] = {}
    twice: InstructionPairs | None = None
    if setup is not None:
        try:
            from athena_vla.evaluate.closedloop import ClosedLoopConfig, closed_loop
        except ModuleNotFoundError as error:
            raise MissingDependency(error.name or "mujoco", "sim", "for closed-loop evaluation") from error
        config = ClosedLoopConfig(
            out=out / "episodes", episodes=episodes, seed=seed, workers=workers, on=on, setup=setup
        )
        result = closed_loop(rows, config, progress)
        closed, played, reused = result.actors, result.episodes, result.reused
        mine = result.successes(reference)
        paired = {n: compare_pair(mine, result.successes(n)) for n in played if n != reference}
        if pairs:
            from athena_vla.evaluate.instruction_pairs import PairConfig, instruction_pairs

            asked = PairConfig(out=out / "pairs", pairs=pairs, seed=seed, workers=workers, on=on, setup=setup)
            twice = instruction_pairs([r for r in rows if r.ablation == "none"], asked, reference, progress)
            notes += [twice.note] if twice.note else []
    table = None
    if dataset is not None:
        table = compare_open(rows, dataset, reference=reference, samples=samples, seed=seed, progress=progress)
    hash_ = dataset.hash if dataset is not None else ""
    said = tuple(dict.fromkeys(notes))
    return Comparison(
        reference, tuple(rows), closed, paired, table, said, hash_, setup, played, reused=reused, pairs=twice
    )


def untuned_note(spec: ActorSpec) -> str:
    """What the row of a base model is, in words."""
    manifest = Bundle.open(spec.source, verify=False).manifest
    rebound = manifest.stage_info.get("rebound")
    if rebound:
        return f"'{spec.name}' is untuned and re-bound: {rebound}"
    return (
        f"'{spec.name}' is untuned: the base model before any fine-tuning on these tasks. It was trained for the same "
        f"robot '{manifest.robot.get('name', '?')}' and speaks its joints, with the statistics of its own training "
        "data; only the tasks are new to it."
    )
