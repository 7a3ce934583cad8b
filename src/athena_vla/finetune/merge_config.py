"""What `athena merge` is told; read without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Base = Literal["auto", "original", "nf4"]


@dataclass(frozen=True)
class MergeConfig:
    """Settings of `athena merge`."""

    input: Path
    """The fine-tuned bundle, with its adapter."""
    out: Path
    """Where the merged bundle goes."""
    base: Base = "auto"
    """After QLoRA: add to the original weights, or to the 4-bit weights (de-quantised) the adapter was trained on.
    auto takes what the adapter was trained on."""
    device: str = "auto"
    """Where adapter and merged model are compared: auto, cpu, cuda or cuda:N."""
    verify: bool = True
    """Compare adapter and merged model on the golden observations: graph by graph before anything is rounded, bit by
    bit as written, and in radians. Of a model that does not fit into memory, one chunk in radians."""
    tolerance: float = 0.0
    """Largest allowed deviation of a merged chunk from the adapter's [rad]; 0 is 0.001, after QLoRA 0.02, and 0.05 for
    models that do not fit into memory."""
    overwrite: bool = False
    """Replace what has the name of OUT already; it stays until the new one is whole."""
