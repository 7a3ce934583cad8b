"""robomimic HDF5: flat simulator states, observations per key, and masks that name splits.

Shares the walk over demos with Isaac Lab's files, which imitate this layout.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError, UnknownName
from athena_vla.recordings.episode import RecordingInfo
from athena_vla.recordings.formats.common import OpenOptions, guarded
from athena_vla.recordings.formats.hdf5 import is_hdf5, numbers_of
from athena_vla.recordings.formats.isaaclab_hdf5 import IsaacLabHDF5, is_robomimic
from athena_vla.recordings.notes import Note

NAME = "robomimic_hdf5"
MOST_DEMOS = 10**7  # names in a mask; more is a damaged header
JOINT_KEYS = re.compile(
    r"(?:(\w+?)_)?(?:joint_(?:pos|position|positions|qpos|states?)|qpos)"
)  # of a robot, named before


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
        found = self._joint_arrays(group)
        if len(found) > 1 and not self.options.articulations:
            several = ", ".join(f"{robot} ({group[name].shape[1]})" for robot, name in found.items())
            asks = (
                f"joint positions of {several} are recorded; say which are the robot's with --articulation NAME[,NAME]"
            )
            notes.append(Note("articulation.several", asks, tuple(found)))
            return np.zeros((length, 0), np.float32), None, None
        for robot in self.options.articulations:
            if robot not in found:
                raise UnknownName(f"robot with joint positions in '{self.path}'", robot, found)
        chosen = self.options.articulations or tuple(found)
        if chosen:
            parts = [numbers_of(group[found[robot]], found[robot]) for robot in chosen]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), False, None
        flat = "no joint positions among the observations; the flat simulator states are not joint angles"
        notes.append(Note("state.missing", flat))
        return np.zeros((length, 0), np.float32), None, None

    def _joint_arrays(self, group: h5py.Group) -> dict[str, str]:
        """Robot, as the key before `joint_pos` names it -> array of its joint positions below the demo."""
        obs, length = group.get("obs"), len(group["actions"])
        found: dict[str, str] = {}
        for key in obs if isinstance(obs, h5py.Group) else ():
            match = JOINT_KEYS.fullmatch(key)
            is_rows = isinstance(obs[key], h5py.Dataset) and obs[key].ndim == 2 and len(obs[key]) == length
            if match and is_rows:
                found.setdefault(match[1] or "robot", f"obs/{key}")
        return found

    def _taken(self, group: h5py.Group) -> set[str]:
        found = self._joint_arrays(group)
        return {"actions", *(v for k, v in found.items() if len(found) == 1 or k in self.options.articulations)}
