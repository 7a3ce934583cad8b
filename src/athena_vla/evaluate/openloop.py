"""Open loop: predicted chunks against recorded ones, per joint, horizon step and task, with intervals over episodes.

Works on any dataset; needs no simulator. It ranks policies only roughly (two policies of similar open-loop error can
differ widely on the robot), so it is a check of learning and of each joint, not a verdict. Chunks are compared row by
row and not after time warping: a chunk is a command for given instants, and being late is an error on a robot.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.baselines import Actor
from athena_vla.evaluate.statistics import Interval, bootstrap_difference, bootstrap_mean, bootstrap_quantile
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.episode import Sample

RESAMPLES = 1000

FRAMES = "recorded frames"  # what progress calls them


@dataclass(frozen=True)
class ActorErrors:
    """One actor on the validation samples. All errors are absolute and in [rad]."""

    mae: Interval  # over all valid rows and joints
    first_step: Interval  # row 0 only: what the robot does next
    p95: Interval
    maximum: float
    per_joint: dict[str, float]
    per_joint_p95: dict[str, float]
    per_horizon: tuple[float, ...]  # mean over joints at each row of the chunk
    per_task: dict[str, Interval]
    roughness: float  # [rad] mean absolute second difference of the chunk rows; compare with the recording's
    seam: float | None  # [rad] how far overlapping chunks of neighbouring frames disagree; None without neighbours
    minus_reference: Interval | None = None  # MAE minus the reference actor's on the same episodes
    change: Interval | None = None  # [rad] for an ablation: how far it moves the actor's answer
    added: Interval | None = None  # [rad] for an ablation: its MAE minus that of the actor it ablates


@dataclass(frozen=True)
class OpenLoopResult:
    """All actors on the same samples."""

    actors: dict[str, ActorErrors]
    reference: str
    samples: int
    episodes: int
    tasks: dict[str, int]  # samples per task
    joints: tuple[str, ...]  # and commanded channels
    units: tuple[str, ...]  # of each of them
    recorded_roughness: float  # [rad] of the recorded chunks
    horizon: int
    dt: float  # [s]

    def to_dict(self) -> dict[str, Any]:
        raw = dict(self.__dict__)
        raw["actors"] = {k: asdict(v) for k, v in self.actors.items()}
        return raw


def open_loop(
    actors: Mapping[str, Actor],
    samples: Iterable[Sample],
    robot: Embodiment,
    *,
    reference: str | None = None,
    ablation_of: Mapping[str, str] | None = None,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> OpenLoopResult:
    """Every actor on every sample, one observation at a time as on the robot.

    `reference` is the actor the others are subtracted from (default: the first); `ablation_of` maps an ablated actor to
    the actor it ablates, whose answers it is compared with; `tasks` names each sample's task where the instruction is
    too fine. Raises `EvaluationError` for no samples or unknown names.
    """
    names = list(actors)
    if not names:
        raise EvaluationError("An open-loop evaluation needs at least one actor.")
    reference = reference or names[0]
    ablations = dict(ablation_of or {})
    for name in (reference, *ablations, *ablations.values()):
        if name not in actors:
            raise EvaluationError(f"There is no actor '{name}' in this evaluation. There are: {', '.join(names)}.")
    truths: list[NDArray[np.float64]] = []
    valid: list[NDArray[np.bool_]] = []
    answers: dict[str, list[NDArray[np.float64]]] = {n: [] for n in names}
    episodes: list[str] = []
    frames: list[int] = []
    kinds: list[str] = []
    total = len(samples) if isinstance(samples, Sized) else len(tasks or ())
    for number, sample in enumerate(samples):
        horizon = len(sample.chunk)
        # Baselines that play by the clock need the time since the start of the episode.
        seen = replace(sample.observation, time=sample.frame / robot.control_hz)
        for name in names:
            answers[name].append(_rows(actors[name].act(seen).positions, horizon))
        truths.append(np.asarray(sample.chunk, np.float64))
        valid.append(np.asarray(sample.valid, bool))
        episodes.append(sample.episode)
        frames.append(sample.frame)
        kinds.append(sample.observation.instruction if tasks is None else tasks[number])
        progress(number + 1, total, FRAMES)
    if not truths:
        raise EvaluationError("The validation split holds no sample; build the dataset with a share for validation.")
    table = _Table(
        np.stack(truths), np.stack(valid), np.array(episodes), np.array(frames), np.array(kinds), robot, seed
    )
    chunks = {n: np.stack(a) for n, a in answers.items()}
    results = {}
    for name in names:
        results[name] = table.summarise(
            chunks[name],
            None if name == reference else chunks[reference],
            chunks[ablations[name]] if name in ablations else None,
        )
    return OpenLoopResult(
        results,
        reference,
        len(truths),
        len(set(episodes)),
        {t: kinds.count(t) for t in sorted(set(kinds))},
        robot.action_names,
        robot.action_columns.units,
        _roughness(table.truth[..., table._joints], table.valid),
        table.truth.shape[1],
        1.0 / robot.control_hz,
    )


def spread(count: int, most: int) -> Sequence[int]:
    """At most `most` indices of `count`, evenly spaced and including both ends: the same ones every time."""
    if count <= most:
        return range(count)
    return sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def other_instructions(kind_of: Mapping[str, str]) -> dict[str, str]:
    """Each instruction with one of another kind of task: the next in sorted order.

    Another wording of the same task would be no ablation. Instructions without any other kind are left out.
    """
    known = sorted(kind_of)
    pairs = {}
    for place, text in enumerate(known):
        others = [t for t in known[place + 1 :] + known[:place] if kind_of[t] != kind_of[text]]
        if others:
            pairs[text] = others[0]
    return pairs


@dataclass(frozen=True)
class _Table:
    truth: NDArray[np.float64]  # [N, H, D]
    valid: NDArray[np.bool_]  # [N, H]
    episode: NDArray[Any]  # [N]
    frame: NDArray[Any]
    task: NDArray[Any]
    robot: Embodiment
    seed: int

    @property
    def _joints(self) -> slice:
        """Action columns that are joints; all columns of a robot that commands channels alone."""
        return slice(len(self.robot.action_joints) or None)

    def summarise(
        self,
        chunk: NDArray[np.float64],
        reference: NDArray[np.float64] | None,
        ablated: NDArray[np.float64] | None,
    ) -> ActorErrors:
        every = np.abs(chunk - self.truth)
        error = every[..., self._joints]  # means over columns are of joints, in [rad]; a channel has its own unit
        weight = self.valid[..., None].astype(np.float64)
        rows = every[self.valid]  # [rows, D]
        joints = self.robot.action_names
        everything = np.ones(len(self.truth), bool)
        sums, counts = self._per_episode(error.mean(axis=2), everything)
        difference = change = added = None
        if reference is not None:
            theirs, _ = self._per_episode(np.abs(reference - self.truth)[..., self._joints].mean(axis=2), everything)
            difference = bootstrap_difference(sums, theirs, counts, resamples=RESAMPLES, seed=self.seed)
        if ablated is not None:
            moved, _ = self._per_episode(np.abs(chunk - ablated)[..., self._joints].mean(axis=2), everything)
            change = bootstrap_mean(moved, counts, resamples=RESAMPLES, seed=self.seed)
            own, _ = self._per_episode(np.abs(ablated - self.truth)[..., self._joints].mean(axis=2), everything)
            added = bootstrap_difference(sums, own, counts, resamples=RESAMPLES, seed=self.seed)
        first = self.valid[:, 0]
        first_sums, first_counts = self._per_episode(error[:, :1].mean(axis=2), first)
        return ActorErrors(
            mae=bootstrap_mean(sums, counts, resamples=RESAMPLES, seed=self.seed),
            first_step=bootstrap_mean(first_sums, first_counts, resamples=RESAMPLES, seed=self.seed),
            p95=bootstrap_quantile(
                [error[self.episode == e][self.valid[self.episode == e]].ravel() for e in np.unique(self.episode)],
                0.95,
                resamples=200,
                seed=self.seed,
            ),
            maximum=float(rows[:, self._joints].max()),
            per_joint=dict(zip(joints, rows.mean(axis=0).tolist(), strict=True)),
            per_joint_p95=dict(zip(joints, np.quantile(rows, 0.95, axis=0).tolist(), strict=True)),
            per_horizon=tuple(((error * weight).sum(axis=(0, 2)) / _at_least_one(weight, error)).tolist()),
            per_task={str(t): self._task(error, t) for t in np.unique(self.task)},
            roughness=_roughness(chunk[..., self._joints], self.valid),
            seam=self._seam(chunk[..., self._joints]),
            minus_reference=difference,
            change=change,
            added=added,
        )

    def _task(self, error: NDArray[np.float64], task: Any) -> Interval:
        sums, counts = self._per_episode(error.mean(axis=2), self.task == task)
        return bootstrap_mean(sums, counts, resamples=RESAMPLES, seed=self.seed)

    def _per_episode(
        self, rows: NDArray[np.float64], use: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums and counts of valid rows ([N, h]) per episode, of the samples in use."""
        _, owner = np.unique(self.episode[use], return_inverse=True)
        valid = self.valid[use][:, : rows.shape[1]]
        sums = np.bincount(owner, (rows[use] * valid).sum(axis=1)).astype(np.float64)
        return sums, np.bincount(owner, valid.sum(axis=1)).astype(np.float64)

    def _seam(self, chunk: NDArray[np.float64]) -> float | None:
        """Mean disagreement of overlapping chunks of successive samples of one episode."""
        order = np.lexsort((self.frame, self.episode))
        total, count = 0.0, 0
        horizon = chunk.shape[1]
        for a, b in itertools.pairwise(order):
            shift = int(self.frame[b] - self.frame[a])
            if self.episode[a] == self.episode[b] and 0 < shift < horizon:
                gap = np.abs(chunk[a, shift:] - chunk[b, : horizon - shift])
                total, count = total + float(gap.sum()), count + gap.size
        return total / count if count else None


def _rows(positions: NDArray[np.float64], horizon: int) -> NDArray[np.float64]:
    """A chunk cut, or extended by holding its last row, to the recorded horizon."""
    if len(positions) >= horizon:
        return positions[:horizon]
    return np.concatenate([positions, np.repeat(positions[-1:], horizon - len(positions), axis=0)])


def _roughness(chunk: NDArray[np.float64], valid: NDArray[np.bool_]) -> float:
    if chunk.shape[1] < 3:
        return 0.0
    second = np.abs(np.diff(chunk, n=2, axis=1)).mean(axis=2)
    use = valid[:, 2:]
    return float(second[use].mean()) if use.any() else 0.0


def _at_least_one(weight: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(weight.sum(axis=(0, 2)), 1.0) * error.shape[2]
