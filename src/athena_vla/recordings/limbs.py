"""Body part and side of a joint, from its name or its group."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PARTS = {
    "hand": r"hand|finger|thumb|gripper|pinky|palm",
    "leg": r"hip|knee|ankle|leg|thigh|foot",
    "arm": r"shoulder|elbow|wrist|arm",
    "torso": r"waist|torso|neck|head|abdomen|chest",
}
# A finger named by itself ("ring", "index") only counts where no joint of an arm can be meant.
FINGERS = re.compile(r"(^|_)(ring|index|middle|little)(_|\d|$)")


@dataclass(frozen=True)
class Limbs:
    """Columns of each body part and side."""

    columns: dict[tuple[str, str], tuple[int, ...]]  # (part, side) -> columns; side is left, right or ""

    def of(self, part: str, side: str | None = None) -> list[int]:
        return [c for (p, s), cs in self.columns.items() if p == part and (side is None or s == side) for c in cs]

    def sides(self, part: str) -> list[str]:
        return sorted({s for (p, s), cs in self.columns.items() if p == part and cs})


def limbs(names: Sequence[str], groups: Mapping[str, str] | None = None) -> Limbs:
    """Body part and side of each column, from its name, else from the robot's group that it belongs to."""
    groups = groups or {}
    found: dict[tuple[str, str], list[int]] = {}
    for column, name in enumerate(names):
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        side = "left" if re.search(r"(^|_)(l|left|k_left)(_|$)", plain) else ""
        side = "right" if re.search(r"(^|_)(r|right|k_right)(_|$)", plain) else side
        part = next((p for p, pattern in PARTS.items() if re.search(pattern, plain)), None)
        if part is None and FINGERS.search(plain):
            part = "hand"
        if part is None:
            part = next((p for p, pattern in PARTS.items() if re.search(pattern, groups.get(name, "").lower())), None)
        if part is not None:
            found.setdefault((part, side), []).append(column)
    return Limbs({k: tuple(v) for k, v in found.items()})
