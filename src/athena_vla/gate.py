"""A gate: a figure, the limit that it has to keep, and on which side; one form for manifests, commands and reports."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from athena_vla.errors import BundleError

Direction = Literal["at most", "at least", "exactly"]
_SIGNS: dict[str, str] = {"at most": "≤", "at least": "≥", "exactly": "="}
_OLD_NAMES = {"value": "change", "limit": "threshold"}  # in bundles of format 1
_KEYS = frozenset({"value", "limit", "direction", "unit", "passed", *_OLD_NAMES.values()})


@dataclass(frozen=True)
class Gate:
    """One figure against its limit. What is no number keeps no limit.

    Raises `BundleError` for one that says it passed although its figure does not keep the limit.
    """

    name: str
    value: float  # NaN where it is not known
    limit: float  # NaN where it is not known
    direction: Direction | None  # None: it was written before gates said so
    passed: bool
    unit: str = ""

    def __post_init__(self) -> None:
        if self.passed and self.direction is not None and not _keeps(self.value, self.direction, self.limit):
            raise BundleError(f"Gate '{self.name}' says it passed, but {self.value:g} is not {self.bound}.")

    @classmethod
    def at_most(cls, name: str, value: float, limit: float, unit: str = "") -> "Gate":
        return cls(name, float(value), float(limit), "at most", _keeps(value, "at most", limit), unit)

    @classmethod
    def at_least(cls, name: str, value: float, limit: float, unit: str = "") -> "Gate":
        return cls(name, float(value), float(limit), "at least", _keeps(value, "at least", limit), unit)

    @classmethod
    def exactly(cls, name: str, value: float, limit: float, unit: str = "") -> "Gate":
        return cls(name, float(value), float(limit), "exactly", _keeps(value, "exactly", limit), unit)

    @property
    def label(self) -> str:
        """The name as people read it."""
        return self.name.replace("_", " ")

    @property
    def bound(self) -> str:
        """The limit with its direction and unit: `at most 0.05 rad`."""
        side = self.direction or "limit"
        return f"{side} {self.limit:g} {self.unit}".rstrip()

    @property
    def sign(self) -> str:
        """The direction as a sign; empty where it is not known."""
        return _SIGNS.get(self.direction or "", "")

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'} {self.name:<32} {self.value:<10.4g} {self.bound}"

    def to_dict(self) -> dict[str, str | float | bool]:
        """JSON without the name, which is its key in a table of gates; what is not known is left out."""
        raw: dict[str, str | float | bool] = {"passed": self.passed}
        raw |= {k: v for k, v in (("value", self.value), ("limit", self.limit)) if math.isfinite(v)}
        raw |= {k: v for k, v in (("direction", self.direction or ""), ("unit", self.unit)) if v}
        return raw

    @classmethod
    def from_dict(cls, name: str, raw: object) -> "Gate":
        """Inverse of `to_dict`; older gates have no direction. Raises `BundleError` for what is no gate."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("passed"), bool):
            raise BundleError(f"Gate '{name}' does not say whether it passed.")
        unknown = sorted(str(k) for k in set(raw) - _KEYS)
        if unknown:
            raise BundleError(f"Gate '{name}' has unknown entries {unknown}.")
        direction, unit = raw.get("direction"), raw.get("unit", "")
        if direction is not None and direction not in get_args(Direction):
            raise BundleError(f"Gate '{name}' has direction {direction!r}; known: {', '.join(get_args(Direction))}.")
        if not isinstance(unit, str):
            raise BundleError(f"Gate '{name}' has unit {unit!r}, which is no text.")
        figures = [_figure(name, raw.get(key, raw.get(old))) for key, old in _OLD_NAMES.items()]
        return cls(name, figures[0], figures[1], direction, raw["passed"], unit)


def failed(gates: Iterable[Gate]) -> list[Gate]:
    """Those that did not pass."""
    return [g for g in gates if not g.passed]


def by_name(gates: Iterable[Gate]) -> dict[str, Gate]:
    """A table of gates, as manifests hold them."""
    return {g.name: g for g in gates}


def _keeps(value: float, direction: Direction, limit: float) -> bool:
    if direction == "exactly":
        return value == limit
    return bool(value <= limit if direction == "at most" else value >= limit)


def _figure(name: str, raw: Any) -> float:
    if raw is None:
        return math.nan
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise BundleError(f"Gate '{name}' has the figure {raw!r}, which is no number.")
    return float(raw)
