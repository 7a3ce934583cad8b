"""robomimic HDF5: flat simulator states, observations per key, and masks that name splits.

Shares the walk over demos with Isaac Lab's files, which imitate this layout.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import RecordingInfo
from athena_vla.recordings.formats.common import OpenOptions, guarded
from athena_vla.recordings.formats.hdf5 import is_hdf5, numbers_of
from athena_vla.recordings.formats.isaaclab_hdf5 import IsaacLabHDF5, is_robomimic
from athena_vla.recordings.notes import Note

NAME = "robomimic_hdf5"
MOST_DEMOS = 10**7  # names in a mask; more is a damaged header
JOINT_KEYS = ("robot0_joint_pos", "joint_positions", "joint_pos")


def detect(path: Path) -> bool:
    """True for an HDF5 file with demos that hold flat states, dones or next_obs."""
    return is_hdf5(path) and is_robomimic(path)


def open_path(path: Path, options: OpenOptions) -> "RobomimicHDF5":
    return RobomimicHDF5(path, options)


class RobomimicHDF5(IsaacLabHDF5):
    """One robomimic file; `masks` name its splits."""

    format = NAME

    def masks(self) -> dict[str, tuple[str, ...]]:
        """Filter key -> demo names, as `mask/train` and `mask/valid`."""
        with guarded(f"masks of '{self.path}'"):
            group = self.file.get("mask")
            if not isinstance(group, h5py.Group):
                return {}
            found: dict[str, tuple[str, ...]] = {}
            for key in group:
                values = group[key]
                if not isinstance(values, h5py.Dataset):
                    found[key] = ()
                    continue
                shape = values.shape or ()  # None where the file holds a dataset without a dataspace
                if len(shape) != 1 or shape[0] > MOST_DEMOS:
                    raise RecordingError(f"mask '{key}' of '{self.path}' has shape {list(shape)}: no list of demos.")
                found[key] = tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values)
            return found

    def info(self) -> RecordingInfo:
        found = super().info()
        masks = [Note("split.mask", f"mask '{k}' names {len(v)} demos", v) for k, v in self.masks().items()]
        known = set(self.ids())
        masks += [
            Note("count.mask", f"mask '{k}' names '{d}', which is not there", (k, d))
            for k, v in self.masks().items()
            for d in v
            if d not in known
        ]
        return replace(found, format=NAME, notes=(*found.notes, *masks))

    def _states(
        self, group: h5py.Group, length: int, notes: list[Note]
    ) -> tuple[NDArray[Any], bool | None, list[float] | None]:
        obs = group.get("obs")
        if isinstance(obs, h5py.Group):
            for key in JOINT_KEYS:
                if isinstance(obs.get(key), h5py.Dataset) and len(obs[key]) == length and obs[key].ndim == 2:
                    return numbers_of(obs[key], f"obs/{key}"), False, None
        flat = "no joint positions among the observations; the flat simulator states are not joint angles"
        notes.append(Note("state.missing", flat))
        return np.zeros((length, 0), np.float32), None, None
