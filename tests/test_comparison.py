"""`athena evaluate` and `athena compare` on random weights: all rows, honest words, JSON, and errors; no training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco", reason="closed-loop evaluation needs the simulator (extra sim)")

from athena_vla import bundle as bundles
from athena_vla.bound_base import bind_base
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.normalize import Normalizer
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.errors import EvaluationError, UnknownName
from athena_vla.evaluate import CompareConfig, EvaluateConfig, Loop, compare, evaluate
from athena_vla.evaluate.comparison import Comparison, ablation_specs, baseline_specs
from athena_vla.models import openvla_chunk
from athena_vla.models.weights.store import save_tensors
from athena_vla.policy import Policy, record_golden
from athena_vla.sim.record import RecordConfig, record

SHORT = Loop(episodes=7, duration=0.4, workers=1)


def random_bundle(path: Path, robot: Embodiment, seed: int, stage: bundles.Stage = "base") -> Path:
    """Untrained weights of the smallest size."""
    torch.manual_seed(seed)
    spec = openvla_chunk.tiny_spec(
        action_dim=robot.action_dim, state_dim=robot.state_dim, horizon=4, patch=24, tower_width=16, tower_blocks=2,
        tower_heads=2, width=32, layers=1, heads=2, kv_heads=2,
    )  # fmt: skip
    model = openvla_chunk.OpenVLAChunk.from_spec(spec, {}).eval()
    generator = np.random.default_rng(seed)
    chunks = robot.default[robot.action_index] + generator.normal(0, 0.2, (60, 4, robot.action_dim))
    normalizer = Normalizer.fit(robot, chunks, robot.default + generator.normal(0, 0.2, (60, robot.state_dim)))
    images = {c: generator.integers(0, 255, (96, 96, 3), dtype=np.uint8) for c in robot.camera_names}
    golden = record_golden(
        Policy.of_model(model, robot, normalizer), [Observation(images, robot.default.copy(), "bow")]
    )
    manifest = bundles.Manifest(
        stage=stage, family=model.family, spec=spec.to_dict(), robot=robot.to_dict(), normalizer=normalizer.to_dict()
    )
    with bundles.writing(path, manifest, golden, model.tokenizer_files()) as folder:
        save_tensors(model.state_dict(), folder / bundles.MODEL_FILE)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    record(RecordConfig(out=folder / "raw", episodes=7, workers=1, image_size=32, failures=0.0, quiet=True))
    config = BuildConfig(
        input=folder / "raw", out=folder / "built", robot="athena", horizon=4, validation=0.3, stride=4, workers=1
    )
    build(config)
    return folder / "built"


@pytest.fixture(scope="module")
def pair(athena: Embodiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return random_bundle(folder / "a", athena, 0), random_bundle(folder / "b", athena, 1, "merged")


@pytest.fixture(scope="module")
def compared(
    dataset: Path, pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("out")
    result = compare(CompareConfig(a=pair[0], b=pair[1], data=dataset, out=out, samples=12, loop=SHORT))
    assert isinstance(result, Comparison)
    return result, out


def test_all_rows_are_there(compared: tuple[Comparison, Path]) -> None:
    result, _ = compared
    policies = {"untuned", "tuned"}
    rows = policies | {"hold", "mean_action", "nearest_neighbour", "replay"}
    ablated = {f"{p}.{a}" for p in policies for a in ("black_image", "other_instruction")}
    assert set(result.closed) == rows | ablated
    assert result.reference == "tuned"
    assert set(result.paired) == (rows | ablated) - {"tuned"}
    assert result.open is not None
    assert set(result.open.actors) >= rows | {"tuned.black_image"}
    assert result.closed["tuned"].success.n == 7
    assert result.closed["tuned.black_image"].success.n == 4
    assert all(s.violations == 0 for s in result.closed.values())


def test_what_black_pictures_and_other_words_take_away_stands_in_columns(compared: tuple[Comparison, Path]) -> None:
    result, out = compared
    closed, open_ = (part.splitlines() for part in str(result).split("\n\n") if "black image " in part.splitlines()[0])
    for table in (closed, open_):
        assert "black image" in table[0]
        assert "other instruction" in table[0]
        assert not [line for line in table if "black_image" in line], "columns, not rows"
    found = result.ablations
    assert set(found) == {"tuned", "untuned"}
    lost = found["tuned"]["black_image"]
    # By hand: the scenes that both played, and the recordings' errors.
    blind = {e.scene: e.success for e in result.episodes["tuned.black_image"]}
    seeing = {e.scene: e.success for e in result.episodes["tuned"]}
    assert lost.success is not None
    assert lost.success_lost is not None
    assert lost.success.n == len(blind) == 4
    assert lost.success_lost.value == pytest.approx(sum(seeing[s] - blind[s] for s in blind) / len(blind))
    assert result.open is not None
    errors = {n: result.open.actors[n].mae.value for n in ("tuned", "tuned.black_image")}
    assert lost.error_added is not None
    assert lost.answer_moved is not None
    assert lost.error_added.value == pytest.approx(errors["tuned.black_image"] - errors["tuned"])
    assert lost.answer_moved.value > 0
    row = next(line for line in open_ if line.startswith("tuned "))
    assert f"{lost.error_added.value:+.4f} (moves {lost.answer_moved.value:.4f})" in row
    assert next(line for line in closed if line.startswith("hold ")).count(" - ") >= 2, "not tried"
    raw = json.loads((out / "comparison.json").read_text())
    assert raw["ablations"]["untuned"]["other_instruction"]["success"]["n"] == 4
    assert raw["ablations"]["tuned"]["black_image"]["error_added"] == lost.error_added.to_dict()


def test_what_the_reference_kept_of_the_other_policy_is_counted(compared: tuple[Comparison, Path]) -> None:
    result, _ = compared
    others = [r.name for r in result.rows if r.kind == "policy" and r.ablation == "none" and r.name != result.reference]
    assert list(result.kept) == others
    for name, tasks in result.kept.items():
        mine, theirs = ({e.scene: e.success for e in result.episodes[n]} for n in (result.reference, name))
        counted = {k: sum(getattr(t, k) for t in tasks.values()) for k in ("kept", "lost", "gained", "neither")}
        assert sum(counted.values()) == len(mine.keys() & theirs.keys())
        assert counted["lost"] == result.paired[name].only_second
        assert counted["gained"] == result.paired[name].only_first
        assert f"{result.reference} of {name}" in str(result)
    assert result.to_dict()["kept"].keys() == result.kept.keys()


def test_it_says_what_untuned_means(compared: tuple[Comparison, Path]) -> None:
    assert any("before any fine-tuning" in n and "'athena'" in n for n in compared[0].notes)


def test_the_text_names_every_row_and_the_json_is_the_result(compared: tuple[Comparison, Path]) -> None:
    result, out = compared
    text = str(result)
    assert all(f"\n{row.name} " in text for row in result.rows if row.ablation == "none")
    assert "McNemar" in text
    assert result.open is not None
    per_task = next(part for part in text.split("\n\n") if part.startswith("per task MAE")).splitlines()
    assert len(per_task) == 2 + sum(row.ablation == "none" for row in result.rows), "errors per task of every actor"
    task, error = next(iter(result.open.actors["hold"].per_task.items()))
    assert task in per_task[0]
    assert f"{error.value:.4f}" in next(line for line in per_task if line.startswith("hold "))
    raw = json.loads((out / "comparison.json").read_text())
    assert raw["closed_loop"]["tuned"]["success"] == result.closed["tuned"].success.to_dict()
    assert raw["open_loop"]["actors"]["hold"]["mae"]["value"] == result.open.actors["hold"].mae.value  # type: ignore[union-attr]
    assert set(raw["paired"]["hold"]) >= {"exact_p", "mid_p", "difference"}


def test_a_second_run_reuses_its_episodes_and_says_so(
    dataset: Path, pair: tuple[Path, Path], compared: tuple[Comparison, Path]
) -> None:
    first, out = compared
    again = compare(CompareConfig(a=pair[0], b=pair[1], data=dataset, out=out, samples=12, loop=SHORT))
    assert isinstance(again, Comparison)
    assert again.reused["tuned"] == 7
    assert again.closed == first.closed
    assert again.open == first.open


def test_without_a_dataset_only_hold_still_is_a_baseline(pair: tuple[Path, Path], tmp_path: Path) -> None:
    loop = dataclasses.replace(SHORT, episodes=2)
    result = evaluate(EvaluateConfig(bundle=pair[0], out=tmp_path, ablations=False, loop=loop))
    assert set(result.closed) == {"policy", "hold"}
    assert result.open is None
    assert any("made from its training split" in n for n in result.notes)


def test_recordings_alone_are_enough(dataset: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    loop = dataclasses.replace(SHORT, episodes=0)
    result = evaluate(EvaluateConfig(bundle=pair[0], data=dataset, out=tmp_path, samples=6, loop=loop))
    assert result.closed == {}
    assert result.open is not None
    assert any("No closed loop" in n for n in result.notes)


def test_a_base_of_another_robot_is_bound_and_labelled(dataset: Path, toy: Embodiment, tmp_path: Path) -> None:
    other = random_bundle(tmp_path / "toy", toy, 0)
    opened = Dataset.open(dataset)
    bound = bundles.Bundle.open(bind_base(bundles.Bundle.open(other), opened, tmp_path / "bound"))
    assert bound.robot.hash == opened.robot.hash
    assert bound.normalizer.to_dict() == opened.normalizer.to_dict()
    assert "3 action dimensions" in bound.manifest.stage_info["rebound"]
    # What does not depend on the robot is the base's own.
    theirs, mine = bundles.Bundle.open(other).model().state_dict(), bound.model().state_dict()
    same = [k for k in theirs if k in mine and theirs[k].shape == mine[k].shape]
    assert sum(torch.equal(theirs[k], mine[k]) for k in same) > 0.8 * len(theirs)
    loop = dataclasses.replace(SHORT, episodes=0)
    tuned = random_bundle(tmp_path / "tuned", opened.robot, 1, "merged")
    result = compare(CompareConfig(a=other, b=tuned, data=dataset, out=tmp_path / "c", samples=4, loop=loop))
    assert isinstance(result, Comparison)
    assert any("re-bound" in n and "no chance" in n for n in result.notes)


def test_what_does_not_fit_is_refused(dataset: Path, toy: Embodiment, tmp_path: Path) -> None:
    other = random_bundle(tmp_path / "toy", toy, 0, "merged")
    with pytest.raises(EvaluationError, match="drives 'toy'.*'athena'"):
        evaluate(EvaluateConfig(bundle=other, data=dataset, out=tmp_path, loop=SHORT))
    with pytest.raises(EvaluationError, match="nothing to evaluate on"):
        evaluate(EvaluateConfig(bundle=other, out=tmp_path, loop=SHORT))
    with pytest.raises(UnknownName, match="nearest_neighbour"):
        baseline_specs(tmp_path, ["nearest"])


def test_ablations_keep_everything_else() -> None:
    (spec,) = baseline_specs(Path("x"), ["replay"])
    black, deaf = ablation_specs(spec)
    assert (black.kind, black.source, black.ablation) == ("replay", "x", "black_image")
    assert (deaf.name, deaf.ablation) == ("replay.other_instruction", "other_instruction")
