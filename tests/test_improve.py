"""Rounds of improvement: what is kept, by oracles of its own; which scenes; interruptions; who takes over and when."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import product
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="rounds are played in the simulator (extra sim)")
pytest.importorskip("torch", reason="rounds train (extra train)")

from athena_vla import bundle, embodiment
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import AthenaError, EvaluationError, TrainingError, UnknownName
from athena_vla.evaluate.closedloop import SCENES_PER_SEED
from athena_vla.evaluate.results import Setup
from athena_vla.evaluate.summary import Kept
from athena_vla.improve import ImproveConfig, ImproveResult, decide, improve, improving
from athena_vla.improve.collecting import Collect, play_scene
from athena_vla.improve.correcting import PATIENCE, WRONG, SceneCorrector
from athena_vla.improve.improve_config import FIRST_SEED, MOST_ROUNDS
from athena_vla.improve.judging import more_of
from athena_vla.improve.keeping_rule import further, worse_p
from athena_vla.policy import Policy
from athena_vla.progress import quiet
from athena_vla.recordings.formats.isaac_folder import OpenOptions, open_path
from athena_vla.sim.experts import Expert
from athena_vla.sim.record import RecordConfig, record
from athena_vla.sim.robot import TIME_LIMIT, SimRobot
from athena_vla.sim.tasks import sample_scene
from athena_vla.stopping import Interrupted
from recordings import clean, write
from small_bundles import write_base

OLD = ("push", "raise", "touch")


# What is kept


def binomial_tail(lost: int, gained: int) -> float:
    """P(at least `lost` of the scenes that differ are lost), by counting."""
    n = lost + gained
    return sum(comb(n, k) for k in range(lost, n + 1)) / 2**n


@pytest.mark.parametrize("total", range(13))
def test_the_test_of_a_loss_counts_every_outcome(total: int) -> None:
    for lost in range(total + 1):
        outcomes = sum(sum(flips) >= lost for flips in product((0, 1), repeat=total))
        assert worse_p(lost, total - lost) == pytest.approx(outcomes / 2**total, abs=1e-12)


def test_the_test_of_a_loss_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for lost, gained in ((0, 0), (5, 1), (30, 18), (200, 170)):
        expected = stats.binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1.0
        assert worse_p(lost, gained) == pytest.approx(expected, rel=1e-9)


def rule(counts: dict[str, Kept], level: float, margin: float) -> bool:
    """The keeping rule once more, from the page: whether the policy is kept."""
    old = [t for t in counts if t in OLD]
    lost, gained = (sum(getattr(c, side) for c in counts.values()) for side in ("lost", "gained"))
    if binomial_tail(lost, gained) <= (level / 2 if old else level):
        return False
    for t in old:
        c = counts[t]
        points = 100 * (c.gained - c.lost) / (c.kept + c.lost + c.gained + c.neither)
        if points < 0 and points <= -margin and binomial_tail(c.lost, c.gained) <= level / 2 / len(old):
            return False
    return True


def test_decisions_are_those_of_the_rule_written_twice() -> None:
    rng, kept = np.random.default_rng(0), []
    for _ in range(400):
        worse = rng.uniform(0.2, 0.8)
        counts = {}
        for task in (*OLD[: rng.integers(0, 4)], "new"):
            differ = int(rng.integers(0, 25))
            lost = int(rng.binomial(differ, worse))
            counts[task] = Kept(int(rng.integers(1, 20)), lost, differ - lost, int(rng.integers(0, 9)))
        decision = decide(counts, old=OLD, level=0.1, margin=5.0)
        assert decision.keep == rule(counts, 0.1, 5.0)
        assert decision.keep == (not decision.reasons)
        kept.append(decision.keep)
    assert 50 < sum(kept) < 350, "both answers have to be tried"


def refusals(tasks: Any, repeats: int = 3_000) -> float:
    """Share of policies refused that are exactly as good as the old one: 7 old tasks of 30 scenes."""
    rng, refused = np.random.default_rng(1), 0
    for _ in range(repeats):
        before, after = rng.random((2, 7, 30)) < 0.6
        counts = {
            str(t): Kept(int((b & a).sum()), int((b & ~a).sum()), int((~b & a).sum()), int((~b & ~a).sum()))
            for t, (b, a) in enumerate(zip(before, after, strict=True))
        }
        refused += not decide(counts, old=[*counts], tasks=tasks).keep
    return refused / repeats


def refusals_played_on(loss: float, repeats: int) -> float:
    """The same with further scenes of the tasks that lost the margin; one task truly loses `loss`."""
    rng, refused, names = np.random.default_rng(2), 0, [str(t) for t in range(7)]

    def played(task: str, scenes: int) -> Kept:
        b, a = rng.random(scenes) < 0.6, rng.random(scenes) < 0.6 - (loss if task == "0" else 0.0)
        return Kept(int((b & a).sum()), int((b & ~a).sum()), int((~b & a).sum()), int((~b & ~a).sum()))

    for _ in range(repeats):
        counts, more = {t: played(t, 30) for t in names}, dict[str, Kept]()
        while (found := decide(counts, old=names, more=more, enough=1500)).keep and found.unsure:
            for t in found.unsure:
                here = 30 + more.get(t, Kept()).scenes
                more[t] = more.get(t, Kept()).plus(played(t, further(here, 1500) - here))
        refused += not found.keep
    return refused / repeats


def test_tasks_that_are_played_on_keep_the_promise_and_find_a_loss() -> None:
    """Policies that have nothing in common: those that share most scenes are refused more rarely."""
    assert 0.02 < refusals_played_on(0.0, 1_500) <= 0.1
    assert refusals_played_on(0.2, 150) > 0.8, "a task that lost 20 points; without further scenes most are missed"


def test_a_task_that_lost_the_margin_is_played_on_and_no_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of one task becomes clear with more scenes; the gain of another, in the first ones, hides nothing."""
    asked: list[dict[str, int]] = []

    def more(tasks: dict[str, int], *_: Any, **__: Any) -> dict[str, Kept]:
        asked.append(dict(tasks))
        return {t: Kept(kept=n - n // 6, lost=n // 6) for t, n in tasks.items()}

    monkeypatch.setattr(improving, "more_of", more)
    config = dataclasses.replace(small(data, tmp_path / "out"), task_scenes=200)
    work = improving.open_inputs(config)
    counts = {"push": Kept(20, 2, 9, 3), "touch": Kept(20, 4, 2, 4)}
    judged = improving.Judged(counts, ("push", "touch"), None, ())
    decision = improving._decided(work, 1, tmp_path, tmp_path, tmp_path, judged, (), quiet)
    assert asked == [{"touch": 70}]
    assert not decision.keep
    assert [t.scenes for t in decision.tasks] == [34, 100]
    assert decision.points > 0, "all scenes are the first ones"
    asked.clear()
    once = dataclasses.replace(work, config=dataclasses.replace(config, task_scenes=0))
    assert improving._decided(once, 1, tmp_path, tmp_path, tmp_path, judged, (), quiet).keep
    assert not asked


def test_further_scenes_are_fresh_and_of_their_task(tmp_path: Path) -> None:
    base = Path("builtin:base")
    first = FIRST_SEED * SCENES_PER_SEED + 7
    told: dict[str, Any] = {"setup": Setup(duration=0.2), "first": first, "workers": 1, "progress": quiet}
    found = more_of({"push": 1, "touch": 2}, base, base, tmp_path, **told)
    assert {t: c.scenes for t, c in found.items()} == {"push": 1, "touch": 2}
    rows = [json.loads(x) for x in (tmp_path / "before.jsonl").read_text().splitlines()]
    played = [r for r in rows if "scene" in r]
    assert min(r["scene"] for r in played) >= first
    again = more_of({"push": 2, "touch": 2}, base, base, tmp_path, **told)
    assert again["push"].scenes == 2
    rows = [json.loads(x) for x in (tmp_path / "before.jsonl").read_text().splitlines()]
    assert sum("scene" in r for r in rows) == 4, "what was played is taken over"


def test_equal_policies_are_refused_as_rarely_as_promised() -> None:
    assert 0.01 < refusals("tested") <= 0.1  # and not by never refusing
    assert refusals("observed", 300) > 0.5, "the bare number is what the page says it is"


def test_a_loss_of_five_points_on_an_old_task_is_refused() -> None:
    gains = {"push": Kept(500, 0, 200, 300)}
    lost = {**gains, "touch": Kept(850, 60, 10, 80)}  # -5.0 points of 1,000 scenes, while all scenes gained
    decision = decide(lost, old=OLD)
    assert not decision.keep
    assert decision.points > 0
    assert "worse on 'touch': -5.0 points, 60 lost and 10 gained" in decision.reasons[0]
    assert decide(lost, old=("push",)).keep, "a task that the set does not have refuses nothing"
    assert decide({**gains, "touch": Kept(850, 59, 10, 81)}, old=OLD).keep, "4.9 points are below the margin"


def test_a_small_loss_is_named_and_refused_where_the_bare_number_counts() -> None:
    counts = {"push": Kept(20, 2, 5, 3), "touch": Kept(20, 4, 2, 4)}
    tested, observed = decide(counts, old=OLD), decide(counts, old=OLD, tasks="observed")
    assert (tested.keep, tested.unsure) == (True, ("touch",))
    assert (observed.keep, observed.unsure) == (False, ())
    assert observed.level == 0.1


def test_a_failed_gate_refuses_and_nothing_compared_is_no_decision() -> None:
    assert not decide({"push": Kept(gained=9)}, old=OLD, refused=("it fails a gate",)).keep
    with pytest.raises(EvaluationError, match="Nothing was compared"):
        decide({"push": Kept()}, old=OLD)


# Which scenes


def test_scenes_to_learn_from_never_judge(tmp_path: Path) -> None:
    learned, judged = set(), set()
    for seed in range(20):
        config = ImproveConfig(bundle=tmp_path, data=tmp_path, seed=seed)
        for number in range(1, MOST_ROUNDS + 1):
            learned.add(config.play_seed(number))
            judged.add(config.test_seed(number))
    assert len(learned) == len(judged) == 20 * MOST_ROUNDS, "no round shares scenes with another"
    assert not learned & judged
    assert min(learned | judged) >= FIRST_SEED


# Who takes over, and when


class Still:
    """A policy that stays, or plays a plan."""

    def __init__(self, body: Embodiment, plan: Any = None) -> None:
        self._body, self._plan = body, plan

    def act(self, observation: Observation) -> ActionChunk:
        step = 1 / self._body.control_hz
        rows = np.repeat(observation.state[None], 8, axis=0)
        if self._plan is not None:
            rows = np.stack([self._plan.at(observation.time + (k + 1) * step) for k in range(8)])
        return ActionChunk(np.asarray(rows, np.float64), self._body.action_joints, step, observation.time)


def judged(**changes: Any) -> Any:
    """A robot of which only the judge is looked at."""
    judge = SimpleNamespace(success=False, failure="", wrong_for=0.0, missed_by=0.5, unit="m")
    judge.__dict__.update(changes)
    return SimpleNamespace(world=SimpleNamespace(rail=None), judge=judge)


def test_each_reason_to_take_over() -> None:
    assert SceneCorrector(judged(wrong_for=WRONG)).reason(0.1) == "another object"
    assert SceneCorrector(judged(wrong_for=WRONG * 0.9)).reason(0.1) == ""
    assert SceneCorrector(judged()).reason(TIME_LIMIT) == "time over"
    slow = judged()
    corrector = SceneCorrector(slow)
    assert corrector.reason(0.0) == ""
    slow.judge.missed_by = 0.495  # half of what counts as progress
    assert corrector.reason(PATIENCE - 0.1) == ""
    assert corrector.reason(PATIENCE) == "no progress"
    moving = judged()
    corrector = SceneCorrector(moving)
    for k in range(40):
        moving.judge.missed_by = 0.5 - 0.011 * k
        assert corrector.reason(k * PATIENCE * 0.9) in ("", "time over")
        if k * PATIENCE * 0.9 >= TIME_LIMIT:
            break
    for ended in ({"success": True}, {"failure": "another object"}):
        assert SceneCorrector(judged(**ended, wrong_for=WRONG)).reason(TIME_LIMIT) == ""


def scene_job(folder: Path, **changes: Any) -> Collect:
    setup = Setup(robot="athena", replan_every=8, image_size=(24, 24))
    return Collect(**{"policy": "", "recordings": folder, "setup": setup, "first_scene": 0, "correct": True, **changes})


def test_a_still_policy_is_corrected_and_its_own_steps_do_not_count(tmp_path: Path, athena: Embodiment) -> None:
    job = scene_job(tmp_path)
    number = next(s for s in range(99) if sample_scene(s, "train").goal.family == "raise")
    sim = SimRobot(sample_scene(number, "train"), athena, job.setup.renderer, job.setup.image_size)
    played = play_scene(job, sim, Still(athena), number)  # type: ignore[arg-type]
    assert (played.success, played.taken_over, played.episode) == (True, "no progress", f"episode_{number:04d}")
    episode = open_path(tmp_path, OpenOptions()).read(played.episode)
    marks, n = episode.marks, len(episode)
    own, corrected = marks.has("failure", n), marks.has("correction", n)
    assert marks.success
    assert corrected.sum() == played.steps > 5
    assert not (own & corrected).any()
    assert own.sum() == pytest.approx(PATIENCE * athena.control_hz, abs=2), "until patience ended it was the policy"
    again = play_scene(job, sim, Still(athena), number)  # type: ignore[arg-type]
    assert again == played
    alone = scene_job(tmp_path / "alone", correct=False)
    assert play_scene(alone, sim, Still(athena), number).episode == "", "a failure teaches nothing"  # type: ignore[arg-type]


def test_what_a_policy_solves_alone_is_left_alone(tmp_path: Path, athena: Embodiment) -> None:
    number = next(s for s in range(99) if sample_scene(s, "train").goal.family == "raise")
    scene = sample_scene(number, "train")
    job = scene_job(tmp_path)
    sim = SimRobot(scene, athena, job.setup.renderer, job.setup.image_size)
    expert = Still(athena, Expert(sim.world).plan(scene))
    for correct, episode in ((True, ""), (False, f"episode_{number:04d}")):
        played = play_scene(dataclasses.replace(job, correct=correct), sim, expert, number)  # type: ignore[arg-type]
        assert (played.success, played.taken_over, played.steps, played.episode) == (True, "", 0, episode)


# Whole rounds


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("improve")
    record(RecordConfig(out=folder / "rec", episodes=7, workers=1, failures=0.0, quiet=True))
    build(BuildConfig(input=folder / "rec", out=folder / "set", robot="athena", horizon=8, workers=1))
    return folder


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write(folder / "rec", *(clean(i, length=20) for i in range(20)))
    build(BuildConfig(input=folder / "rec", out=folder / "set", robot="toy", horizon=4, workers=1))
    return folder


def small(data: Path, out: Path, **changes: Any) -> ImproveConfig:
    told = {"scenes": 3, "test_scenes": 7, "rounds": 1, "steps": 2, "workers": 1, "change": "batch=4", "task_scenes": 2}
    return ImproveConfig(**{"bundle": Path("builtin:base"), "data": data / "set", "out": out, **told, **changes})


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> ImproveResult:
    return improve(small(data, tmp_path_factory.mktemp("whole") / "out"))


def same(one: Path, two: Path) -> None:
    """Both folders hold the same rounds: numbers, recordings and weights."""
    a, b = (json.loads((f / "result.json").read_text().replace(str(f), "OUT")) for f in (one, two))
    assert a == b
    for part in ("recordings", "policy/weights"):
        names = [sorted(p.relative_to(f).as_posix() for p in (f / "round_1" / part).rglob("*")) for f in (one, two)]
        assert names[0] == names[1]
        assert names[0], part
    weights = [(f / "round_1/policy/weights/model.safetensors").read_bytes() for f in (one, two)]
    assert weights[0] == weights[1]


def test_a_round_is_played_learned_and_judged(whole: ImproveResult) -> None:
    (first,) = whole.rounds
    assert first.scenes == 3
    assert first.episodes == first.corrected > 0
    assert first.steps == first.all_steps > 0
    assert first.test_scenes == 7
    assert first.success is not None
    assert whole.policy == Path(first.kept)
    assert bundle.is_bundle(whole.policy)
    assert "7 scenes: 200 at least for a decision" in whole.notes[0]
    rows = [json.loads(x) for x in (whole.folder / "round_1/episodes/before.jsonl").read_text().splitlines()]
    tested = {r["scene"] // SCENES_PER_SEED for r in rows if "scene" in r}
    rows = [json.loads(x) for x in (whole.folder / "round_1/scenes.jsonl").read_text().splitlines()]
    learned = {r["scene"] // SCENES_PER_SEED for r in rows if "task" in r}
    assert (learned, tested) == ({2002}, {2003})
    page = whole.page.read_text()
    assert "Round 1, by task" in page
    assert ("kept" if first.decision.keep else "refused") in page


PARTS = ("collect", "build", "finetune", "merge", "in_simulator")


def test_stopped_after_each_part_nothing_is_lost(
    whole: ImproveResult, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(data, tmp_path / "out")
    calls: dict[str, int] = dict.fromkeys(PARTS, 0)
    for part in PARTS:
        real = getattr(improving, part)

        def stops(*words: Any, real: Any = real, part: str = part, **named: Any) -> Any:
            done = real(*words, **named)
            calls[part] += 1
            if calls[part] == 1:
                raise KeyboardInterrupt
            return done

        monkeypatch.setattr(improving, part, stops)
    for _ in PARTS:
        with pytest.raises(Interrupted, match="0 of 1 rounds are whole"):
            improve(config)
    result = improve(config)
    # Small parts are read again; what was built, trained and merged is not made twice.
    assert calls == {"collect": 6, "build": 1, "finetune": 1, "merge": 1, "in_simulator": 2}
    same(result.folder, whole.folder)
    improve(config)
    assert calls["collect"] == 6, "a whole round is read"


KILLED = """
import os, signal, sys
from pathlib import Path
from athena_vla.improve import ImproveConfig, improve, improving
part = sys.argv[3]
real = getattr(improving, part)
def killed(*words, **named):
    real(*words, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(improving, part, killed)
improve(ImproveConfig(bundle=Path("builtin:base"), data=Path(sys.argv[1]), out=Path(sys.argv[2]), scenes=3,
    test_scenes=7, rounds=1, steps=2, workers=1, change="batch=4", task_scenes=2))
"""


@pytest.mark.slow
def test_killed_after_each_part_the_result_is_the_same(whole: ImproveResult, data: Path, tmp_path: Path) -> None:
    for part in PARTS:
        words = [sys.executable, "-c", KILLED, str(data / "set"), str(tmp_path / "out"), part]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env={**os.environ})
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    same(improve(small(data, tmp_path / "out")).folder, whole.folder)


@pytest.mark.slow
def test_more_rounds_go_on(data: Path, tmp_path: Path) -> None:
    first = improve(small(data, tmp_path / "out"))
    both = improve(small(data, tmp_path / "out", rounds=2))
    assert both.rounds[0] == first.rounds[0]
    assert both.rounds[1].policy == first.rounds[0].kept
    assert both.rounds[1].all_steps == first.rounds[0].steps + both.rounds[1].steps


def test_corrections_by_recordings(whole: ImproveResult, data: Path, tmp_path: Path) -> None:
    folder = whole.folder / "round_1" / "recordings"
    result = improve(small(data, tmp_path / "out", rounds=0, corrector=("recordings", str(folder)), test_scenes=7))
    (first,) = result.rounds
    assert (first.scenes, first.taken_over) == (0, 0)
    assert (first.episodes, first.steps) == (whole.rounds[0].episodes, whole.rounds[0].steps)
    assert first.success is not None, "the robot has a simulator"


def test_without_a_simulator_held_out_episodes_are_compared(toy_set: Path, tmp_path: Path) -> None:
    base = write_base(toy_set / "model", embodiment.load("toy")).path
    new = write(tmp_path / "new", *(clean(i, length=20) for i in range(20, 40)))
    told = {"corrector": ("recordings", str(new)), "rounds": 0, "samples": 40, "change": "batch=2,precision=fp32"}
    result = improve(small(toy_set, tmp_path / "out", bundle=base, **told))
    (first,) = result.rounds
    assert first.success is None
    assert first.episodes == 20
    assert first.test_scenes > 0
    assert "Success was not judged: there is no simulator of this robot here" in first.not_judged[0]
    assert any("athena trials draw" in note for note in result.notes)
    # The same comparison by hand: held-out episodes in which the new policy is further from what was recorded.
    lost = gained = 0
    for folder in (toy_set / "set", tmp_path / "out/round_1/dataset"):
        dataset = Dataset.open(folder)
        errors: list[dict[str, list[float]]] = []
        for path in (base, Path(first.candidate)):
            policy, found = Policy.load(path), dict[str, list[float]]()
            for index in dataset.validation[:40]:
                sample = dataset[int(index)]
                miss = np.abs(policy.act(sample.observation).positions[:4] - sample.chunk)[
                    np.asarray(sample.valid, bool)
                ]
                found.setdefault(sample.episode, []).append(float(miss.mean()))
            errors.append(found)
        for episode, before in errors[0].items():
            change = np.mean(errors[1][episode]) - np.mean(before)
            lost, gained = lost + (change > 0), gained + (change < 0)
    tasks = first.decision.tasks
    assert (sum(t.lost for t in tasks), sum(t.gained for t in tasks)) == (lost, gained)


# Bad input


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"corrector": ("nobody",)}, "nobody"),
        ({"corrector": ("recordings",)}, "recordings FOLDER"),
        ({"corrector": ("script", "folder")}, "recordings FOLDER"),
        ({"corrector": ("recordings", "a"), "rounds": 2}, "learned from once"),
        ({"rounds": 51}, "up to 50"),
        ({"scenes": 0}, "counts of 1 and more"),
        ({"seed": -1}, "no number is negative"),
        ({"replay": 1.0}, "--replay is a number from 0 to 0.99"),
        ({"level": 0.9}, "--level"),
        ({"margin": float("nan")}, "--margin"),
        ({"correction_weight": 0.0}, "--correction-weight"),
        ({"tasks": "all"}, "tested"),
        ({"preset": "nothing"}, "nothing"),
        ({"change": "rnk=8"}, "rnk"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises((TrainingError, UnknownName), match=text):
        ImproveConfig(bundle=tmp_path, data=tmp_path, **changes)


def refused(config: ImproveConfig, text: str) -> None:
    with pytest.raises(AthenaError, match=text):
        improve(config)


def test_what_does_not_fit_is_a_sentence_and_leaves_nothing(data: Path, toy_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(small(toy_set, out), "Give the set that the policy was trained on")
    refused(small(data, out, bundle=tmp_path / "none"), "none")
    refused(small(data, out, corrector=("recordings", str(tmp_path / "no"))), "There are no recordings .*no'")
    base = write_base(toy_set / "base", embodiment.load("toy")).path
    refused(small(toy_set, out, bundle=base), "has none for 'toy'. Drive the robot with athena drive")
    missing = ("recordings", str(tmp_path / "no"))
    refused(small(toy_set, out, bundle=base, corrector=missing), "There are no recordings")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AthenaError):
        improve(small(data, tmp_path / "other", corrector=("recordings", str(tmp_path / "empty"))))
    assert not out.exists() or not any(p.name != "improve.json" for p in out.iterdir())


def test_weights_that_cannot_be_trained_on(data: Path, tmp_path: Path) -> None:
    copied = tmp_path / "int8"
    files_of = bundle.Bundle.open("builtin:base").path
    shutil.copytree(files_of, copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "stage": "quantized"}))
    refused(small(data, tmp_path / "out", bundle=copied), "only float weights can be trained on")


def test_a_folder_of_other_settings_is_kept(data: Path, whole: ImproveResult, tmp_path: Path) -> None:
    before = (whole.folder / "result.json").read_bytes()
    refused(small(data, whole.folder, steps=3), r"other settings \(steps\)")
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    refused(small(data, foreign), "mine")
    refused(small(data, foreign, overwrite=True), "mine")
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert (whole.folder / "result.json").read_bytes() == before
