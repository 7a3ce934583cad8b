"""The words of the tasks: phrasings of each family, and which wordings and combinations training never sees.

Knows nothing of geometry. Demo families and base families share no verb, so the base model has never met the demo's.
"""

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from athena_vla.errors import UnknownName
from athena_vla.sim.scene import COLOURS, SHAPES, Side

PREFIXES = ("", "please ", "robot, ")

# {o} is "red cube", {s} the side.
DEMO_PHRASES: dict[str, tuple[str, ...]] = {
    "touch": ("touch the {o}", "put your hand on the {o}", "lay a hand on the {o}", "tap the {o} and stay"),
    "point": ("point at the {o}", "point to the {o}", "point your arm at the {o}", "point out the {o}"),
    "look": ("look at the {o}", "look straight at the {o}", "aim your camera at the {o}", "watch the {o}"),
    "push": ("push the {o}", "push the {o} away", "push the {o} forward", "shove the {o} away"),
    "lift": ("lift your {s} leg", "lift the {s} leg", "lift up your {s} foot", "stand with the {s} leg lifted"),
    "raise": ("raise your {s} arm", "raise the {s} arm", "raise your {s} hand up high", "put your {s} arm up"),
    "squat": ("squat", "squat down", "bend your knees", "crouch down"),
}
BASE_PHRASES: dict[str, tuple[str, ...]] = {
    "hover": ("hover over the {o}", "hold a hand high above the {o}", "hover above the {o}"),
    "beside": ("reach next to the {o}", "reach to the side of the {o}", "reach beside the {o}"),
    "orient": ("turn towards the {o}", "rotate towards the {o}", "turn to face the {o}"),
    "stretch": ("swing the {s} arm out", "swing your {s} arm sideways", "stretch the {s} arm sideways"),
    "twist": ("twist to the {s}", "rotate to the {s}", "twist your body {s}"),
    "lean": ("lean to the {s}", "tilt your body to the {s}", "lean {s}"),
    "bow": ("bow", "bow forward", "take a bow"),
    "stride": ("swing the {s} leg out", "move the {s} leg sideways", "step out with the {s} leg"),
    "wave": ("wave with the {s} hand", "wave the {s} hand", "wave to me with your {s} hand"),
}
RAIL_PHRASES: dict[str, tuple[str, ...]] = {  # for a robot whose base is lifted and turned
    "kneel": ("kneel facing the {o}", "turn to the {o} and kneel", "kneel down in front of the {o}"),
}
OBJECT_FAMILIES = ("touch", "point", "look", "push", "hover", "beside", "orient", "kneel")
DEMO_FAMILIES = tuple(DEMO_PHRASES)
BASE_FAMILIES = tuple(BASE_PHRASES)
RAIL_FAMILIES = tuple(RAIL_PHRASES)
HOLDING_OUT = (*DEMO_FAMILIES, *RAIL_FAMILIES)  # families that keep some objects or wordings for the test
SIDES: dict[str, tuple[Side, ...]] = {
    "lift": ("left", "right"),
    "raise": ("left", "right"),
    "stretch": ("left", "right"),
    "twist": ("left", "right"),
    "lean": ("left", "right"),
    "stride": ("left", "right"),
    "wave": ("left", "right"),
}


def phrases_of(family: str) -> tuple[str, ...]:
    """Templates of a family. Raises `UnknownName`."""
    table = {**DEMO_PHRASES, **BASE_PHRASES, **RAIL_PHRASES}
    if family not in table:
        raise UnknownName("task family", family, table)
    return table[family]


@cache
def _said_so(family: str) -> re.Pattern[str]:
    """Every instruction of the family, with any object and side."""
    things = f"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
    templates = [re.escape(t).replace(r"\{o\}", things).replace(r"\{s\}", "(?:left|right)") for t in phrases_of(family)]
    return re.compile(f"(?:{'|'.join(map(re.escape, PREFIXES))})(?:{'|'.join(templates)})")


def family_of(text: str) -> str:
    """The family whose instruction a text is, "" where it is none of the simulator's."""
    every = (*DEMO_FAMILIES, *BASE_FAMILIES, *RAIL_FAMILIES)
    return next((f for f in every if _said_so(f).fullmatch(text)), "")


def held_out_objects(family: str) -> frozenset[tuple[str, str]]:
    """(colour, shape) pairs that training never combines with the verb: 3 of 12, all words still occur."""
    if family not in HOLDING_OUT or family not in OBJECT_FAMILIES:
        return frozenset()
    shift = OBJECT_FAMILIES.index(family)
    colours = tuple(COLOURS)
    return frozenset((colours[(i + shift) % len(colours)], SHAPES[(i + 2 * shift) % len(SHAPES)]) for i in range(3))


def is_held_out_wording(family: str, template: int, prefix: int, side: Side) -> bool:
    """Whether training never uses this wording; decides for the tasks without an object."""
    if family not in DEMO_FAMILIES or family in OBJECT_FAMILIES:
        return False
    return (template + prefix + (side == "right")) % 3 == 2


def wordings(family: str, name: str, side: Side, *, held_out: bool) -> tuple[str, ...]:
    """All instructions of the family for an object name or side, either the trained or the held-out ones.

    Object tasks hold out objects, not wordings: both sets are then the same.
    """
    found = []
    for t, template in enumerate(phrases_of(family)):
        for p, prefix in enumerate(PREFIXES):
            if family in OBJECT_FAMILIES or family in BASE_FAMILIES:
                wanted = True
            else:
                wanted = is_held_out_wording(family, t, p, side) == held_out
            if wanted:
                found.append(prefix + template.format(o=name, s=side))
    return tuple(found)


def choose(options: Sequence[str], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """`count` different wordings in random order (fewer where there are not so many)."""
    order = rng.permutation(len(options))[:count]
    return tuple(options[int(i)] for i in order)
