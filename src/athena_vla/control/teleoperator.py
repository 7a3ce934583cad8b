"""The third side of the control loop: somebody who can take the robot over from the policy, and hand it back.

Knows a protocol and the words for who commands; nothing of devices or of how a wish becomes a motion.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from athena_vla.embodiment import Array

Source = Literal["policy", "human", "script"]
SOURCES: tuple[Source, ...] = get_args(Source)
CONTROL = "control"  # kind of the event at which somebody else begins to command; its words begin with who


@dataclass(frozen=True)
class Wish:
    """What a teleoperator says at one control step."""

    engaged: bool  # wants to have control, or to keep it
    positions: Array | None = None  # [C] the wished pose: joints [rad], then channels; needed while engaged
    age: float = 0.0  # [s] since the device was last heard; one that fell silent must show it here


class Teleoperator(Protocol):
    """Anything that a person (or a script in a person's place) commands a robot with.

    `read` is called once a control step and returns the latest at once; it never waits for a device.
    """

    @property
    def source(self) -> Source:
        """Who commands through it: "human" or "script"."""
        ...

    def read(self, command: Array, time: float, /) -> Wish:
        """`command` [C] is the pose commanded last, `time` [s] the robot's clock."""
        ...


def source_in(words: str) -> Source:
    """Who commands from an event of the kind `CONTROL` on; "policy" where the words do not say."""
    who = words.split(":", 1)[0].strip()
    found: Source = "policy"
    for source in SOURCES:
        found = source if source == who else found
    return found
