"""Two benchmark results side by side, with what differs between their conditions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla.bench.timing import LatencySummary
from athena_vla.errors import BundleError

# Conditions that make a comparison of times meaningless or at least remarkable.
CONDITIONS = ("model", "cpu", "cores", "gpu", "governor", "power_mode", "versions")


@dataclass(frozen=True)
class Comparison:
    """Medians and their ratios, stage by stage: below 1 the second is faster."""

    first: str
    second: str
    medians_ms: dict[str, tuple[float, float]]
    ratios: dict[str, float]
    clear: dict[str, bool]  # the medians' 95% intervals do not overlap
    differences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __str__(self) -> str:
        lines = [
            f"a: {self.first}",
            f"b: {self.second}",
            f"  {'medians':<14} {'a, ms':>10} {'b, ms':>10}    b/a (below 1: faster)",
        ]
        for name, ratio in self.ratios.items():
            a, b = self.medians_ms[name]
            noise = "" if self.clear[name] else "  within the noise"
            lines.append(f"  {name:<14} {a:10.2f} {b:10.2f} {ratio:6.2f}{noise}")
        return "\n".join([*lines, *(f"  differs: {d}" for d in self.differences)])


def compare(files: Sequence[Path]) -> Comparison:
    """Compare two result files. Raises `BundleError`."""
    if len(files) != 2:
        raise BundleError(f"A comparison takes two result files, not {len(files)}.")
    a, b = (_load(f) for f in files)
    rows = [{"whole action": r["whole_action"], **r["stages"]} for r in (a, b)]
    shared = [n for n in rows[0] if n in rows[1]]
    lost = sorted(set(rows[0]) ^ set(rows[1]))
    differences = [
        f"{key}: {a['device'].get(key)} / {b['device'].get(key)}"
        for key in CONDITIONS
        if a["device"].get(key) != b["device"].get(key)
    ]
    differences += [
        f"{k}: {a['bundle'][k]} / {b['bundle'][k]}" for k in a["bundle"] if a["bundle"][k] != b["bundle"].get(k)
    ]
    if a["summary"]["kind"] != b["summary"]["kind"]:
        differences.append(f"kind: {a['summary']['kind']} / {b['summary']['kind']}")
    if lost:
        differences.append(f"only in one of them: {', '.join(lost)}")
    return Comparison(
        first=str(files[0]),
        second=str(files[1]),
        medians_ms={n: (rows[0][n]["p50_ms"], rows[1][n]["p50_ms"]) for n in shared},
        ratios={n: rows[1][n]["p50_ms"] / rows[0][n]["p50_ms"] for n in shared},
        clear={n: _apart(rows[0][n], rows[1][n]) for n in shared},
        differences=tuple(differences),
    )


def _apart(a: LatencySummary, b: LatencySummary) -> bool:
    return a["p50_high_ms"] < b["p50_low_ms"] or b["p50_high_ms"] < a["p50_low_ms"]


def _load(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
        if result["format"] != 1:
            raise BundleError(f"'{path}' has format {result['format']}, this version reads 1.")
        return result
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BundleError(f"'{path}' is not a benchmark result ({error}). `athena bench --out` writes one.") from error
