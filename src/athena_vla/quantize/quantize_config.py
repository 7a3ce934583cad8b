"""Settings and result of `athena quantize`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from athena_vla.bundle import Bundle
from athena_vla.errors import BundleError, UnknownName
from athena_vla.quantize.measured import ActionError

Method = Literal["gptq", "clip", "nearest"]
METHODS: tuple[Method, ...] = ("gptq", "clip", "nearest")


@dataclass(frozen=True)
class QuantizeConfig:
    """Settings of `athena quantize`."""

    input: Path
    """Bundle with float weights: base or merged."""
    out: Path
    """Where the quantised bundle goes."""
    bits: Literal[4, 8] = 4
    """4: groups with fp16 scales, worst layers lifted to 8; 8: per output channel."""
    method: Method = "gptq"
    """gptq: rounding errors compensated; clip: scales clipped to the data; nearest: plain rounding."""
    group: int = 128
    """Inputs per scale at 4 bits; halved where the layer's input has no such divisor. TensorRT takes 64 and 128."""
    data: Path | None = None
    """Built dataset: calibration frames from its train split, held-out frames from validation. None: golden frames."""
    frames: int = 64
    """How many frames the codes are chosen on."""
    held_out: int = 64
    """Frames the error is reported on."""
    graphs: tuple[str, ...] = ("language",)
    """Graphs whose linear layers are quantised, where the family has them; the others stay in 16 bits."""
    keep: tuple[str, ...] = ("lm_head",)
    """Layers that stay in 16 bits although they run in those graphs, by the last part of their name. The robot's own
    heads always do."""
    vision_bits: Literal[8, 16] = 16
    """8: the layers of vision towers and projector per output channel in 8 bits, for machines with little memory."""
    budget_bits: float = 5.0
    """Mean bits per quantised weight, scales included, up to which the worst layers are lifted to 8 bits."""
    sensitivity: bool = True
    """Measure each layer's action error; without, only layers that cannot be grouped get 8 bits."""
    sensitivity_every: int = 4
    """Of a model that does not fit into memory, the layers of every n-th block are measured, on one frame; those
    between lie on the line between them."""
    check: bool = True
    """Replay the golden observations, ask the sensitivity gates, measure the error on held-out frames; minutes where
    the model does not fit into memory. Without, the bundle is not served."""
    rest: Literal[16, 32] = 16
    """Bits of all other matrices."""
    threads: int = 1
    """How many CPU threads compute."""
    device: str = "auto"
    """Where layers are measured and quantised, and the result is checked: auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Of the choice of frames."""
    overwrite: bool = False
    """Replace what has the name of OUT already; it stays until the new one is whole."""

    def require(self, source: Bundle) -> None:
        """Raise `BundleError`, `UnknownName` for settings that cannot be, and bundles that cannot be quantised."""
        if source.manifest.stage not in ("base", "merged"):
            raise BundleError(
                f"'{source.path}' is {source.manifest.stage}; quantise a base or merged bundle"
                + (": run `athena merge` on it first." if source.manifest.stage == "finetuned" else ".")
            )
        if self.method not in METHODS:
            raise UnknownName("quantisation method", self.method, METHODS)
        if self.vision_bits not in (8, 16):
            raise UnknownName("number of bits for vision", self.vision_bits, (8, 16))
        if self.bits not in (4, 8):
            raise UnknownName("number of bits", self.bits, (4, 8))
        if self.sensitivity_every < 1:
            raise BundleError(
                f"Every {self.sensitivity_every}th block cannot be measured: --sensitivity-every is 1 or more."
            )
        if self.group < 32 or self.group & (self.group - 1):
            raise BundleError(
                f"A group of {self.group} inputs is not a power of two from 32; TensorRT takes 64 and 128."
            )

    def plain(self) -> dict[str, Any]:
        """For a manifest."""
        raw = {k: v for k, v in dataclasses.asdict(self).items() if k != "overwrite"}  # of the run, not of the result
        return {k: str(v) if isinstance(v, Path) else v for k, v in raw.items()}


@dataclass(frozen=True)
class QuantizeResult:
    """What was quantised, and the error it costs."""

    path: Path
    mean_bits: float  # of the quantised weights, scales included
    lifted: int  # layers in 8 bits in a 4-bit bundle
    layers: int
    bytes: int  # all weights on disk
    parent_bytes: int
    error: ActionError | None  # against the float weights on held-out frames; None: it was not asked
    deviation: dict[str, Any]  # [rad], golden replay
    minutes: float
    peak_gb: float

    def __str__(self) -> str:
        shrink = self.parent_bytes / self.bytes
        what = (
            f"quantised {self.layers} layers to {self.mean_bits:.2f} bits ({self.lifted} in 8), {shrink:.1f}x smaller"
        )
        error = "action error not measured"
        if self.error:
            error = f"action error mean {self.error.mean_rad:.5f}, p95 {self.error.p95_rad:.5f} rad"
        return f"{what}; {error}; {self.minutes:.1f} minutes, {self.peak_gb:.1f} GB at most: {self.path}"
