"""What an interrupted quantisation had finished, kept beside the bundle until it stands under its name."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from athena_vla.models import packed
from athena_vla.models.packed import Packed
from athena_vla.models.store import save


class Parts:
    """A folder of finished codes and measured sensitivities for one `key`; of another key nothing is taken over."""

    def __init__(self, out: Path, key: str) -> None:
        self.folder = out.with_name(f".{out.name}.partial")
        marker = self.folder / "key"
        if self.folder.exists() and (not marker.is_file() or marker.read_text() != key):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(key)
        self.journal = self.folder / "sensitivities.jsonl"

    def sensitivities(self) -> dict[str, float]:
        """Measured so far [rad]; a line that was cut off while it was written does not count."""
        found: dict[str, float] = {}
        for line in self.journal.read_text().split() if self.journal.is_file() else ():
            with contextlib.suppress(json.JSONDecodeError):
                found |= json.loads(line)
        return found

    def measured(self, found: Mapping[str, float]) -> None:
        """Note the sensitivities [rad] of some layers."""
        with self.journal.open("a") as stream:
            stream.write("\n" + json.dumps(dict(found), separators=(",", ":")))  # the last line may be cut off

    def codes(self, name: str) -> tuple[Packed, float] | None:
        """Finished codes of a weight and the output error they were chosen with."""
        file = self.folder / f"{name}.safetensors"
        if not file.is_file():
            return None
        tensors = load_file(file)
        return packed.load(name, tensors), float(tensors["error"])

    def finished(self, name: str, weight: Packed, error: float) -> None:
        """Keep a weight's codes."""
        file = self.folder / f"{name}.safetensors"
        temporary = file.with_suffix(".tmp")
        save({**packed.store(name, weight), "error": Tensor([error]).double()}, temporary)
        temporary.rename(file)

    def remove(self) -> None:
        """The bundle stands."""
        shutil.rmtree(self.folder, ignore_errors=True)
