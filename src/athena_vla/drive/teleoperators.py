"""Teleoperators by name: the keyboard, the simulator's script, a ROS topic, leader arms of an installed package.

A package registers one under the entry point group `athena_vla.teleoperators`; what it names is called with the robot
and with the options of the command line as keywords, all of them text, and returns a `Teleoperator`.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from athena_vla.control.runtime import Robot
from athena_vla.control.teleoperator import Teleoperator
from athena_vla.drive.adapters import factory, lacking
from athena_vla.drive.polled import Polled
from athena_vla.errors import SafetyError

GROUP = "athena_vla.teleoperators"
BUILT_IN = {
    "keyboard": "athena_vla.drive.keyboard:Keyboard",
    "ros2": "athena_vla.ros2.topic_teleoperator:subscribed",
    "script": "athena_vla.sim.scripted_teleoperator:ScriptedTeleoperator",
}


@runtime_checkable
class Pressable(Protocol):
    """A teleoperator that keys of the terminal command."""

    def press(self, key: str) -> str: ...


def known_teleoperators() -> tuple[str, ...]:
    """Names that `open_teleoperator` knows."""
    return tuple(sorted({*BUILT_IN, *(e.name for e in entry_points(group=GROUP))}))


def open_teleoperator(
    name: str, options: Mapping[str, str], robot: Robot, stack: ExitStack, *, real_time: bool
) -> Teleoperator:
    """The teleoperator behind a name, or behind `module:attribute`, for this robot.

    In real time one that is not ours is read in a thread of its own, which `stack` ends. Raises `UnknownName`, and
    `SafetyError` where it does not take these options or is no teleoperator.
    """
    make: Callable[..., Teleoperator] = factory(name, GROUP, BUILT_IN, "teleoperator")
    try:
        made = make(robot, **options)
    except (TypeError, ValueError) as error:
        given = " ".join(f"--teleop-option {k}={v}" for k, v in options.items()) or "no option"
        raise SafetyError(f"The teleoperator '{name}' does not take {given}: {error}.") from error
    missing = lacking(made, ("source", "read"))
    if missing:
        raise SafetyError(f"What '{name}' returns is no teleoperator: it lacks {', '.join(missing)}.")
    if name in BUILT_IN or not real_time:
        return made
    return stack.enter_context(Polled(made, 1.0 / robot.embodiment.control_hz))
