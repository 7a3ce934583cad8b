"""Paths of this machine in what is about to be published: cut out of values and texts, found in files.

A path is cut to its last name. What only looks like one, such as a ROS topic, begins with no folder of this machine and
stays.
"""

import hashlib
import io
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

# First folders that belong to somebody's machine, whether or not this machine has them.
_ROOTS = frozenset((
    "home", "root", "Users", "tmp", "mnt", "media", "data", "datasets", "var", "opt", "srv", "work",
    "workspace", "workspaces", "scratch", "content", "private", "Volumes", "projects", "nfs", "lustre", "gpfs",
    "storage", "kaggle",
))  # fmt: skip
_POSIX = re.compile(r"(?<![\w./~-])(?:file://)?(~[\w.-]*)?((?:/[^\s/\"'<>|:,;()\[\]{}\\`*]+){2,}|(?<=~)/[^\s/\"']+)/?")
_WINDOWS = re.compile(r"(?<!\w)[A-Za-z]:[\\/](?:[^\\/\s\"'<>|:]+[\\/])*([^\\/\s\"'<>|:]+)")
_BLOCK = 1 << 20


@dataclass
class Cutter:
    """Cuts paths out; `found` are those that it met."""

    found: set[str] = field(default_factory=set)

    def value(self, value: Any) -> Any:
        """A JSON value with every path in its texts and keys cut to its last name."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(v) for v in cast(list[Any], value)]
        if isinstance(value, dict):
            return {self.text(str(k)): self.value(v) for k, v in cast(dict[str, Any], value).items()}
        return value

    def text(self, text: str) -> str:
        """A text with paths cut. One that is a path as a whole may hold blanks."""
        if self._is_path(text):
            self.found.add(text)
            return PureWindowsPath(text).name if _WINDOWS.match(text) else PurePosixPath(text).name
        return _POSIX.sub(self._posix, _WINDOWS.sub(self._windows, text))

    def _is_path(self, text: str) -> bool:
        if "\n" in text or not text.strip() or text in ("/", "~"):
            return False
        if text.startswith(("~/", "../", "file:///")) or re.match(r"[A-Za-z]:[\\/]\S", text):
            return True
        return text.startswith("/") and _begins_here(text) and PurePosixPath(text).name != ""

    def _posix(self, match: re.Match[str]) -> str:
        whole, below = match.group(0), match.group(2)
        if match.group(1) is None and not whole.startswith("file://") and not _begins_here(below):
            return whole
        self.found.add(whole)
        return PurePosixPath(below).name

    def _windows(self, match: re.Match[str]) -> str:
        self.found.add(match.group(0))
        return match.group(1)


def _begins_here(path: str) -> bool:
    """Whether the first folder of an absolute path is one of this machine, or of machines in general."""
    first = PurePosixPath(path).parts[1] if len(PurePosixPath(path).parts) > 1 else ""
    return first in _ROOTS or (bool(first) and Path("/", first).is_dir())


def needles(thing: Path, found: set[str]) -> tuple[bytes, ...]:
    """What no published file may hold: the home folder, the folder of the thing, and the paths cut out of its texts."""
    home, here = str(Path.home()), Path(__file__).resolve().parents[2]  # where this package lies: a graph may name it
    folders = {str(thing.resolve().parent), str(here), *(p for p in found if p.startswith("/"))}
    long = {f for f in folders if len(PurePosixPath(f).parts) > 2}  # `/data/` alone stands in many a text
    return tuple(sorted(f"{f.rstrip('/')}/".encode() for f in long | {home} if f != "/"))


@dataclass(frozen=True)
class Scanned:
    """A file, read once."""

    sha256: str
    bytes: int
    holds: str  # the first path of this machine in it, "" where there is none


def scan(source: Path | bytes, looked_for: tuple[bytes, ...]) -> Scanned:
    """Hash of a file or of its content, and whether it holds one of the `looked_for`."""
    digest, count, holds = hashlib.sha256(), 0, b""
    longest = max(map(len, looked_for), default=1)
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        tail = b""
        while block := stream.read(_BLOCK):
            digest.update(block)
            count += len(block)
            window = tail + block
            holds = holds or next((n for n in looked_for if n in window), b"")
            tail = window[-(longest - 1) :] if longest > 1 else b""
    return Scanned(digest.hexdigest(), count, holds.decode(errors="replace"))
