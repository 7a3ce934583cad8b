"""Reads motion-capture npz files (Isaac Lab's humanoid AMP layout): joint names, positions and rate, one file each.

The targets are the next frame's positions: a motion has no commands, and a note says so.
"""

from pathlib import Path

import numpy as np

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import BrokenEpisode, Episode, RecordingInfo
from athena_vla.recordings.formats.common import (
    BaseRecording,
    OpenOptions,
    broken_note,
    guarded,
    natural_key,
    npz_arrays,
    npz_headers,
    unused,
)
from athena_vla.recordings.notes import Note
from athena_vla.recordings.streams import Clock, Stream

NAME = "motion_npz"
NO_COMMANDS = "targets are the next frame's positions: a motion has no commands"
NEEDED = {"fps", "dof_names", "dof_positions"}


def detect(path: Path) -> bool:
    """True for such a file, or a folder that directly holds some."""
    return any(_is_motion(f) for f in _files(path))


def open_path(path: Path, options: OpenOptions) -> "MotionNpz":
    return MotionNpz(path, options)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".npz" else []
    return sorted(path.glob("*.npz"), key=lambda p: natural_key(p.name))


def _is_motion(path: Path) -> bool:
    try:
        return set(npz_headers(path)) >= NEEDED
    except RecordingError:
        return False  # not readable as npz: no evidence for this format


class MotionNpz(BaseRecording):
    """Motions in one folder, or one of them."""

    format = NAME

    def ids(self) -> tuple[str, ...]:
        return tuple(f.stem for f in _files(self.path))

    def read(self, episode_id: str, /) -> Episode:
        path = next((f for f in _files(self.path) if f.stem == episode_id), None)
        if path is None:
            raise RecordingError(f"There is no motion '{episode_id}' in '{self.path}'.")
        headers = npz_headers(path)
        rows = headers["dof_positions"][0][0] if headers.get("dof_positions", ((), None))[0] else 0
        of_rows = {k for k, (shape, kind) in headers.items() if shape[:1] == (rows,) and kind.kind in "fiub"} - NEEDED
        arrays = npz_arrays(path, sorted(NEEDED))
        if set(arrays) < NEEDED:
            raise RecordingError(f"'{path}' lacks {sorted(NEEDED - set(arrays))}.")
        with guarded(f"'{path}'"):
            positions = arrays["dof_positions"]
            names = tuple(str(n) for n in arrays["dof_names"])
            fps = self.options.fps or float(arrays["fps"])
            if positions.ndim != 2 or positions.dtype.kind != "f" or positions.shape[1] != len(names):
                raise RecordingError(
                    f"'{path}': dof_positions {list(positions.shape)} do not fit {len(names)} joint names."
                )
            return Episode(
                id=episode_id,
                clock=Clock.at_rate(len(positions), fps),
                joint_names=names,
                actions=np.concatenate([positions[1:], positions[-1:]]),
                state_names=names,
                states=positions,
                source=f"{NAME}:{path}",
                streams={k: Stream(v) for k, v in npz_arrays(path, sorted(of_rows)).items()},
                notes=(
                    Note("action.next_positions", NO_COMMANDS),
                    *unused(set(headers) - NEEDED - of_rows, "arrays", episode_id),
                ),
            )

    def info(self) -> RecordingInfo:
        episodes = [e for e in self.episodes() if isinstance(e, Episode)]
        broken = [e for e in self.episodes() if isinstance(e, BrokenEpisode)]
        if not episodes:
            raise RecordingError(
                f"'{self.path}' holds no readable motion: {broken[0].reason if broken else 'it is empty'}"
            )
        first = episodes[0]
        return RecordingInfo(
            format=NAME,
            version="amp",
            robot="",
            joint_names=first.joint_names,
            state_names=first.state_names,
            cameras={},
            fps=first.fps,
            episodes=len(episodes),
            frames=sum(len(e) for e in episodes),
            tasks=(),
            duration=sum(len(e) / e.fps for e in episodes),
            successes=None,
            notes=(*first.notes, *(broken_note(b) for b in broken)),
        )
