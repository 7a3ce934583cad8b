"""What an interrupted run had finished, kept under a key of everything it depends on: program, settings, inputs.

Two forms: lines of a journal, for small results, and files in a folder beside OUT, for large ones. A part that was cut
off by a crash is no part; one with another key is not taken.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from athena_vla.errors import AthenaError
from athena_vla.files.content import fingerprint, write_text
from athena_vla.files.leftovers import remove

Row = dict[str, Any]


class Journal:
    """JSON lines: a header that says what the rows depend on, then one row per finished part.

    Rows of the same header are taken over; a file with another one is put aside as `.old`. Raises `error` where the
    file cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], error: type[AthenaError] = AthenaError) -> None:
        self.path, self.error = path, error
        known: Row = json.loads(json.dumps(header))
        there = list(_lines(path))
        self.rows: list[Row] = there[1:] if there and there[0] == known else []
        with self._refused():
            if path.is_file() and not self.rows and there[:1] != [known]:
                os.replace(path, path.with_suffix(".old"))
        # Written anew, so that a cut last line does not spoil what follows.
        write_text(path, "".join(json.dumps(x) + "\n" for x in (known, *self.rows)), error)
        with self._refused():
            self._file = path.open("a", encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a finished part."""
        self.rows.append(dict(row))
        with self._refused():
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """No part is added any more."""
        self._file.close()

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise self.error(f"'{self.path}' could not be written: {problem}. Finished parts are kept.") from problem


class PartialResults:
    """A folder of finished parts beside `out`, for one key; what was begun with other settings lies in others.

    Whoever uses it holds `out`, see `claim`. Raises `error` where the folder cannot be written.
    """

    def __init__(self, out: Path, key: object, error: type[AthenaError] = AthenaError) -> None:
        self.out, self.key = out, fingerprint(key)
        self.folder = out.with_name(f"{self._start}-{self.key[:12]}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise error(f"'{self.folder}' could not be written: {problem}. Choose another place.") from problem

    def path(self, name: str, suffix: str) -> Path:
        """Where a part of any name lies."""
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}{suffix}"

    def remove(self) -> None:
        """The result has its name: forget these parts, and those that were begun with other settings and left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.out.parent.glob(f"{self._start}*"):
            remove(folder)

    @property
    def _start(self) -> str:
        return f".{self.out.name}.partial"


def _lines(path: Path) -> Iterator[Row]:
    """Objects, up to the first line that is none."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not isinstance(row, dict):
            return
        yield row
