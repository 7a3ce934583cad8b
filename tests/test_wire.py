"""The wire codec: bit-exact both ways, the same bytes as the clients' own codecs, and nothing else gets through."""

import contextlib
import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from athena_vla.errors import WireError
from athena_vla.wire.codec import from_json, pack, to_json, unpack

DTYPES = ["|b1", "|u1", "|i1", "<u2", "<i4", ">i4", "<i8", "<u8", "<f2", "<f4", "<f8", ">f8"]
numpy_arrays = st.sampled_from(DTYPES).flatmap(
    lambda d: arrays(np.dtype(d), array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | numpy_arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return (a == b or (a != a and b != b)) and type(a) is type(b)


@settings(max_examples=60, deadline=None)
@given(values)
def test_msgpack_is_bit_exact(message: Any) -> None:
    assert same(message, unpack(pack(message)))


@settings(max_examples=30, deadline=None)
@given(values)
def test_equals_the_codec_of_openpi_clients(message: Any) -> None:
    theirs = pytest.importorskip("openpi_client.msgpack_numpy", reason="openpi-client is not installed")
    assert pack(message) == theirs.packb(message)
    assert same(message, unpack(theirs.packb(message)))
    assert same(message, theirs.unpackb(pack(message)))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(), numpy_arrays, max_size=4))
def test_json_is_bit_exact_and_equals_json_numpy(message: dict[str, np.ndarray]) -> None:
    back = from_json(to_json(message))
    for key, array in message.items():
        if array.ndim == 0:  # arrives as a scalar, which has a value but no byte order
            assert repr(back[key].item()) == repr(array.item())
            continue
        assert np.asarray(back[key]).tobytes() == array.tobytes()
        assert np.asarray(back[key]).dtype == array.dtype
        assert np.shape(back[key]) == array.shape
    theirs = pytest.importorskip("json_numpy", reason="json_numpy is not installed")
    if all(a.size for a in message.values()):
        assert json.loads(to_json(message)) == json.loads(theirs.dumps(message))
        for key, array in theirs.loads(to_json(message)).items():
            assert repr(array.tolist()) == repr(message[key].tolist())


@pytest.mark.parametrize("scalar", [np.float32(0.1), np.int64(-3), np.bool_(True), np.uint8(255)])
def test_scalars_keep_their_type(scalar: np.generic) -> None:
    assert type(unpack(pack({"x": scalar}))["x"]) is type(scalar)
    assert type(from_json(to_json({"x": scalar}))["x"]) is type(scalar)


def ndarray(**changes: Any) -> bytes:
    good = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f8", b"shape": [1]}
    packed = msgpack.packb(good | {k.encode(): v for k, v in changes.items()})
    assert packed is not None
    return packed


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x00\x00",
        b"\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\xa2\xff\xfe",
        ndarray(dtype="|O"),
        ndarray(dtype="O"),
        ndarray(dtype="V8"),
        ndarray(dtype="<U2"),
        ndarray(dtype="<M8"),
        ndarray(dtype="<c16"),
        ndarray(dtype="f8,f8"),
        ndarray(dtype="(2,)f4"),
        ndarray(dtype="<f16"),
        ndarray(dtype=8),
        ndarray(shape=[2]),
        ndarray(shape=[-1]),
        ndarray(shape=[2**40, 2**40]),
        ndarray(shape=[1.0]),
        ndarray(shape=[True]),
        ndarray(shape=[1] * 9),
        ndarray(shape="1"),
        ndarray(data="12345678"),
        ndarray(data=None),
        ndarray(more=1),
        msgpack.packb({b"__ndarray__": True}),
        msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f8"}),
        msgpack.packb({b"__npgeneric__": True, b"data": 2**60, b"dtype": "|u1"}),
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(WireError):
        unpack(message)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        b"\xff\xfe\x00",
        "[" * 100_000,
        '{"__numpy__": "AAAA", "dtype": "|O", "shape": [3]}',
        '{"__numpy__": "!!!!", "dtype": "|u1", "shape": [3]}',
        '{"__numpy__": "AAAA", "dtype": "|u1", "shape": [4]}',
        '{"__numpy__": "AAAA", "dtype": [["a", "|u1"]], "shape": [3]}',
        '{"__numpy__": 3, "dtype": "|u1", "shape": [3]}',
        '{"__numpy__": "AAAA"}',
        "1" * 5000,
    ],
)
def test_what_is_no_json_message_is_refused(text: str | bytes) -> None:
    with pytest.raises(WireError):
        from_json(text)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_a_value_or_a_wire_error(data: bytes) -> None:
    for decode in (unpack, from_json):
        with contextlib.suppress(WireError):
            decode(data)


@pytest.mark.parametrize(
    "value", [object(), np.array([object()]), np.array(["a"]), {1: 2 + 3j}, 2**70, np.longdouble(1)]
)
def test_what_has_no_place_in_a_message_is_not_sent(value: Any) -> None:
    with pytest.raises(WireError):
        pack({"x": value})


def test_arrays_that_arrive_cannot_be_written() -> None:
    array = unpack(pack(np.zeros(3)))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
