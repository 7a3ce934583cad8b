"""What an interrupted quantisation had finished: codes of layers, and how much each layer matters."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from athena_vla import files
from athena_vla.errors import BundleError, ModelError
from athena_vla.files.resume import Journal, PartialResults
from athena_vla.models.weights import packed
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import save


class LayerParts:
    """Finished codes and measured sensitivities for one `key`, kept beside `out` until the bundle stands there."""

    def __init__(self, out: Path, key: object) -> None:
        self.parts = PartialResults(out, key, BundleError)
        self.folder = self.parts.folder
        self.journal = Journal(self.folder / "sensitivities.jsonl", {"key": self.parts.key}, BundleError)

    def sensitivities(self) -> dict[str, float]:
        """Measured so far [rad]."""
        return {name: float(value) for row in self.journal.rows for name, value in row.items()}

    def measured(self, found: Mapping[str, float]) -> None:
        """Note the sensitivities [rad] of some layers."""
        self.journal.add(found)

    def codes(self, name: str) -> tuple[Packed, float] | None:
        """Finished codes of a weight and the output error they were chosen with; None where they are not whole."""
        try:
            tensors = load_file(self.folder / f"{name}.safetensors")
            return packed.load(name, tensors), float(tensors["error"])
        except (OSError, SafetensorError, ModelError, KeyError):
            return None

    def finished(self, name: str, weight: Packed, error: float) -> None:
        """Keep a weight's codes. Raises `BundleError` where they cannot be written."""
        tensors = {**packed.store(name, weight), "error": torch.tensor([error], dtype=torch.float64)}
        with files.whole_file(self.folder / f"{name}.safetensors", BundleError) as temporary:
            save(tensors, temporary)

    def remove(self) -> None:
        """The bundle stands: forget this, and what was begun with other settings."""
        self.journal.close()
        self.parts.remove()
