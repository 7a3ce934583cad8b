"""The command line: known commands, sentences instead of tracebacks, JSON that is JSON."""

import dataclasses
import importlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from athena_vla import cli
from athena_vla.cli import completion
from athena_vla.cli.arguments import in_order
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
    status, _, err = outcome(["train", "--preset", "best"], capsys)
    assert status == 2
    assert "There is no preset 'best'. Known: humanoid_default, humanoid_efficient" in err
    status, out, err = outcome(["train", "--preset", "humanoid_default", "--leraning-rate", "1e-4"], capsys)
    assert status == 2
    assert "--learning-rate" in out + err
    assert "Traceback" not in err


def test_every_field_of_a_preset_can_be_overridden(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("athena_vla.evaluate.training_by_success.finetune", lambda config: seen.append(config))
    cli.run(["train", "--preset", "humanoid_high_performance", "--rank", "8", "--no-dora", "--targets", "q_proj"])
    assert (seen[0].rank, seen[0].dora, seen[0].targets, seen[0].alpha) == (8, False, ("q_proj",), 32)


def test_every_command_in_the_documentation_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are not run because they need a GPU, hours or the reader's own files."""
    monkeypatch.setenv("ATHENA_TOKEN", "as docs/serving.md says")
    root = Path(__file__).resolve().parents[1]
    seen = 0
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
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
    monkeypatch.setattr("athena_vla.evaluate.commands.compare", lambda config: seen.append(config))
    cli.run(["compare", "builtin:a", "builtin:b", "--episodes", "21", "--replan-every", "4", "--no-ablations"])
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
        assert isinstance(config, type)
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
    from athena_vla.doctor import SHARED, DoctorReport, attempted, package, renderer, together, works

    found = package("numpy", attempted("import time; time.sleep(9)", timeout=0.3))
    assert found.status == "slow"
    assert "did not finish" in found.found
    assert "--timeout" in found.fix
    assert package("numpy", attempted("raise SystemExit(1)", timeout=30.0)).status == "broken"
    assert all(looked.slow for looked in together(timeout=1e-3).values())
    assert set(together(timeout=1e-3)) == set(SHARED)
    assert DoctorReport((found,)).exit_status == 0
    assert renderer(timeout=1e-3).status == "slow"
    assert not works("import time; time.sleep(9)", timeout=0.3)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_completion_knows_the_options_that_the_parser_knows(name: str, capsys) -> None:
    """Completion reads sources, help asks the parser: both list the same options."""
    status, out, _ = outcome([*name.split(), "--help"], capsys)
    assert status == 0
    command = cli.COMMANDS[name]
    listed = set(re.findall(r"^[│ ]*(--[a-z][\w-]*)", out, re.M)) | set(re.findall(r", (--no-[\w-]+)", out))
    known = set(completion.options(command)) - {f"--{f.replace('_', '-')}" for f in command.positional}
    assert listed - {"--help"} <= known, sorted(listed - known)
    assert known - listed <= {"--help", "--json", "--debug", "--preset"}, sorted(known - listed)


def test_a_shell_completes_with_the_script(tmp_path) -> None:
    script = tmp_path / "athena.bash"
    script.write_text(str(completion.completion(completion.CompletionConfig("bash"))))

    def completed(*words: str) -> list[str]:
        line = f"source {script}; COMP_WORDS=({shlex.join(['athena', *words])}); COMP_CWORD={len(words)}; _athena; "
        done = subprocess.run(
            ["bash", "-c", line + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert completed("tra") == ["train"]
    assert completed("data", "al") == ["align"]
    assert completed("data", "build", "--rob") == ["--robot"]
    assert completed("train", "--preset", "rtx") == ["rtx4090"]
    assert completed("train", "--precision", "") == ["auto", "fp32", "bf16", "fp16"]
    assert "athena" in completed("data", "build", "--robot", "")
    assert completed("compare", "--sp") == ["--split"]
    assert completed("completion", "") == ["bash", "zsh", "fish"]
    for shell in ("zsh", "fish"):
        text = str(completion.completion(completion.CompletionConfig(shell)))
        assert "rtx4090" in text
        if shutil.which(shell):
            (tmp_path / shell).write_text(text)
            assert subprocess.run([shell, "-n", str(tmp_path / shell)], check=False).returncode == 0


def test_errors_are_objects_where_json_is_asked_for(capsys, tmp_path) -> None:
    for words, code in (
        (["merge", str(tmp_path / "nosuch"), "out", "--json"], "usage"),
        (["train", "--preset", "dmo", "--json"], "name.unknown"),
        (["data", "build", "--json", "--hrizon", "3"], "usage"),
        (["data", "info", "--json"], "usage"),
        (["tran", "--json"], "name.unknown"),
    ):
        status, out, err = outcome(words, capsys)
        said = json.loads(out)["error"]
        assert (status, said["status"], said["code"]) == (2, 2, code), out + err
        assert len(said["message"]) > 20
        assert not re.search("[╭│─]", said["message"])


def test_positional_words_and_their_flags_are_the_same() -> None:
    command = cli.COMMANDS["data build"]
    for words in (["a", "b"], ["--input", "a", "--out", "b"], ["a", "--out=b"], ["b", "--input", "a"]):
        assert in_order(command, [*words, "--robot", "toy"]) == ["a", "b", "--robot", "toy"]
    with pytest.raises(AthenaError, match="INPUT is missing"):
        in_order(command, ["--out", "b"])


def test_help_shows_positional_words_presets_and_plain_types(capsys) -> None:
    _, out, _ = outcome(["data", "build", "--help"], capsys)
    assert "INPUT OUT" in out.splitlines()[0]
    assert "--input" not in out
    assert "{None}" not in out
    _, out, _ = outcome(["train", "--help"], capsys)
    assert "--preset NAME" in out
    assert "humanoid_default" in out
    _, out, _ = outcome(["serve", "--help"], capsys)
    assert "--port INT" in out
    assert "--server." not in out


def test_a_misspelt_name_is_guessed(capsys) -> None:
    assert "Did you mean 'train'?" in outcome(["tran"], capsys)[2]
    assert "Did you mean 'rtx4090'?" in outcome(["train", "--preset", "rtx409"], capsys)[2]
    assert "Did you mean 'data build'?" in outcome(["data", "biuld"], capsys)[2]


def test_a_path_that_is_not_there_costs_no_torch(tmp_path) -> None:
    """Refused from the words alone; CPU seconds of a fresh process."""
    (tmp_path / "merged").mkdir()
    for words in (["merge", "mergd", "out"], ["bench", "mergd"], ["train", "--data", "mergd"]):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "athena_vla.cli", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        after = os.times()
        assert done.returncode == 2
        assert "There is nothing at 'mergd'" in done.stderr
        assert "Did you mean 'merged'?" in done.stderr
        assert "| torch" not in done.stderr
        assert after.children_user + after.children_system - before.children_user - before.children_system < 2
