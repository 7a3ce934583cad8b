"""Trials on a robot: the order, hidden names, verdicts that no crash loses, edits that are found, and the counts."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from athena_vla.cli import main
from athena_vla.errors import EvaluationError, ServerError
from athena_vla.evaluate.statistics import anytime_evidence
from athena_vla.trials.drawing import PLAN, SEALED, TrialScene, draw, read
from athena_vla.trials.reporting import report_trials
from athena_vla.trials.running import run_trials
from athena_vla.trials.trial_commands import DrawConfig, read_scenes, trials_draw
from athena_vla.trials.trial_log import LOG

SCENES = [TrialScene("mug left", "take the mug", "grasp", ("mug at the mark",)), TrialScene("mug right", task="grasp")]
POLICIES = {"tuned": "ws://127.0.0.1:1", "untuned": "ws://127.0.0.1:2"}


class Operator:
    """Answers from a list; ends like a closed terminal when it is empty."""

    def __init__(self, answers: list[str]) -> None:
        self.answers: Iterator[str] = iter(answers)
        self.screen: list[str] = []

    def say(self, text: str) -> None:
        self.screen.append(text)

    def ask(self, question: str) -> str:
        self.screen.append(question)
        try:
            return next(self.answers)
        except StopIteration:
            raise EOFError from None


def drawn(folder: Path, rounds: int = 2, **more: object) -> Path:
    config = DrawConfig(out=folder, policy=tuple(f"{k}={v}" for k, v in POLICIES.items()), scene=("one", "two"), **more)  # type: ignore[arg-type]
    trials_draw(config if "rounds" in more else DrawConfig(**{**config.__dict__, "rounds": rounds}))
    return folder


def one(verdict: str, notes: str = "") -> list[str]:
    """Enter, (the run), verdict, notes."""
    return ["", verdict, notes]


def at_rest(place: str, instruction: str) -> str:
    return "duration"


def test_every_round_has_every_scene_with_every_policy_and_scenes_come_in_blocks() -> None:
    plan, sealed = draw(POLICIES, SCENES, 5, seed=3)
    assert Counter((t.scene, t.round, t.slot) for t in plan.order) == Counter(
        (s.name, r, slot) for s in SCENES for r in range(5) for slot in "AB"
    )
    for i in range(0, len(plan.order), 2):
        assert plan.order[i].scene == plan.order[i + 1].scene
    assert sorted(sealed.names.values()) == sorted(POLICIES)
    assert plan.hash == draw(POLICIES, SCENES, 5, seed=3)[0].hash
    assert plan.hash != draw(POLICIES, SCENES, 5, seed=4)[0].hash
    firsts = [draw(POLICIES, SCENES, 1, seed=s)[0].order[0].slot for s in range(400)]
    assert abs(firsts.count("A") - 200) < 60  # six standard deviations of a fair coin


def test_the_names_are_in_no_file_but_the_sealed_one_and_on_no_screen(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "t")
    operator = Operator(
        [*one("y"), *one("n", "slipped"), *one("y"), *one("n"), *one("y"), *one("n"), *one("y"), *one("n")]
    )

    def failing(place: str, instruction: str) -> str:
        raise ServerError(
            f"There is no server at {place} for policy '{'tuned' if place.endswith('1') else 'untuned'}'."
        )

    assert run_trials(folder, operator, failing) == "all trials have a verdict"
    shown = "\n".join(operator.screen) + (folder / PLAN).read_text() + (folder / LOG).read_text()
    assert "tuned" not in shown
    assert "127.0.0.1" not in shown
    assert (folder / SEALED).stat().st_mode & 0o077 == 0


def test_a_closed_terminal_loses_nothing_at_any_question(tmp_path: Path) -> None:
    verdicts = ["y", "n", "y", "y", "n", "n", "y", "n"]
    whole = [a for v in verdicts for a in one(v, "note")]
    folder = drawn(tmp_path / "whole")
    run_trials(folder, Operator(list(whole)), at_rest)
    expected = [json.loads(line) for line in (report_trials(folder).outcomes).read_text().splitlines()]
    for cut in range(1, len(whole)):
        folder = drawn(tmp_path / f"cut{cut}")
        assert run_trials(folder, Operator(whole[:cut]), at_rest) == "paused"
        done = cut // 3
        begun = cut % 3 != 0  # its verdict is asked again, without another run
        rest = whole[3 * done :][1:] if begun else whole[3 * done :]
        assert run_trials(folder, Operator(rest), at_rest) == "all trials have a verdict"
        found = [json.loads(line) for line in report_trials(folder).outcomes.read_text().splitlines()]
        assert found == expected


def test_a_line_that_a_crash_cut_off_is_said_and_asked_again(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "t")
    run_trials(folder, Operator(one("y")), at_rest)
    before = (folder / LOG).read_bytes()
    (folder / LOG).write_bytes(before[:-20])
    operator = Operator([])
    assert run_trials(folder, operator, at_rest) == "paused"
    assert any("cut off by a crash" in s for s in operator.screen)
    assert any("begun and has no verdict" in s for s in operator.screen)


EDITS = {
    "a verdict": (
        LOG,
        lambda t: t.replace('"success": false', '"success": true', 1),
        "line 4 is not as it was written",
    ),
    "a line less": (LOG, lambda t: "\n".join(t.splitlines()[2:]) + "\n", "line 1 is not as it was written"),
    "another order": (PLAN, lambda t: t.replace('"slot": "A"', '"slot": "B"', 1), "was edited after it was drawn"),
    "another name": (SEALED, lambda t: t.replace('"untuned"', '"zz"'), "was edited after it was drawn"),
    "half a plan": (PLAN, lambda t: t[: len(t) // 2], "is not a JSON file"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_file_edited_by_hand_is_named_and_nothing_is_lost(tmp_path: Path, name: str) -> None:
    folder = drawn(tmp_path / "t")
    run_trials(folder, Operator([*one("y"), *one("n")]), at_rest)
    file, edit, sentence = EDITS[name]
    before = (folder / file).read_text()
    (folder / file).write_text(edit(before))
    for use in (lambda: run_trials(folder, Operator([]), at_rest), lambda: report_trials(folder, now=True)):
        with pytest.raises(EvaluationError, match=sentence):
            use()
    (folder / file).write_text(before)
    assert report_trials(folder, now=True).made == 2


def test_invalid_trials_are_made_again_and_counted(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "t", rounds=1)
    operator = Operator(["", "i", "", "the mug fell", *one("y"), *one("n"), "", "?", "e", "", *one("y")])
    assert run_trials(folder, operator, at_rest) == "all trials have a verdict"
    report = report_trials(folder)
    assert (report.made, report.planned) == (4, 4)
    assert sum(b.invalid for b in report.beside) == 1
    assert sum(b.emergencies for b in report.beside) == 1
    assert "the mug fell" in report.page.read_text()


def test_a_verdict_is_corrected_and_the_first_one_stays_in_the_log(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "t", rounds=1)
    run_trials(folder, Operator([*one("n"), "c", "y", "typed wrong", *one("n"), *one("n"), *one("n")]), at_rest)
    report = report_trials(folder)
    assert sum(round(r.success.success * r.success.n) for r in report.comparison.rows) == 1
    assert sum(b.corrected for b in report.beside) == 1
    assert (folder / LOG).read_text().count('"verdict"') == 4


def test_names_stay_hidden_until_the_end_and_no_trial_follows_it(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "t")
    run_trials(folder, Operator([*one("y"), *one("n")]), at_rest)
    with pytest.raises(EvaluationError, match="2 of 8 trials have a verdict; names stay hidden"):
        report_trials(folder)
    report = report_trials(folder, now=True)
    assert "ended early" in str(report)
    operator = Operator(one("y"))
    assert run_trials(folder, operator, at_rest) == "the operator ended them"
    assert report_trials(folder).made == 2


def test_emergency_stops_of_one_policy_end_the_trials(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "t", rounds=10, emergencies=2)
    plan, _ = read(folder)
    answers = [a for t in plan.order for a in one("e" if t.slot == "A" else "y")]
    assert run_trials(folder, Operator(answers), at_rest) == "one policy needed the emergency stop 2 times"


def test_evidence_ends_trials_of_policies_that_differ(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "t", rounds=50, stop="evidence")
    plan, _ = read(folder)
    answers = [a for t in plan.order for a in one("y" if t.slot == "A" else "n")]
    assert "policies differ" in run_trials(folder, Operator(answers), at_rest)
    # 2^n / (n + 1) reaches 20 with the 8th discordant pair: 2^7/8 = 16, 2^8/9 = 28.
    assert report_trials(folder).made == 16


def test_evidence_is_seldom_reached_by_equal_policies_however_often_one_looks() -> None:
    """The chance is at most 1/20 by Ville's inequality; here 2,000 series of 500 pairs, looked at after each."""
    coins = np.random.default_rng(0).integers(0, 2, size=(2000, 500))
    wins = coins.cumsum(axis=1)
    n = np.arange(1, 501)
    log_choose = np.array(
        [
            [math.lgamma(k + 1) - math.lgamma(w + 1) - math.lgamma(k - w + 1) for k, w in zip(n, row, strict=True)]
            for row in wins[:400]
        ]
    )
    log_evidence = n * math.log(2) - np.log(n + 1) - log_choose
    share = (log_evidence.max(axis=1) >= math.log(20)).mean()
    assert share <= 1 / 20 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert anytime_evidence(7, 3) == pytest.approx(math.exp(10 * math.log(2) - math.log(11) - math.log(120)))
    assert anytime_evidence(3000, 3000) < 1
    assert anytime_evidence(5000, 0) == math.inf


