"""Old module names: each gives the new module, once, with a warning that says the new name."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from athena_vla.moved import GONE, MOVED, UNTIL
from athena_vla.version import __version__

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("old", sorted(set(MOVED) - {"ros2.launch"}))
def test_an_old_name_gives_the_new_module(old: str) -> None:
    pytest.importorskip("torch")
    sys.modules.pop(f"athena_vla.{old}", None)
    with pytest.warns(DeprecationWarning, match=re.escape(f"athena_vla.{old} is now athena_vla.{MOVED[old]}")):
        module = importlib.import_module(f"athena_vla.{old}")
    new = importlib.import_module(f"athena_vla.{MOVED[old]}")
    assert module is new
    assert module.__name__ == f"athena_vla.{MOVED[old]}"
    assert module.__spec__ is not None
    assert module.__spec__.name == module.__name__


def test_no_old_name_hides_a_file() -> None:
    source = ROOT / "src" / "athena_vla"
    for old in (*MOVED, *GONE):
        place = source / old.replace(".", "/")
        assert not place.with_suffix(".py").exists(), old
        assert not (place / "__init__.py").exists(), old


def test_the_old_names_go_with_the_version_that_says_so() -> None:
    version = tuple(int(n) for n in __version__.split("."))
    assert version < tuple(int(n) for n in UNTIL.split(".")), "remove athena_vla/moved.py and its table"


def test_the_table_of_the_documentation_is_this_table() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", text, re.M))
    assert rows == MOVED
