"""Mappings that say nothing of their keys: their count on a source written here, and its bound for the package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from loose_mappings import lines, places

MOST = 6.8  # per 1,000 lines: lower it with every room that becomes typed; 3 is the aim

SAMPLE = """
from collections.abc import Mapping
from typing import Any, Literal

Table = dict[str, Any]
Names = dict[str, str]
loose: dict[str, object] = {}


class Result:
    found: Mapping[str, Any]
    rows: list[dict[str, Any]]
    typed: dict[str, float]
    by_number: dict[int, Any]

    def to_dict(self, names: Names, other: "Mapping[str, int | Any]") -> Table:
        local: dict[str, Any] = {}
        return local


def nothing(mode: Literal["r", "w"], *rest: Any, **options: Any) -> dict[str, list[Any]]: ...
"""


def test_what_counts(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(SAMPLE)
    (tmp_path / "two.py").write_text(
        f"from {tmp_path.name}.one import Table\n\n\ndef read(table: Table, Result: int) -> None: ...\n"
    )
    (tmp_path / "three.py").write_text("def read(table: Table) -> None: ...\n")  # another Table
    found = places(tmp_path)
    assert [(p.file.name, p.text) for p in found] == [
        ("one.py", "dict[str, object]"),
        ("one.py", "Mapping[str, Any]"),
        ("one.py", "dict[str, Any]"),
        ("one.py", "Mapping[str, int | Any]"),
        ("one.py", "Table"),
        ("two.py", "Table"),
    ]
    assert lines(tmp_path) == sum(len(p.read_text().splitlines()) for p in tmp_path.glob("*.py"))


def test_the_package_keeps_the_bound_that_was_reached() -> None:
    found = places()
    share = 1000 * len(found) / lines()
    assert share <= MOST, (
        f"{len(found)} loose mappings, {share:.2f} per 1,000 lines; see scripts/loose_mappings.py --list"
    )
