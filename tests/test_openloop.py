"""Open-loop errors against a slow reference, and what each of its numbers is for."""

import numpy as np
import pytest

from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.baselines import BlackImage, HoldStill
from athena_vla.evaluate.openloop import OpenLoopResult, open_loop, other_instructions, spread
from athena_vla.recordings.episode import Sample

HORIZON, JOINTS = 5, 3


def make_samples(episodes: int = 6, length: int = 9, seed: int = 0) -> list[Sample]:
    generator = np.random.default_rng(seed)
    samples = []
    for e in range(episodes):
        motion = np.cumsum(generator.normal(0, 0.05, size=(length, JOINTS)), axis=0)
        for f in range(0, length, 2):
            rows = np.minimum(np.arange(f, f + HORIZON), length - 1)
            picture = generator.integers(0, 255, size=(4, 4, 3), dtype=np.uint8)
            samples.append(
                Sample(
                    Observation({"front": picture}, motion[f], ("touch", "look")[e % 2], 17.0),
                    motion[rows].astype(np.float32),
                    np.arange(f, f + HORIZON) < length,
                    f"{e:03d}",
                    f,
                    "validation",
                )
            )
    return samples


class Scripted:
    """Answers with the truth plus an error that depends on what it sees."""

    def __init__(self, robot: Embodiment, samples: list[Sample], offset: float) -> None:
        self.robot, self.offset = robot, offset
        self.truth = {s.observation.state.tobytes(): s.chunk for s in samples}

    def act(self, observation: Observation, /) -> ActionChunk:
        brightness = observation.images["front"].mean() / 255
        wave = np.sin(np.arange(HORIZON * JOINTS)).reshape(HORIZON, JOINTS)
        positions = self.truth[observation.state.tobytes()] + self.offset * wave + 0.3 * (brightness - 0.5)
        return ActionChunk(positions, self.robot.action_joints, 0.1)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return make_samples()


@pytest.fixture(scope="module")
def result(toy: Embodiment, samples: list[Sample]) -> OpenLoopResult:
    tuned = Scripted(toy, samples, 0.02)
    actors = {"tuned": tuned, "hold": HoldStill(toy, remember=False), "black": BlackImage(tuned)}
    return open_loop(actors, samples, toy, ablation_of={"black": "tuned"}, seed=3)


def test_every_error_equals_the_slow_reference(toy: Embodiment, samples: list[Sample], result: OpenLoopResult) -> None:
    actor = Scripted(toy, samples, 0.02)
    cells = []  # (sample, row, joint, error)
    for s in samples:
        answer = actor.act(s.observation).positions
        cells += [
            (s, h, j, abs(answer[h, j] - s.chunk[h, j])) for h in range(HORIZON) for j in range(JOINTS) if s.valid[h]
        ]
    errors = result.actors["tuned"]
    assert errors.mae.value == pytest.approx(np.mean([c[3] for c in cells]))
    assert errors.maximum == pytest.approx(max(c[3] for c in cells))
    assert errors.first_step.value == pytest.approx(np.mean([c[3] for c in cells if c[1] == 0]))
    assert errors.p95.value == pytest.approx(np.quantile([c[3] for c in cells], 0.95, method="inverted_cdf"))
    for j, name in enumerate(toy.action_joints):
        assert errors.per_joint[name] == pytest.approx(np.mean([c[3] for c in cells if c[2] == j]))
    for h in range(HORIZON):
        assert errors.per_horizon[h] == pytest.approx(np.mean([c[3] for c in cells if c[1] == h]))
    for task in ("touch", "look"):
        mine = [c[3] for c in cells if c[0].observation.instruction == task]
        assert errors.per_task[task].value == pytest.approx(np.mean(mine))
    assert result.samples == len(samples)
    assert result.episodes == 6
    assert result.tasks == {"look": 15, "touch": 15}


def test_intervals_surround_their_values(result: OpenLoopResult) -> None:
    for errors in result.actors.values():
        for interval in (errors.mae, errors.first_step, errors.p95, *errors.per_task.values()):
            assert interval.low <= interval.value <= interval.high


def test_the_difference_to_the_reference_is_paired(result: OpenLoopResult) -> None:
    hold, tuned = result.actors["hold"], result.actors["tuned"]
    assert tuned.minus_reference is None
    assert hold.minus_reference is not None
    assert hold.minus_reference.value == pytest.approx(hold.mae.value - tuned.mae.value)


