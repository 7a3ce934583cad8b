"""What was measured of a bundle after it was made, for its card: a benchmark, and a comparison in the simulator.

Each is a result file of `athena bench` or `athena compare`, and is refused where it is of another bundle.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from athena_vla.bundle import Bundle, is_bundle
from athena_vla.dataset.card import plain
from athena_vla.errors import HubError
from athena_vla.files import read_json_object

_FIGURES = {
    "action_ms": "one action, frame to first command [ms]",
    "chunks_per_second": "chunks per second",
    "actions_per_second": "actions per second",
    "tokens_per_second": "tokens per second (joint targets)",
    "decode_tokens_per_second": "decoded tokens per second",
}
_WORDS = {"measured_here": "Measured on a computer", "measured_on_device": "Measured on the device"}


def benchmark_lines(file: Path | None, bundle: Bundle) -> list[str]:
    """The figures of `athena bench --out FILE`, under the word that is true of them. Raises `HubError`."""
    if file is None:
        return []
    record = read_json_object(file, HubError)
    summary, of, device = (_table(record.get(k)) for k in ("summary", "bundle", "device"))
    if summary.get("kind") not in _WORDS:
        raise HubError(f"'{file}' is no result of athena bench --out. Give that file to --bench.")
    if of.get("hash") not in bundle.known_as:
        raise HubError(f"'{file}' is a benchmark of bundle {of.get('hash')}, and '{bundle.path}' is {bundle.hash}.")
    where = " ".join(filter(None, (plain(device.get("model") or ""), plain(device.get("gpu") or ""))))
    engine = f"{plain(of.get('backend', ''))}, {plain(of.get('threads', ''))} threads"
    rows = [f"| {text} | {summary[key]:.4g} |" for key, text in _FIGURES.items() if _is_number(summary.get(key))]
    head = f"{_WORDS[summary['kind']]}: {where or 'unknown'} ({engine})."
    return ["## Speed", "", head, "", "| figure | value |", "|---|---|", *rows, ""]


def comparison_lines(file: Path | None, bundle: Bundle) -> list[str]:
    """Success of every row of a comparison.json, with intervals. Raises `HubError`."""
    if file is None:
        return []
    record = read_json_object(file / "comparison.json" if file.is_dir() else file, HubError)
    closed, rows = _table(record.get("closed_loop")), record.get("rows")
    if not isinstance(rows, list) or not closed:
        raise HubError(f"'{file}' is no comparison with episodes in the simulator. Give its comparison.json.")
    specs = [_table(r) for r in cast(list[object], rows)]
    own = {str(s.get("name")) for s in specs if _is_of(str(s.get("source", "")), bundle)}
    if not own:
        raise HubError(f"'{file}' compares no row with '{bundle.path}' in it. Give the comparison of this bundle.")
    lines = ["| row | success | 95% interval | scenes | commands beyond a limit |", "|---|---|---|---|---|"]
    for spec in specs:
        name, summary = str(spec.get("name")), _table(closed.get(str(spec.get("name"))))
        success = _table(summary.get("success"))
        if spec.get("ablation") != "none" or not all(_is_number(success.get(k)) for k in ("success", "low", "high")):
            continue
        share, low, high = (f"{success[k]:.0%}" for k in ("success", "low", "high"))
        label = f"**{plain(name)}** (this one)" if name in own else plain(name)
        lines.append(f"| {label} | {share} | {low} to {high} | {success.get('n')} | {summary.get('violations')} |")
    return ["## Success in the embedded simulator", "", *lines, "", "A simulator is not a robot.", ""]


def _is_of(source: str, bundle: Bundle) -> bool:
    """Whether a row's source is this very bundle."""
    place = Path(source or "nowhere")
    return is_bundle(place) and Bundle.open(place, verify=False).hash in bundle.known_as


def _table(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
