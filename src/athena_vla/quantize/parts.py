"""What an interrupted quantisation had finished, kept beside the bundle until it stands under its name."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from typing_extensions import Self

from athena_vla.errors import BundleError, ModelError
from athena_vla.models.weights import packed
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import save


class Parts:
    """A folder of finished codes and measured sensitivities for one `key`; what has another key lies elsewhere.

    Held by one process at a time. Raises `BundleError` where another one is at work on the same.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.out = out
        self.folder = out.with_name(f"{_prefix(out)}{hashlib.sha256(key.encode()).hexdigest()[:12]}")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = _held(self.folder)
        if lock is None:
            raise BundleError(f"Another process is quantising into '{out}' with the same settings: wait for it.")
        self.lock = lock
        self.journal = self.folder / "sensitivities.jsonl"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.lock)

    def sensitivities(self) -> dict[str, float]:
        """Measured so far [rad]; a line that was cut off while it was written does not count."""
        found: dict[str, float] = {}
        for line in self.journal.read_text(errors="replace").split() if self.journal.is_file() else ():
            with contextlib.suppress(json.JSONDecodeError):
                found |= json.loads(line)
        return found

    def measured(self, found: Mapping[str, float]) -> None:
        """Note the sensitivities [rad] of some layers."""
        with self.journal.open("a") as stream:
            stream.write("\n" + json.dumps(dict(found), separators=(",", ":")))  # the last line may be cut off

    def codes(self, name: str) -> tuple[Packed, float] | None:
        """Finished codes of a weight and the output error they were chosen with; None where they are not whole."""
        try:
            tensors = load_file(self.folder / f"{name}.safetensors")
            return packed.load(name, tensors), float(tensors["error"])
        except (OSError, SafetensorError, ModelError, KeyError):
            return None

    def finished(self, name: str, weight: Packed, error: float) -> None:
        """Keep a weight's codes."""
        file = self.folder / f"{name}.safetensors"
        temporary = file.with_suffix(".tmp")
        try:
            save({**packed.store(name, weight), "error": torch.tensor([error], dtype=torch.float64)}, temporary)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())  # a name must not outlive its bytes
            temporary.rename(file)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self) -> None:
        """The bundle stands, and nothing holds this: forget it, and what was begun with other settings and left."""
        for folder in self.out.parent.glob(f"{_prefix(self.out)}*"):
            lock = _held(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _prefix(out: Path) -> str:
    return f".{out.name}.partial-"


def _held(folder: Path) -> int | None:
    """A lock on the folder until it is closed or the process ends; None where another process has it."""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