BAD_DRAWS = {
    "one policy": ({"policy": ("a",)}, "two to 26 policies; 1 was named"),
    "a name twice": ({"policy": ("a=x", "a=y")}, "no policy of its own name"),
    "no scene": ({"scene": ()}, "Give scenes"),
    "a scene twice": ({"scene": ("s", "s")}, "'s' is there twice"),
    "no round": ({"rounds": 0}, "0 rounds"),
    "negative stops": ({"emergencies": -1}, "-1 emergency stops"),
}


@pytest.mark.parametrize("name", BAD_DRAWS)
def test_what_cannot_be_drawn_gets_a_sentence(tmp_path: Path, name: str) -> None:
    change, sentence = BAD_DRAWS[name]
    good = {"out": tmp_path / "t", "policy": ("a", "b"), "scene": ("s",)}
    with pytest.raises(EvaluationError, match=re.escape(sentence)):
        trials_draw(DrawConfig(**{**good, **change}))  # type: ignore[arg-type]
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[scene]]\nname = 'a'\nlight = 3", "unknown key 'light'"),
        ("[[scene]]\ninstruction = 'a'", "'name' is a text that is not empty"),
        ("[[scene]]\nname = 'a'\nchecklist = 'x'", "'checklist' is a list of texts"),
        ("name = 'a'", r"\[\[scene\]\] tables and nothing else"),
        ("[[scene]", "is no TOML file"),
    ],
)
def test_a_file_of_scenes_that_is_none(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "scenes.toml"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=sentence):
        read_scenes(path)


