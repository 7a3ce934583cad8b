"""The rule of time: the target leads the state by one control period at every pair of rates, and speeds are kept."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from athena_vla.embodiment import Embodiment
from athena_vla.errors import DatasetError
from athena_vla.recordings.alignment import AlignedEpisode, Alignment, align
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.marks import Mark, Marks, SourceSpan
from athena_vla.recordings.resample import control_steps, is_switch, resampled
from athena_vla.recordings.streams import Clock
from athena_vla.recordings.texts import TextSpan
from recordings import clean

RATES = (5, 10, 12, 15, 20, 25, 30, 50, 60, 100)
PAIRS = list(itertools.product(RATES, RATES))
NAMES = ("base", "shoulder", "finger")


def next_state(path: np.ndarray, fps: float) -> Episode:
    """An episode of a path [T + 1, 3] whose every action is the next state."""
    return Episode("0", Clock.at_rate(len(path) - 1, fps), NAMES, path[1:], NAMES, path[:-1])


def aligned(episode: Episode, robot: Embodiment, control_hz: float) -> AlignedEpisode:
    return align(episode, replace(robot, cameras=(), control_hz=control_hz, command_hz=control_hz), Alignment())


@pytest.mark.parametrize(("fps", "control_hz"), PAIRS)
def test_a_ramps_target_leads_its_state_by_one_control_period(toy: Embodiment, fps: int, control_hz: int) -> None:
    speed = np.array([0.4, 0.25, 0.2])  # [rad/s]
    time = np.arange(4 * fps + 1)[:, None] / fps
    found = aligned(next_state(speed * (time - 2.0), fps), toy, control_hz)
    lead = (found.actions.astype(np.float64) - found.states) / speed
    # float32 holds 0.8 rad to 3e-8 rad: two of them are 3e-7 s apart at the slowest speed.
    assert np.abs(lead - 1.0 / control_hz).max() < 1e-6
    pace = np.diff(found.actions.astype(np.float64), axis=0) / speed * control_hz
    assert np.abs(pace - 1.0).max() < 1e-6 * control_hz
    # All of the recording but less than one recorded period at each end, and one control period.
    assert len(found.actions) / control_hz > 4.0 - 2.0 / fps - 1.0 / control_hz


@pytest.mark.parametrize(("fps", "control_hz"), PAIRS)
def test_speeds_are_those_of_the_motion(toy: Embodiment, fps: int, control_hz: int) -> None:
    """Oracle: the motion in closed form, at the very times the targets are meant for. 20 recorded frames a period."""
    frequency = fps / 20.0

    def motion(time: np.ndarray) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * frequency * time[:, None] + np.array([0.0, 0.7, 1.9]))

    length = 20 * fps
    found = aligned(next_state(motion(np.arange(length + 1) / fps), fps), toy, control_hz)
    steps = control_steps(length, fps, control_hz)
    reached = (steps.state / fps) + 1.0 / control_hz
    true = np.diff(motion(reached), axis=0) * control_hz
    speed = np.diff(found.actions.astype(np.float64), axis=0) * control_hz
    rms, wanted = np.sqrt((speed**2).mean()), np.sqrt((true**2).mean())
    # A whole number of motions in each control step has no speed at all: there is nothing to compare then.
    assert abs(rms - wanted) <= 0.01 * wanted + 1e-4


def test_a_perfect_policy_moves_at_the_demonstrated_speed(toy: Embodiment) -> None:
    for fps, control_hz in PAIRS:
        path = np.repeat(np.arange(10 * fps + 1)[:, None] / fps * 0.1, 3, axis=1)
        found = aligned(next_state(path, fps), toy, control_hz)
        states, actions = found.states[:, 0].astype(np.float64), found.actions[:, 0].astype(np.float64)
        at = start = states[0]
        for _ in range(5 * control_hz):
            at = actions[np.abs(states - at).argmin()]  # what the demonstration did at the nearest place
        assert (at - start) / 5.0 == pytest.approx(0.1, rel=0.01), (fps, control_hz)


def test_equal_rates_change_nothing(toy: Embodiment) -> None:
    episode = clean(0)
    found = aligned(episode, toy, 10.0)
    assert found.record["resampling"] == "identity"
    assert found.actions.tobytes() == episode.actions.tobytes()
    assert found.states.tobytes() == episode.states.tobytes()


@pytest.mark.parametrize("times", [2, 3, 5])
def test_a_whole_ratio_takes_recorded_rows_exactly(toy: Embodiment, times: int) -> None:
    episode = clean(0, length=60, fps=10.0 * times)
    found = aligned(episode, toy, 10.0)
    assert found.actions.tobytes() == episode.actions[times - 1 :: times].tobytes()
    assert found.states.tobytes() == episode.states[::times].tobytes()
    assert found.picture.tolist() == list(range(0, 60, times))


@pytest.mark.parametrize(("fps", "control_hz"), [(30, 25), (12, 30), (50, 30), (5, 100)])
def test_a_gripper_that_snaps_has_no_values_between(toy: Embodiment, fps: int, control_hz: int) -> None:
    time = np.arange(4 * fps + 1) / fps
    grip = (np.floor(time) % 2).astype(np.float64)
    path = np.stack([0.3 * np.sin(time), 0.2 * np.cos(time), grip], axis=1)
    found = aligned(next_state(path, fps), toy, control_hz)
    assert set(np.unique(found.actions[:, 2])) == {0.0, 1.0}
    assert set(np.unique(found.states[:, 2])) == {0.0, 1.0}
    # It snaps when the recorded one does, less than one recorded row late.
    shut = np.flatnonzero(np.diff(found.states[:, 2]) > 0)[0] + 1
    first = control_steps(4 * fps, fps, control_hz).state[0] / fps
    assert 0.0 <= first + shut / control_hz - 1.0 < 1.0 / fps + 1.0 / control_hz


def test_what_counts_as_a_switch() -> None:
    assert is_switch(np.array([0.0] * 8 + [1.0] * 8))
    assert is_switch(np.arange(20))  # whole numbers are labels
    assert not is_switch(np.linspace(0, 1, 40))
    assert not is_switch(np.array([0.0, 0.1, 0.2, 0.3]))


def test_channels_follow_their_own_rule() -> None:
    values = np.array([0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    places = control_steps(6, 30.0, 10.0).target
    assert places.tolist() == [2.0, 5.0]
    assert resampled(values, places, 3.0, "interpolate").tolist() == [4.0, 10.0]
    assert resampled(values, places, 3.0, "mean").tolist() == [2.0, 8.0]
    assert resampled(values, np.array([1.5]), 1.0, "hold").tolist() == [2.0]
    assert resampled(values, np.array([1.5]), 1.0, "interpolate").tolist() == [3.0]
    # A mean over 2.5 rows, by hand: rows 0, 1 whole and half of row 2.
    assert resampled(values, np.array([1.5]), 2.5, "mean")[0] == pytest.approx((0.0 + 2.0 + 0.5 * 4.0) / 2.5)


def test_words_and_marks_go_to_the_steps_of_their_frames(toy: Embodiment) -> None:
    texts = (TextSpan(0, 30, ("reach",)), TextSpan(30, 50, ("lift", "raise")))
    marks = Marks(True, (Mark("correction", 20, 30),), (SourceSpan("policy", 0, 20), SourceSpan("human", 20, 60)))
    episode = clean(0, length=60, fps=20.0, texts=texts, marks=marks)
    found = aligned(episode, toy, 10.0)
    assert found.texts == (TextSpan(0, 15, ("reach",)), TextSpan(15, 25, ("lift", "raise")))
    assert found.marks.spans == (Mark("correction", 10, 15),)
    assert found.marks.source_of_frames(30) == ["policy"] * 10 + ["human"] * 20


def test_less_than_one_control_period_is_refused(toy: Embodiment) -> None:
    with pytest.raises(DatasetError, match="shorter than one control period"):
        aligned(clean(0, length=2, fps=100.0), toy, 10.0)
