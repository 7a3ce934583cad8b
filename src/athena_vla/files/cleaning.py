"""The command `clean`: what the toolkit keeps only to be faster next time is removed, and counted.

Recordings, datasets, runs and bundles are never touched. A cache that a living process holds stays, and is named.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla.errors import AthenaError
from athena_vla.files.locks import lock
from athena_vla.files.space import size_of

DECODED = ".cache"  # beside a set's files: decoded images and vision features


@dataclass(frozen=True)
class CleanConfig:
    """Settings of `athena clean`."""

    sets: tuple[Path, ...] = ()
    """Datasets whose decoded images and vision features go too. Without any: what lies in the user's cache alone."""
    dry_run: bool = False
    """Say what would be removed, and remove nothing."""


@dataclass(frozen=True)
class Cache:
    """One cache."""

    path: Path
    what: str
    bytes: int
    kept: str = ""  # why it was not removed


@dataclass(frozen=True)
class CleanResult:
    """What was removed, and what was kept."""

    caches: tuple[Cache, ...]
    dry_run: bool

    @property
    def bytes(self) -> int:
        """Of what was removed, or would be."""
        return sum(c.bytes for c in self.caches if not c.kept)

    def __str__(self) -> str:
        if not self.caches:
            return "There is no cache to remove."
        lines = [
            f"{_size(c.bytes):>8}  {c.what}: {c.path}{f' (kept: {c.kept})' if c.kept else ''}" for c in self.caches
        ]
        done = "would be removed" if self.dry_run else "removed"
        return "\n".join([*lines, f"{_size(self.bytes):>8}  {done} in all"])

    def to_dict(self) -> dict[str, Any]:
        rows = [{"path": str(c.path), "what": c.what, "bytes": c.bytes, "kept": c.kept} for c in self.caches]
        return {"caches": rows, "bytes": self.bytes, "dry_run": self.dry_run}


def clean(config: CleanConfig) -> CleanResult:
    """Remove caches, each whole or not at all. Raises `AthenaError` for a path that is no dataset."""
    for path in config.sets:
        if not (path / "meta" / "info.json").is_file():
            raise AthenaError(f"'{path}' is no dataset: name folders that athena data build has written.")
    found = [*_of_user(), *_of_sets(config.sets)]
    return CleanResult(tuple(c if config.dry_run else _removed(c) for c in found), config.dry_run)


def user_cache() -> Path:
    """The folder for caches of this user. Raises `RuntimeError` where there is no home at all."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return base if base.is_absolute() else Path.home() / ".cache"


def _of_user() -> Iterator[Cache]:
    """Sets that were linked by themselves, one each, and compiled kernels."""
    temporary = Path(tempfile.gettempdir())
    for root in (user_cache() / "athena" / "sets", temporary / "athena-sets"):
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            if path.is_dir() and not path.name.startswith("."):
                yield Cache(path, "a set that links a recording", size_of([path]))
    kernels = user_cache() / "athena_vla"
    if kernels.is_dir() and any(kernels.iterdir()):
        yield Cache(kernels, "compiled kernels", size_of([kernels]))


def _of_sets(sets: tuple[Path, ...]) -> Iterator[Cache]:
    for path in sets:
        if (path / DECODED).is_dir():
            yield Cache(path / DECODED, "decoded images and vision features", size_of([path / DECODED]))


def _written(folder: Path) -> list[Path]:
    """What somebody is writing in a folder, by the lock files that are there."""
    return [f.with_name(f.name[1 : -len(".lock")]) for f in folder.glob(".*.lock")]


def _removed(cache: Cache) -> Cache:
    """The cache after it was removed, or with the reason why it was not."""
    try:
        with contextlib.ExitStack() as held:
            for place in (cache.path, *_written(cache.path)):
                held.enter_context(lock(place))
            # Its files go first under another name, so that a kill leaves no half of it where it is looked for.
            aside = cache.path.with_name(f".{cache.path.name}.removed-{os.getpid()}")
            os.replace(cache.path, aside)
            shutil.rmtree(aside)
    except (AthenaError, OSError) as problem:
        return Cache(cache.path, cache.what, cache.bytes, kept=str(problem))
    return cache


def _size(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.0f} kB"
