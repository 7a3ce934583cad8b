"""Action and state statistics as released checkpoints carry them (`norm_stats`), and their three normalisations.

The toolkit's own datasets use `data.normalize`; this reproduces the reference, down to its constants. Knows no model.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import InvalidObservation, ModelError, UnknownName

Numbers = Sequence[float] | Sequence[bool] | NDArray[np.generic]
Statistics = Mapping[str, Numbers]  # q01, q99, min, max, mean, std, and optionally mask
Kind = Literal["bounds_q99", "bounds", "normal"]
Floats = NDArray[np.floating[Any]]

_RANGES = {"bounds_q99": ("q01", "q99"), "bounds": ("min", "max"), "normal": ("mean", "std")}


def normalize(x: Floats, stats: Statistics, kind: Kind = "bounds_q99") -> Floats:
    """Physical values to [-1, 1] as in training: clipped, constant dimensions 0, unmasked dimensions as they are."""
    x = np.asarray(x)
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
    low, high = (np.asarray(v, dtype=dtype) for v in _range(stats, kind))
    mask = _mask(stats, low)
    _require_width(x, low)
    tiny = dtype.type(1e-8)
    if kind == "normal":
        return np.where(mask, (x - low) / (high + tiny), x)
    y = np.where(mask, np.clip(2 * (x - low) / (high - low + tiny) - 1, -1, 1), x)
    if "min" in stats and "max" in stats:
        constant = np.asarray(stats["min"]) == np.asarray(stats["max"])
        y = np.where(constant, np.zeros_like(y), y)
    return y


def normalize_proprio(x: Floats, stats: Statistics, kind: Kind) -> NDArray[np.float64]:
    """A state as the reference's evaluation normalises it: constant dimensions are not zeroed, all are clipped.

    Raises `InvalidObservation` for the wrong length or values that are not finite.
    """
    x = np.asarray(x, dtype=np.float64)
    low, high = (np.asarray(v, dtype=np.float64) for v in _range(stats, kind))
    _require_width(x, low)
    if not np.isfinite(x).all():
        raise InvalidObservation(f"The state has values that are not finite numbers: {x.tolist()}.")
    return np.clip(np.where(_mask(stats, low), 2 * (x - low) / (high - low + 1e-8) - 1, x), -1.0, 1.0)


def unnormalize(x: Floats, stats: Statistics, kind: Kind = "bounds_q99", *, guarded: bool = False) -> Floats:
    """Actions in [-1, 1] to physical values; unmasked dimensions stay. `guarded` adds the 1e-8 that OFT adds."""
    x = np.asarray(x)
    low, high = (np.asarray(v, dtype=np.float64) for v in _range(stats, kind))
    _require_width(x, low)
    if kind == "normal":
        return np.where(_mask(stats, low), x * high + low, x)
    return np.where(_mask(stats, low), 0.5 * (x + 1) * (high - low + (1e-8 if guarded else 0.0)) + low, x)


def choose(norm_stats: Collection[str], unnorm_key: str | None) -> str:
    """The data set whose statistics apply. Raises `ModelError` where none is named and there are several."""
    if unnorm_key is None:
        if len(norm_stats) != 1:
            raise ModelError(
                f"The model was trained on {len(norm_stats)} data sets; name the one whose action statistics apply "
                f"(unnorm_key): {', '.join(norm_stats) or 'none'}."
            )
        return next(iter(norm_stats))
    if unnorm_key not in norm_stats:
        raise UnknownName("data set in the model's action statistics", unnorm_key, norm_stats)
    return unnorm_key


def _range(stats: Statistics, kind: Kind) -> tuple[Any, Any]:
    if kind not in get_args(Kind):
        raise UnknownName("normalisation", kind, get_args(Kind))
    low, high = _RANGES[kind]
    if low not in stats or high not in stats:
        raise ModelError(f"Normalisation '{kind}' needs '{low}' and '{high}'; the statistics have {sorted(stats)}.")
    return stats[low], stats[high]


def _mask(stats: Statistics, like: Floats) -> NDArray[np.bool_]:
    return np.asarray(stats.get("mask", np.ones_like(like, dtype=bool)), dtype=bool)


def _require_width(x: Floats, like: Floats) -> None:
    if x.ndim == 0 or x.shape[-1] != like.shape[-1]:
        raise InvalidObservation(
            f"Values of shape {list(x.shape)} do not fit statistics of {like.shape[-1]} dimensions."
        )
