"""Which samples make up each optimiser step, and their tensors; a function of the seed and the step, nothing else.

So a resumed run sees what an uninterrupted one would have seen, without any stored generator state.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from athena_vla.dataset.augment import AugmentConfig, augment
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.mixed import MixedSet
from athena_vla.errors import AthenaError, TrainingError
from athena_vla.finetune.features import Features
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.finetune.listening.margin import other_inputs
from athena_vla.finetune.listening.scene_pairs import ScenePairs
from athena_vla.finetune.listening.swapped import OtherInstructions
from athena_vla.finetune.mark_weights import MarkWeights, steps_of, that_count
from athena_vla.models.architecture import Architecture, Tensors
from athena_vla.policy import encode, with_prefix
from athena_vla.recordings.episode import Sample

_AUGMENT, _NOISE, _VARIANT, _PREFIX, _OTHER = 1, 2, 3, 5, 6  # streams of random numbers; 4 is the feature cache's
_COUNTED = 5_000_000  # draws that are counted at most, to say what an epoch means


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes."""

    inputs: Tensors
    target: Tensor  # [B, H, D] in [-1, 1]
    valid: Tensor  # [B, H] flags, or weights where marks have some
    samples: tuple[int, ...]  # indices into the dataset, to name them when something is wrong

    def pin_memory(self) -> "Batch":
        """Where a GPU can fetch it while it computes; called by torch's loader."""
        inputs = {k: v.pin_memory() for k, v in self.inputs.items()}
        return Batch(inputs, self.target.pin_memory(), self.valid.pin_memory(), self.samples)


