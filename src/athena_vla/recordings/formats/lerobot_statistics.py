"""Per-episode and whole-set statistics in the form LeRobot's metadata holds them.

Min, max, mean, std, count and five quantiles; images per channel in 0..1 with shape [3, 1, 1] from sampled frames.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
IMAGES_PER_EPISODE = 10
PIXELS_PER_SIDE = 96  # larger frames are sampled on a grid about this fine

Stats = dict[str, dict[str, Any]]  # feature -> statistic -> nested lists


def column_stats(values: NDArray[Any]) -> dict[str, Any]:
    """Statistics of a column `[T]` or `[T, D]`."""
    flat = values.reshape(len(values), -1)
    precise = flat.astype(np.float64)
    is_integer = values.dtype.kind in "iu"
    number = int if is_integer else float
    stats: dict[str, Any] = {
        "min": [number(x) for x in flat.min(axis=0)],
        "max": [number(x) for x in flat.max(axis=0)],
        "mean": precise.mean(axis=0).tolist(),
        "std": precise.std(axis=0).tolist(),
        "count": [len(flat)],
    }
    for name, rows in zip(QUANTILES, np.quantile(precise, list(QUANTILES.values()), axis=0), strict=True):
        stats[name] = rows.tolist()
    return stats


def image_stats(frames: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """Statistics of sampled frames, per channel."""
    grids = []
    for frame in frames:
        step = max(1, min(frame.shape[:2]) // PIXELS_PER_SIDE)
        grids.append(frame[::step, ::step].reshape(-1, 3))
    pixels = np.concatenate(grids)
    # 256 levels per channel: moments and quantiles from the histogram are exact and cheap.
    stats: dict[str, list[Any]] = {k: [] for k in ("min", "max", "mean", "std", *QUANTILES)}
    levels = np.arange(256) / 255.0
    for channel in range(3):
        counts = np.bincount(pixels[:, channel], minlength=256)
        cumulative = np.cumsum(counts)
        total = int(cumulative[-1])
        present = np.flatnonzero(counts)
        mean = float((counts * levels).sum() / total)
        stats["min"].append([[float(levels[present[0]])]])
        stats["max"].append([[float(levels[present[-1]])]])
        stats["mean"].append([[mean]])
        stats["std"].append([[float(np.sqrt((counts * (levels - mean) ** 2).sum() / total))]])
        for name, q in QUANTILES.items():
            place = int(np.searchsorted(cumulative, q * total))
            stats[name].append([[float(levels[min(place, 255)])]])
    return {**stats, "count": [len(frames)]}


def sampled_indices(length: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, length - 1, min(length, IMAGES_PER_EPISODE))})


class StatsTotal:
    """Statistics of many episodes from their own, in constant memory; quantiles are count-weighted means."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, NDArray[np.float64]]] = {}
        self._integers: set[str] = set()

    def add(self, stats: Stats) -> None:
        for feature, values in stats.items():
            count = float(values["count"][0])
            if not isinstance(np.asarray(values["min"]).flat[0].item(), float):
                self._integers.add(feature)
            arrays = {k: np.asarray(v, np.float64) for k, v in values.items()}
            mean = arrays["mean"]
            update = {"min": arrays["min"], "max": arrays["max"], "count": np.array([count])}
            update["sum"], update["square"] = mean * count, (arrays["std"] ** 2 + mean**2) * count
            update |= {q: arrays[q] * count for q in QUANTILES if q in arrays}
            total = self._sums.setdefault(feature, {})
            for key, value in update.items():
                merge = {"min": np.minimum, "max": np.maximum}.get(key, np.add)
                total[key] = merge(total[key], value) if key in total else value

    def finish(self) -> Stats:
        result: Stats = {}
        for feature, total in self._sums.items():
            count = float(total["count"][0])
            mean = total["sum"] / count
            kind = np.int64 if feature in self._integers else np.float64
            result[feature] = {
                "min": total["min"].astype(kind).tolist(),
                "max": total["max"].astype(kind).tolist(),
                "mean": mean.tolist(),
                "std": np.sqrt(np.maximum(total["square"] / count - mean**2, 0.0)).tolist(),
                "count": [int(count)],
                **{q: (total[q] / count).tolist() for q in QUANTILES if q in total},
            }
        return result
