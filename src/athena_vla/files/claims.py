"""Who writes an OUT, and whether it may: one lock and one rule for every stage."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from athena_vla.errors import AthenaError
from athena_vla.files.leftovers import bring_back
from athena_vla.files.locks import lock


@contextlib.contextmanager
def claim(
    out: Path,
    *,
    overwrite: bool,
    what: str,
    ours: Callable[[Path], bool],
    reads: Path | None = None,
    error: type[AthenaError] = AthenaError,
) -> Iterator[None]:
    """Hold an OUT for the time of a run that `reads` something else: see `lock` and `require_free`. Raises `error`."""
    with lock(out, error):
        if reads is not None and _within(reads, out):
            raise error(f"'{out}' holds what this run reads ('{reads}'): choose another name for the result.")
        require_free(out, overwrite=overwrite, what=what, ours=ours, error=error)
        yield


def _within(inner: Path, outer: Path) -> bool:
    inner, outer = inner.resolve(), outer.resolve()
    return inner == outer or outer in inner.parents


def require_free(
    out: Path,
    *,
    overwrite: bool,
    what: str,
    ours: Callable[[Path], bool],
    error: type[AthenaError] = AthenaError,
) -> None:
    """The one rule for an OUT that is there already: nothing is replaced unless `--overwrite` says so.

    Even then only a thing of the same kind: `what` names it and `ours` recognises it. An empty folder counts as free.
    Raises `error`.
    """
    try:
        bring_back(out)
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        known = ours(out)
    except OSError as problem:
        raise error(f"'{out}' cannot be looked at: {problem}. Choose another place.") from problem
    if not known:
        raise error(f"'{out}' exists and is not {what}: choose another name, or remove it yourself.")
    if not overwrite:
        raise error(f"'{out}' exists already. Choose another name, or replace it with --overwrite.")
