"""The notebook in examples/: without outputs, of the public interface alone. `make release-check` executes it."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import athena_vla
from athena_vla.cli.table import COMMANDS

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples/from_recordings_to_a_policy.ipynb"


def cells(kind: str) -> list[str]:
    content: Any = json.loads(NOTEBOOK.read_text())
    assert content["nbformat"] == 4
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == kind]


def test_it_is_stored_without_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_it_uses_public_names_only() -> None:
    used = set()
    for source in cells("code"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("athena_vla"):
                assert node.module == "athena_vla"
                used |= {a.name for a in node.names}
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith("athena_vla") for a in node.names)
    assert used
    assert used <= set(athena_vla.__all__)


def test_its_commands_are_ours() -> None:
    found = 0
    for source in cells("code"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "athena":
                words = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
                assert words[0] in COMMANDS or " ".join(words[:2]) in COMMANDS, words
                found += 1
    assert found >= 4


def test_the_version_stands_in_one_place_and_agrees_with_the_changelog() -> None:
    script = NOTEBOOK.parents[1] / "scripts" / "release_check.py"
    done = subprocess.run([sys.executable, str(script), "--only-version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"version {athena_vla.__version__}:" in done.stdout
