"""Containers, the unit and the Orin page: never run on a board, so what they say is read by the programs that will."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest

from athena_vla.cli import main

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = sorted((ROOT / "docker").glob("*.Dockerfile"))


def instructions(file: Path) -> list[tuple[str, str]]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def parses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command line takes these words: what fails is the bundle that is not there, not an option."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert re.search(r"There is nothing at|is not a bundle", capsys.readouterr().err)


def test_there_are_three() -> None:
    assert [c.name for c in CONTAINERS] == ["jetpack-6.2.Dockerfile", "jetpack-7.2.Dockerfile", "x86-cuda.Dockerfile"]


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda f: f.stem)
def test_a_container_installs_what_is_there_and_starts_what_parses(file, capsys) -> None:
    found = instructions(file)
    words = [w for w, _ in found]
    assert words[0] == "FROM"
    assert set(words) <= {"FROM", "RUN", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
    assert "Never built by us" in file.read_text()
    (install,) = [rest for _, rest in found if "pip install" in rest]
    (constraints,) = re.findall(r"-c /src/(\S+)", install)
    assert (ROOT / constraints).is_file()
    extras = re.findall(r"/src\[([\w,]+)\]", install)[0].split(",")
    assert set(extras) <= set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    command = json.loads(dict(found)["CMD"])
    if command[0] == "serve":
        assert command[command.index("--host") + 1] == "127.0.0.1", "loopback, until somebody says otherwise"
        parses(command, capsys)


def test_the_unit_restarts_bounds_and_starts_what_parses(capsys) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]  keys of a unit keep their case
    unit.read_string(re.sub(r"^#.*\n", "", (ROOT / "docker" / "athena-serve.service").read_text(), flags=re.M))
    service = dict(unit["Service"])
    assert service["Restart"] == "on-failure"
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    assert service["EnvironmentFile"] == "/etc/athena/token", "the token is on no command line"
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/opt/athena/bin/athena"
    parses(words, capsys)


def test_every_command_of_the_page_parses(capsys) -> None:
    page = (ROOT / "docs" / "orin.md").read_text()
    blocks = re.findall(r"```text\n(.*?)```", page, re.S)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    ours = [c[1:] for c in commands if c and c[0].endswith("athena") and "--help" not in c]
    assert {c[0] for c in ours} == {"merge", "quantize", "export", "plan", "serve", "bench", "drive"}
    for words in ours:
        if words[0] == "drive":  # needs the arm; its words are parsed by test_cli.py, as those of every page
            continue
        if words[0] == "plan":
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 0
            capsys.readouterr()
        else:
            parses(words, capsys)
    scripts = re.findall(r"python3 (device/\S+)", page)
    assert scripts
    assert all((ROOT / "src/athena_vla/export/scripts" / Path(s).name).is_file() for s in scripts)
