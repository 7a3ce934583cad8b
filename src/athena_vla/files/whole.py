"""Whole files and whole folders: what has its name is complete, whatever ended the process that wrote it.

A file or folder is written as `.NAME.writing` beside its place, synced, and takes its name in one step.
"""

import contextlib
import ctypes
import errno
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from athena_vla.errors import AthenaError
from athena_vla.files import faults
from athena_vla.files.leftovers import OLD, WRITING, remove, settle, try_lock

MANY = 32  # files in a folder; more are synced with one call for the whole file system
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


@contextlib.contextmanager
def whole_file(path: Path, error: type[AthenaError] = AthenaError) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end it replaces `path` in one step, or nothing is left of it.

    Its mode follows the umask. Its name has no suffix. Raises `error` where the operating system refuses.
    """
    with _refused(path, error):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _claim(path, _new_file)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(lock)
        _sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path, error: type[AthenaError] = AthenaError) -> Iterator[Path]:
    """Yield a temporary folder to fill; at the end it takes the place of `path` in one step.

    A folder that has the name stays until then. Raises `error` where the operating system refuses.
    """
    with _refused(path, error):
        path.parent.mkdir(parents=True, exist_ok=True)
        settle(path)
        temporary, lock = _claim(path, os.mkdir)
        try:
            yield temporary
            _sync_tree(temporary)
            _place(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(lock)
        _sync(path.parent)


def _place(made: Path, path: Path) -> None:
    """Give a finished folder its name and remove the one that had it; at every moment one of them has it."""
    before = try_lock(path)  # so that nobody takes the old one for a leftover while it is removed
    try:
        if not path.exists():
            os.replace(made, path)
        elif _exchange(made, path):
            shutil.rmtree(made, ignore_errors=True)
        else:  # the system cannot: `settle` mends what a kill in between leaves
            old = path.with_name(f".{path.name}.{OLD}")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
            try:
                os.replace(made, path)
            except OSError:
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
    finally:
        if before is not None:
            os.close(before)


def _claim(path: Path, make: Callable[[Path], object]) -> tuple[Path, int]:
    """A new temporary for `path` and the lock on it; what a dead process left under its name is removed first."""
    for number in itertools.count():
        candidate = path.with_name(f".{path.name}.{WRITING}" + (f"-{number}" if number else ""))
        if candidate.exists():
            remove(candidate)
        try:
            make(candidate)
        except FileExistsError:  # another process writes the same name now: who finishes last has it
            continue
        lock = try_lock(candidate)
        if lock is not None:
            return candidate, lock
    raise AssertionError


def _new_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _exchange(one: Path, two: Path) -> bool:
    """Exchange two names in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    faults.point("exchange", two)
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library older than the call
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(two), _EXCHANGE) == 0:
        return True
    problem = ctypes.get_errno()
    if problem in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP):
        return False
    raise OSError(problem, os.strerror(problem), str(two))


def _sync_tree(folder: Path) -> None:
    """A name must not outlive its bytes."""
    inside = list(folder.rglob("*"))
    if len(inside) > MANY and sys.platform.startswith("linux"):
        faults.point("sync", folder)
        handle = os.open(folder, os.O_RDONLY)
        try:
            if ctypes.CDLL(None).syncfs(handle) == 0:
                return
        finally:
            os.close(handle)
    for path in (*inside, folder):
        _sync(path)


def _sync(path: Path) -> None:
    faults.point("sync", path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _refused(path: Path, error: type[AthenaError]) -> Iterator[None]:
    """Say in a sentence what the operating system refused; what is not about `path` passes as it is."""
    try:
        yield
    except OSError as problem:
        if isinstance(problem.filename, str | os.PathLike) and not _about(Path(os.fspath(problem.filename)), path):
            raise
        said = error(f"'{path}' could not be written: {problem}. What had the name before is untouched.")
        said.of_writing = True
        raise said from problem


def _about(named: Path, path: Path) -> bool:
    named, path = named.absolute(), path.absolute()
    beside = path.parent / f".{path.name}."
    return named == path or path in named.parents or named in path.parents or str(named).startswith(str(beside))
