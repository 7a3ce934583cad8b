"""What `athena checkpoint` is told; read without torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CheckpointConfig:
    """Settings of `athena checkpoint`."""

    run: Path
    """The run's folder: OUT.run of the fine-tuning, or OUT itself."""
    out: Path
    """Where the bundle goes."""
    step: int = 0
    """Which checkpoint; 0 = the one with the least validation loss, or the newest where none was measured."""
