"""Pages that quote the code keep to it: error messages, old module names, and the citation."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from athena_vla.moved import MOVED
from athena_vla.version import __version__

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ROWS = (DOCS / "fine-tuning.md").read_text().partition("## When it goes wrong")[2].partition("\n## ")[0]
QUOTED = [
    *re.findall(r"^### `(.+)`$", (DOCS / "faq.md").read_text(), re.M),
    *re.findall(r"\*([^*]+)\*(?=[^|]*\|[^|]*\|$)", ROWS, re.M),
]
GAP = "\0"  # where a message has a name or a number of the user's


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Every text in the package as it is put together, with gaps for what is filled in."""
    texts = []
    for path in (ROOT / "src" / "athena_vla").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (str(v.value) if isinstance(v, ast.Constant) else GAP for v in node.values)
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def is_said(quoted: str, texts: list[str]) -> bool:
    """Whether one text has all pieces between the dots, in their order."""
    pieces = [p.strip().strip("'") for p in quoted.split("...") if p.strip(" '.")]
    pattern = re.compile(".*?".join(re.escape(p) for p in pieces), re.S)
    return any(pattern.search(text) for text in texts)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_ours(quoted: str, said: list[str]) -> None:
    assert is_said(quoted, said), f"a page quotes a message that nothing in src says: {quoted}"


def test_what_nobody_says_is_found_out(said: list[str]) -> None:
    assert len(QUOTED) > 25
    assert not is_said("... is not a dataset that was built: it has no meta/...", said)
    assert not is_said("... steps far, and ... checkpoints of another run", said)  # pieces of two messages
    assert is_said(
        "'...' is ... steps far, and ... are asked for.", [f"'{GAP}' is {GAP} steps far, and {GAP} are asked for. Go"]
    )


def test_the_table_of_old_modules_is_the_one_that_redirects() -> None:
    page = (DOCS / "architecture.md").read_text().partition("## Old module names")[2]
    assert dict(re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", page, re.M)) == MOVED


def test_upgrading_points_to_that_table_and_to_the_version_in_which_it_ends() -> None:
    page = (DOCS / "upgrading.md").read_text()
    assert "architecture.md#old-module-names" in page
    assert "until 0.3.0" in " ".join(page.split())


def test_the_citation_is_valid_and_invents_no_address() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert cited["title"] == "Athena-VLA"
    assert cited["type"] == "software"
    assert cited["version"] == __version__
    assert cited["license"] == "MIT"
    assert cited["authors"] == [{"name": "The Athena-VLA authors"}]
    assert cited["message"]
    known = {"cff-version", "message", "title", "abstract", "type", "version", "license", "authors", "keywords"}
    assert set(cited) == known  # no doi, no url: there is none
