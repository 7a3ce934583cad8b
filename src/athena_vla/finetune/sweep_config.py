"""What `athena sweep` is told; read without torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Compare fine-tuning configurations on the same base, data, seeds and evaluation scenes."""

    out: Path = Path("runs/sweep")
    """Folder of all runs, the table (sweep.json, sweep.md) and the plot (sweep.png)."""
    data: Path = Path("dataset")
    """A built dataset."""
    model: str = "builtin:base"
    """The base of all runs."""
    presets: tuple[str, ...] = ("demo",)
    """Presets to compare, by name."""
    variants: tuple[str, ...] = ()
    """Changes to each preset, such as rank=8 or rank=8,dora=true; every one makes a row."""
    seeds: tuple[int, ...] = (0,)
    """Every row is trained once per seed."""
    max_steps: int = 0
    """Optimiser steps of every run; 0 = what the preset says."""
    episodes: int = 0
    """Closed-loop episodes per run in the simulator; 0 = open loop only."""
    robot: str = "athena"
    """The simulated robot of the closed loop, name or TOML file: the one the dataset was built for."""
    workers: int = 1
    """Processes of the closed loop."""
