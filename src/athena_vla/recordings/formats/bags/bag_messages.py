"""Messages of a ROS 2 bag in the order of their own stamps: MCAP by our codec, SQLite by the `rosbags` library."""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from athena_vla.bags.mcap_file import Logged, McapFile
from athena_vla.errors import MissingDependency
from athena_vla.recordings.formats.common import guarded, natural_key

OPEN_BAGS = 4  # kept open while their images are read


class BagReader(Protocol):
    """Messages of a bag by topic and time, whatever it is stored in. To be used in a `with`."""

    @property
    def topics(self) -> Mapping[str, str]:
        """Topic -> type of its messages."""
        ...

    @property
    def cut(self) -> str:
        """Where the bag ends too early; "" for a whole one."""
        ...

    def messages(
        self, topics: Collection[str] = (), start: int | None = None, stop: int | None = None
    ) -> Iterator[Logged]:
        """Of some topics, logged from `start` on and before `stop` [ns]."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class SplitBag:
    """A bag of one or several MCAP files, one after another."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[McapFile] = []
        try:
            for path in paths:
                self._files.append(McapFile(path))
        except BaseException:
            self.__exit__()
            raise

    @property
    def topics(self) -> Mapping[str, str]:
        return dict(sorted((k, v) for f in self._files for k, v in f.topics.items()))

    @property
    def cut(self) -> str:
        return "; ".join(f.cut for f in self._files if f.cut)

    def messages(
        self, topics: Collection[str] = (), start: int | None = None, stop: int | None = None
    ) -> Iterator[Logged]:
        for file in self._files:
            yield from file.messages(topics, start, stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()


class SqliteBag:
    """A bag in SQLite, or one that is packed as a whole, by the `rosbags` library."""

    cut = ""

    def __init__(self, path: Path) -> None:
        try:
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise MissingDependency("rosbags", "bags", "to read ROS 2 bags") from error
        self._bag = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        self._bag.open()

    @property
    def topics(self) -> Mapping[str, str]:
        return dict(sorted((c.topic, c.msgtype) for c in self._bag.connections))

    def messages(
        self, topics: Collection[str] = (), start: int | None = None, stop: int | None = None
    ) -> Iterator[Logged]:
        wanted = [c for c in self._bag.connections if not topics or c.topic in topics]
        for connection, time, raw in self._bag.messages(connections=wanted, start=start, stop=stop) if wanted else ():
            yield Logged(connection.topic, time, self._bag.deserialize(raw, connection.msgtype))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bag.close()


def opened(path: Path) -> BagReader:
    """The bag of a file or of a folder with metadata.yaml."""
    with guarded(f"bag '{path}'"):
        parts = [path] if path.is_file() else sorted(path.glob("*.mcap"), key=lambda p: natural_key(p.name))
        if parts and all(p.suffix == ".mcap" for p in parts):
            return SplitBag(parts)
        return SqliteBag(path)


@functools.lru_cache(maxsize=OPEN_BAGS)
def kept_open(path: Path, process: int) -> BagReader:
    """The same for many single reads: opening a bag reads its index and all definitions of messages again.

    `process` keeps a child from reading through its parent's file.
    """
    return opened(path)


def messages(bag: BagReader, topic: str) -> Iterator[tuple[float, Any]]:
    """(time [s], message) in the order of their times: the header's stamp where it has one, else when it was logged."""
    found = [(time_of(m.message, m.time), m.message) for m in bag.messages((topic,))]
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
