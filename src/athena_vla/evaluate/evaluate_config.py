"""What `athena evaluate` and `athena compare` are told; read without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from athena_vla.errors import EvaluationError
from athena_vla.jobs import Place
from athena_vla.sim.scene import Split


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How the simulator is used."""

    episodes: int = 105
    """Scenes per actor; 0 plays none and compares on recordings only."""
    pairs: int = 0
    """Scenes that are also played with two instructions each, whose names are of two objects there; 120 tell policies
    apart."""
    split: Split = "test"
    """Which scenes: `test` holds placements and instructions that training never combines."""
    duration: float = 6.0
    """An episode without success ends after this long [s]."""
    replan_every: int = 8
    """A new chunk is asked for every this many control steps."""
    latency: float = 0.0
    """Simulated time between an observation and its answer [s]."""
    workers: int = 0
    """Processes; 0 is one per core."""
    on: Place = "here"
    """Where scenes are played: local processes or a Ray cluster."""

    def __post_init__(self) -> None:
        if self.pairs < 0:
            raise EvaluationError(f"--pairs must not be negative, it is {self.pairs}.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One policy beside the baselines, open loop on recordings and closed loop in the simulator."""

    bundle: Path
    """The bundle to evaluate, or builtin:NAME."""
    data: Path | None = None
    """Built dataset: its validation split for open loop, its training split for the baselines."""
    out: Path = Path("runs/evaluation")
    """Where episodes and the result are kept; a second run reuses them and says so."""
    backend: str = "auto"
    """torch, onnxruntime, openvino, tensorrt, or what the bundle needs."""
    device: str = "auto"
    """Where the policy runs: auto, cpu, cuda or cuda:N."""
    ablations: bool = True
    """Also try the policy with black images and with another instruction."""
    within_reach: bool = False
    """Family openvla: also try the policy held to what the robot can reach from row to row."""
    samples: int = 400
    """Validation samples for open loop."""
    seed: int = 0
    """Decides scenes and resampling."""
    loop: Annotated[Loop, tyro.conf.arg(name="")] = Loop()
    """The simulator."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Two policies, usually untuned and tuned, beside the baselines, on the same scenes and samples.

    With --results: the policies of result files, of any program.
    """

    a: Path | None = None
    """The first bundle, builtin:NAME, or a released checkpoint (folder or Hub id); usually the untuned one."""
    b: Path | None = None
    """The second bundle; the one in question, which the others are compared with."""
    results: tuple[Path, ...] = ()
    """Files of episode results (JSON lines) instead of two bundles; nothing is played, the others are compared with
    the last one."""
    data: Path | None = None
    """Built dataset: its validation split for open loop, its training split for the baselines."""
    out: Path = Path("runs/compare")
    """Where episodes and the result are kept; a second run reuses them and says so."""
    backend_a: str = "auto"
    """Backend of the first."""
    backend_b: str = "auto"
    """Backend of the second."""
    device: str = "auto"
    """Where both run: auto, cpu, cuda or cuda:N."""
    baselines: tuple[str, ...] = ("hold", "mean_action", "nearest_neighbour", "replay")
    """Which baselines stand beside them."""
    ablations: bool = True
    """Also try both with black images and with another instruction."""
    samples: int = 400
    """Validation samples for open loop."""
    seed: int = 0
    """Decides scenes and resampling."""
    loop: Annotated[Loop, tyro.conf.arg(name="")] = Loop()
    """The simulator."""

    def __post_init__(self) -> None:
        if self.results and (self.a is not None or self.data is not None):
            raise EvaluationError(
                "--results compares files and plays nothing: give either files, or two bundles (and --data)."
            )
        if not self.results and (self.a is None or self.b is None):
            raise EvaluationError(
                "Two policies are needed: athena compare A B, or athena compare --results A.jsonl B.jsonl."
            )
