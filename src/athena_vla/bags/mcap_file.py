"""One MCAP file of ROS 2 messages: every chunk is held against its checksum; a file cut short gives what is whole.

Reading raises `RecordingError` and nothing else, whatever the bytes are. Sizes that a file claims are believed up to
`MOST`, so that a damaged length costs no memory.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from athena_vla import files
from athena_vla.bags.message_types import PURPOSE, MessageTypes, known_types
from athena_vla.errors import AthenaError, MissingDependency, RecordingError

MOST = 2**30  # [B] of one chunk, unpacked
MAGIC = b"\x89MCAP0\r\n"
FOOTER = 20 + len(MAGIC)  # [B] from the end: where the summary begins, its offsets, its checksum


@dataclass(frozen=True)
class Logged:
    """One message: its topic, when it was logged [ns], and its fields as attributes."""

    topic: str
    time: int
    message: Any


@dataclass(frozen=True)
class _Place:
    """A chunk: where it begins in the file, and the first and last time in it [ns]."""

    offset: int
    start: int
    stop: int


class McapFile:
    """Messages by topic and time. `cut` says where a file ends too early, "" for a whole one.

    Raises `RecordingError` for what is no MCAP file, and for damage where it is met.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.cut = ""
        self._types = MessageTypes()
        self._channels: dict[int, Any] = {}
        self._schemas: dict[int, Any] = {}
        self._defined: set[int] = set()
        self._unpacked: tuple[int, list[Any]] = (-1, [])
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise RecordingError(f"There is no bag at '{self.path}' that can be read: {error.strerror}.") from error
        self._size = os.fstat(self._file.fileno()).st_size
        try:
            self._index()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    def __enter__(self) -> "McapFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def topics(self) -> Mapping[str, str]:
        """Topic -> type of its messages, such as sensor_msgs/msg/JointState."""
        return {c.topic: self._schemas[c.schema_id].name for c in self._channels.values() if c.schema_id}

    def messages(
        self, topics: Collection[str] = (), start: int | None = None, stop: int | None = None
    ) -> Iterator[Logged]:
        """Messages in the order of the file; of some topics, logged from `start` on and before `stop` [ns]."""
        low, high = -1 if start is None else start, 2**63 if stop is None else stop
        for place in self._places:
            if place.stop < low or place.start >= high:
                continue
            for record in self._records(place):
                channel = self._channels.get(getattr(record, "channel_id", -1))
                if channel is None or not low <= record.log_time < high or (topics and channel.topic not in topics):
                    continue
                yield Logged(channel.topic, record.log_time, self._message(channel, record.data))

    def _message(self, channel: Any, data: bytes) -> Any:
        schema = self._schemas.get(channel.schema_id)
        with _said(self.path, f"a message of '{channel.topic}'"):
            if schema is None or channel.message_encoding != "cdr":
                raise RecordingError(
                    f"Topic '{channel.topic}' of '{self.path}' holds messages in '{channel.message_encoding}', ROS 2's "
                    "are in cdr."
                )
            if schema.id not in self._defined:
                self._types.define(schema.name, schema.encoding, schema.data.decode())
                self._defined.add(schema.id)
            return self._types.message(schema.name, data)

    def _records(self, place: _Place) -> list[Any]:
        """Messages of a chunk; the last chunk is kept, since images are asked for one after another."""
        if self._unpacked[0] != place.offset:
            with _said(self.path, f"the chunk at byte {place.offset}"):
                self._file.seek(place.offset)
                chunk = next(iter(_stream(self._file, self._size, skip_magic=True)))
                self._unpacked = (place.offset, self._opened(chunk))
        return self._unpacked[1]

    def _opened(self, chunk: Any) -> list[Any]:
        from mcap.stream_reader import breakup_chunk

        if chunk.uncompressed_size > MOST:
            raise RecordingError(f"'{self.path}' claims a chunk of {chunk.uncompressed_size} bytes; at most {MOST}.")
        records = breakup_chunk(chunk, validate_crc=True)
        for record in records:
            self._keep(record)
        return [r for r in records if type(r).__name__ == "Message"]

    def _keep(self, record: Any) -> None:
        """Definitions of types and topics, wherever they stand."""
        if type(record).__name__ == "Schema":
            self._schemas.setdefault(record.id, record)
        elif type(record).__name__ == "Channel":
            self._channels.setdefault(record.id, record)

    def _index(self) -> None:
        """Where the chunks are: from the file's own summary, else by going through all of it."""
        if self._file.read(len(MAGIC)) != MAGIC:
            raise RecordingError(f"'{self.path}' is no MCAP bag.")
        self._file.seek(max(self._size - len(MAGIC), 0))
        ended = self._file.read() == MAGIC
        summary = None
        if ended:
            with contextlib.suppress(Exception):  # a damaged summary: the chunks, each with its checksum, say the same
                summary = self._summary()
        if summary is not None and summary.chunk_indexes:
            self._schemas, self._channels = dict(summary.schemas), dict(summary.channels)
            chunks = sorted(summary.chunk_indexes, key=lambda c: c.chunk_start_offset)
            self._places = [_Place(c.chunk_start_offset, c.message_start_time, c.message_end_time) for c in chunks]
        else:
            self._places = list(self._scan(ended))

    def _summary(self) -> Any:
        """None where the file has none, or one that its checksum does not fit."""
        from mcap.reader import SeekingReader

        self._file.seek(self._size - FOOTER)
        start, _, checksum = struct.unpack("<QQI", self._file.read(20))
        self._file.seek(start)
        told = self._file.read(self._size - len(MAGIC) - 4 - start)
        if start and checksum and zlib.crc32(told) != checksum:
            return None
        self._file.seek(0)
        return SeekingReader(self._file, record_size_limit=self._size).get_summary()

    def _scan(self, ended: bool) -> Iterator[_Place]:
        """Chunks in order; loose messages become one of their own. In a file without its end, the first thing that
        cannot be read is where it was cut: `cut` says so."""
        self._file.seek(0)
        loose: list[Any] = []
        at = len(MAGIC)
        try:
            with _said(self.path, "what it holds"):
                for record in _stream(self._file, self._size):
                    if type(record).__name__ == "Chunk":
                        times = [r.log_time for r in self._opened(record)] or [0]
                        yield _Place(at, min(times), max(times))
                    elif type(record).__name__ == "Message":
                        loose.append(record)
                    else:
                        self._keep(record)
                    at = self._file.tell()
        except RecordingError:
            if ended:
                raise
            self.cut = f"'{self.path}' was cut off: what lies before byte {at} of {self._size} is read"
        if loose:
            self._unpacked = (0, loose)
            times = [r.log_time for r in loose]
            yield _Place(0, min(times), max(times))


