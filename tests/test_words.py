"""The field's word for each thing: names, messages and pages do not fall back into a dialect of their own."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# our old word -> the field's; docs/glossary.md explains the right column
DIALECT = {
    "ladder": "fallback policy",
    "rung": "level of the fallback policy",
    "desk": "request queue",
    "dialect": "protocol",
    "skeleton": "meta model",
    "row kernel": "GEMV kernel",
    "row_kernel": "gemv_kernel",
    "stretches": "intervals",
    "committed rows": "action prefix",
    "other words": "other instruction",
    "ledger": "what it records",
    "Cast": "actor factory",
}
# Where an old word stands with another meaning, or must be named: file, word.
ALLOWED = {
    ("src/athena_vla/moved.py", "*"),  # old names of modules
    ("docs/architecture.md", "*"),  # the same, as a table
    ("src/athena_vla/recordings/formats/common.py", "skeleton"),  # a kind of annotation of Replicator
    ("src/athena_vla/sim/raycast.py", "Cast"),  # rays are cast
    ("src/athena_vla/sim/render.py", "Cast"),
    ("src/athena_vla/export/tensors.py", "Cast"),  # an operator of ONNX
    ("src/athena_vla/export/linear.py", "Cast"),
    ("src/athena_vla/export/operators.py", "Cast"),
    ("src/athena_vla/export/tensorrt_operators.py", "Cast"),
}


def sources() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "src/*.py", "docs/*.md", "README.md", "CONTRIBUTING.md", "AGENTS.md"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split()]


@pytest.mark.parametrize("word", DIALECT)
def test_the_fields_word_is_used(word: str) -> None:
    pattern = re.compile(rf"\b{re.escape(word)}s?\b", 0 if word[0].isupper() else re.IGNORECASE)
    found = []
    for path in sources():
        name = str(path.relative_to(ROOT))
        if {(name, "*"), (name, word)} & ALLOWED:
            continue
        lines = path.read_text().splitlines()
        found += [f"{name}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found, f"'{word}' is ours; the field says '{DIALECT[word]}':\n" + "\n".join(found)


def test_the_allowed_places_still_need_it() -> None:
    for name, word in ALLOWED:
        text = (ROOT / name).read_text()
        assert word == "*" or word in text, f"{name} no longer says '{word}': take it out of ALLOWED"
