"""The black box: the last minutes of a run on disk, whatever ends the program; a full disk is a fault and not a crash.

Records go to numbered files in the order in which things happened. A file is a chain of records, each with its length
and a checksum; what was handed to the operating system survives the program, and a record that was cut off is noticed.
Knows bytes and files; the loop never waits for it.
"""

import json
import os
import queue
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from athena_vla.control.teleoperator import CONTROL, Source, source_in
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation
from athena_vla.errors import SafetyError

VERSION = 1
HEAD = struct.Struct("<4sIIIdd")  # b"ABOX", kind, bytes, CRC-32, unix time, robot time
REST = struct.Struct("<Idd")  # of the head, as the checksum reads it
MAGIC = b"ABOX"
START, COMMAND, SEEN, CHUNK, NOTE = range(5)
SEGMENT = 10.0  # [s] in one file
WAITING = 4096  # records that may wait for the disk
SHARE = 0.8  # of the space, for images


class BlackBox:
    """A recorder for `Runtime`. Keeps the last `seconds`, in at most `most_bytes`; images that do not fit are left out.

    `problem` says why nothing can be written, "" while all is well; the runtime takes it for a fault. Raises
    `SafetyError` where the folder cannot be written, or the disk has less room than the box may take.
    """

    def __init__(
        self, folder: str | Path, robot: Embodiment, *, seconds: float = 300.0, most_bytes: int = 300_000_000
    ) -> None:
        if not (seconds > 0 and most_bytes >= 1_000_000):
            raise SafetyError("A black box keeps a positive time and at least 1,000,000 bytes.")
        self.folder, self._robot = Path(folder), robot
        self._seconds, self._most = seconds, most_bytes
        self._budget = SHARE * most_bytes / seconds  # [bytes/s] of images
        self._saved, self._last_image = self._budget, np.inf  # [s] robot clock
        self._queue: queue.Queue[tuple[int, float, tuple[object, ...]] | None] = queue.Queue(WAITING)
        self._file: int | None = None
        self._number, self._opened, self._size = 0, 0.0, 0
        self._files: list[tuple[Path, float, int]] = []  # finished: path, end [s] unix, bytes
        self._problem, self._dropped = "", 0
        self._control: Source = "policy"  # who commands, as far as it is written
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in sorted(self.folder.glob("*.box")):
                self._files.append((old, old.stat().st_mtime, old.stat().st_size))
                self._number = max(self._number, int(old.stem) if old.stem.isdigit() else 0)
            room = os.statvfs(self.folder)
            free = room.f_bavail * room.f_frsize + sum(size for _, _, size in self._files)
            if free < most_bytes:
                raise SafetyError(
                    f"The black box in '{self.folder}' may take {most_bytes / 1e6:.0f} MB and the disk has "
                    f"{free / 1e6:.0f} MB. Free some, choose another folder, or give it less."
                )
            self._rotate(time.time())
        except OSError as error:
            raise SafetyError(f"The black box cannot write to '{self.folder}': {error.strerror or error}.") from error
        self._thread = threading.Thread(target=self._work, name="black-box", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        return self._problem

    def observed(self, observation: Observation, /) -> None:
        self._put(SEEN, observation.time, (observation, self._afford(observation)))

    def commanded(self, time: float, stamp: float, target: Array, command: Array, level: int, /) -> None:
        self._put(COMMAND, time, (stamp, level, target, command))

    def received(self, time: float, chunk: ActionChunk, policy: str, /) -> None:
        self._put(CHUNK, time, (chunk, policy))

    def noted(self, time: float, kind: str, words: str, /) -> None:
        self._put(NOTE, time, (kind, words))

    def close(self) -> None:
        """Write what waits; the files stay."""
        self._queue.put(None)
        self._thread.join(5.0)

    def __enter__(self) -> "BlackBox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _afford(self, observation: Observation) -> bool:
        """Whether the images of an observation are within the space that is theirs."""
        size = sum(i.nbytes for i in observation.images.values())
        passed, self._last_image = max(0.0, observation.time - self._last_image), observation.time
        self._saved = min(self._saved + passed * self._budget, 5.0 * max(self._budget, size))
        if size > self._saved:
            return False
        self._saved -= size
        return True

    def _put(self, kind: int, moment: float, content: tuple[object, ...]) -> None:
        try:
            self._queue.put_nowait((kind, moment, (time.time(), *content)))
        except queue.Full:
            self._dropped += 1
            self._problem = f"the disk of '{self.folder}' is too slow: {self._dropped} records were lost"

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            kind, moment, (at, *content) = item
            assert isinstance(at, float)
            try:
                if at - self._opened > SEGMENT or self._size > self._most // 20:
                    self._rotate(at)
                self._write(kind, at, moment, _encode(kind, content))
                if kind == NOTE and content[0] == CONTROL:
                    self._control = source_in(str(content[1]))
                self._problem = ""
            except OSError as error:
                free = "free some space there, or give the black box another folder"
                self._problem = f"'{self.folder}' cannot be written ({error.strerror or error}): {free}"
                self._cut()
        if self._file is not None:
            os.close(self._file)

    def _write(self, kind: int, at: float, moment: float, payload: bytes) -> None:
        if self._file is None:
            self._rotate(at)
        assert self._file is not None
        record = memoryview(
            HEAD.pack(MAGIC, kind, len(payload), checksum(kind, at, moment, payload), at, moment) + payload
        )
        while record:
            written = os.write(self._file, record)
            record = record[written:]
        self._size += HEAD.size + len(payload)

    def _cut(self) -> None:
        """Take back a record that was written in part."""
        if self._file is not None:
            try:
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, self._size, os.SEEK_SET)
            except OSError:
                os.close(self._file)
                self._file = None

    def _rotate(self, at: float) -> None:
        """Begin the next file, and remove those that are too old or do not fit any more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            path = self.folder / f"{self._number:06d}.box"
            self._files.append((path, at, self._size))
        self._opened = at
        total = sum(size for _, _, size in self._files)
        while self._files and (total > self._most - self._most // 10 or at - self._files[0][1] > self._seconds):
            path, _, size = self._files.pop(0)
            path.unlink(missing_ok=True)
            total -= size
        self._number += 1
        path = self.folder / f"{self._number:06d}.box"
        self._file, self._size = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), 0
        head = {"version": VERSION, "robot": self._robot.to_dict(), "control": self._control}
        self._write(START, at, 0.0, json.dumps(head).encode())


def checksum(kind: int, at: float, moment: float, payload: bytes) -> int:
    """CRC-32 of a record: its kind, its times and its bytes."""
    return zlib.crc32(payload, zlib.crc32(REST.pack(kind, at, moment)))


def _encode(kind: int, content: list[object]) -> bytes:
    if kind == COMMAND:
        stamp, level, target, command = content
        return np.concatenate([np.array([stamp, level], dtype=np.float64), target, command]).tobytes()  # type: ignore[list-item]
    if kind == SEEN:
        observation, whole = content
        assert isinstance(observation, Observation)
        state = np.asarray(observation.state, dtype=np.float64).tobytes()
        images = observation.images if whole else {}
        pixels = [zlib.compress(np.ascontiguousarray(i).tobytes(), 1) for i in images.values()]
        head = {
            "instruction": observation.instruction,
            "images": {c: [*i.shape, len(p)] for (c, i), p in zip(images.items(), pixels, strict=True)},
        }
        return _joined(head, [state, *pixels])
    if kind == CHUNK:
        chunk, policy = content
        assert isinstance(chunk, ActionChunk)
        rows = np.ascontiguousarray(chunk.positions, dtype=np.float64)
        head = {"joints": chunk.joint_names, "dt": chunk.dt, "time": chunk.time, "policy": policy, "shape": rows.shape}
        return _joined(head, [rows.tobytes()])
    return json.dumps(content).encode()


def _joined(head: dict[str, object], parts: list[bytes]) -> bytes:
    text = json.dumps(head).encode()
    return b"".join([struct.pack("<I", len(text)), text, *parts])


def image_of(data: bytes, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """The image of a record. Raises `ValueError`, `zlib.error` for bytes that are none."""
    size = height * width * channels
    unpacked = zlib.decompressobj().decompress(data, size + 1)
    return np.frombuffer(unpacked, dtype=np.uint8, count=size).reshape(height, width, channels)
