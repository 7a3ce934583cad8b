"""What `athena gates` is told, thresholds included; read without torch."""

from dataclasses import dataclass, field
from pathlib import Path

from athena_vla.engines.backends import Name
from athena_vla.engines.onnxruntime_engine import Providers


@dataclass(frozen=True)
class GateLimits:
    """What a bundle may lose. Bins are 1/255 of a joint's range of motion in the data."""

    kl_nats: float = 0.05
    """Mean divergence of the distribution over the action bins; families that answer in tokens."""
    greedy_agreement: float = 0.80
    """Share of tokens that are the same when both read the float model's tokens so far."""
    free_running_agreement: float = 0.60
    """Share of tokens that are the same when each reads its own tokens so far: a difference changes what follows."""
    bin_agreement: float = 0.80
    """Share of joint targets at most one bin away, each running freely."""
    p95_rad: float = 0.05
    """95th percentile of the joint error."""
    max_rad: float = 0.35
    """Largest joint error."""
    roughness_ratio: float = 1.25
    """Second differences along a chunk, against the float model's."""
    closed_loop_p: float = 0.05
    """The paired closed-loop comparison must not find the bundle worse at this level."""


@dataclass(frozen=True)
class GateConfig:
    """Settings of the gates."""

    bundle: Path
    """Quantised or exported bundle; the outcome is written into its manifest."""
    reference: Path | None = None
    """Float bundle; None follows the parents to the first with float weights."""
    data: Path | None = None
    """Built dataset whose validation frames are used; None: the golden frames."""
    frames: int = 64
    """How many held-out frames are compared."""
    backend: Name = "auto"
    """What runs the bundle."""
    device: str = "auto"
    """Where both run: auto, cpu, cuda or cuda:N."""
    providers: Providers = "auto"
    """Of ONNX Runtime: auto is CUDA, then the processor; tensorrt builds engines at a first start, for minutes."""
    closed_loop: Path | None = None
    """The `comparison.json` of `athena compare FLOAT BUNDLE`, or one paired test with `first_worse_p`."""
    limits: GateLimits = field(default_factory=GateLimits)
    """Thresholds."""
    seed: int = 0
    """Of the choice of frames."""
    out: Path | None = None
    """Where the report goes as JSON, the error of every joint included."""