def test_policies_without_a_place_are_started_by_a_person(tmp_path: Path) -> None:
    trials_draw(DrawConfig(out=tmp_path / "t", policy=("a", "b"), scene=("s",)))
    with pytest.raises(EvaluationError, match="use --manual"):
        run_trials(tmp_path / "t", Operator([]), at_rest)
    operator = Operator(["", "", "y", "", "", "", "n", ""])
    assert run_trials(tmp_path / "t", operator, None) == "all trials have a verdict"
    assert sum("policy: slot" in s for s in operator.screen) == 2


def test_trials_are_drawn_once_and_before_they_run(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "t")
    with pytest.raises(EvaluationError, match="drawn already"):
        drawn(folder)
    with pytest.raises(EvaluationError, match="draw their order first"):
        run_trials(tmp_path / "nowhere", Operator([]), at_rest)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trials"
    words = ["trials", "draw", str(folder), "--policy", "old", "new", "--scene", "mug left", "--rounds", "1"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert f"Hash {read(folder)[0].hash}" in capsys.readouterr().out
    answers = iter(["", "", "y", "", "", "", "n", ""])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    with pytest.raises(SystemExit) as stop:
        main(["trials", "run", str(folder), "--manual"])
    assert stop.value.code == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["trials", "report", str(folder), "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["made"] == 2
    assert "Trials on the robot" in (folder / "report.html").read_text()
