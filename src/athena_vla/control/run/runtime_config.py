"""How chunks become commands: the settings of the control loop, valid once constructed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from athena_vla.embodiment import Embodiment, Owner
from athena_vla.errors import SafetyError, UnknownName


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How chunks become commands. Raises `SafetyError` for settings that make no sense."""

    replan_every: int = 8
    """Ask for a new chunk every this many control steps."""
    latency: float = 0.0
    """Simulated time between question and answer; real time has its own. [s]"""
    blend: float | None = None
    """The curve joins a new chunk at its first row at least this far ahead; None: half a control step. [s]"""
    max_age: float | None = None
    """A chunk older than this (since its observation) is not followed any further; None: to its last row. [s]"""
    max_observation_age: float = 0.5
    """An observation older than this, by its own stamp, is none. [s]"""
    owners: Mapping[str, Owner] = field(default_factory=dict)
    """Who drives a joint, a whole group or a channel, where it differs from the embodiment."""
    groups: tuple[str, ...] = ()
    """Groups and channels that may move, for bring-up; the others hold their pose. Empty: all."""
    timeout: float = 5.0
    """A question without an answer is given up after this long, and asked anew; real time only. [s]"""
    ramp_in: bool = False
    """Move a robot that starts outside its limits into them, at a tenth of its speed; otherwise it is refused."""
    latch: bool = True
    """After a fault that ended at rest, wait for `acknowledge()`; an emergency stop always does."""
    heartbeat: float | None = None
    """Come to rest when `beat()` was not called for this long; None: nobody has to be there. [s]"""
    shadow: bool = False
    """Command nothing: everything runs, and what would have been commanded is in the trace; real time only."""
    raise_errors: bool = True
    """In simulated time let an actor's error end the episode; in real time it always leads to the fallback levels."""
    record_images: bool = False
    """Keep the observations in the trace."""
    keep: float | None = None
    """The trace keeps this much of the run, its last part; None: all of it. [s]"""

    def __post_init__(self) -> None:
        def refuse_unless(fine: bool, setting: str, wanted: str) -> None:
            if not fine:
                raise SafetyError(f"The runtime's {setting} is {getattr(self, setting)!r}; it must be {wanted}.")

        whole = isinstance(self.replan_every, int) and not isinstance(self.replan_every, bool)
        refuse_unless(whole and self.replan_every >= 1, "replan_every", "a whole number of at least 1")
        refuse_unless(_number(self.latency) and self.latency >= 0, "latency", "a time of at least 0 s")
        for name in ("blend", "max_age", "heartbeat", "keep"):
            value = getattr(self, name)
            refuse_unless(value is None or (_number(value) and value > 0), name, "a positive time in s, or None")
        for name in ("max_observation_age", "timeout"):
            value = getattr(self, name)
            refuse_unless(_number(value) and value > 0, name, "a positive time in s")

    def owners_on(self, body: Embodiment) -> tuple[Owner, ...]:
        """Owner of every command column of a robot: joints, then channels. Raises `UnknownName`."""
        known = (*body.groups, *(c.name for c in body.commanded_channels))
        for group in self.groups:
            if group not in known:
                raise UnknownName(f"group of '{body.name}'", group, known)
        owners = resolve_owners(body, self.owners)
        moving = self.groups or known
        parts = (*(j.group for j in body.joints), *(c.name for c in body.commanded_channels))
        return tuple(o if part in moving else "locked" for o, part in zip(owners, parts, strict=True))


def resolve_owners(body: Embodiment, changes: Mapping[str, Owner]) -> tuple[Owner, ...]:
    """Owner of every joint, then of every commanded channel, after changes by group or name.

    A joint's own entry wins over its group's.
    """
    for name, owner in changes.items():
        if name not in body.groups and name not in body.command_names:
            what = "group, joint or channel" if body.commanded_channels else "group or joint"
            raise UnknownName(f"{what} of '{body.name}'", name, (*body.groups, *body.command_names))
        if owner not in get_args(Owner):
            raise UnknownName("owner", owner, get_args(Owner))
    joints: tuple[Owner, ...] = tuple(changes.get(j.name, changes.get(j.group, j.owner)) for j in body.joints)
    channels: tuple[Owner, ...] = tuple(changes.get(c.name, c.commander) for c in body.commanded_channels)
    return joints + channels


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