def test_an_ablation_reports_how_far_the_answer_moves(samples: list[Sample], result: OpenLoopResult) -> None:
    change = result.actors["black"].change
    assert change is not None
    moves = [0.3 * s.observation.images["front"].mean() / 255 * s.valid.sum() for s in samples]
    assert change.value == pytest.approx(sum(moves) / sum(s.valid.sum() for s in samples))
    assert result.actors["tuned"].change is None


def test_a_blind_actor_is_seen_to_be_blind(toy: Embodiment, samples: list[Sample]) -> None:
    blind = HoldStill(toy, remember=False)
    result = open_loop({"blind": blind, "black": BlackImage(blind)}, samples, toy, ablation_of={"black": "blind"})
    change = result.actors["black"].change
    assert change is not None
    assert change.value == change.high == 0.0


def test_roughness_and_seam_vanish_for_the_truth_of_a_straight_line(toy: Embodiment) -> None:
    line = np.arange(12)[:, None] * np.array([0.01, -0.02, 0.03])
    samples = [
        Sample(
            Observation({"front": np.zeros((4, 4, 3), np.uint8)}, line[f], "go"),
            line[f : f + HORIZON].astype(np.float32),
            np.ones(HORIZON, bool),
            "0",
            f,
        )
        for f in range(0, 6, 2)
    ]
    result = open_loop({"truth": Scripted(toy, samples, 0.0)}, samples, toy)
    errors = result.actors["truth"]
    assert errors.roughness == pytest.approx(0, abs=1e-7)
    assert errors.seam == pytest.approx(0, abs=1e-7)
    rough = open_loop({"wave": Scripted(toy, samples, 0.1)}, samples, toy).actors["wave"]
    assert rough.roughness > 0.01
    assert rough.seam is not None
    assert rough.seam > 0.01


def test_chunks_of_other_horizons_are_cut_or_held(toy: Embodiment, samples: list[Sample]) -> None:
    lengths = {n: HoldStill(toy, horizon=n, remember=False) for n in (1, HORIZON, 9)}
    result = open_loop({str(n): a for n, a in lengths.items()}, samples, toy)
    assert result.actors["1"].mae == result.actors["5"].mae == result.actors["9"].mae


def test_baselines_play_by_the_time_since_the_start_of_the_episode(toy: Embodiment, samples: list[Sample]) -> None:
    times: list[float] = []

    class Clock(HoldStill):
        def act(self, observation: Observation, /) -> ActionChunk:
            times.append(observation.time)
            return super().act(observation)

    open_loop({"clock": Clock(toy)}, samples, toy)
    assert times == pytest.approx([s.frame / 10 for s in samples])


def test_nothing_to_evaluate_is_an_error(toy: Embodiment, samples: list[Sample]) -> None:
    with pytest.raises(EvaluationError, match="no sample"):
        open_loop({"hold": HoldStill(toy)}, [], toy)
    with pytest.raises(EvaluationError, match="at least one actor"):
        open_loop({}, samples, toy)
    with pytest.raises(EvaluationError, match="no actor 'tuned'.*hold"):
        open_loop({"hold": HoldStill(toy)}, samples, toy, reference="tuned")


def test_spread_keeps_both_ends_and_never_repeats() -> None:
    assert list(spread(4, 10)) == [0, 1, 2, 3]
    chosen = spread(1000, 7)
    assert chosen[0] == 0
    assert chosen[-1] == 999
    assert len(chosen) == len(set(chosen)) == 7
    assert np.ptp(np.diff(chosen)) <= 1


def test_every_instruction_gets_one_of_another_kind() -> None:
    kinds = {"touch the ball": "touch", "touch a ball": "touch", "bow": "bow"}
    assert other_instructions(kinds) == {"bow": "touch a ball", "touch a ball": "bow", "touch the ball": "bow"}
    assert other_instructions({"only": "task", "again": "task"}) == {}


def test_tasks_can_be_coarser_than_instructions(toy: Embodiment, samples: list[Sample]) -> None:
    result = open_loop({"hold": HoldStill(toy, remember=False)}, samples, toy, tasks=["all"] * len(samples))
    assert result.tasks == {"all": len(samples)}
    assert result.actors["hold"].per_task["all"].value == pytest.approx(result.actors["hold"].mae.value)
