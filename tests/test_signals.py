"""Segments from what a simulator recorded: against hand labels, against our simulator's own phases, and built."""

import itertools

import numpy as np
import pytest

from athena_vla.annotate.segments import episode_segments
from athena_vla.annotate.signals import signal_segments
from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.streams import Clock, Stream
from recordings import clean
from test_annotate import UNSEEN, per_frame, robot_of, spans


def test_agreement_with_hand_labels_that_nothing_was_tuned_on(shared):
    """95%, as the docs say: the constants were set before these five episodes were compared, once."""
    agree = total = 0
    for dataset, episodes in UNSEEN["episodes"].items():
        if "franka" not in dataset:
            continue
        recording = open_recording(shared / "data" / dataset)
        for index, truth in episodes.items():
            episode = recording.read(index)
            segments = signal_segments(episode, robot_of(dataset))
            assert [s.text for s in segments if s.kind == "manipulate"] == ["handle the cube 2", "handle the cube 3"]
            agree += int((per_frame(spans(segments), len(episode)) == per_frame(truth, len(episode))).sum())
            total += len(episode)
    assert total == 1100
    assert agree / total > 0.94


def test_our_simulators_touches_are_handling_from_the_contact_on(tmp_path, athena):
    from athena_vla.sim.record import RecordConfig, record

    record(RecordConfig(out=tmp_path / "in", episodes=4, workers=1, seed=3))
    handled = 0
    for episode in open_recording(tmp_path / "in").episodes():
        assert isinstance(episode, Episode)
        assert episode.truth is not None
        contact = episode.truth.contacts["hand_contact"]
        segments = signal_segments(episode, athena)
        assert bool(segments) == bool(contact.sum() >= 3 or segments)
        if contact.sum() < 3:
            continue
        kinds = per_frame(spans(segments), len(episode))
        assert (kinds[contact] == "manipulate").all()
        assert kinds[0] == "prepare"
        handled += 1
    assert handled


def carried(**streams):
    return clean(0, length=100, streams={k: Stream(v) for k, v in streams.items()})


def path(start: int, stop: int, length: int = 100) -> np.ndarray:
    """[T, 7] the pose of an object that is carried 0.3 m between two frames."""
    pose = np.zeros((length, 7))
    pose[:, 0] = np.interp(np.arange(length), [start, stop], [0.0, 0.3])
    return pose


def test_a_moving_object_is_being_handled_whatever_form_its_pose_has():
    matrix = np.tile(np.eye(4), (100, 1, 1))
    matrix[:, :3, 3] = path(30, 60)[:, :3]
    for streams in (
        {"states/rigid_object/red_cube/root_pose": path(30, 60)},
        {"states.rigid_object.red_cube.root_pose": path(30, 60)},  # as LeRobot names the column
        {"obs/datagen_info/object_pose/red_cube": matrix},
    ):
        segments = signal_segments(carried(**streams))
        assert [(s.kind, s.text) for s in segments][:2] == [
            ("prepare", "reach for the red cube"), ("manipulate", "handle the red cube")]  # fmt: skip
        assert abs(segments[1].start - 30) <= 1
        assert abs(segments[1].stop - 60) <= 2
        assert (segments[0].start, segments[-1].stop) == (0, 100)
        assert {s.source for s in segments} == {"simulator"}


@pytest.mark.parametrize("stretch", [slice(20, 50), slice(40, 90)])
def test_contacts_count_as_flags_and_as_forces_but_not_under_the_feet(stretch):
    flag, force = np.zeros(100, bool), np.zeros((100, 3))
    flag[stretch], force[stretch, 2] = True, 12.0
    for streams in ({"hand_contact": flag}, {"obs/contact_forces": force}):
        found = [s for s in signal_segments(carried(**streams)) if s.kind == "manipulate"]
        assert [(s.start, s.stop) for s in found] == [(stretch.start, stretch.stop)]
    assert signal_segments(carried(left_foot_contact=flag)) == ()


def test_after_success_the_robot_is_idle_and_a_pause_does_not_end_the_handling():
    pose = path(20, 40)
    pose[:, 0] += np.interp(np.arange(100), [43, 60], [0.0, 0.2])
    success = np.arange(100) >= 55
    streams = {"states/rigid_object/cup/root_pose": pose, "next.success": success}
    segments = signal_segments(carried(**streams))
    assert [s.kind for s in segments] == ["prepare", "manipulate", "idle"]
    del streams["next.success"]
    assert [s.kind for s in signal_segments(carried(**streams))] == ["prepare", "manipulate", "prepare"]


def test_signals_outrank_motion_rules_but_neither_people_nor_mimic(shared):
    still = carried(**{"states/rigid_object/cup/root_pose": np.zeros((100, 7))})
    assert signal_segments(still) == ()
    moved = carried(**{"states/rigid_object/cup/root_pose": path(30, 60)})
    assert {s.source for s in episode_segments(moved, None)} == {"simulator"}
    mimic = open_recording(shared / "data/isaaclab_hdf5/franka_stack_mimic_annotated.hdf5").read("demo_0")
    assert [s.text for s in episode_segments(mimic, None)] == ["grasp 1", "stack 1", "grasp 2"]


@pytest.mark.parametrize(
    "values", [np.array(["a"] * 100), np.full((100, 7), np.nan), np.zeros((100, 2)), np.zeros((100, 0))]
)
def test_streams_that_are_no_signals_say_nothing(values):
    streams = {"states/rigid_object/cup/root_pose": values, "contact": values, "success": values}
    assert signal_segments(carried(**streams)) == ()


def test_a_stream_with_a_clock_of_its_own_is_not_taken_for_rows():
    own = Stream(path(30, 60, 200), Clock.at_rate(200, 20.0))
    episode = clean(0, length=100, streams={"states/rigid_object/cup/root_pose": own})
    assert signal_segments(episode) == ()
    with pytest.raises(RecordingError, match="has 3 rows, its clock has 100"):
        clean(0, length=100, streams={"x": Stream(np.zeros((3, 7)))})


def test_handling_while_legs_step_is_coordinating(shared):
    episode = open_recording(shared / "data/g1_locomanip_arena_v21_novideo").read("0")
    pose = path(300, 600, len(episode))
    pose[:, 0] = np.interp(np.arange(len(episode)), [300, 600], [0.0, 3.0])
    streams = {"states/rigid_object/box/root_pose": Stream(pose)}
    from dataclasses import replace

    segments = signal_segments(replace(episode, streams=streams))
    assert {s.kind for s in segments} >= {"coordinate", "walk"}
    assert all(a.stop == b.start for a, b in itertools.pairwise(segments))
    assert (segments[0].start, segments[-1].stop) == (0, len(episode))
