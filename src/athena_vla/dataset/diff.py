"""What two built sets differ in: robot, episodes, split, statistics and settings, from their sidecars alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.dataset.normalize import Normalizer
from athena_vla.dataset.sidecar import SIDECAR
from athena_vla.errors import DatasetError
from athena_vla.recordings.formats.common import read_json_object

SETTINGS = ("horizon", "stride", "validation", "seed", "pictures", "recordings", "excluded")
SHOWN = 10  # names in a line


@dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """Two built datasets."""

    a: Path
    """The first set."""
    b: Path
    """The second set."""


@dataclass(frozen=True)
class Diff:
    """What B has in place of what A has; empty where both teach the same."""

    a: Path
    b: Path
    same_hash: bool
    settings: dict[str, tuple[str, str]]  # setting or property -> (in A, in B)
    added: tuple[str, ...]  # episodes of B alone
    removed: tuple[str, ...]  # episodes of A alone
    changed: dict[str, str]  # episode of both -> what is not the same
    ranges: dict[str, tuple[str, str]]  # column -> (range in A, range in B)

    @property
    def exit_status(self) -> int:
        """0 where both are the same, 1 where they differ, as diff does it."""
        return 0 if self.same_hash else 1

    def __str__(self) -> str:
        if self.same_hash:
            return f"{self.a} and {self.b} hold the same: one content hash."
        lines = [f"{name}: {one} -> {two}" for name, (one, two) in self.settings.items()]
        for what, names in (("only in B", self.added), ("only in A", self.removed)):
            if names:
                lines.append(f"{len(names)} episodes {what}: {_some(names)}")
        if self.changed:
            lines.append(f"{len(self.changed)} episodes changed:")
            lines += [f"  {i}: {what}" for i, what in list(self.changed.items())[:SHOWN]]
        lines += [f"statistics of {name}: {one} -> {two}" for name, (one, two) in self.ranges.items()]
        return "\n".join(lines or ["The hashes differ, and nothing that a sidecar says: frames were changed."])


def diff(config: DiffConfig) -> Diff:
    """Compare two sets. Raises `DatasetError` where one of them is none."""
    one, two = (_sidecar(p) for p in (config.a, config.b))
    first, second = ({str(e["id"]): e for e in raw["episodes"]} for raw in (one, two))
    settings = {k: (str(one.get(k)), str(two.get(k))) for k in SETTINGS if one.get(k) != two.get(k)}
    settings |= _robots(one["robot"], two["robot"])
    changed = {i: what for i in first if i in second and (what := _changes(first[i], second[i]))}
    return Diff(
        a=config.a,
        b=config.b,
        same_hash=one["hash"] == two["hash"],
        settings=settings,
        added=tuple(i for i in second if i not in first),
        removed=tuple(i for i in first if i not in second),
        changed=changed,
        ranges=_ranges(Normalizer.from_dict(one["normalizer"]), Normalizer.from_dict(two["normalizer"])),
    )


def _sidecar(path: Path) -> dict[str, Any]:
    if not (path / "meta" / SIDECAR).is_file():
        raise DatasetError(f"'{path}' is no built set: it has no meta/{SIDECAR}. athena data build makes one.")
    return read_json_object(path / "meta" / SIDECAR)


def _robots(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Parts of the robots that are not the same, by their keys; joints and channels by their names."""
    found: dict[str, tuple[str, str]] = {}
    for key in sorted(set(one) | set(two)):
        if one.get(key) == two.get(key):
            continue
        if isinstance(one.get(key), list) and isinstance(two.get(key), list):
            names = [{str(x.get("name")): x for x in robot[key] if isinstance(x, dict)} for robot in (one, two)]
            other = sorted(n for n in {*names[0], *names[1]} if names[0].get(n) != names[1].get(n))
            differing = _some(other) or "their order"
            found[f"robot.{key}"] = (f"{len(one[key])}", f"{len(two[key])}, differing in {differing}")
        else:
            found[f"robot.{key}"] = (str(one.get(key)), str(two.get(key)))
    return found


def _changes(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    said = [
        f"{key} {one.get(key)} -> {two.get(key)}"
        for key in ("split", "length", "success", "instructions")
        if one.get(key) != two.get(key)
    ]
    said += ["motion"] if one.get("motion") != two.get("motion") else []
    if not said and one.get("digest") != two.get("digest"):
        said.append("images, segments or texts")
    return "; ".join(said)


def _ranges(one: Normalizer, two: Normalizer) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for what, ours, theirs in (
        ("action", *(_of(n.joint_names, n.action_low, n.action_high) for n in (one, two))),
        ("state", *(_of(n.state_names, n.state_low, n.state_high) for n in (one, two))),
    ):
        for name in ours:
            if name in theirs and not np.allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-9):
                (a, b), (c, d) = ours[name], theirs[name]
                found[f"{what} {name}"] = (f"{a:.4f}..{b:.4f}", f"{c:.4f}..{d:.4f}")
    return found


def _of(names: Sequence[str], low: NDArray[np.float64], high: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    return dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
