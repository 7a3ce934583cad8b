"""Recordings on disk: one module per format, one literal table, and detection by content.

A format module has `detect(path) -> bool` and `open_path(path, options) -> Recording`; it knows no robot.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from athena_vla.errors import LfsPointer, RecordingError, UnknownName
from athena_vla.recordings.episode import Recording, RecordingInfo
from athena_vla.recordings.formats.common import OpenOptions, are_placeholders, is_lfs_pointer
from athena_vla.recordings.notes import texts_of

# Asked in this order; each looks at content only. Imported on demand, so that h5py or PyAV load when needed.
FORMATS: dict[str, str] = {
    "lerobot": "athena_vla.recordings.formats.lerobot",
    "robomimic_hdf5": "athena_vla.recordings.formats.robomimic_hdf5",
    "isaaclab_hdf5": "athena_vla.recordings.formats.isaaclab_hdf5",
    "ros2_bag": "athena_vla.recordings.formats.bags.ros2_bag",
    "rlds": "athena_vla.recordings.formats.rlds",
    "xr_teleoperate": "athena_vla.recordings.formats.xr_teleoperate",
    "mobilitygen": "athena_vla.recordings.formats.mobilitygen",
    "isaac_folder": "athena_vla.recordings.formats.isaac_folder",
    "replicator": "athena_vla.recordings.formats.replicator",
    "motion_npz": "athena_vla.recordings.formats.motion_npz",
}


def format_module(name: str) -> ModuleType:
    """The module of a format. Raises `UnknownName`."""
    if name not in FORMATS:
        raise UnknownName("recording format", name, FORMATS)
    return importlib.import_module(FORMATS[name])


def open_recording(
    path: str | Path,
    *,
    format: str | None = None,
    joints: tuple[str, ...] = (),
    fps: float | None = None,
    state_joints: tuple[str, ...] = (),
    articulations: tuple[str, ...] = (),
) -> Recording:
    """Open a recording, its format found by content unless it is named.

    `joints` names the action columns, `state_joints` the state columns and `fps` the rate where the recording does
    not; `articulations` chooses among several recorded robots. Raises `RecordingError`.
    """
    return open_with(Path(path), OpenOptions(tuple(joints), fps, tuple(state_joints), tuple(articulations)), format)


def open_with(path: Path, options: OpenOptions, format: str | None = None) -> Recording:
    """Open a recording with what is asserted about it. Raises `RecordingError`."""
    if not path.exists():
        raise RecordingError(f"There is nothing at '{path}'.")
    if path.is_dir() and not any(path.iterdir()):
        raise RecordingError(f"'{path}' is an empty folder. It should hold recordings: {', '.join(FORMATS)}.")
    if format is not None:
        return format_module(format).open_path(path, options)
    for name in FORMATS:
        module = format_module(name)
        if module.detect(path):
            return module.open_path(path, options)
    format_module("ros2_bag").refuse(path)
    if path.is_file() and is_lfs_pointer(path):
        raise LfsPointer(path)
    several = sorted(p.name for p in path.glob("*.[hH]*5") if p.is_file()) if path.is_dir() else []
    if len(several) == 1:  # a download as it came: the file, and perhaps a README beside it
        only = path / several[0]
        return open_with(only, options)
    if several:
        raise RecordingError(f"'{path}' holds HDF5 files {several[:8]}; name one of them.")
    raise RecordingError(
        f"'{path}' is none of the formats {', '.join(FORMATS)}. An episode folder needs metadata.json, "
        "trajectory.npz or episode_data.npz, and images/."
    )


def info_json(info: RecordingInfo) -> dict[str, Any]:
    """What `athena data info --json` prints; null where the recording does not say."""
    return {
        "format": info.format,
        "version": info.version,
        "robot": info.robot or None,
        "joints": list(info.joint_names),
        "joints_named": not are_placeholders(info.joint_names),
        "states": list(info.state_names),
        "cameras": {n: {"height": h, "width": w} for n, (h, w) in info.cameras.items()},
        "rate": info.fps or None,
        "fps": info.fps or None,
        "episodes": info.episodes,
        "frames": info.frames,
        "tasks": list(info.tasks),
        "duration": info.duration or None,
        "success": info.successes,
        "notes": texts_of(info.notes),
        "noted": [n.to_dict() for n in info.notes],
    }
