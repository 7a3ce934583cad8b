"""The demo's journal: what is done once, what is reused aloud, what survives interruption; and its fixed outcomes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athena_vla.demo import DemoConfig
from athena_vla.demo.chain import OWN_DATA_STEPS, SIMULATED_STEPS, _open_folder, demo
from athena_vla.demo.expected import expected
from athena_vla.demo.journal import Journal, digest, plain
from athena_vla.demo.outcome import safety_total
from athena_vla.demo.recording import _identity
from athena_vla.demo.report_images import GOAL, GREEN, episode_frames
from athena_vla.embodiment import load
from athena_vla.errors import AthenaError, RecordingError
from athena_vla.evaluate.film import Film, FilmedRobot, Mark
from athena_vla.evaluate.statistics import wilson
from athena_vla.finetune.finetune_config import PRESETS
from athena_vla.progress import Lines, Progress, quiet
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.tasks import sample_scene
from athena_vla.sim.world import THIRD_PERSON


class Screen:
    """A log that is kept, and a journal on it."""

    def __init__(self, folder: Path, total: int = 2) -> None:
        self.stream = io.StringIO()
        self.journal = Journal(folder, Progress(Lines(self.stream)), total)

    @property
    def text(self) -> str:
        return self.stream.getvalue()


def test_a_step_is_done_once_and_its_reuse_is_said(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, Any]:
        calls.append(1)
        (tmp_path / "made").write_text("x")
        return {"n": len(calls)}

    first, second = Screen(tmp_path), Screen(tmp_path)
    assert first.journal.step("one", "First", {"seed": 0}, work, ("made",)) == {"n": 1}
    assert second.journal.step("one", "First", {"seed": 0}, work, ("made",)) == {"n": 1}
    assert len(calls) == 1
    assert "1/2 First" in first.text
    assert "reused" not in first.text
    assert "reused: made" in second.text
    assert (first.journal.reused, second.journal.reused) == ((), ("one",))
    # The seconds are those of the run that did the work.
    assert second.journal.seconds == first.journal.seconds


@pytest.mark.parametrize("change", ["inputs", "output gone", "result cut"])
def test_a_step_is_done_again_when_it_no_longer_holds(tmp_path: Path, change: str) -> None:
    def work() -> dict[str, Any]:
        (tmp_path / "made").write_text("x")
        return {}

    Screen(tmp_path).journal.step("one", "First", {"seed": 0}, work, ("made",))
    if change == "output gone":
        (tmp_path / "made").unlink()
    if change == "result cut":
        (tmp_path / "steps" / "one.json").write_text('{"fingerpr')
    again = Screen(tmp_path)
    again.journal.step("one", "First", {"seed": int(change == "inputs")}, work, ("made",))
    assert again.journal.reused == ()


def test_an_interrupted_step_leaves_nothing_that_looks_whole_and_its_time_counts(tmp_path: Path) -> None:
    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Screen(tmp_path).journal.step("one", "First", {}, interrupted)
    assert not (tmp_path / "steps" / "one.json").exists()
    partial = tmp_path / "steps" / "one.partial.json"
    raw = json.loads(partial.read_text())
    partial.write_text(json.dumps({**raw, "seconds": 100.0}))
    again = Screen(tmp_path)
    again.journal.step("one", "First", {}, dict)
    assert again.journal.seconds["one"] >= 100.0
    assert not partial.exists()
    # Time spent on other inputs does not count.
    with pytest.raises(KeyboardInterrupt):
        Screen(tmp_path).journal.step("one", "First", {"seed": 1}, interrupted)
    other = Screen(tmp_path)
    other.journal.step("one", "First", {"seed": 2}, dict)
    assert other.journal.seconds["one"] < 50.0


def test_a_step_that_leaves_less_than_it_promised_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AthenaError, match=r"'one' ended without leaving bundle"):
        Screen(tmp_path).journal.step("one", "First", {}, dict, ("bundle",))
    assert not (tmp_path / "steps" / "one.json").exists()


def test_the_total_is_the_sum_and_results_keep_their_order(tmp_path: Path) -> None:
    screen = Screen(tmp_path)
    screen.journal.step("b", "First", {}, lambda: {"z": 1, "a": 2})
    screen.journal.step("a", "Second", {}, dict)
    seconds = screen.journal.seconds
    assert list(seconds) == ["b", "a", "total"]
    assert seconds["total"] == pytest.approx(seconds["a"] + seconds["b"])
    assert list(json.loads((tmp_path / "steps" / "b.json").read_text())["result"]) == ["z", "a"]


def test_only_what_json_can_hold_is_kept() -> None:
    value = {"path": Path("x"), "array": np.arange(2), "proportion": wilson(1, 2), "number": np.float64(0.5)}
    kept = plain(value)
    assert kept["path"] == "x"
    assert kept["array"] == [0, 1]
    assert kept["proportion"]["n"] == 2
    assert kept["number"] == 0.5
    with pytest.raises(TypeError, match="object"):
        plain({"what": object()})
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_films_are_padded_ring_the_goal_and_turn_green_on_success() -> None:
    outside = [np.full((40, 50, 3), 9, np.uint8)] * 3
    eyes = [np.full((20, 20, 3), 90, np.uint8)] * 3
    goals: list[tuple[Mark | None, Mark | None]] = [(Mark(0.5, 0.5, 0.2), None)] * 3
    film = Film(outside, eyes, [False, False, True], 8.0, "touch it", True, goals)
    frames = episode_frames(film, 5)
    assert len(frames) == 5
    assert frames[0].shape == (46, 90, 3)
    bars = [f[42] for f in frames]
    assert not (bars[1] == GREEN).all(axis=1).any()
    assert (bars[2] == GREEN).all(axis=1).sum() == round(90 * 3 / 5)
    np.testing.assert_array_equal(frames[4], frames[2])
    # The ring: bright at its radius of 0.2 * 40 pixels around (20, 20), the middle and the other view untouched.
    assert (frames[0][20, 28] == GOAL).all()
    assert (frames[0][12, 20] == GOAL).all()
    assert (frames[0][20, 20] == 9).all()
    assert (frames[0][:40, 50:] == 90).all()
    # The tick: only from success on, in the corner.
    changed = (frames[2] != frames[1]).any(axis=2)[:40]
    assert changed[:16, :16].any()
    assert not changed[20:].any()


def test_the_ring_of_a_film_is_where_the_object_is_seen() -> None:
    """Oracle: the pixels that the ray caster says belong to the object."""
    robot = load("athena")
    scene = next(s for s in (sample_scene(i, "test") for i in range(40)) if s.goal.target is not None)
    filmed = FilmedRobot(SimRobot(scene, robot, "rays", (64, 64)), 96, 1)
    world = filmed.sim.world
    for camera, width in ((THIRD_PERSON, 120), ("head", 96)):
        mark = filmed.goal_in(camera, width / 96)
        assert mark is not None
        target = scene.goal.target
        assert target is not None
        pixels = np.argwhere(filmed.camera.cast(world.data, camera, 96, width).geoms == world.object_geoms[target])
        assert len(pixels) > 4
        down, across = pixels.mean(axis=0) + 0.5
        assert abs(mark.across * 96 - across) < 2.0
        assert abs(mark.down * 96 - down) < 2.0
        assert np.abs(pixels + 0.5 - (mark.down * 96, mark.across * 96)).max() < mark.radius * 96 + 1.0


def test_safety_adds_up() -> None:
    rows = [{"commands": 10, "violations": 0, "touched": 1}, {"commands": 5, "violations": 2, "touched": 0}]
    assert safety_total(rows) == {"steps": 15, "violations": 2, "interventions": 1}


def test_recordings_are_told_apart_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    before = _identity(tmp_path)
    assert _identity(tmp_path) == before
    (tmp_path / "a.txt").write_text("12")
    assert _identity(tmp_path) != before
    with pytest.raises(RecordingError, match="no folder"):
        _identity(tmp_path / "absent")


def test_defaults_scale_with_quick_and_counts_are_checked() -> None:
    usual, quick = DemoConfig(), DemoConfig(quick=True)
    assert usual.episode_count >= 100
    assert usual.episode_count % 7 == 0
    assert quick.episode_count < usual.episode_count
    assert quick.recording_count < usual.recording_count
    assert DemoConfig(quick=True, episodes=21).episode_count == 21
    assert usual.training_steps == PRESETS["demo"].max_steps > quick.training_steps
    with pytest.raises(AthenaError, match="counts"):
        DemoConfig(episodes=-1)


def test_bad_folders_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecordingError, match="no folder"):
        demo(DemoConfig(out=tmp_path / "run", data=tmp_path / "absent"), quiet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AthenaError, match="empty"):
        demo(DemoConfig(out=tmp_path / "run", data=tmp_path / "empty"), quiet)
    (tmp_path / "file").write_text("")
    with pytest.raises(AthenaError, match="could not be written"):
        demo(DemoConfig(out=tmp_path / "file" / "run"), quiet)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(AthenaError, match="is not a demo's folder"):
            demo(DemoConfig(out=tmp_path / "thesis", overwrite=overwrite), quiet)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(AthenaError, match=r"0\.0 GB free"):
        _open_folder(DemoConfig(out=tmp_path / "full"))


def test_the_whole_is_said_from_the_first_step_on(tmp_path: Path) -> None:
    usual, quick, own = (expected(c) for c in (DemoConfig(), DemoConfig(quick=True), DemoConfig(data=tmp_path)))
    assert len(usual) == SIMULATED_STEPS
    assert len(own) == OWN_DATA_STEPS
    assert sum(usual.values()) == pytest.approx(782, rel=0.01)  # [s] 13 min 2 s, as measured
    assert sum(quick.values()) < sum(usual.values()) / 4
    screen = Screen(tmp_path, SIMULATED_STEPS)
    screen.journal.progress.plan(usual)
    screen.journal.step("record", "Record", {}, dict)
    assert "1/9 Record (about 13 of 13 min for all)" in screen.text
