"""What the demo can be told. Everything else is the stages' own defaults."""

from dataclasses import dataclass
from pathlib import Path

from athena_vla.errors import AthenaError

USUAL_STEPS = 600  # of the preset `demo`
OWN_DATA_STEPS = 200  # a first look at what can be learned, in a minute or two


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole way: recordings in, a better, bounded, deployable policy out, with evidence."""

    out: Path = Path("runs/demo")
    """Everything goes here. What is there and still fits is reused, and said so."""
    data: Path | None = None
    """Your own recordings instead of the simulator's; without a closed loop, compared on held-out episodes."""
    robot: str = "athena"
    """Robot of your recordings: a name or a TOML file. The simulator has athena only."""
    model: str = "builtin:base"
    """The base model: a bundle's folder, builtin:NAME, or a checkpoint folder or Hub id in the released layout."""
    seed: int = 0
    """Of recordings, training and scenes: the same seed gives the same numbers on the same machine."""
    recordings: int = 0
    """Demonstrations to record; 0 is 400, or 42 for a quick run."""
    episodes: int = 0
    """Scenes per actor in the closed loop; 0 is 105, or 14 for a quick run."""
    steps: int = 0
    """Optimiser steps of the fine-tuning; 0 is the preset's, or 40 for a quick run, or 200 on your own data."""
    workers: int = 0
    """Processes; 0 is one per core."""
    quick: bool = False
    """Small numbers everywhere: shows that every part works, proves nothing about quality."""
    overwrite: bool = False
    """Start anew in OUT; without it, what is there and still fits is reused."""

    def __post_init__(self) -> None:
        if min(self.recordings, self.episodes, self.steps, self.workers) < 0:
            raise AthenaError("--recordings, --episodes, --steps and --workers are counts; 0 means the default.")

    @property
    def recording_count(self) -> int:
        return self.recordings or (42 if self.quick else 400)

    @property
    def episode_count(self) -> int:
        return self.episodes or (14 if self.quick else 105)

    @property
    def film_count(self) -> int:
        """Tasks that are filmed."""
        return 2 if self.quick else 7

    @property
    def training_steps(self) -> int:
        return self.steps or (40 if self.quick else OWN_DATA_STEPS if self.data else USUAL_STEPS)

    @property
    def open_loop_samples(self) -> int:
        return 60 if self.quick else 300
