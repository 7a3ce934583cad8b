"""Messages of a ROS 2 bag in the order of their own stamps, by the `rosbags` library."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import MissingDependency
from athena_vla.recordings.formats.common import guarded

OPEN_BAGS = 4  # kept open while their images are read


def opened(path: Path) -> Any:
    """The bag, to be used in a `with`."""
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise MissingDependency("rosbags", "bags", "to read ROS 2 bags") from error
    with guarded(f"bag '{path}'"):
        return AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))


@functools.lru_cache(maxsize=OPEN_BAGS)
def kept_open(path: Path, process: int) -> Any:
    """The same for many single reads: opening a bag reads its index and all definitions of messages again.

    `process` keeps a child from reading through its parent's file.
    """
    bag = opened(path)
    bag.open()
    return bag


def messages(bag: Any, topic: str) -> Iterator[tuple[float, Any]]:
    """(time [s], message) in the order of their times: the header's stamp where it has one, else when it was logged."""
    connections = [c for c in bag.connections if c.topic == topic]
    found = []
    for connection, logged, raw in bag.messages(connections=connections) if connections else ():
        message = bag.deserialize(raw, connection.msgtype)
        found.append((time_of(message, logged), message))
    yield from sorted(found, key=lambda m: m[0])


def time_of(message: Any, logged: int) -> float:
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    seconds = stamp.sec + 1e-9 * stamp.nanosec if stamp is not None else 0.0
    # A trajectory that starts at once is stamped zero, by the controllers' own rules.
    return seconds if seconds > 0 else 1e-9 * logged


def numbers_in(message: Any) -> Iterator[float]:
    """All numbers of a message in the order of its fields, but those of its header."""
    for name, value in vars(message).items():
        if name in ("header", "__msgtype__"):
            continue
        if isinstance(value, bool | int | float | np.number):
            yield float(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            yield from value.astype(np.float64).reshape(-1).tolist()
        elif hasattr(value, "__dict__"):
            yield from numbers_in(value)


def rate_of(times: NDArray[np.float64]) -> float:
    steps = np.diff(times)
    steps = steps[steps > 0]
    return float(round(1.0 / np.median(steps), 3)) if len(steps) else 1.0
