"""One run at a time for one place: a lock that names who holds it, and that ends with the process that held it."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from athena_vla.errors import AthenaError
from athena_vla.files import faults

_held: set[Path] = set()  # by this process: a stage inside a stage is the same run
_guard = threading.Lock()


@contextlib.contextmanager
def lock(place: Path, error: type[AthenaError] = AthenaError, *, wait: bool = False) -> Iterator[None]:
    """Hold `place`, a file or folder that may not exist yet, for the time of a run.

    The kernel keeps the lock for this process, so that a killed one leaves nothing to clean. Raises `error`, naming the
    other run by process and start time, where one is at work there; with `wait` it waits until that has ended.
    """
    place = place.absolute()
    with _guard:
        mine = place not in _held
        _held.add(place)
    if not mine:
        yield
        return
    file, handle = None, None
    try:
        file, handle = _acquire(place, error, wait)
        yield
    finally:
        if file is not None and handle is not None:
            with contextlib.suppress(OSError):
                file.unlink()  # while it is held: who opened it meanwhile sees that it is gone
            os.close(handle)
        with _guard:
            _held.discard(place)


def _acquire(place: Path, error: type[AthenaError], wait: bool) -> tuple[Path, int]:
    while True:
        try:
            file, handle = _open(place)
        except OSError as problem:
            raise error(f"'{place}' could not be written: {problem}. Choose another place.") from problem
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as problem:
            owner = _owner(handle)
            if problem.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                raise error(_refusal(place, owner)) from problem
            if _alive(owner):  # a file system without locks: the note is all there is
                os.close(handle)
                raise error(_refusal(place, owner)) from problem
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), file.stat()):
                break
        os.close(handle)  # its owner finished between our opening and our asking
    try:
        note = {"pid": os.getpid(), "started": _started(os.getpid()), "host": platform.node(), "command": _command()}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(note).encode(), 0)
    except OSError as problem:
        os.close(handle)
        raise error(f"'{place}' could not be written: {problem}. Make room, or choose another place.") from problem
    return file, handle


def _open(place: Path) -> tuple[Path, int]:
    """The file of the lock: beside the place, or in it where only that can be written, as with a mounted folder."""
    beside = place.with_name(f".{place.name}.lock")
    faults.point("lock", beside)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return beside, os.open(beside, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as problem:
        if problem.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not place.is_dir():
            raise
        return place / ".lock", os.open(place / ".lock", os.O_CREAT | os.O_RDWR, 0o666)


def _owner(handle: int) -> dict[str, Any]:
    try:
        note = json.loads(os.pread(handle, 1 << 16, 0))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _refusal(place: Path, owner: dict[str, Any]) -> str:
    if owner.get("pid") == os.getppid():
        return (
            f"'{place}' is being written by the process that started this one ({owner['pid']}). A script that starts "
            "workers needs an `if __name__ == '__main__':` guard around its calls."
        )
    who = "process unknown"
    if owner:
        where = "" if owner.get("host") == platform.node() else f" on {owner.get('host')}"
        when = datetime.datetime.fromtimestamp(float(owner.get("started", 0))).isoformat(" ", "seconds")
        who = f"process {owner.get('pid')}{where}, started {when} ({owner.get('command')})"
    return f"Another run is writing '{place}': {who}. Wait until it has finished, or stop it, or choose another place."


def _alive(owner: dict[str, Any]) -> bool:
    """Whether the process of the note still runs: its number alone may belong to another one by now."""
    try:
        os.kill(int(owner["pid"]), 0)
    except (KeyError, ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return owner.get("host") == platform.node() and abs(_started(int(owner["pid"])) - float(owner["started"])) < 2.0


def _started(pid: int) -> float:
    """[s since 1970] when a process started; 0 where the system does not say."""
    try:
        ticks = float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(x for x in Path("/proc/stat").read_text().splitlines() if x.startswith("btime"))
        return float(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, StopIteration, IndexError, ValueError):
        return 0.0


def _command() -> str:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else ["python"]
    return " ".join(words)[:200]
