"""Whether what is about to be written has room on its disk: said before the first byte and not after the last one."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from athena_vla.errors import AthenaError

SPARE = 64 * 2**20  # [bytes] that stay free


def size_of(paths: Iterable[Path]) -> int:
    """[bytes] of files and of all files below folders."""
    total = 0
    for path in paths:
        if path.is_file():
            total += path.stat().st_size
        for root, _, names in os.walk(path):
            for name in names:
                try:
                    total += os.stat(os.path.join(root, name)).st_size
                except OSError:
                    continue  # a link that points nowhere
    return total


def require_room(
    out: Path, needed: int, what: str, error: type[AthenaError] = AthenaError, *, otherwise: str = ""
) -> None:
    """Raises `error` where the disk of `out` has less than `needed` [bytes] free, with both figures.

    `otherwise` is what else the user could do, as a sentence.
    """
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free - SPARE
    if needed > free:
        raise error(
            f"{what} needs about {_readable(needed)}, and the disk of '{parent}' has {_readable(max(free, 0))} free. "
            f"Make room, or name an OUT on another disk. {otherwise}".rstrip()
        )


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"