@contextlib.contextmanager
def _said(path: Path, what: str) -> Iterator[None]:
    """Whatever the libraries raise on damaged bytes, as one sentence about the file."""
    try:
        yield
    except AthenaError:
        raise
    except ImportError as error:
        raise MissingDependency("mcap", "bags", PURPOSE) from error
    except Exception as error:
        raise RecordingError(f"'{path}' is damaged: {what} cannot be read ({error}).") from error


def _stream(file: IO[bytes], size: int, skip_magic: bool = False) -> Iterator[Any]:
    from mcap.stream_reader import StreamReader

    checked = not skip_magic
    reader = StreamReader(file, skip_magic=skip_magic, emit_chunks=True, validate_crcs=checked, record_size_limit=size)
    return reader.records


class McapWriter:
    """Messages into a file, whole or not at all. To be used in a `with`; topics may come in any order."""

    def __init__(self, path: str | Path) -> None:
        self._whole = files.whole_file(Path(path), RecordingError)
        self._topics: dict[str, int] = {}
        self._types = known_types()

    def __enter__(self) -> "McapWriter":
        try:
            from mcap.writer import Writer
        except ImportError as error:
            raise MissingDependency("mcap", "ros2", PURPOSE) from error
        self._file = self._whole.__enter__().open("wb")
        self._writer: Any = Writer(self._file)
        self._writer.start("ros2", library="athena-vla")
        return self

    def put(self, topic: str, kind: str, fields: Mapping[str, Any], time: float) -> None:
        """One message at `time` [s]."""
        if topic not in self._topics:
            schema = self._writer.register_schema(kind, "ros2msg", self._types.definition(kind).encode())
            self._topics[topic] = self._writer.register_channel(topic, "cdr", schema)
        when = round(time * 1e9)
        self._writer.add_message(self._topics[topic], when, self._types.data(kind, fields), when)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self._writer.finish()
        self._file.close()
        self._whole.__exit__(kind, error, trace)
