"""Failures on demand: the n-th file operation below a folder fails, or ends the process, once. For tests of stages.

Python reports its own file operations as audit events; what other libraries write is reported with `point`. Without
`failing` or the environment variable nothing is watched and nothing costs time.
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "ATHENA_FILE_FAULT"  # "fail:3:/folder" or "kill:3:/folder": for processes that a test starts
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


@dataclass
class Fault:
    """What is to happen at operation `at`; afterwards what the operation was, and how many there were."""

    at: int  # the first operation is 1; 0 only counts
    under: str
    kill: bool = False
    count: int = 0
    hit: str = ""
    seen: list[str] = field(default_factory=list)

    def operation(self, name: str, path: str) -> None:
        """Count it; raises `OSError` or ends the process where it is the one. Each fault happens once."""
        self.count += 1
        self.seen.append(f"{name} {path}")
        if self.count != self.at:
            return
        self.hit = self.seen[-1]
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


_active: list[Fault] = []
_hooked: list[bool] = []


def point(name: str, path: str | os.PathLike[str]) -> None:
    """Report an operation that Python does not report itself: a sync, or a file that another library writes."""
    for fault in _active:
        where = os.path.abspath(os.fspath(path))
        if where.startswith(fault.under):
            fault.operation(name, where)


@contextlib.contextmanager
def failing(at: int, under: Path, *, kill: bool = False) -> Iterator[Fault]:
    """Within it, file operation number `at` below `under` fails as on a full disk, or ends the process, once."""
    fault = _watch(Fault(at, str(under.resolve()), kill))
    try:
        yield fault
    finally:
        _active.remove(fault)


def _watch(fault: Fault) -> Fault:
    if not _hooked:
        sys.addaudithook(_audit)  # it cannot be taken away again, and does nothing while no fault is active
        _hooked.append(True)
    _active.append(fault)
    return fault


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active or len(arguments) == 0:
        return
    if event == "open":
        flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
        if not flags & WRITING:
            return
    elif event not in EVENTS:
        return
    if isinstance(arguments[0], str | bytes | os.PathLike):
        point(event, os.fsdecode(arguments[0]))


def _from_environment() -> None:
    kind, _, rest = os.environ.get(VARIABLE, "").partition(":")
    at, _, under = rest.partition(":")
    if kind in ("fail", "kill") and at.isdigit() and under:
        _watch(Fault(int(at), os.path.realpath(under), kind == "kill"))


_from_environment()
