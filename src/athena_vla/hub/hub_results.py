"""What came of a push or a pull, as a person and a program read it."""

from dataclasses import dataclass
from pathlib import Path

SHOWN = 20  # files in the text


def size(count: int) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


@dataclass(frozen=True)
class SentFile:
    """One file of a repository."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PushResult:
    """What was published, or with a dry run what would be."""

    repo: str
    type: str  # model or dataset
    kind: str  # bundle, adapter or dataset
    files: tuple[SentFile, ...]
    card: str
    hash: str  # of the bundle or set, as its reader computes it
    revision: str
    url: str = ""  # of the commit; "" for a dry run
    notes: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)

    def __str__(self) -> str:
        rows = [f"  {size(f.bytes):>10}  {f.path}" for f in self.files[:SHOWN]]
        more = [f"  and {len(self.files) - SHOWN} more files"] if len(self.files) > SHOWN else []
        verb = "would publish" if self.dry_run else "published"
        head = f"{verb} the {self.kind} {self.hash[:16]} as {self.type} '{self.repo}', revision {self.revision}:"
        head += f" {len(self.files)} files, {size(self.bytes)}"
        lines = [head, *rows, *more, *self.notes]
        if self.dry_run:
            return "\n".join([*lines, "Nothing was sent. The card, README.md:", "", self.card.rstrip()])
        return "\n".join([*lines, self.url])


@dataclass(frozen=True)
class PullResult:
    """What was fetched and found to be whole."""

    path: Path
    repo: str
    type: str
    kind: str
    commit: str
    files: int
    bytes: int
    hash: str
    licence: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"{self.kind} {self.hash[:16]}".rstrip()
        head = f"{self.path}: {what} of {self.type} '{self.repo}' at {self.commit[:12]}"
        lines = [f"{head}, {self.files} files, {size(self.bytes)}, every hash as listed"]
        return "\n".join([*lines, f"Licence: {self.licence or 'not stated'}", *self.notes])
