"""Several sets of one robot as one: samples behind each other, one normaliser, and how often each set is drawn."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.normalize import Normalizer, NormalizerFit
from athena_vla.errors import DatasetError
from athena_vla.recordings.episode import Sample
from athena_vla.recordings.texts import Texts


@dataclasses.dataclass(frozen=True)
class WeightedSet:
    """A set, and its weight among others: with weights 1 and 0.3 the second gives 0.3 of 1.3 draws."""

    path: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "WeightedSet":
        """From `PATH` or `PATH=WEIGHT`. Raises `DatasetError` for a weight that is no positive number."""
        if Path(text).expanduser().exists() or "=" not in text:
            return cls(text)
        path, _, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError as error:
            raise DatasetError(f"'{text}': write a set and its weight, such as {path}=0.3.") from error
        if not (math.isfinite(weight) and weight > 0):
            raise DatasetError(f"'{text}': a weight is a positive number; leave out a set that is not to be drawn.")
        return cls(path, weight)


class MixedSet(Dataset):
    """Sets behind each other under the interface of one; `set_of_sample` says which set a sample is of.

    Statistics are fitted on the training split of all sets together, each frame once. The cache of features lies beside
    the first set.
    """

    def __init__(self, sets: Sequence[Dataset], weights: Sequence[float]) -> None:
        first = sets[0]
        self.sets, self.weights = tuple(sets), tuple(float(w) for w in weights)
        self.names = _names([s.path for s in sets])
        self.path, self.robot, self.cameras = first.path, first.robot, first.cameras
        self.horizon, self.stride = first.horizon, first.stride
        self.episodes: tuple[Mapping[str, Any], ...] = tuple(
            {**e, "id": f"{name}/{e['id']}"} for name, s in zip(self.names, sets, strict=True) for e in s.episodes
        )
        self.marks = tuple(m for s in sets for m in s.marks)
        self.kinds = tuple(k for s in sets for k in s.kinds)
        self.named_kinds = tuple(k for s in sets for k in s.named_kinds)
        samples, frames = ([0, *np.cumsum(c)] for c in ([len(s) for s in sets], [_frames(s) for s in sets]))
        self._starts = np.array(samples, np.intp)  # [sets + 1] first sample of each set
        self._episode_starts = np.array([0, *np.cumsum([len(s.episodes) for s in sets])], np.intp)
        self.train = np.concatenate([s.train + at for s, at in zip(sets, samples, strict=False)])
        self.validation = np.concatenate([s.validation + at for s, at in zip(sets, samples, strict=False)])
        self._frame_of_sample = np.concatenate([s.frame_of_sample + at for s, at in zip(sets, frames, strict=False)])
        self.set_of_sample = np.repeat(np.arange(len(sets)), np.diff(self._starts))
        self.normalizer = _fitted(sets)
        told = [[s.hash, w] for s, w in zip(sets, self.weights, strict=True)]
        self.hash = hashlib.sha256(json.dumps([told, self.normalizer.to_dict()], sort_keys=True).encode()).hexdigest()

    @classmethod
    def open_all(cls, wanted: Sequence[WeightedSet], robot: str = "", horizon: int = 8) -> "Dataset":
        """One set as it is, several as one. Raises `DatasetError` naming what differs between them."""
        sets = [Dataset.open(w.path, robot, horizon) for w in wanted]
        if len(sets) == 1:
            return sets[0]
        for one, other in ((w.path, s) for w, s in zip(wanted[1:], sets[1:], strict=True)):
            _require_alike(wanted[0].path, sets[0], one, other)
        twice = [w.path for i, w in enumerate(wanted) if sets[i].hash in {s.hash for s in sets[:i]}]
        if twice:
            raise DatasetError(f"'{twice[0]}' is named twice; give it once, with a larger weight.")
        return cls(sets, [w.weight for w in wanted])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def told(self) -> list[str]:
        return [f"{n}: {line}" for n, s in zip(self.names, self.sets, strict=True) for line in s.told]

    @property
    def shares(self) -> tuple[float, ...]:
        """Of all draws, by set."""
        return tuple(w / sum(self.weights) for w in self.weights)

    @property
    def meaning(self) -> str:
        """A sentence on what is drawn how often, and on the statistics."""
        listed = ", ".join(
            f"{name} {100 * share:.3g}% ({len(s.train):,} training samples)"
            for name, share, s in zip(self.names, self.shares, self.sets, strict=True)
        )
        return f"{len(self.sets)} sets: {listed} of the draws; one normaliser, fitted on all of them."

    def __getitem__(self, index: int) -> Sample:
        number = int(self.set_of_sample[index])
        sample = self.sets[number][int(index) - int(self._starts[number])]
        return dataclasses.replace(sample, episode=f"{self.names[number]}/{sample.episode}")

    def texts(self, episode: int) -> tuple[str, ...]:
        number = int(np.searchsorted(self._episode_starts, episode, side="right")) - 1
        return self.sets[number].texts(episode - int(self._episode_starts[number]))

    def spans(self, episode: int) -> Texts:
        number = int(np.searchsorted(self._episode_starts, episode, side="right")) - 1
        return self.sets[number].spans(episode - int(self._episode_starts[number]))

    def instruction(self, index: int) -> str:
        number = int(self.set_of_sample[index])
        return self.sets[number].instruction(int(index) - int(self._starts[number]))

    @property
    def episode_of_sample(self) -> NDArray[np.intp]:
        parts = zip(self.sets, self._episode_starts.tolist(), strict=False)
        return np.concatenate([s.episode_of_sample + at for s, at in parts])

    @property
    def frame_of_sample(self) -> NDArray[np.intp]:
        return self._frame_of_sample

    def prepare_frames(self) -> None:
        for one in self.sets:
            one.prepare_frames()

    def cache_frames(self, size: tuple[int, int] | None = None) -> None:
        for one in self.sets:
            one.cache_frames(size)


def _frames(one: Dataset) -> int:
    return sum(int(e["length"]) for e in one.episodes)


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Folder names, with as much of the path before them as tells them apart."""
    for parts in range(1, 1 + max(len(p.parts) for p in paths)):
        names = tuple("/".join(p.parts[-parts:]) for p in paths)
        if len(set(names)) == len(names):
            return names
    return tuple(map(str, paths))


def _fitted(sets: Sequence[Dataset]) -> Normalizer:
    """Statistics of the training episodes of all sets, in the way of the first."""
    robot, modes = sets[0].robot, sets[0].normalizer.modes  # a mode of each action column
    columns = [robot.joint(n).group for n in robot.action_joints] + [c.name for c in robot.commanded_channels]
    fit = NormalizerFit(robot, dict(zip(columns, modes, strict=True)))
    for one in sets:
        for states, actions in one.training_numbers():
            fit.add_episode(states, actions, one.horizon, one.stride)
    return fit.finish()


def _require_alike(name: str, one: Dataset, other_name: str, other: Dataset) -> None:
    a, b = one.robot.to_dict(), other.robot.to_dict()
    differ = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    if differ:
        raise DatasetError(
            f"'{name}' is of robot '{one.robot.name}', '{other_name}' of '{other.robot.name}': {', '.join(differ)} "
            "differ. Sets that are trained on together are of one robot; build both with the same --robot."
        )
    if (one.horizon, one.stride) != (other.horizon, other.stride):
        raise DatasetError(
            f"'{name}' has chunks of {one.horizon} steps and a stride of {one.stride}, '{other_name}' {other.horizon} "
            f"and {other.stride}. Build both with the same --horizon and --stride."
        )
