"""Closed loop with scripted actors in the real simulator: paired scenes, reproducible, resumable, honest counts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="closed-loop evaluation needs the simulator (extra sim)")

from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.baselines import Library, Trajectory
from athena_vla.evaluate.closedloop import ClosedLoopConfig, ClosedLoopResult, closed_loop
from athena_vla.evaluate.failures import ANOTHER, SHORT, cause
from athena_vla.evaluate.results import EpisodeResult, Setup
from athena_vla.evaluate.rollout import Stage
from athena_vla.evaluate.statistics import wilson
from athena_vla.evaluate.summary import compare_pair, summarise
from athena_vla.evaluate.violations import count_violations
from athena_vla.progress import Nowhere, Progress, State
from athena_vla.sim.experts import Expert
from athena_vla.sim.tasks import sample_scene

SETUP = Setup(duration=3.0, image_size=(24, 24))
HOLD = ActorSpec("hold", "hold")


@pytest.fixture(scope="module")
def replay(athena: Embodiment, tmp_path_factory: pytest.TempPathFactory) -> ActorSpec:
    """One demonstration of "raise your left arm", replayed whatever is asked."""
    stage = Stage(SETUP, athena)
    seed = next(s for s in range(99) if sample_scene(s, "train").goal.family == "raise")
    scene = sample_scene(seed, "train")
    stage.sim.reset(scene)
    motion = Expert(stage.sim.world).plan(scene)
    rows = np.stack([motion.at((k + 1) / athena.control_hz) for k in range(35)]).astype(np.float32)
    chunks = np.stack([rows[np.minimum(np.arange(f, f + 8), 34)] for f in range(35)])
    library = Library(
        athena.hash,
        np.arange(35),
        np.zeros(35, np.int64),
        np.zeros((35, 3), np.float32),
        rows,
        (scene.instruction,),
        np.zeros(35, np.int64),
        chunks,
        np.ones((35, 8), bool),
    )
    path = tmp_path_factory.mktemp("library") / "library.npz"
    library.save(path)
    return ActorSpec("replay", "replay", str(path))


def settings(tmp_path: Path, **changes: object) -> ClosedLoopConfig:
    return ClosedLoopConfig(**{"out": tmp_path, "episodes": 7, "workers": 1, "setup": SETUP, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(replay: ActorSpec, tmp_path_factory: pytest.TempPathFactory) -> ClosedLoopResult:
    return closed_loop([HOLD, replay], settings(tmp_path_factory.mktemp("reference")))


def decided(result: ClosedLoopResult) -> dict[str, list[dict[str, object]]]:
    """Everything but the wall clock."""
    return {n: [{**e.to_dict(), "wall": None} for e in rows] for n, rows in result.episodes.items()}


def test_every_actor_sees_the_same_scenes(reference: ClosedLoopResult) -> None:
    hold, replay = reference.episodes["hold"], reference.episodes["replay"]
    assert [e.scene for e in hold] == [e.scene for e in replay] == list(reference.scenes)
    assert [e.instruction for e in hold] == [e.instruction for e in replay]
    assert len({e.task for e in hold}) == 7


def test_hold_still_fails_and_the_filter_has_nothing_to_do(reference: ClosedLoopResult) -> None:
    summary = reference.actors["hold"]
    hold = reference.episodes["hold"]
    assert {e.cause for e in hold if not e.success} <= {SHORT, ANOTHER}
    assert all(e.missed_by is not None and e.missed_by > 0 for e in hold if e.cause == SHORT)
    assert summary.success.success == 0.0
    assert (summary.touched, summary.violations) == (0, 0)
    assert 0 < summary.commands <= 7 * 3 * 200  # an episode ends early where the start already looks at another object


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_workers(replay: ActorSpec, reference: ClosedLoopResult, tmp_path: Path) -> None:
    other = closed_loop([HOLD, replay], settings(tmp_path, workers=2))
    assert decided(other) == decided(reference)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_says_what_it_reuses(
    replay: ActorSpec, reference: ClosedLoopResult, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    class StopAfterFour(Nowhere):
        def show(self, state: State) -> None:
            if state.done == 4:
                raise Stop

    with pytest.raises(Stop):
        closed_loop([HOLD, replay], settings(tmp_path), Progress(StopAfterFour()))
    with (tmp_path / "hold.jsonl").open("a") as file:
        file.write('{"scene": 5, "actor": "ho')  # killed in the middle of a line
    again = closed_loop([HOLD, replay], settings(tmp_path))
    assert again.reused == {"hold": 4, "replay": 0}
    assert decided(again) == decided(reference)
    third = closed_loop([HOLD, replay], settings(tmp_path))
    assert third.reused == {"hold": 7, "replay": 7}
    assert decided(third) == decided(reference)


def test_results_of_another_setup_are_not_reused(tmp_path: Path) -> None:
    closed_loop([HOLD], settings(tmp_path, episodes=1))
    other = Setup(duration=0.5, image_size=(24, 24))
    result = closed_loop([HOLD], settings(tmp_path, episodes=1, setup=other))
    assert result.reused == {"hold": 0}
    assert result.actors["hold"].commands == 100
    assert (tmp_path / "hold.old").is_file()


def test_other_seeds_are_other_scenes(reference: ClosedLoopResult, tmp_path: Path) -> None:
    result = closed_loop([HOLD], settings(tmp_path, episodes=2, seed=1))
    assert not set(result.scenes) & set(reference.scenes)


def test_the_expert_succeeds_without_violations(athena: Embodiment) -> None:
    stage = Stage(Setup(image_size=(24, 24)), athena)
    outcomes = []
    for seed in range(7):
        scene = sample_scene(seed, "test")
        stage.sim.reset(scene)
        plan = Expert(stage.sim.world).plan(scene)
        rows = np.stack([plan.at((k + 1) / athena.control_hz) for k in range(70)])
        outcomes.append(stage.play(scene, HOLD, Trajectory(athena, rows[:, athena.action_index], 8)))
    assert sum(o.success for o in outcomes) >= 6
    assert all(o.violations == 0 for o in outcomes)
    assert all(o.time_to_success is not None and 0.4 <= o.time_to_success <= 6 for o in outcomes if o.success)
    assert all(o.worst_velocity <= 1 + 1e-6 for o in outcomes)


class Wild:
    """Jumps between the limits."""

    def __init__(self, robot: Embodiment) -> None:
        self.robot = robot

    def act(self, observation: Observation, /) -> ActionChunk:
        rows = np.array([self.robot.upper + 1, self.robot.lower - 1] * 4)[:, self.robot.action_index]
        return ActionChunk(rows, self.robot.action_joints, 0.1, observation.time)


def test_a_wild_actor_is_caught_by_the_filter_and_counted(athena: Embodiment) -> None:
    stage = Stage(Setup(duration=1.0, image_size=(24, 24)), athena)
    result = stage.play(sample_scene(0, "test"), HOLD, Wild(athena))
    assert result.violations == 0
    assert result.touched > 50
    assert sum(result.interventions.values()) > 0
    assert result.interventions == {k: sum(v.values()) for k, v in result.interventions_by_joint.items()}


def test_ablations_play_only_scenes_with_an_object(tmp_path: Path) -> None:
    black = ActorSpec("hold.black_image", "hold", ablation="black_image")
    result = closed_loop([HOLD, black], settings(tmp_path, setup=Setup(duration=0.1, image_size=(24, 24))))
    assert {e.task for e in result.episodes["hold.black_image"]} == {"touch", "point", "look", "push"}
    assert result.actors["hold.black_image"].success.n == 4


def test_two_actors_of_one_name_and_no_episodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="names of their own"):
        closed_loop([HOLD, HOLD], settings(tmp_path))
    with pytest.raises(EvaluationError, match="0 episodes"):
        closed_loop([HOLD], settings(tmp_path, episodes=0))


def test_violations_are_counted_from_differences(toy: Embodiment) -> None:
    rate, start = toy.command_hz, np.zeros(3)
    still = np.zeros((5, 3))
    assert count_violations(still, start, toy).total == 0
    jump = still.copy()
    jump[2:, 0] = 0.5  # 50 rad/s for one step at 100 Hz, limits 2 rad/s and 10 rad/s^2
    found = count_violations(jump, start, toy)
    assert (found.velocity, found.acceleration, found.position) == (1, 2, 0)
    assert found.worst_velocity == pytest.approx(0.5 * rate / 2.0)
    assert found.worst_acceleration == pytest.approx(0.5 * rate**2 / 10.0)
    # At the limits exactly nothing is violated: accelerate at 10 rad/s^2 from rest.
    t = np.arange(1, 11)
    ramp = np.zeros((10, 3))
    ramp[:, 0] = 10.0 / rate**2 * t * (t + 1) / 2
    edge = count_violations(ramp, start, toy)
    assert edge.total == 0
    assert edge.worst_acceleration == pytest.approx(1.0)
    beyond = still.copy()
    beyond[:, 2] = 0.81
    assert count_violations(beyond, beyond[0], toy).position == 5
    bad = still.copy()
    bad[1, 1] = np.nan
    assert count_violations(bad, start, toy).not_finite == 1
    with pytest.raises(EvaluationError, match="Commands of 'toy'"):
        count_violations(np.zeros((4, 2)), start, toy)


def result(scene: int, success: bool, task: str = "touch") -> EpisodeResult:
    return EpisodeResult(
        "a", scene, task, "touch it", success, 1.0 + scene if success else None, 200, 3, {"velocity": 2},
        {"velocity": {"waist_yaw": 2}}, 0, 0.5, 0.9, (), {"total": 1.0, "acting": 0.1, "per_act": 0.01},
    )  # fmt: skip


def test_summaries_add_up() -> None:
    summary = summarise([result(0, True), result(1, False), result(2, True, "look")])
    assert summary.success == wilson(2, 3)
    assert summary.per_task == {"look": wilson(1, 1), "touch": wilson(1, 2)}
    assert summary.median_time_to_success == 2.0
    assert (summary.commands, summary.touched, summary.intervention_rate) == (600, 9, 9 / 600)
    assert summary.interventions == {"velocity": 6}
    assert summary.interventions_by_joint == {"velocity": {"waist_yaw": 6}}
    with pytest.raises(EvaluationError, match="No episode"):
        summarise([])


def failed(scene: int, cause: str, missed_by: float | None = None, unit: str = "m") -> EpisodeResult:
    return replace(result(scene, False), cause=cause, missed_by=missed_by, unit=unit)


def test_failures_are_sorted_by_cause() -> None:
    rows = [
        result(0, True),
        failed(1, SHORT, 0.02),
        failed(2, ANOTHER, 0.2),
        failed(3, SHORT, 0.06),
        failed(4, SHORT, 9.0, "deg"),
        failed(5, ""),
    ]
    short, *others = summarise(rows).failures
    assert (short.cause, short.count, short.missed) == (SHORT, 3, {"m": 0.04, "deg": 9.0})
    assert [e.scene for e in short.episodes] == [4, 3, 1]
    assert str(short) == "3 short of the goal (by 4.0 cm, 9.0 degrees)"
    assert [(f.cause, f.count, f.missed) for f in others] == [(ANOTHER, 1, {}), ("not said", 1, {})]
    assert summarise([result(0, True)]).failures == ()


@pytest.mark.parametrize(
    ("seen", "cause_of"),
    [
        ({"out_of_reach": "another object", "chunks": 3, "stopped": True, "missed_by": 0.1}, ANOTHER),
        ({"out_of_reach": "", "chunks": 0, "stopped": True, "missed_by": 0.1}, "the policy failed"),
        ({"out_of_reach": "", "chunks": 3, "stopped": True, "missed_by": 0.1}, "stopped by the filter"),
        ({"out_of_reach": "", "chunks": 3, "stopped": False, "missed_by": 0.0}, "reached, not held"),
        ({"out_of_reach": "", "chunks": 3, "stopped": False, "missed_by": None}, SHORT),
    ],
)
def test_the_first_cause_that_holds(seen: dict[str, Any], cause_of: str) -> None:
    assert cause(**seen) == cause_of


def test_pairs_are_taken_on_common_scenes_only() -> None:
    test = compare_pair({1: True, 2: True, 3: False}, {2: False, 3: False, 4: True})
    assert (test.only_first, test.only_second, test.both, test.neither) == (1, 0, 0, 1)
    with pytest.raises(EvaluationError, match="share no scene"):
        compare_pair({1: True}, {2: True})


def test_results_survive_json() -> None:
    episode = result(4, True)
    assert EpisodeResult.from_dict(json.loads(json.dumps(episode.to_dict()))) == episode
