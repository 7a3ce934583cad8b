"""Windows over an episode: which frames start a sample, the chunk that follows, and which of its rows are real."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.recordings.texts import Texts


def starts(length: int, stride: int) -> NDArray[np.intp]:
    """Frames at which a sample starts; the last frames count too, with chunks that are valid only in part."""
    return np.arange(0, length, stride, dtype=np.intp)


def samples_of(texts: Texts, length: int, stride: int) -> list[tuple[int, NDArray[np.intp]]]:
    """(number of an alternative, frames at which a sample with it starts) for all samples of an episode.

    A frame has a sample for each of its alternatives, and none where nothing is said.
    """
    count = np.zeros(length, np.intp)
    for span in texts:
        count[span.start : span.stop] = len(span.alternatives)
    first = starts(length, stride)
    most = int(count.max()) if length else 0
    return [(text, first[count[first] > text]) for text in range(most)]


def chunk_rows(
    first: NDArray[np.intp], stop: NDArray[np.intp], horizon: int
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Rows `[N, H]` of the chunks that start at `first` in episodes that end at `stop`, and their validity."""
    rows = first[:, None] + np.arange(horizon, dtype=np.intp)
    valid = rows < stop[:, None]
    return np.where(valid, rows, stop[:, None] - 1), valid


def chunks(actions: NDArray[Any], first: NDArray[np.intp], horizon: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Chunks `[N, H, D]` of one episode's actions `[T, D]` and their validity `[N, H]`."""
    rows, valid = chunk_rows(first, np.full(len(first), len(actions), np.intp), horizon)
    return actions[rows], valid
