"""Vision features of frozen towers, computed once per image and kept on disk; training then needs no image.

A file appears whole or not at all and is named by the hash of what it was computed from: vision weights, data and
augmentation. Knows the graph called `vision` and its input `pixel_values`, no family.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from athena_vla import files
from athena_vla.dataset.augment import AugmentConfig, augment
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.models.architecture import Architecture, Graph, Tensors
from athena_vla.policy import encode
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.episode import Sample

PICTURES = "vision features of images"  # what progress calls them
GRAPH, INPUT, OUTPUT = "vision", "pixel_values", "patches"
_DISK_SHARE = 0.3  # of the free disk, that `auto` may take
_TOGETHER = 64  # images per forward pass
_AUGMENT = 4  # stream of random numbers


class Features:
    """Patch embeddings `[frames, variants, patches, width]` in a memory map; variant 0 is the plain image."""

    def __init__(self, model: Architecture, dataset: Dataset, path: Path) -> None:
        self.model, self.dataset = model, dataset
        self.stored: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        self.rows, _ = frame_rows(dataset)
        # The family's collation is used as it is, on images of one pixel that nobody looks at.
        self._blank = tuple(np.zeros((1, 1, 3), np.uint8) for _ in dataset.robot.cameras)

    @property
    def variants(self) -> int:
        return int(self.stored.shape[1])

    def collate(self, indices: Sequence[int], samples: Sequence[Sample], variants: Sequence[int]) -> Tensors:
        """Model inputs with `patches` in place of pixels."""
        robot, normalizer = self.dataset.robot, self.dataset.normalizer
        items = [dataclasses.replace(encode(s.observation, robot, normalizer), images=self._blank) for s in samples]
        inputs = self.model.collate(items)
        del inputs[INPUT]
        inputs[OUTPUT] = torch.from_numpy(self.stored[self.rows[list(indices)], np.asarray(variants)]).float()
        return inputs


def prepare(
    model: Architecture,
    dataset: Dataset,
    config: FinetuneConfig,
    accelerator: Accelerator,
    progress: Progress = quiet,
) -> Features | None:
    """The cache for this model and data, computed now or found; None where images are to be used.

    Raises `TrainingError` where `always` cannot be had.
    """
    graph = _frozen_graph(model)
    if config.cache_features == "never" or (graph is None and config.cache_features == "auto"):
        return None
    if graph is None:
        raise TrainingError(
            "Vision features cannot be cached: weights of the vision towers or the projector train, or the model has "
            f"no graph '{GRAPH}'. Use --cache-features never, or freeze them."
        )
    _, first_samples = frame_rows(dataset)
    variants = 1 + (config.augment_variants if config.augment else 0)
    shape = (len(first_samples), variants, *graph.module(**graph.example)[0].shape[1:])
    folder = dataset.path / ".cache"
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(dataset.path).free
    path = folder / f"features-{_key(graph, dataset, config, shape)}.npy"
    if not path.is_file():
        if config.cache_features == "auto" and needed > _DISK_SHARE * free:
            return None
        if needed > free:
            raise TrainingError(
                f"The feature cache needs {needed / 1e9:.1f} GB for {shape[0]:,} frames, the disk of "
                f"'{dataset.path}' has {free / 1e9:.1f} GB free. Use --cache-features never."
            )
        _compute(model, dataset, config, graph, first_samples, shape, path, accelerator, progress)
    return Features(model, dataset, path)


def frame_rows(dataset: Dataset) -> tuple[NDArray[np.intp], list[int]]:
    """For every sample the row of its frame, and for every row its first sample: words do not change an image."""
    seen: dict[int, int] = {}
    first_samples: list[int] = []
    rows = np.empty(len(dataset), np.intp)
    for index, frame in enumerate(dataset.frame_of_sample.tolist()):
        if frame not in seen:
            seen[frame] = len(first_samples)
            first_samples.append(index)
        rows[index] = seen[frame]
    return rows, first_samples


def _frozen_graph(model: Architecture) -> Graph | None:
    """The vision graph, where nothing in it trains."""
    graph = next((g for g in model.graphs() if g.name == GRAPH and INPUT in g.example and g.outputs == (OUTPUT,)), None)
    if graph is None:
        return None
    # The graph's module is a view of the whole model: only what its output depends on counts.
    inputs = {k: v.detach().clone() for k, v in graph.example.items()}
    with torch.enable_grad():
        return None if graph.module(**inputs)[0].requires_grad else graph


@torch.inference_mode()
def _compute(
    model: Architecture,
    dataset: Dataset,
    config: FinetuneConfig,
    graph: Graph,
    first_samples: Sequence[int],
    shape: tuple[int, ...],
    path: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    """Write the file whole."""
    augmentation = AugmentConfig(crop_area=config.augment_crop)
    robot, normalizer = dataset.robot, dataset.normalizer
    dtype = next(iter(graph.example.values())).dtype
    with files.whole_file(path, TrainingError) as temporary:
        stored = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, shape[0], _TOGETHER):
            samples = [dataset[i] for i in first_samples[start : start + _TOGETHER]]
            for variant in range(shape[1]):
                items = []
                for row, sample in enumerate(samples, start):
                    item = encode(sample.observation, robot, normalizer)
                    if variant:
                        rng = np.random.default_rng([config.seed, row, variant, _AUGMENT])
                        images = tuple(augment(image, rng, augmentation) for image in item.images)
                        item = dataclasses.replace(item, images=images, cropped=True)
                    items.append(item)
                pixels = model.collate(items)[INPUT].to(accelerator.device, dtype)
                with accelerator.autocast():  # as in training without a cache, so that the loss is the same
                    stored[start : start + len(items), variant] = graph.module(pixels)[0].float().cpu().numpy()
            progress(start + len(samples), shape[0], PICTURES)
        if not np.isfinite(stored[-1]).all():
            raise TrainingError("The vision towers give values that are not finite in half precision; use images.")
        stored.flush()
        del stored


def _key(graph: Graph, dataset: Dataset, config: FinetuneConfig, shape: tuple[int, ...]) -> str:
    """Hash of everything the numbers depend on; weights through the features of a fixed image of noise."""
    probe = torch.rand(graph.example[INPUT].shape, generator=torch.Generator().manual_seed(1))
    example = graph.example[INPUT]
    with torch.inference_mode():
        answer = graph.module(probe.to(example.device, example.dtype))[0].float().cpu().numpy()
    said = {
        "data": dataset.hash,
        "shape": shape,
        "precision": config.precision,
        "augment": [config.seed, config.augment_crop, "plain: centre"] if config.augment else None,
        **({"image_size": config.image_size} if config.image_size else {}),
        "weights": hashlib.sha256(answer.tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:20]
