"""Segments as a table that people edit: episode, start, stop, kind, text; a sidecar goes out, the edited one comes in.

Tab-separated, so that a spreadsheet opens it and a comma in a sentence is a comma.
"""

import csv
import io
import itertools
from collections.abc import Mapping
from pathlib import Path

from athena_vla import files
from athena_vla.errors import DatasetError
from athena_vla.recordings.episode import Segment

COLUMNS = ("episode", "start", "stop", "kind", "text")
LARGEST = 64 * 2**20  # [bytes] of a table


def write_table(path: Path, episodes: Mapping[str, tuple[Segment, ...]]) -> None:
    """One line a segment, in the order of episodes and frames."""
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows((name, s.start, s.stop, s.kind, s.text) for name, segments in episodes.items() for s in segments)
    files.write_text(path, text.getvalue(), DatasetError)


def edited(
    path: Path, before: Mapping[str, tuple[Segment, ...]], lengths: Mapping[str, int]
) -> dict[str, tuple[Segment, ...]]:
    """The segments as a table says them. A line that was changed is a human's, with full confidence.

    Raises `DatasetError` with the line for an episode that is not there, frames beyond it, segments that overlap, and
    a text that says nothing.
    """
    if path.stat().st_size > LARGEST:
        raise DatasetError(f"'{path}' is larger than {LARGEST // 2**20} MiB; that is no table of segments.")
    known = {(name, s.start, s.stop, s.kind, s.text): s for name, segments in before.items() for s in segments}
    found: dict[str, list[Segment]] = {name: [] for name in lengths}
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        if tuple(table.fieldnames or ()) != COLUMNS:
            heads = ", ".join(map(str, table.fieldnames or ())) or "nothing"
            raise DatasetError(f"'{path}' begins with {heads}; expected tab-separated columns {', '.join(COLUMNS)}.")
        for number, row in enumerate(table, 2):
            name, where = str(row["episode"]), f"line {number} of '{path}'"
            if name not in lengths:
                raise DatasetError(f"{where} names episode '{name}', which the recording does not have.")
            segment = _segment(row, lengths[name], where)
            key = (name, segment.start, segment.stop, segment.kind, segment.text)
            found[name].append(known.get(key, segment))
    for name, segments in found.items():
        segments.sort(key=lambda s: s.start)
        for one, two in itertools.pairwise(segments):
            if two.start < one.stop:
                raise DatasetError(
                    f"'{path}': segments {one.start}..{one.stop} and {two.start}..{two.stop} of '{name}' overlap."
                )
    return {name: tuple(segments) for name, segments in found.items()}


def _segment(row: Mapping[str, str | None], length: int, where: str) -> Segment:
    try:
        start, stop = int(row["start"] or ""), int(row["stop"] or "")
    except ValueError as error:
        given = f"{row['start']!r} and {row['stop']!r}"
        raise DatasetError(f"{where}: start and stop are frame numbers, not {given}.") from error
    text, kind = (row["text"] or "").strip(), (row["kind"] or "").strip() or "task"
    if not 0 <= start < stop <= length:
        raise DatasetError(f"{where}: frames {start}..{stop} lie outside the {length} frames of the episode.")
    if not text:
        raise DatasetError(f"{where} says nothing; take the line out, or write a text.")
    return Segment(start, stop, kind, text, "human", 1.0)
