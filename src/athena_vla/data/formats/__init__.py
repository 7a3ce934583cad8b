"""Recordings on disk: one module per format, one literal table, and detection by content.

A format module has `detect(path) -> bool` and `open_path(path, options) -> Recording`; it knows no robot.
"""

import importlib
from pathlib import Path
from types import ModuleType

from athena_vla.data.episode import Recording
from athena_vla.data.formats.common import OpenOptions
from athena_vla.errors import RecordingError, UnknownName

# Asked in this order; each looks at content only. Imported on demand, so that h5py or PyAV load when needed.
FORMATS: dict[str, str] = {
    "isaac_folder": "athena_vla.data.formats.isaac_folder",
}


def format_module(name: str) -> ModuleType:
    """The module of a format. Raises `UnknownName`."""
    if name not in FORMATS:
        raise UnknownName("recording format", name, FORMATS)
    return importlib.import_module(FORMATS[name])


def open_recording(
    path: str | Path, *, format: str | None = None, joints: tuple[str, ...] = (), fps: float | None = None
) -> Recording:
    """Open a recording, its format found by content unless it is named.

    `joints` names the action columns and `fps` the rate where the recording does not. Raises `RecordingError`.
    """
    path = Path(path)
    options = OpenOptions(tuple(joints), fps)
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
    raise RecordingError(
        f"'{path}' is none of the formats {', '.join(FORMATS)}. An episode folder needs metadata.json, "
        "trajectory.npz or episode_data.npz, and images/."
    )
