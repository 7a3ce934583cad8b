"""The command line: known commands, sentences instead of tracebacks, JSON that is JSON."""

import dataclasses
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from athena_vla import cli


def outcome(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = outcome(["--help"], capsys)
    assert status == 0
    assert all(f"athena {name}" in out for name in cli.COMMANDS)


@pytest.mark.parametrize("words", [["tran"], ["data", "chek"], ["quantise", "x"]])
def test_unknown_command_is_a_sentence_that_lists_the_known(words: list[str], capsys) -> None:
    status, _, err = outcome(words, capsys)
    assert status == 2
    assert err.startswith("athena: There is no command")
    assert "Traceback" not in err
    assert "Known:" in err


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_exists_with_a_documented_config(name: str) -> None:
    command = cli.COMMANDS[name]
    module = importlib.import_module(f"athena_vla.{command.module}")
    config = getattr(module, command.config)
    assert callable(getattr(module, command.function))
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    names = {f.name for f in dataclasses.fields(config)}
    assert set(command.positional) <= names
    if command.presets:
        assert all(isinstance(p, config) for p in getattr(module, command.presets).values())


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = outcome([*name.split(), "--help"], capsys)
    assert status == 0
    assert f"athena {name}" in out


def test_plain_turns_results_into_json() -> None:
    @dataclasses.dataclass(frozen=True)
    class Result:
        path: Path
        values: np.ndarray
        gap: float

    text = json.dumps(cli.plain(Result(Path("a/b"), np.array([1.5, 2.0]), math.inf)))
    assert json.loads(text) == {"path": "a/b", "values": [1.5, 2.0], "gap": None}


def test_doctor_reports_json_and_can_run_here(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = outcome(["doctor", "--json"], capsys)
    report = json.loads(out)
    names = {c["name"]: c["status"] for c in report["checks"]}
    assert names["python"] == "ok"
    assert (status == 0) == report["demo_can_run"]
    assert all(c["fix"] for c in report["checks"] if c["status"] == "missing")
