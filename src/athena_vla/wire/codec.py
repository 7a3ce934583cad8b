"""Arrays in messages: the msgpack form that openpi's clients speak, and the JSON form of OpenVLA's (json_numpy).

Knows bytes and arrays; nothing of observations, sockets or robots. Never pickle: only plain numbers arrive, whatever
the sender claims, and a claim about size is checked against the bytes that came before memory is taken. How many values
a message has is counted before one is made: a byte that becomes an object costs a hundred times a byte of an image.
"""

import base64
import binascii
import json
import math
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import WireError

KINDS = "biuf"  # bool, integers, floats: no objects, no strings, no records
MAX_DIMENSIONS = 8
MAX_VALUES = 4096  # in a message, an array counting as a handful: an observation has about fifty

# Bytes of payload behind a msgpack head of fixed size, and bytes of a length that stands behind other heads.
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8} | {
    0xD4: 2,
    0xD5: 3,
    0xD6: 5,
    0xD7: 9,
    0xD8: 17,
}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
_MANY = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # arrays; maps, of which each entry is two values


def pack(message: Any) -> bytes:
    """A message of plain values and arrays as msgpack; arrays become maps with `__ndarray__`, as openpi's do."""
    try:
        packed = msgpack.packb(message, default=_array_to_map)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"This message cannot be written as msgpack: {error}.") from error
    assert isinstance(packed, bytes)
    return packed


def unpack(data: bytes) -> Any:
    """Inverse of `pack`; arrays are read-only views of the message. Raises `WireError` for anything else than that."""
    require_few_values(data)
    try:
        return msgpack.unpackb(data, object_hook=_map_to_array, strict_map_key=True)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"{len(data)} bytes are not a msgpack message: {error or type(error).__name__}.") from error


def require_few_values(data: bytes) -> None:
    """Raises `WireError` where a msgpack message has more than `MAX_VALUES`; reads heads only, and stops there."""
    at, expected = 0, 1
    for read in range(1, MAX_VALUES + 2):
        if expected == 0 or at >= len(data):
            return  # whole, or cut off, which the parser finds
        head, at, expected = data[at], at + 1, expected - 1
        if 0x80 <= head < 0xA0:  # a short map or array
            expected += (head & 15) * (2 if head < 0x90 else 1)
        elif 0xA0 <= head < 0xC0:  # a short text
            at += head & 31
        elif head in _FIXED:
            at += _FIXED[head]
        elif head in _BYTES:
            width = _BYTES[head]
            at += width + int.from_bytes(data[at : at + width], "big") + (0xC7 <= head <= 0xC9)
        elif head in _MANY:
            width, each = _MANY[head]
            expected += int.from_bytes(data[at : at + width], "big") * each
            at += width
        if read + expected > MAX_VALUES:
            break
    raise WireError(f"The message has more than {MAX_VALUES} values. Send numbers as arrays, not as lists.")


def to_json(message: Any) -> str:
    """A message as JSON; arrays become objects with `__numpy__` (base64), `dtype` and `shape`, as json_numpy's do."""
    try:
        return json.dumps(message, default=_array_to_object, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"This message cannot be written as JSON: {error}.") from error


def from_json(text: str | bytes) -> Any:
    """Inverse of `to_json`. Raises `WireError`."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    # Each value but the first has one of these in front of it; base64 has none.
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise WireError(f"The message has more than {MAX_VALUES} values. Send numbers as arrays, not as lists.")
    try:
        return json.loads(text, object_hook=_object_to_array)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:  # includes invalid UTF-8
        raise WireError(f"{len(text)} bytes are not a JSON message: {error}.") from error


def _array_to_map(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray):
        _check_kind(value.dtype)
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        _check_kind(value.dtype)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"values of type {type(value).__name__} have no place in a message")


def _map_to_array(raw: dict[Any, Any]) -> Any:
    if b"__ndarray__" in raw:
        _require_keys(raw, (b"__ndarray__", b"data", b"dtype", b"shape"))
        return read_array(raw[b"data"], raw[b"dtype"], raw[b"shape"])
    if b"__npgeneric__" in raw:
        _require_keys(raw, (b"__npgeneric__", b"data", b"dtype"))
        kind = _dtype(raw[b"dtype"])
        if not isinstance(raw[b"data"], (bool, int, float)):
            raise WireError("A scalar in the message is not a number.")
        if kind.kind in "iu" and not np.iinfo(kind).min <= raw[b"data"] <= np.iinfo(kind).max:
            raise WireError(f"A scalar in the message is no {kind}.")  # numpy 1 would wrap it around
        return kind.type(raw[b"data"])
    return raw


def _array_to_object(value: Any) -> dict[str, Any]:
    if isinstance(value, (np.ndarray, np.generic)):
        _check_kind(value.dtype)
        data = base64.b64encode(value.tobytes()).decode("ascii")
        return {"__numpy__": data, "dtype": value.dtype.str, "shape": value.shape}
    raise TypeError(f"values of type {type(value).__name__} have no place in a message")


def _object_to_array(raw: dict[str, Any]) -> Any:
    if "__numpy__" not in raw:
        return raw
    _require_keys(raw, ("__numpy__", "dtype", "shape"))
    if not isinstance(raw["__numpy__"], str):
        raise WireError("An array in the message has no base64 data.")
    try:
        data = base64.b64decode(raw["__numpy__"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"An array in the message is not base64: {error}.") from error
    array = read_array(data, raw["dtype"], raw["shape"])
    return array if array.ndim else array[()]


def read_array(data: Any, dtype: Any, shape: Any) -> NDArray[Any]:
    """A read-only view of bytes as an array of plain numbers. Raises `WireError` where the three do not fit."""
    kind = _dtype(dtype)
    if not isinstance(data, bytes):
        raise WireError("An array in the message has no bytes.")
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_DIMENSIONS:
        raise WireError(f"An array in the message has the shape {str(shape)[:80]}.")
    if any(type(n) is not int or n < 0 for n in shape):
        raise WireError(f"An array in the message has the shape {str(shape)[:80]}.")
    # Python's integers do not overflow, so a claimed size is compared exactly before numpy sees it.
    if math.prod(shape) * kind.itemsize != len(data):
        raise WireError(f"An array of shape {list(shape)} and type {kind.str} cannot have {len(data)} bytes.")
    return np.frombuffer(data, dtype=kind).reshape(shape)


def _dtype(name: Any) -> np.dtype[Any]:
    # Only the short form ("<f8", "|u1"): numpy's parser accepts a whole language, none of which belongs here.
    if not isinstance(name, str) or not 2 <= len(name) <= 4 or "," in name:
        raise WireError(f"An array in the message has the type {str(name)[:80]!r}.")
    try:
        kind = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise WireError(f"An array in the message has the type {name!r}.") from error
    _check_kind(kind)
    return kind


def _check_kind(kind: np.dtype[Any]) -> None:
    if kind.kind not in KINDS or kind.itemsize > 8:
        raise WireError(f"Arrays of type '{kind.str}' do not travel; booleans, integers and floats do.")


def _require_keys(raw: dict[Any, Any], keys: tuple[Any, ...]) -> None:
    if set(raw) != set(keys):
        raise WireError(f"An array in the message has the keys {sorted(map(str, raw))[:8]}.")
