"""Robots by name: the simulator, whatever an installed package registers, or a class in a file of yours.

A package registers a robot under the entry point group `athena_vla.robots`; what it names is called with the options
of the command line as keywords, all of them text, and returns a `Robot`.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from athena_vla.control.runtime import Robot
from athena_vla.errors import SafetyError, UnknownName

GROUP = "athena_vla.robots"
BUILT_IN = {"sim": "athena_vla.sim.simulated_adapter:simulated"}


def known_adapters() -> tuple[str, ...]:
    """Names that `open_robot` knows."""
    return tuple(sorted({*BUILT_IN, *(e.name for e in entry_points(group=GROUP))}))


def open_robot(name: str, options: Mapping[str, str]) -> Robot:
    """The robot behind a name, or behind `module:attribute`, where the module may be a file in this folder.

    Raises `UnknownName`, and `SafetyError` where the adapter does not take these options or is no robot.
    """
    make: Callable[..., Robot] = factory(name, GROUP, BUILT_IN, "robot adapter")
    try:
        robot = make(**options)
    except (TypeError, ValueError) as error:
        given = " ".join(f"--option {k}={v}" for k, v in options.items()) or "no option"
        raise SafetyError(f"The adapter '{name}' does not take {given}: {error}.") from error
    missing = lacking(robot, ("embodiment", "time", "observe", "command"))
    if missing:
        raise SafetyError(f"What the adapter '{name}' returns is no robot: it lacks {', '.join(missing)}.")
    return robot


def factory(name: str, group: str, built_in: Mapping[str, str], what: str) -> Callable[..., Any]:
    """What makes the adapter of this name. Raises `UnknownName`, or `SafetyError` where a MODULE:NAME is not there."""
    registered = {e.name: e for e in entry_points(group=group)}
    if name in registered:
        return registered[name].load()
    where = built_in.get(name, name)
    module, colon, attribute = where.partition(":")
    if not colon:
        raise UnknownName(what, name, (*sorted({*built_in, *registered}), "or MODULE:CLASS"))
    if name not in built_in and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise SafetyError(f"There is no {what} '{name}': {error}.") from error


def lacking(made: object, members: Iterable[str]) -> list[str]:
    """Members that an object of a protocol must have and has not."""
    return [m for m in members if m not in dir(made)]
