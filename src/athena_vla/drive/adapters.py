"""Robots by name: the simulator, whatever an installed package registers, or a class in a file of yours.

A package registers a robot under the entry point group `athena_vla.robots`; what it names is called with the options
of the command line as keywords, all of them text, and returns a `Robot`.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path

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
    make = _factory(name)
    try:
        robot = make(**options)
    except (TypeError, ValueError) as error:
        given = " ".join(f"--option {k}={v}" for k, v in options.items()) or "no option"
        raise SafetyError(f"The adapter '{name}' does not take {given}: {error}.") from error
    missing = [m for m in ("embodiment", "time", "observe", "command") if not _has(robot, m)]
    if missing:
        raise SafetyError(f"What the adapter '{name}' returns is no robot: it lacks {', '.join(missing)}.")
    return robot


def _factory(name: str) -> Callable[..., Robot]:
    registered = {e.name: e for e in entry_points(group=GROUP)}
    if name in registered:
        return registered[name].load()
    where = BUILT_IN.get(name, name)
    module, colon, attribute = where.partition(":")
    if not colon:
        raise UnknownName("robot adapter", name, (*known_adapters(), "or MODULE:CLASS"))
    if name not in BUILT_IN and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise SafetyError(f"There is no robot adapter '{name}': {error}.") from error


def _has(robot: object, member: str) -> bool:
    return member in dir(robot)
