"""Baselines and ablation wrappers against what they must answer by definition."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import EvaluationError, UnknownName
from athena_vla.evaluate.actors import ActorFactory, ActorSpec
from athena_vla.evaluate.baselines import (
    BlackImage,
    HoldStill,
    Library,
    NearestNeighbour,
    OtherInstruction,
    Replay,
    Trajectory,
    word_distance,
)
from athena_vla.recordings.episode import Sample

HORIZON = 4


def image(value: int, left: int = 0) -> np.ndarray:
    picture = np.full((48, 64, 3), value, np.uint8)
    picture[:, :32] += np.uint8(left)
    return picture


def actions(episode: int, length: int) -> np.ndarray:
    """[T, 3] a recognisable motion of each episode."""
    t = np.arange(length)[:, None]
    return 0.1 * episode + 0.01 * t * np.array([1.0, 2.0, -1.0])


def recorded(episode: int, length: int, text: str, value: int, kind: str = "train") -> list[Sample]:
    motion = actions(episode, length)
    samples = []
    for f in range(length):
        rows = np.minimum(np.arange(f, f + HORIZON), length - 1)
        samples.append(
            Sample(
                Observation({"front": image(value)}, motion[f].astype(np.float32), text, 0.1 * f),
                motion[rows].astype(np.float32),
                np.arange(f, f + HORIZON) < length,
                f"ep{episode}",
                f,
                kind,  # type: ignore[arg-type]
            )
        )
    return samples


@pytest.fixture
def library(toy: Embodiment) -> Library:
    return Library.fit(recorded(0, 6, "raise the arm", 20) + recorded(1, 9, "touch the red cube", 200), toy)


def see(toy: Embodiment, text: str = "raise the arm", value: int = 20, time: float = 0.0) -> Observation:
    return Observation({"front": image(value)}, np.zeros(3), text, time).require(toy)


def test_mean_trajectory_is_the_mean_over_running_episodes(library: Library) -> None:
    mean = library.mean_trajectory()
    expected = [np.mean([actions(e, n)[t] for e, n in ((0, 6), (1, 9)) if t < n], axis=0) for t in range(9)]
    np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_trajectory_plays_by_the_clock_and_holds_the_end(toy: Embodiment, library: Library) -> None:
    actor = Trajectory(toy, library.episode_actions(1), HORIZON)
    chunk = actor.act(see(toy, time=0.7))
    np.testing.assert_allclose(chunk.positions, actions(1, 9)[[7, 8, 8, 8]], atol=1e-6)
    assert chunk.dt == 0.1
    assert chunk.time == 0.7


def test_replay_chooses_the_closest_words(toy: Embodiment, library: Library) -> None:
    chunk = Replay(toy, library).act(see(toy, "touch the blue cube"))
    np.testing.assert_allclose(chunk.positions, actions(1, 9)[:HORIZON], atol=1e-6)


def test_nearest_neighbour_returns_the_chunk_of_a_training_sample(toy: Embodiment, library: Library) -> None:
    actor = NearestNeighbour(toy, library)
    for sample in recorded(0, 6, "raise the arm", 20) + recorded(1, 9, "touch the red cube", 200):
        np.testing.assert_allclose(actor.act(sample.observation).positions, sample.chunk, atol=1e-6)


def at_rest(sample: Sample, picture: np.ndarray | None = None) -> Sample:
    """The same sample with nothing to tell it by but picture and words."""
    images = sample.observation.images if picture is None else {"front": picture}
    return replace(sample, observation=replace(sample.observation, images=images, state=np.zeros(3)))


def test_nearest_neighbour_looks_and_listens(toy: Embodiment) -> None:
    groups = recorded(0, 5, "go", 10) + recorded(1, 5, "go", 240) + recorded(2, 5, "stop", 10)
    actor = NearestNeighbour(toy, Library.fit([at_rest(s) for s in groups], toy))
    state = np.zeros(3)
    answers = [
        actor.act(Observation({"front": image(value)}, state, text)).positions[0, 0]
        for value, text in ((10, "go"), (240, "go"), (10, "stop"))
    ]
    assert np.round(np.array(answers) * 10) == pytest.approx([0, 1, 2])


def test_nearest_neighbour_tells_left_from_right(toy: Embodiment) -> None:
    one = [at_rest(s) for s in recorded(0, 3, "go", 10)]
    two = [at_rest(s, image(10, left=90)) for s in recorded(1, 3, "go", 10)]
    actor = NearestNeighbour(toy, Library.fit(one + two, toy))
    seen = Observation({"front": image(10, left=80)}, np.zeros(3), "go")
    assert actor.act(seen).positions[0, 0] == pytest.approx(0.1)


def test_hold_still_keeps_its_first_pose_only_when_told_to(toy: Embodiment) -> None:
    first, later = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.5, 0.5])
    keeping, following = HoldStill(toy), HoldStill(toy, remember=False)
    for actor, expected in ((keeping, first), (following, later)):
        actor.act(Observation({}, first, ""))
        np.testing.assert_array_equal(actor.act(Observation({}, later, "")).positions, np.tile(expected, (8, 1)))


class Seen:
    def __init__(self) -> None:
        self.last: Observation | None = None

    def act(self, observation: Observation, /) -> ActionChunk:
        self.last = observation
        return ActionChunk(np.zeros((1, 1)), ("j",), 0.1)


def test_ablations_change_one_thing_only(toy: Embodiment) -> None:
    original, inner = see(toy, "raise the arm", 99, 0.3), Seen()
    BlackImage(inner).act(original)
    assert inner.last is not None
    assert not inner.last.images["front"].any()
    assert (inner.last.instruction, inner.last.time) == ("raise the arm", 0.3)
    OtherInstruction(inner, {"raise the arm": "sit down"}).act(original)
    assert inner.last.instruction == "sit down"
    OtherInstruction(inner, {"bow": "sit down"}).act(original)
    assert inner.last.instruction == "raise the arm"
    assert inner.last.images is original.images
    assert (original.images["front"] == 99).all()  # the observation itself is untouched


def test_library_comes_back_from_disk(toy: Embodiment, library: Library, tmp_path: Path) -> None:
    library.save(tmp_path / "library.npz")
    again = Library.load(tmp_path / "library.npz", toy)
    for name, value in library.__dict__.items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert [p.name for p in tmp_path.iterdir()] == ["library.npz"]


def test_library_refuses_validation_samples_nothing_and_another_robot(
    toy: Embodiment, athena: Embodiment, library: Library, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match="validation split"):
        Library.fit(recorded(0, 3, "go", 10, kind="validation"), toy)
    with pytest.raises(EvaluationError, match="no sample"):
        Library.fit([], toy)
    library.save(tmp_path / "library.npz")
    with pytest.raises(EvaluationError, match="another robot"):
        Library.load(tmp_path / "library.npz", athena)
    with pytest.raises(EvaluationError, match="no baseline library"):
        Library.load(tmp_path / "absent.npz", toy)


def test_the_cast_builds_every_baseline_from_its_specification(
    toy: Embodiment, library: Library, tmp_path: Path
) -> None:
    library.save(tmp_path / "library.npz")
    factory = ActorFactory(toy)
    source = str(tmp_path / "library.npz")
    for kind, expected in (
        ("mean_action", Trajectory),
        ("nearest_neighbour", NearestNeighbour),
        ("replay", Replay),
        ("hold", HoldStill),
    ):
        spec = ActorSpec(kind, kind, "" if kind == "hold" else source)  # type: ignore[arg-type]
        actor = factory.actor(spec)
        assert type(actor) is expected
        assert actor.act(see(toy)).joint_names == toy.action_joints
    assert len(factory.libraries) == 1
    other = factory.actor(
        ActorSpec("deaf", "replay", source, ablation="other_instruction"), {"raise the arm": "touch the red cube"}
    )
    np.testing.assert_allclose(other.act(see(toy)).positions, actions(1, 9)[:HORIZON], atol=1e-6)


def test_specifications_are_refused_when_they_say_nothing() -> None:
    with pytest.raises(EvaluationError, match="needs a source"):
        ActorSpec("tuned")
    with pytest.raises(UnknownName, match="mean_action"):
        ActorSpec("x", "mean", "y")  # type: ignore[arg-type]


def test_word_distance_is_a_metric_on_word_sets() -> None:
    assert word_distance("Touch the cube", "touch the cube") == 0.0
    assert word_distance("touch", "raise") == 1.0
    assert word_distance("touch the cube", "touch the ball") == pytest.approx(0.5)
