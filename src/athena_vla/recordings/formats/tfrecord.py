"""TFRecord framing and tf.train.Example messages without TensorFlow: read, checked by CRC, and written.

The format is small: u64 length, its masked CRC-32C, the message, its masked CRC-32C; and a map of three list types.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError

Value = list[bytes] | NDArray[np.float32] | NDArray[np.int64]


def masked_crc(data: bytes | memoryview) -> int:
    crc = google_crc32c.value(bytes(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record_offsets(path: Path) -> list[tuple[int, int]]:
    """(offset, length) of every message, from the frame headers alone. Raises `RecordingError` on damage."""
    size = path.stat().st_size
    found: list[tuple[int, int]] = []
    with open(path, "rb") as file:
        position = 0
        while position < size:
            file.seek(position)
            head = file.read(12)
            if len(head) < 12:
                raise RecordingError(f"'{path}' is truncated after {len(found)} records.")
            (length,), (crc,) = struct.unpack("<Q", head[:8]), struct.unpack("<I", head[8:])
            if masked_crc(head[:8]) != crc:
                raise RecordingError(f"'{path}': record {len(found)} has a damaged length (CRC mismatch).")
            if position + 16 + length > size:
                raise RecordingError(f"'{path}': record {len(found)} is cut off ({length} bytes announced).")
            found.append((position + 12, length))
            position += 16 + length
    return found


def read_record(path: Path, offset: int, length: int, what: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        data, tail = file.read(length), file.read(4)
    if len(data) != length or len(tail) != 4 or masked_crc(data) != struct.unpack("<I", tail)[0]:
        raise RecordingError(f"{what} in '{path}' is damaged (CRC mismatch).")
    return data


def write_record(file: BinaryIO, data: bytes) -> None:
    head = struct.pack("<Q", len(data))
    file.write(head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", masked_crc(data)))


def parse_example(data: bytes, wanted: set[str] | None = None) -> dict[str, Value]:
    """The features of a tf.train.Example; only those in `wanted` are decoded where it is given."""
    found: dict[str, Value] = {}
    for number, features in _fields(memoryview(data)):
        if number != 1:
            continue
        for entry_number, entry in _fields(features):
            if entry_number != 1:
                continue
            key, feature = "", memoryview(b"")
            for part, value in _fields(entry):
                if part == 1:
                    key = bytes(value).decode()
                elif part == 2:
                    feature = value
            if wanted is None or key in wanted:
                found[key] = _feature(feature)
    return found


def build_example(features: Mapping[str, Sequence[bytes] | NDArray[Any]]) -> bytes:
    """A tf.train.Example with packed numbers; keys in sorted order, so that equal features give equal bytes."""
    entries = []
    for key in sorted(features):
        value = features[key]
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "f":
                feature = _field(2, _field(1, np.ascontiguousarray(value, "<f4").tobytes()))
            else:
                feature = _field(3, _field(1, b"".join(_varint(int(x) & (2**64 - 1)) for x in value.reshape(-1))))
        else:
            feature = _field(1, b"".join(_field(1, item) for item in value))
        entries.append(_field(1, _field(1, key.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def _feature(data: memoryview) -> Value:
    for number, body in _fields(data):
        if number == 1:
            return [bytes(v) for n, v in _fields(body) if n == 1]
        if number == 2:
            packed = [bytes(v) for n, v in _fields(body) if n == 1]
            return np.frombuffer(b"".join(packed), "<f4")
        if number == 3:
            return _int64s(body)
    return []


def _int64s(body: memoryview) -> NDArray[np.int64]:
    values: list[int] = []
    position, size = 0, len(body)
    while position < size:
        tag, position = _read_varint(body, position)
        if tag & 7 == 2:
            length, position = _read_varint(body, position)
            stop = position + length
            if stop > size:
                raise RecordingError("A list of integers is cut off.")
            while position < stop:
                value, position = _read_varint(body, position)
                values.append(value)
        else:
            value, position = _read_varint(body, position)
            values.append(value)
    return np.array(values, np.uint64).astype(np.int64)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, bytes) of a message; fixed 32-bit values appear as their four bytes."""
    position, size = 0, len(data)
    while position < size:
        tag, position = _read_varint(data, position)
        kind = tag & 7
        if kind == 2:
            length, position = _read_varint(data, position)
        elif kind == 5:
            length = 4
        elif kind == 1:
            length = 8
        elif kind == 0:
            start = position
            _, position = _read_varint(data, position)
            yield tag >> 3, data[start:position]
            continue
        else:
            raise RecordingError(f"A message holds the unknown wire type {kind}.")
        if position + length > size:
            raise RecordingError("A message is cut off.")
        yield tag >> 3, data[position : position + length]
        position += length


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise RecordingError("A message holds a damaged number.")
        byte = data[position]
        position += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result & (2**64 - 1), position
        shift += 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body
