"""Which layer gets how many bits: sensitivity as action error in radians, and the worst lifted under a byte budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Observation
from athena_vla.models.weights.packed import Bits
from athena_vla.policy import Policy
from athena_vla.quantize.codes import fitting_group
from athena_vla.quantize.measured import ActionError, JointError


@dataclass(frozen=True)
class Layer:
    """One quantised weight: what was decided, and why."""

    name: str
    graph: str
    shape: tuple[int, int]
    bits: Bits
    group: int
    sensitivity_rad: float | None = None  # mean action error when this layer alone is rounded
    measured: bool = False  # or read off between blocks that were
    output_error: float = 0.0  # relative, of the layer's own output on the calibration frames

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def bytes(self) -> int:
        return self.weights * self.bits // 8 + 2 * self.weights // self.group


def first_choice(name: str, graph: str, shape: tuple[int, int], bits: Bits, group: int) -> Layer:
    """The wanted bits; 8 bits per channel where the input has no divisor of at least 32 to group by."""
    fitting = fitting_group(shape[1], group) if bits == 4 else None
    if bits == 4 and fitting is not None:
        return Layer(name, graph, shape, 4, fitting)
    return Layer(name, graph, shape, 8, shape[1])


def lifted(layer: Layer) -> Layer:
    """The same layer in 8 bits per channel."""
    return replace(layer, bits=8, group=layer.shape[1])


def mean_bits(layers: Sequence[Layer]) -> float:
    """Bits per weight, scales included."""
    return 8.0 * sum(x.bytes for x in layers) / sum(x.weights for x in layers)


def lift_worst(layers: Sequence[Layer], budget_bits: float) -> list[Layer]:
    """Lift layers to 8 bits, most action error per added byte first, while the mean stays within the budget."""
    chosen = {x.name: x for x in layers}
    candidates = [x for x in layers if x.bits == 4 and x.sensitivity_rad]
    candidates.sort(key=lambda x: (x.sensitivity_rad or 0.0) / (lifted(x).bytes - x.bytes), reverse=True)
    for layer in candidates:
        trial = {**chosen, layer.name: lifted(layer)}
        if mean_bits(list(trial.values())) <= budget_bits:
            chosen = trial
    return [chosen[x.name] for x in layers]


def batch_chunks(policy: Policy, frames: Sequence[Observation], size: int = 16) -> NDArray[np.float64]:
    """[N, H, D] [rad], several frames at a time: here only the differences count."""
    parts = [policy.act_batch(frames[i : i + size]) for i in range(0, len(frames), size)]
    return np.stack([c.positions for part in parts for c in part])


def answered(frames: Sequence[Observation], horizon: int) -> NDArray[np.bool_]:
    """[N, H]: rows that a policy answered; those that an observation had committed already are nobody's merit."""
    given = [0 if o.action_prefix is None else len(o.action_prefix) for o in frames]
    return np.arange(horizon) >= np.array(given)[:, None]


def action_error(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    joints: Sequence[str],
    counted: NDArray[np.bool_] | None = None,
) -> ActionError:
    """Difference of two sets of chunks [N, H, D]: mean, p95, max in [rad], in all and per joint; and smoothness.

    Only rows in `counted` [N, H] do. Smoothness is the mean absolute second difference along a chunk [rad]; its ratio
    says how much rougher `a` is.
    """
    error = np.abs(a - b)[np.ones(a.shape[:2], bool) if counted is None else counted]
    rough = [float(np.abs(np.diff(x, n=2, axis=1)).mean()) if x.shape[1] > 2 else 0.0 for x in (a, b)]
    per_joint = {
        name: JointError(float(e.mean()), float(np.quantile(e, 0.95)), float(e.max()))
        for name, e in zip(joints, np.moveaxis(error, -1, 0), strict=True)
    }
    return ActionError(
        frames=len(a),
        mean_rad=float(error.mean()),
        p95_rad=float(np.quantile(error, 0.95)),
        max_rad=float(error.max()),
        per_joint_rad=per_joint,
        roughness_rad=rough[0],
        roughness_ratio=rough[0] / rough[1] if rough[1] > 0 else 1.0,
    )


def table(layers: Sequence[Layer]) -> dict[str, Mapping[str, object]]:
    """What goes into the manifest."""
    return {
        x.name: {
            "graph": x.graph,
            "bits": x.bits,
            "group": x.group,
            "sensitivity_rad": x.sensitivity_rad,
            "sensitivity_measured": x.measured,
            "output_error": x.output_error,
        }
        for x in layers
    }