class Order:
    """Sample indices of every step: epochs without repetition, or balanced over the named kinds of task.

    Samples whose recording names no kind are drawn together, as one kind. Of several sets each is drawn by its weight,
    and kinds are balanced within a set. With `pairs` every second place goes to the partner of the sample before it,
    where that has one; then a step holds whole pairs. Raises `TrainingError` for a step of an odd number of samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: NDArray[np.intp],
        config: FinetuneConfig,
        world: int,
        pairs: ScenePairs | None = None,
    ) -> None:
        self.indices, self.pairs = indices, pairs
        self.frames = dataset.frame_of_sample
        self.seed = config.seed
        self.batch, self.accumulation, self.world = config.batch, config.accumulation, world
        sets, shares = None, (1.0,)
        if isinstance(dataset, MixedSet):
            sets, shares = dataset.set_of_sample[indices], dataset.shares
        kinds = np.array([dataset.named_kinds[i] for i in indices])
        self.groups: list[NDArray[np.intp]] = []
        self.shares: list[float] = []  # of all draws, by group
        for number, share in enumerate(shares):
            own = np.ones(len(indices), bool) if sets is None else sets == number
            names = sorted(set(kinds[own].tolist())) if config.balance else [""]
            self.groups += [indices[own & (kinds == k)] if config.balance else indices[own] for k in names]
            self.shares += [share / len(names)] * len(names)
        if pairs is not None and self.step_size % 2:
            raise TrainingError(
                f"--pair-instructions needs an even number of samples in a step, --batch times --accumulation times "
                f"processes; it is {self.step_size}."
            )
        self._step, self._drawn = 0, 0  # where this process took up the run: steps done, samples drawn in them

    @property
    def step_size(self) -> int:
        """Samples per optimiser step, all processes together."""
        return self.batch * self.accumulation * self.world

    def steps_per_epoch(self) -> int:
        return max(1, -(-len(self.indices) // self.step_size))

    def go_on(self, step: int, drawn: int) -> None:
        """Begin after `step` steps that drew `drawn` samples, perhaps in steps of another size."""
        self._step, self._drawn = step, drawn

    def drawn(self, step: int) -> int:
        """Samples drawn in the first `step` steps."""
        return self._drawn + (step - self._step) * self.step_size

    def steps_of(self, epochs: float) -> int:
        """Steps in all, until so many epochs are drawn."""
        left = int(np.ceil(epochs * len(self.indices))) - self._drawn
        return max(1, self._step + -(-left // self.step_size))

    def micro_batch(self, step: int, part: int, rank: int) -> list[int]:
        """Sample indices of forward pass `part` of optimiser step `step` in process `rank`.

        Neighbouring ranks and parts split one global order, so any number of processes sees the same samples per step.
        """
        first = self.drawn(step) + self.place(part, rank)
        return [self._sample(first + i) for i in range(self.batch)]

    def place(self, part: int, rank: int) -> int:
        """Where in its step a forward pass begins."""
        return (part * self.world + rank) * self.batch

    def meaning(self, steps: int) -> str:
        """What an epoch is in this run: how often each frame is drawn, by drawing the whole run once."""
        total = self.drawn(steps)
        count = len(self.indices)
        draws = np.zeros(len(self.frames), np.int64)
        for epoch in range(-(-min(total, _COUNTED) // count)):
            draws += np.bincount(self._epoch(epoch)[: total - epoch * count], minlength=len(draws))
        per_frame = np.bincount(self.frames, draws)[np.unique(self.frames[self.indices])]
        least, most = int(per_frame.min()), int(per_frame.max())
        texts = count / len(per_frame)
        said = f"An epoch is {count:,} draws, as many as there are training samples"
        said += f" ({len(per_frame):,} frames, {texts:.3g} texts each). " if texts > 1 else ". "
        part = "" if total <= _COUNTED else f"first {_COUNTED:,} of {total:,} draws of the "
        said += f"In the {part}{total / count:.3g} epochs of this run a frame is drawn {least} to {most} times"
        if len(self.groups) > 1 and len(set(self.shares)) == 1:
            largest, smallest = (f(len(g) for g in self.groups) for f in (max, min))
            said += (
                f": {len(self.groups)} kinds are drawn equally often, so a sample of the smallest kind is drawn "
                f"{largest / smallest:.3g} times as often as one of the largest (--no-balance draws all alike)"
            )
        return f"{said}."

    def _sample(self, position: int) -> int:
        if self.pairs is not None and position % 2:
            partner = self.pairs.partner(self._own(position - 1), position)
            if partner is not None:
                return partner
        return self._own(position)

    def _own(self, position: int) -> int:
        epoch, place = divmod(position, len(self.indices))
        return int(self._epoch(epoch)[place])

    @lru_cache(maxsize=2)  # noqa: B019 (an order lives as long as its run)
    def _epoch(self, epoch: int) -> NDArray[np.intp]:
        """One epoch's indices: kinds in turn, each kind in its own endless shuffled order."""
        count = len(self.indices)
        rng = np.random.default_rng([self.seed, 101, epoch])
        drawn = []
        for group, part in zip(self.groups, self.shares, strict=True):
            # Small kinds are repeated, large ones cut; the cut falls elsewhere in every epoch.
            share = math.ceil(count * part - 1e-9)
            repeats = -(-share // len(group))
            drawn.append(np.concatenate([rng.permutation(group) for _ in range(repeats)])[:share])
        mixed = np.concatenate(drawn)
        return mixed[rng.permutation(len(mixed))][:count]


class Loader:
    """Samples to batches: images or cached features, augmentation and noise by (seed, step, sample)."""

    def __init__(
        self, dataset: Dataset, model: Architecture, config: FinetuneConfig, features: Features | None
    ) -> None:
        self.dataset, self.model, self.config, self.features = dataset, model, config, features
        self.augmentation = AugmentConfig(crop_area=config.augment_crop)
        self.weights = MarkWeights.parse(config.weight).frames(dataset) if config.weight else None  # [F]
        self.drawn = dataset.train if self.weights is None else that_count(dataset, dataset.train, self.weights)
        self.pairs = ScenePairs(dataset, self.drawn, config.seed) if config.pair_instructions else None
        drawn = np.unique(dataset.episode_of_sample[self.drawn]).tolist()
        self.other = OtherInstructions(dataset, drawn, self.pairs) if config.language_margin else None

    def training(self, indices: Sequence[int], step: int, first: int = 0) -> Batch:
        """Augmented, with noise on the state; `first` is the place of these samples in their optimiser step.

        What is drawn follows from seed, step and place: parts and processes may split a step in any way.
        """
        changed: list[Sample] = []
        variants: list[int] = []
        noise: list[NDArray[np.float32]] = []
        for place, index in enumerate(indices, first):
            sample = self.dataset[index]
            key = [self.config.seed, step, place, index]
            if self.config.augment and self.features is None:
                rng = np.random.default_rng([*key, _AUGMENT])
                images = {c: augment(im, rng, self.augmentation) for c, im in sample.observation.images.items()}
                sample = dataclasses.replace(sample, observation=dataclasses.replace(sample.observation, images=images))
            if self.model.prefix:
                rows = int(np.random.default_rng([*key, _PREFIX]).integers(self.model.prefix + 1))
                sample = with_prefix(sample, rows)
            if self.features is not None:
                variants.append(int(np.random.default_rng([*key, _VARIANT]).integers(self.features.variants)))
            if self.config.state_noise > 0:
                size = self.model.spec.state_dim
                drawn = np.random.default_rng([*key, _NOISE]).normal(0.0, self.config.state_noise, size)
                noise.append(drawn.astype(np.float32))
            changed.append(sample)
        batch = self._batch(indices, changed, variants, cropped=self.config.augment)
        if self.weights is not None:
            weights = torch.from_numpy(steps_of(self.dataset, indices, self.weights))
            batch = dataclasses.replace(batch, valid=batch.valid * weights)
        if self.other is not None:
            keys = ([self.config.seed, step, place, index, _OTHER] for place, index in enumerate(indices, first))
            texts = [self.other.text(i, np.random.default_rng(k)) for i, k in zip(indices, keys, strict=True)]
            states = [np.zeros(self.model.spec.state_dim, np.float32)] * len(texts)  # which nobody reads there
            batch.inputs.update(other_inputs(self.model, texts, states, len(self.dataset.cameras)))
        if noise:
            batch.inputs["state"] = batch.inputs["state"] + torch.from_numpy(np.stack(noise))
        return batch

    def ahead(self, order: Order, first: int, steps: int, rank: int) -> Iterator[Batch]:
        """The training batches of steps `first` to `steps` in process `rank`, prepared by `workers` processes.

        Raises what preparing raised.
        """
        rows = _Rows(self, order, first, steps, rank)
        # A batch depends on seed and step alone, so workers need no state and no seed of torch's.
        for batch in DataLoader(
            rows,
            batch_size=None,
            num_workers=self.config.workers,
            pin_memory=torch.cuda.is_available() and self.config.device != "cpu",
            prefetch_factor=2 if self.config.workers else None,
            multiprocessing_context="fork" if self.config.workers else None,
        ):
            if isinstance(batch, str):
                raise TrainingError(batch)
            yield batch

    def plain(self, indices: Sequence[int]) -> Batch:
        """As the robot will see it: for evaluation."""
        return self._batch(indices, [self.dataset[i] for i in indices], [0] * len(indices))

    def plain_batches(self, indices: Sequence[int], size: int) -> Iterator[Batch]:
        for first in range(0, len(indices), size):
            yield self.plain(indices[first : first + size])

    def _batch(
        self, indices: Sequence[int], samples: Sequence[Sample], variants: Sequence[int], *, cropped: bool = False
    ) -> Batch:
        robot, normalizer = self.dataset.robot, self.dataset.normalizer
        if self.features is None:
            items = [encode(s.observation, robot, normalizer) for s in samples]
            inputs = self.model.collate([dataclasses.replace(item, cropped=cropped) for item in items])
        else:
            inputs = self.features.collate(indices, samples, variants)
        chunks = np.stack([s.chunk for s in samples])
        states = np.stack([s.observation.state for s in samples])
        return Batch(
            inputs,
            torch.from_numpy(normalizer.encode(chunks, states)),
            torch.from_numpy(np.stack([s.valid for s in samples])),
            tuple(indices),
        )


class _Rows(torch.utils.data.Dataset[Batch | str]):
    """One process's forward passes, in order; an error of ours travels as its sentence, not as a traceback."""

    def __init__(self, loader: Loader, order: Order, first: int, steps: int, rank: int) -> None:
        self.loader, self.order, self.first, self.rank = loader, order, first, rank
        self.parts = loader.config.accumulation
        self.count = (steps - first) * self.parts

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch | str:
        if index >= self.count:
            raise IndexError(index)
        ahead, part = divmod(index, self.parts)
        step = self.first + ahead
        try:
            indices = self.order.micro_batch(step, part, self.rank)
            return self.loader.training(indices, step, self.order.place(part, self.rank))
        except AthenaError as error:
            return str(error)
