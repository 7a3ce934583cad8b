"""The public interface: what `__all__` says is there, lazily, documented, in the glossary and in the stub."""
# The public names' stub says nothing of the private table.
# pyright: reportAttributeAccessIssue=false

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import athena_vla

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", athena_vla.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    pytest.importorskip("torch")
    value = getattr(athena_vla, name)
    assert name == "__version__" or value.__doc__, f"{name} has no docstring"


def test_an_unknown_name_says_where_the_known_ones_are() -> None:
    with pytest.raises(AttributeError, match=r"no public name 'Polcy'.*docs/api.md"):
        _ = getattr(athena_vla, "Polcy")  # noqa: B009


def test_the_stub_for_type_checkers_says_the_same() -> None:
    tree = ast.parse((ROOT / "src/athena_vla/__init__.pyi").read_text())
    homes = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                home = f"{node.module}:{alias.name}" if node.module else alias.name
                homes[alias.asname or alias.name] = home
    assert homes.pop("__version__") == "version:__version__"
    assert homes == athena_vla._HOMES


def test_the_robot_side_and_the_import_itself_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import athena_vla as a\n"
        "a.SafetyFilter, a.Runtime, a.RemotePolicy, a.Embodiment, a.open_recording, a.PolicyServer, a.load_robot('toy')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_api_page_lists_the_public_names_and_marks_the_experimental_ones() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    rows = dict(re.findall(r"^\| `([\w]+)` \| (.+) \|$", page, re.M))
    assert set(rows) == set(athena_vla.__all__)
    marked = {name for name, text in rows.items() if "*experimental*" in text}
    assert marked == athena_vla.EXPERIMENTAL


def test_the_glossary_has_a_line_for_every_public_noun() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text()
    lines = re.findall(r"^- \*\*[^*]+\*\*.+$", page, re.M)
    count = {name: sum(f"`{name}`" in line for line in lines) for name in athena_vla.__all__}
    assert not {name: n for name, n in count.items() if n != 1}
