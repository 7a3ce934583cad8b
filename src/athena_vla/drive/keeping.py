"""A driven run as an episode of the next recording: who commanded each step, and whether it succeeded.

Knows traces, folders and a question to a person; nothing of control loops.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from athena_vla import files
from athena_vla.control.trace import Trace
from athena_vla.embodiment import Embodiment
from athena_vla.errors import SafetyError
from athena_vla.recordings.formats.isaac_folder import write_episode
from athena_vla.sim.deployed_episodes import trace_to_episode

Verdict = Literal["ask", "yes", "no", "unmarked"]
SUCCESS = "success"  # kind of the event that marks a run
MOST_BYTES = 4e9  # of images that are kept in memory until the run is over
ANSWERS = {"y": True, "n": False, "": None}


@runtime_checkable
class Judged(Protocol):
    """A robot that knows whether the task was done, as a simulator does."""

    def success(self) -> bool: ...


def require_room(body: Embodiment, seconds: float, folder: Path) -> None:
    """Raises `SafetyError` where a run's images do not fit in memory, or where `folder` is a file."""
    frame = sum(3 * c.width * c.height for c in body.cameras)
    size = frame * seconds * body.control_hz
    if size > MOST_BYTES:
        raise SafetyError(
            f"An episode of {seconds:g} s of '{body.name}' holds {size / 1e9:.1f} GB of images until it is written; "
            f"at most {MOST_BYTES / 1e9:.0f} GB are. Drive for {MOST_BYTES / frame / body.control_hz:.0f} s at most."
        )
    if folder.exists() and not folder.is_dir():
        raise SafetyError(f"--record takes a folder, and '{folder}' is a file.")


def verdict(robot: object, wanted: Verdict, ask: Callable[[str], str] = input) -> tuple[bool | None, str]:
    """Whether the run succeeded and who says so; None where nobody does.

    A simulator says it itself. A person is asked where there is a terminal.
    """
    if wanted in ("yes", "no"):
        return wanted == "yes", "the command line"
    if wanted == "unmarked":
        return None, "nobody"
    if isinstance(robot, Judged):
        return robot.success(), "the simulator"
    if not sys.stdin.isatty():
        return None, "nobody: there is no terminal to ask at"
    while True:
        try:
            given = ask("Did it succeed? [y: yes, n: no, Enter: not marked] ").strip().lower()
        except EOFError:
            return None, "nobody"
        if given in ANSWERS:
            return ANSWERS[given], "the operator" if given else "nobody"
        print(f"'{given}' is none of y, n and Enter.", flush=True)


def keep(trace: Trace, body: Embodiment, folder: Path, success: bool | None) -> Path:
    """Write the run as the next episode of the recording in `folder`. Raises `SafetyError`, `RecordingError`."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock(folder, SafetyError):
        taken = [int(p.name[8:]) for p in folder.glob("episode_*") if p.name[8:].isdigit()]
        name = f"episode_{max(taken, default=-1) + 1:04d}"
        return write_episode(folder, trace_to_episode(trace, body, id=name, success=success))
