"""The manifest of a bundle: everything about it but its tensors, typed, and read with a sentence for whatever is wrong.

FORMAT 2 lists each file with its size and hash; format 1 listed hashes alone, and is read.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Literal, cast, get_args

from athena_vla.errors import BundleError
from athena_vla.gate import Gate

FORMAT = 2
READ = (1, 2)
Stage = Literal["base", "finetuned", "merged", "quantized", "exported"]
HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class FileEntry:
    """What a file of the bundle must be."""

    sha256: str
    bytes: int | None = None  # None where the manifest does not say: format 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a bundle but its tensors; plain JSON, full precision."""

    stage: Stage
    family: str
    spec: dict[str, Any]
    robot: dict[str, Any]
    normalizer: dict[str, Any]
    dataset_hash: str = ""
    parent_hash: str = ""
    parent_path: str = ""  # where the base of an adapter lies: a path or builtin:NAME
    checkpoint: str = ""  # instead of a parent bundle: a released checkpoint, a folder or owner/name@commit
    adapter: dict[str, Any] = field(default_factory=dict)  # the LoRA configuration of a fine-tuned bundle
    config: dict[str, Any] = field(default_factory=dict)  # resolved configuration of the stage that wrote it
    deviation: dict[str, Any] = field(default_factory=dict)  # [rad] per joint against the golden chunks
    gates: dict[str, Gate] = field(default_factory=dict)  # what was checked, by name
    stage_info: dict[str, Any] = field(default_factory=dict)  # graphs, precisions, engines: the stage's own record
    tools: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)  # relative path -> what it must be
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """JSON in the manifest's own format, so that the hash of an older bundle stays what it was."""
        raw = asdict(self) | {"gates": {name: gate.to_dict() for name, gate in self.gates.items()}}
        if self.format == 1:
            raw["files"] = {path: entry.sha256 for path, entry in self.files.items()}
        return raw

    @classmethod
    def from_dict(cls, raw: Any, where: object) -> "Manifest":
        """Inverse of `to_dict`. Raises `BundleError` naming the entry that is not what it must be."""
        if not isinstance(raw, Mapping):
            raise BundleError(f"The manifest of '{where}' is no table of entries. Make the bundle again.")
        version = raw.get("format", 1)
        if isinstance(version, bool) or version not in READ:
            raise BundleError(
                f"Bundle '{where}' has format {version!r}, this version reads formats {', '.join(map(str, READ))}."
            )
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(str(k) for k in set(raw) - set(known))
        if unknown:
            raise BundleError(f"The manifest of '{where}' has unknown entries {unknown}: made by a newer version?")
        needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
        missing = [n for n in needed if n not in raw]
        if missing:
            raise BundleError(f"The manifest of '{where}' lacks {missing}. Make the bundle again.")
        values = {k: v for k, v in raw.items() if k not in ("files", "gates")}
        for name, value in values.items():
            problem = _problem(name, value)
            if problem:
                raise BundleError(f"The manifest of '{where}' is damaged: {name} {problem}. Make the bundle again.")
        gates = _gates(raw.get("gates", {}), where)
        files = {str(p): _entry(str(p), e, where) for p, e in _table(raw.get("files", {}), where).items()}
        return cls(**{**values, "files": files, "gates": gates})


def _problem(name: str, value: Any) -> str:
    """What is wrong with one entry, "" where nothing is."""
    if name == "stage":
        return "" if value in get_args(Stage) else f"is {value!r}; known are {', '.join(get_args(Stage))}"
    if name == "format":
        return ""
    if name in ("family", "dataset_hash", "parent_hash", "parent_path", "checkpoint"):
        return "" if isinstance(value, str) else f"is {type(value).__name__}, not text"
    if not isinstance(value, dict):
        return f"is {type(value).__name__}, not a table"
    table = cast(dict[str, Any], value)
    if name == "tools" and not all(isinstance(v, str) for v in table.values()):
        return "holds something that is no text"
    if name == "deviation" and "max_rad" in table and not _is_size(table["max_rad"]):
        return f"says max_rad {table['max_rad']!r}, which is no finite size"
    return ""


def _gates(raw: object, where: object) -> dict[str, Gate]:
    if not isinstance(raw, dict):
        raise BundleError(
            f"The manifest of '{where}' is damaged: gates is {type(raw).__name__}, not a table. Make the bundle again."
        )
    try:
        return {str(name): Gate.from_dict(str(name), gate) for name, gate in raw.items()}
    except BundleError as error:
        raise BundleError(f"The manifest of '{where}' is damaged: {error} Make the bundle again.") from error


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _table(value: Any, where: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BundleError(f"The manifest of '{where}' lists no files, but a {type(value).__name__}. Make it again.")
    return cast(dict[str, Any], value)


def _entry(path: str, raw: Any, where: object) -> FileEntry:
    """A listed file. Raises `BundleError` for a path out of the bundle or what is no hash."""
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\\" in path or str(parts) != path or "\0" in path:
        raise BundleError(f"The manifest of '{where}' lists '{path}', which is no path inside the bundle.")
    if isinstance(raw, str):
        entry = FileEntry(raw)
    elif isinstance(raw, dict) and set(raw) == {"sha256", "bytes"} and isinstance(raw["sha256"], str):
        entry = FileEntry(raw["sha256"], raw["bytes"])
    else:
        raise BundleError(f"The manifest of '{where}' says of '{path}' neither its hash nor its size. Make it again.")
    size = entry.bytes
    if (
        len(entry.sha256) != 64
        or set(entry.sha256) - HEX
        or not (size is None or (_is_size(size) and int(size) == size))
    ):
        raise BundleError(f"The manifest of '{where}' has no valid hash and size of '{path}'. Make the bundle again.")
    return entry
