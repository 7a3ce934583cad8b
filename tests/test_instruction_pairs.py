"""Two instructions in one scene: the same image, another goal; who listens solves both, who does not at most one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="pairs are played in the simulator (extra sim)")

from athena_vla.embodiment import Embodiment
from athena_vla.errors import EvaluationError
from athena_vla.evaluate import EvaluateConfig, Loop, evaluate
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.baselines import Trajectory
from athena_vla.evaluate.instruction_pairs import PairConfig, instruction_pairs, paired_scenes
from athena_vla.evaluate.pair_summary import pair_summary
from athena_vla.evaluate.results import Setup
from athena_vla.evaluate.rollout import Stage
from athena_vla.evaluate.statistics import wilson
from athena_vla.recordings.formats.isaac_folder import OpenOptions, open_path
from athena_vla.sim.experts import Expert
from athena_vla.sim.record import RecordConfig, record
from athena_vla.sim.scene import Scene
from athena_vla.sim.task_language import held_out_objects
from athena_vla.sim.tasks import sample_scene, twin

SETUP = Setup(duration=5.0, image_size=(24, 24))


def twins(split, count: int) -> list[tuple[Scene, Scene]]:
    pairs = ((s, twin(s)) for s in (sample_scene(i, split) for i in range(count)))
    return [(one, two) for one, two in pairs if two is not None]


@pytest.mark.parametrize("split", ["train", "test", "base"])
def test_a_twin_is_the_same_scene_with_another_object_as_the_goal(split) -> None:
    found = twins(split, 300)
    assert len(found) > 60
    for one, two in found:
        assert (two.objects, two.appearance, two.start, two.seed) == (one.objects, one.appearance, one.start, one.seed)
        assert two.goal.family == one.goal.family
        assert two.target != one.target
        assert one.target is not None
        assert two.target is not None
        for mine, theirs in zip((one.instruction, *one.phrasings), (two.instruction, *two.phrasings), strict=True):
            assert theirs == mine.replace(one.target.name, two.target.name) != mine
        if split == "train":
            assert (two.target.colour, two.target.shape) not in held_out_objects(two.goal.family)
    assert all(twin(s) is None for s in (sample_scene(i, "train") for i in range(60)) if s.target is None)


def test_who_listens_solves_both_and_who_does_not_one(athena: Embodiment) -> None:
    """By the scripted expert: once it does as told, once it does the first request whatever is said."""
    stage = Stage(SETUP, athena)
    spec = ActorSpec("hold", "hold")

    def plan(scene: Scene) -> Trajectory:
        stage.sim.reset(scene)
        motion = Expert(stage.sim.world).plan(scene)
        rows = np.stack([motion.at((k + 1) / athena.control_hz) for k in range(60)])
        return Trajectory(athena, rows[:, athena.action_index], 8)

    pairs = twins("test", 40)[:8]
    listens = [(stage.play(a, spec, plan(a)).success, stage.play(b, spec, plan(b)).success) for a, b in pairs]
    deaf = [(stage.play(a, spec, plan(a)).success, stage.play(b, spec, plan(a)).success) for a, b in pairs]
    found = pair_summary({"listens": listens, "deaf": deaf}, "listens")
    assert found.actors["listens"].both.success >= 6 / 8
    assert found.actors["deaf"].own.success >= 6 / 8
    assert found.actors["deaf"].both.success == 0.0


def test_the_numbers_are_those_of_a_count_by_hand() -> None:
    solved = {"a": [(True, True), (True, False), (False, True), (True, True)], "b": [(True, False)] * 4}
    found = pair_summary(solved, "a")
    assert (found.actors["a"].both, found.actors["a"].own) == (wilson(2, 4), wilson(3, 4))
    assert (found.actors["b"].own, found.actors["b"].other, found.actors["b"].both) == (
        wilson(4, 4),
        wilson(0, 4),
        wilson(0, 4),
    )
    assert (found.paired["b"].only_first, found.paired["b"].only_second) == (2, 0)
    assert "4 pairs give wide intervals; 120 or more" in found.note
    assert pair_summary({"a": [(True, True)] * 120}, "a").note == ""
    assert "+2 -0" in str(found)


def test_pairs_are_played_kept_and_the_same_for_all(tmp_path: Path) -> None:
    config = PairConfig(out=tmp_path, pairs=3, workers=1, setup=replace(SETUP, duration=0.3))
    actors = [ActorSpec("hold", "hold"), ActorSpec("hostile", "hostile")]
    found = instruction_pairs(actors, config, "hold")
    assert set(found.actors) == {"hold", "hostile"}
    assert found.pairs == 3
    scenes = paired_scenes(config)
    assert all(twin(sample_scene(s, "test")) for s in scenes)
    for part in ("own", "other"):
        lines = (tmp_path / part / "hold.jsonl").read_text().splitlines()
        assert len(lines) == 4, "a header and three episodes"
    (tmp_path / "other" / "hold.jsonl").write_text("\n".join(lines[:2]) + "\n")  # one of three is left
    again = instruction_pairs(actors, config, "hold")
    assert again == found
    assert len((tmp_path / "other" / "hold.jsonl").read_text().splitlines()) == 4
    with pytest.raises(EvaluationError, match="0 pairs of 2 actors"):
        instruction_pairs(actors, replace(config, pairs=0), "hold")


def test_the_command_shows_them(tmp_path: Path) -> None:
    loop = Loop(episodes=2, pairs=2, duration=0.2, workers=1)
    result = evaluate(EvaluateConfig(bundle=Path("builtin:base"), out=tmp_path, ablations=False, loop=loop))
    assert result.pairs is not None
    assert set(result.pairs.actors) == {"policy", "hold"}
    assert "same scene, two instructions" in str(result)
    assert result.to_dict()["instruction_pairs"]["actors"]["policy"]["both"]["n"] == 2
    assert any("2 pairs give wide intervals" in n for n in result.notes)
    with pytest.raises(EvaluationError, match="nothing to evaluate on"):
        evaluate(EvaluateConfig(bundle=Path("builtin:base"), out=tmp_path, loop=Loop(episodes=0, pairs=2)))
    with pytest.raises(EvaluationError, match="--pairs must not be negative"):
        Loop(pairs=-1)


def test_a_recording_of_twins_shows_each_scene_twice(tmp_path: Path) -> None:
    record(
        RecordConfig(out=tmp_path / "r", episodes=12, workers=1, image_size=24, failures=0.0, quiet=True, twins=True)
    )
    found = open_path(tmp_path / "r", OpenOptions())
    episodes = [found.read(i) for i in found.ids()]
    scenes = [sample_scene(i, "train") for i in range(6)]
    same = 0
    for scene, one, two in zip(scenes, episodes[::2], episodes[1::2], strict=True):
        assert one.instructions[0] == scene.instruction
        first, second = one.cameras["head"][0], two.cameras["head"][0]
        if (other := twin(scene)) is not None:
            same += 1
            assert np.array_equal(first, second)
            assert two.instructions[0] == other.instruction
            assert len(one) != len(two) or not np.allclose(one.actions, two.actions)
        else:
            assert not np.array_equal(first, second)
    assert same >= 2
