"""The command line: known commands, sentences instead of tracebacks, JSON that is JSON."""

import dataclasses
import importlib
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from athena_vla import cli
from athena_vla.errors import AthenaError


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


def test_an_unknown_preset_or_field_of_training_is_refused_with_what_there_is(capsys) -> None:
    status, _, err = outcome(["train", "--preset", "best", "--data", "x"], capsys)
    assert status == 2
    assert "There is no preset 'best'. Known: humanoid_default, humanoid_efficient" in err
    status, out, err = outcome(["train", "--preset", "humanoid_default", "--leraning-rate", "1e-4"], capsys)
    assert status == 2
    assert "--learning-rate" in out + err
    assert "Traceback" not in err


def test_every_field_of_a_preset_can_be_overridden(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("athena_vla.plan.advised_finetune.finetune", lambda config: seen.append(config))
    cli.run(["train", "--preset", "humanoid_high_performance", "--rank", "8", "--no-dora", "--targets", "q_proj"])
    assert (seen[0].rank, seen[0].dora, seen[0].targets, seen[0].alpha) == (8, False, ("q_proj",), 32)


def test_every_command_in_the_documentation_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are not run because they need a GPU, hours or the reader's own files."""
    monkeypatch.setenv("ATHENA_TOKEN", "as docs/serving.md says")
    root = Path(__file__).resolve().parents[1]
    seen = 0
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        for body in re.findall(r"^```\w+[^\n]*\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in body.replace("\\\n", " ").splitlines():
                if line.startswith("athena "):
                    name, words = cli.split(shlex.split(line, comments=True)[1:])
                    command = cli.COMMANDS[name]
                    try:
                        cli.parse(name, command, cli.load(command), [w for w in words if w != "--json"])
                    except (SystemExit, AthenaError) as error:
                        pytest.fail(f"{page.name}: '{line}' is refused: {error}")
                    seen += 1
    assert seen > 25


def test_the_simulators_options_of_a_comparison_have_no_prefix(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("athena_vla.evaluate.compare", lambda config: seen.append(config))
    cli.run(["compare", "a", "b", "--episodes", "21", "--replan-every", "4", "--no-ablations"])
    assert (seen[0].loop.episodes, seen[0].loop.replan_every, seen[0].ablations) == (21, 4, False)


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


def test_a_package_that_imports_slowly_is_not_called_broken() -> None:
    from athena_vla.doctor import DoctorReport, package, renderer, works

    found = package("numpy", "import time; time.sleep(9)", timeout=0.3)
    assert found.status == "slow"
    assert "did not finish" in found.found
    assert "--timeout" in found.fix
    assert package("numpy", "raise SystemExit(1)", timeout=30.0).status == "broken"
    assert DoctorReport((found,)).exit_status == 0
    assert renderer(timeout=1e-3).status == "slow"
    assert not works("import time; time.sleep(9)", timeout=0.3)
