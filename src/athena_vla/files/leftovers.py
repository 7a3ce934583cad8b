"""What a killed process left beside a name. It never makes the name unusable.

While something is written the kernel holds a lock on it for the writer: a leftover is what nobody holds.
"""

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from athena_vla.errors import AthenaError

WRITING, OLD = "writing", "old"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_log = logging.getLogger("athena_vla")


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nobody finishes any more."""

    path: Path
    bytes: int

    def __str__(self) -> str:
        return f"'{self.path}' ({self.bytes / 1e6:.1f} MB)"


def leftovers(path: Path) -> list[Leftover]:
    """Unfinished and replaced things of `path` that no process holds; what is being written now is not among them."""
    found = []
    for candidate in _beside(path):
        lock = try_lock(candidate)
        if lock is not None:
            os.close(lock)
            found.append(_leftover(candidate))
    return found


def settle(path: Path) -> list[Leftover]:
    """Make the name usable: bring back what a killed replacement had put aside; remove, and name, all that is left."""
    bring_back(path)
    return [found for candidate in _beside(path) if (found := remove(candidate)) is not None]


def remove(path: Path) -> Leftover | None:
    """Remove a leftover and say so; None where another process holds it, or it is gone."""
    lock = try_lock(path)
    if lock is None:
        return None
    try:
        found = _leftover(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    finally:
        os.close(lock)
    if found.bytes:
        _log.warning("removed what an interrupted run left: %s", found)
    return found


def discard(path: Path, error: type[AthenaError] = AthenaError) -> None:
    """Remove a thing so that its name is free at once: a kill leaves it whole, or a leftover and a free name.

    Raises `error` where the operating system refuses.
    """
    try:
        if not path.exists():
            return
        taken = set(_beside(path))
        names = (path.with_name(f".{path.name}.{WRITING}-{n}") for n in itertools.count(1))
        aside = next(n for n in names if n not in taken)
        os.replace(path, aside)
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    except OSError as problem:
        raise error(f"'{path}' could not be removed: {problem}. Remove it, or choose another name.") from problem


def bring_back(path: Path) -> None:
    """Where nothing has the name because a replacement was killed half-way, give it back what it had before."""
    old = path.with_name(f".{path.name}.{OLD}")
    if old.exists() and not path.exists():
        os.replace(old, path)


def try_lock(path: Path) -> int | None:
    """An open descriptor that holds the kernel's lock on what has this name; None where that is another one's."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno not in _NO_LOCKS:  # a file system without locks can have one writer at a time
            os.close(handle)
            if problem.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            return None
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    os.close(handle)  # it took another name, or was removed, between the two
    return None


def _beside(path: Path) -> list[Path]:
    """Names that a write of `path` may have left, in order."""
    start = f".{path.name}."
    if not path.parent.is_dir():
        return []
    tails = (n.removeprefix(start) for n in os.listdir(path.parent) if n.startswith(start))
    return [path.with_name(start + t) for t in sorted(tails) if t == OLD or _is_writing(t)]


def _leftover(path: Path) -> Leftover:
    files = path.rglob("*") if path.is_dir() else (path,)
    return Leftover(path, sum(f.lstat().st_size for f in files if f.is_file()))


def _is_writing(tail: str) -> bool:
    word, _, number = tail.partition("-")
    return word == WRITING and (not number or number.isdigit())
