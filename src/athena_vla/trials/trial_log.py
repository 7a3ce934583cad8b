"""What happened in trials, line by line: each line is bound to the one before, so that an edit is found.

A line that a crash cut off is dropped and said; a trial that was begun and has no verdict is asked for again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from athena_vla.errors import EvaluationError

LOG = "trials.jsonl"
Event = Literal["begun", "verdict", "invalid", "corrected", "ended"]


@dataclass(frozen=True)
class Entry:
    """One thing that happened."""

    event: Event
    trial: int = 0  # number in the order; 0 where the line is about all
    success: bool | None = None
    emergency: bool = False  # the trial was ended by the emergency stop; it counts as a failure
    notes: str = ""
    video: str = ""  # a link or a path
    seconds: float | None = None  # that the trial took
    time: float = 0.0  # [s] since 1970


class TrialLog:
    """The log of one folder; `entries` is what it holds."""

    def __init__(self, folder: Path, plan_hash: str, clock: Callable[[], float] = time.time) -> None:
        """Raises `EvaluationError` for a line that is not as it was written."""
        self.path, self._clock = folder / LOG, clock
        self.entries: list[Entry] = []
        self.cut = ""  # what was dropped
        self._check = plan_hash
        self._read()

    def add(self, entry: Entry) -> None:
        """Write a line; it is on the disk when this returns. Raises `EvaluationError` where it cannot be."""
        stamped = Entry(**{**asdict(entry), "time": self._clock()})
        check = _check(self._check, stamped)
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps({**asdict(stamped), "check": check}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EvaluationError(
                f"'{self.path}' could not be written: {error.strerror}. Nothing before is lost."
            ) from error
        self._check = check
        self.entries.append(stamped)

    @property
    def ended(self) -> bool:
        """Whether names were opened, or a stop rule ended it."""
        return any(e.event == "ended" for e in self.entries)

    def verdicts(self) -> dict[int, Entry]:
        """Trial -> its verdict, the last correction included."""
        found: dict[int, Entry] = {}
        for e in self.entries:
            if e.event in ("verdict", "corrected"):
                found[e.trial] = e
        return found

    @property
    def open_trial(self) -> int:
        """Number of the trial that was begun and has no verdict; 0 where there is none."""
        last = next((e for e in reversed(self.entries) if e.event in ("begun", "verdict", "invalid")), None)
        return last.trial if last is not None and last.event == "begun" else 0

    def _read(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        if rest:  # the last line has no end: a crash cut it off
            self.cut = rest.decode("utf-8", "replace")
            with self.path.open("rb+") as file:
                file.truncate(len(whole) + (1 if whole else 0))
        for number, line in enumerate(whole.splitlines(), 1):
            read = _entry(line, self._check)
            if read is None:
                raise EvaluationError(
                    f"'{self.path}', line {number} is not as it was written: the log was edited, or belongs to another "
                    "order. Put it back; a verdict is corrected with 'c' while trials run."
                )
            entry, self._check = read
            self.entries.append(entry)


def _entry(line: bytes, before: str) -> tuple[Entry, str] | None:
    """The entry of a line and its check; None where the line is not the one that was written after `before`."""
    try:
        raw = json.loads(line)
        check = raw.pop("check")
        entry = Entry(**raw)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    good = set(raw) == {f.name for f in fields(Entry)} and check == _check(before, entry)
    return (entry, check) if good else None


def _check(before: str, entry: Entry) -> str:
    return hashlib.sha256(f"{before}{json.dumps(asdict(entry), sort_keys=True)}".encode()).hexdigest()
