"""The reference of commands and check codes: written from the sources, complete, and true to the parser."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from athena_vla import cli
from athena_vla.check.findings import RULES
from athena_vla.cli.option_table import Option, options_of
from athena_vla.cli.table import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
UNIT = re.compile(r"\s*\[[^\]]+\]$")


def section(name: str) -> str:
    page = (PAGES / "commands.md").read_text()
    found = re.search(rf"^## athena {re.escape(name)}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    assert found, f"docs/reference/commands.md has no section for athena {name}"
    return found[1]


def test_the_pages_are_what_the_sources_say() -> None:
    script = ROOT / "scripts" / "reference_pages.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_sentence(name: str) -> None:
    bare = [o.flag for o in options_of(COMMANDS[name]) if not is_sentence(o.says)]
    assert not bare, f"athena {name}: these options need a docstring of three words or more with a full stop: {bare}"


def is_sentence(text: str) -> bool:
    said = UNIT.sub("", text)
    return said.endswith(".") and len(re.findall(r"[A-Za-z]+", said)) >= 3


def test_what_a_sentence_is() -> None:
    assert is_sentence("How many episodes.")
    assert is_sentence("The robot is driven for so long. [s]")
    assert not is_sentence("")
    assert not is_sentence("[s]")
    assert not is_sentence("CPU threads.")
    assert not is_sentence("auto or rays or egl")


@pytest.mark.parametrize("name", ["data check", "serve", "gates", "record", "trials run"])
def test_a_section_says_what_the_parser_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The parser's own help is the oracle: the same flags, and the same defaults of numbers."""
    command = COMMANDS[name]
    with pytest.raises(SystemExit):
        cli.parse(name, command, cli.load(command, command.config_module), ["--help"])
    told = " ".join(re.sub(r"[\u2500-\u257f]+", " ", capsys.readouterr().out).split())
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", told.partition("options ")[2]))
    text = section(name)
    listed = set(re.findall(r"^\| `(--[a-z][\w-]*)", text, re.M)) | set(re.findall(r"`(--no-[\w-]+)`", text))
    assert listed - flags == set()
    assert not {f for f in flags if f not in text} - {"--help"}
    for flag, value in re.findall(r"^\| `(--[\w-]+) (?:INT|FLOAT)` \| `([^`]+)` \|", text, re.M):
        near = re.search(rf"{flag} (?:INT|FLOAT) .*?\(default: ([^)]+)\)", told)
        assert near, flag
        assert float(near[1]) == float(value), flag


def test_every_code_of_the_check_is_explained() -> None:
    page = (PAGES / "check-codes.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| (error|warning|info) \| (.+) \| (.+) \|$", page, re.M)
    assert {(code, severity) for code, severity, _, _ in rows} == {(c, r.severity) for c, r in RULES.items()}
    assert all(why.endswith(".") and fix.endswith(".") for _, _, why, fix in rows)


def test_options_are_read_with_values_defaults_and_inherited_fields() -> None:
    def option(name: str, field: str) -> Option:
        return next(o for o in options_of(COMMANDS[name]) if o.field == field)

    assert option("quantize", "bits").values == ("4", "8")
    assert option("serve", "max_message").default == "16 * 1024 * 1024"
    assert option("serve", "token").default == "''"
    assert option("data check", "format").says.startswith("Format of the recording")  # of the class it inherits
    assert option("data check", "input").default is None
    assert "16777216" in section("serve")
