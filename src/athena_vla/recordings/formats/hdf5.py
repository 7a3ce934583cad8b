"""What every HDF5 recording is read with: arrays that cannot lie about their size, and images frame by frame."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Image
from athena_vla.recordings.formats.common import MAX_ARRAY_BYTES, guarded

LEAST_SIDE = 8  # [px] smaller arrays of two axes are no images
MAGIC = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(8) == MAGIC


def numbers_of(dataset: Any, what: str) -> NDArray[Any]:
    """A whole dataset in memory. Raises `RecordingError` for one that is not numbers, or claims more than there is."""
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
        raise RecordingError(f"{what} is not an array of numbers.")
    if dataset.size * dataset.dtype.itemsize > MAX_ARRAY_BYTES:
        raise RecordingError(f"{what} claims {dataset.size} numbers; that is a damaged header.")
    if dataset.size * dataset.dtype.itemsize > 2**26 and dataset.id.get_storage_size() * 1000 < dataset.size:
        raise RecordingError(f"{what} claims shape {list(dataset.shape)}, the file holds nearly nothing of it.")
    return np.asarray(dataset[()])


def is_depth(leaf: str, dataset: h5py.Dataset) -> bool:
    """Whether an array holds depth: by its name and shape, or one channel of more than 8 bits an image."""
    planes = dataset.ndim == 3 or (dataset.ndim == 4 and dataset.shape[3] == 1)
    image_like = planes and min(dataset.shape[1:3]) >= LEAST_SIDE
    named = re.search(r"depth|distance_to", leaf, re.IGNORECASE) is not None
    deep = dataset.ndim == 4 and dataset.shape[3] == 1 and dataset.dtype.itemsize > 1 and dataset.dtype.kind in "uf"
    return dataset.ndim > 1 and ((named and (image_like or dataset.ndim == 4)) or (image_like and deep))


class HDF5Frames:
    """Images of one dataset [T, H, W, 3 or 4], read frame by frame; float ones are scaled back to 0..255."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.size = (int(dataset.shape[1]), int(dataset.shape[2]))

    def __len__(self) -> int:
        return int(self.dataset.shape[0])

    def __getitem__(self, index: int, /) -> Image:
        with guarded(f"frame {index} of '{self.dataset.name}'"):
            picture = np.asarray(self.dataset[index])[..., :3]
        if picture.dtype == np.uint8:
            return picture
        if picture.dtype.kind == "u":  # 16 bits a colour: the upper eight are what an 8-bit camera would show
            return (picture >> (8 * (picture.dtype.itemsize - 1))).astype(np.uint8)
        # Isaac Lab's `normalize=True` divides by 255 and subtracts the image's mean: the mean is lost, 0.5 stands in.
        shift = 0.5 if picture.min() < -1e-6 else 0.0
        scale = 255.0 if picture.max() <= 1.5 else 1.0
        return np.clip(np.rint((picture.astype(np.float32) + shift) * scale), 0, 255).astype(np.uint8)
