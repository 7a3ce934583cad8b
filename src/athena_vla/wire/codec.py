"""Arrays in messages: the msgpack form that openpi's clients speak, and the JSON form of OpenVLA's (json_numpy).

Knows bytes and arrays; nothing of observations, sockets or robots. Never pickle: only plain numbers arrive, whatever
the sender claims, and a claim about size is checked against the bytes that came before memory is taken.
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
    try:
        return msgpack.unpackb(data, object_hook=_map_to_array, strict_map_key=True)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"{len(data)} bytes are not a msgpack message: {error or type(error).__name__}.") from error


def to_json(message: Any) -> str:
    """A message as JSON; arrays become objects with `__numpy__` (base64), `dtype` and `shape`, as json_numpy's do."""
    try:
        return json.dumps(message, default=_array_to_object, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"This message cannot be written as JSON: {error}.") from error


def from_json(text: str | bytes) -> Any:
    """Inverse of `to_json`. Raises `WireError`."""
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
        return _array(raw[b"data"], raw[b"dtype"], raw[b"shape"])
    if b"__npgeneric__" in raw:
        _require_keys(raw, (b"__npgeneric__", b"data", b"dtype"))
        kind = _dtype(raw[b"dtype"])
        if not isinstance(raw[b"data"], (bool, int, float)):
            raise WireError("A scalar in the message is not a number.")
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
    array = _array(data, raw["dtype"], raw["shape"])
    return array if array.ndim else array[()]


def _array(data: Any, dtype: Any, shape: Any) -> NDArray[Any]:
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
