"""Arrow columns as numpy arrays, without a Python object per number, refusing what is ragged or not numeric."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.formats.common import StillFrames, guarded, inside


def numbers(column: pa.ChunkedArray | pa.Array, what: str) -> NDArray[Any]:
    """`[T, ...]` values of a numeric or nested list column; every row must have the same shape and no nulls."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    shape = [len(array)]
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        if array.null_count:
            raise RecordingError(f"{what} has empty rows.")
        rows = len(array)
        if pa.types.is_fixed_size_list(array.type):
            width = array.type.list_size
        else:
            lengths = np.diff(array.offsets.to_numpy())
            width = int(lengths[0]) if rows else 0
            if (lengths != width).any():
                raise RecordingError(f"{what} has rows of different width ({lengths.min()} to {lengths.max()}).")
        shape.append(width)
        array = array.flatten()
    if array.null_count:
        raise RecordingError(f"{what} has {array.null_count} missing values.")
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise RecordingError(f"{what} holds {array.type}, expected numbers.")
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(shape)


@dataclass(frozen=True)
class ColumnPictures(StillFrames):
    """Images stored in a parquet column: bytes, or paths below the set."""

    column: Any
    root: Path
    what: str

    def __len__(self) -> int:
        return len(self.column)

    def describe(self, index: int, /) -> str:
        return f"frame {index} of {self.what}"

    def encoded(self, index: int, /) -> bytes:
        value = self.column[index].as_py()
        if not isinstance(value, dict):
            raise RecordingError(f"{self.describe(index)} is empty.")
        if value.get("bytes"):
            return value["bytes"]
        if not value.get("path"):
            raise RecordingError(f"{self.describe(index)} has neither bytes nor a path.")
        path = inside(self.root, str(value["path"]), self.describe(index))
        with guarded(f"'{path}'"):
            return path.read_bytes()


def pictures(column: pa.ChunkedArray, root: Path, what: str) -> ColumnPictures:
    if not pa.types.is_struct(column.type):
        raise RecordingError(f"{what} holds {column.type}, expected images (bytes and path).")
    return ColumnPictures(column, root, what)
