"""Several sets in one training: who is drawn how often, one normaliser, validation per set, and what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from athena_vla.cli import arguments
from athena_vla.cli.table import COMMANDS
from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.dataset.mixed import MixedSet, WeightedSet
from athena_vla.dataset.normalize import NormalizerFit
from athena_vla.dataset.windows import chunks, starts
from athena_vla.errors import AthenaError, DatasetError
from athena_vla.finetune import FinetuneConfig, finetune
from athena_vla.finetune.batches import Order
from athena_vla.finetune.log import read
from recordings import clean, write
from small_bundles import small_run, write_base


def made(root: Path, name: str, first: int, count: int, **changes) -> Path:
    kinds = ("touch", "wave")
    write(root / f"rec-{name}", *(clean(first + i, length=14, kind=kinds[i % 2]) for i in range(count)))
    settings = {"robot": "toy", "horizon": 4, "workers": 1, "validation": 0.3, **changes}
    build(BuildConfig(input=root / f"rec-{name}", out=root / name, **settings))
    return root / name


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    made(root, "a", 0, 8)
    made(root, "b", 50, 4)
    write_base(root / "base", toy)
    return root


def of(world: Path, *weights: float) -> MixedSet:
    wanted = [WeightedSet(str(world / n), w) for n, w in zip("ab", weights, strict=True)]
    found = MixedSet.open_all(wanted)
    assert isinstance(found, MixedSet)
    return found


def config(world: Path, out: Path, **changes) -> FinetuneConfig:
    fields = {
        "model": str(world / "base"),
        "mix": (f"{world / 'a'}=1", f"{world / 'b'}=0.5"),
        "out": out,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "evaluate_every": 3,
        "augment": False,
        "device": "cpu",
        "select": "last",
        "log_every": 1,
    }
    return small_run(**{**fields, **changes})


def test_samples_lie_behind_each_other_and_stay_what_they_are(world) -> None:
    mixed, sets = of(world, 1, 0.5), [Dataset.open(world / n) for n in "ab"]
    assert len(mixed) == sum(map(len, sets))
    for index in (0, len(sets[0]) - 1, len(sets[0]), len(mixed) - 1):
        number, within = (0, index) if index < len(sets[0]) else (1, index - len(sets[0]))
        own, there = sets[number][within], mixed[index]
        assert there.episode == f"{'ab'[number]}/{own.episode}"
        assert np.array_equal(there.chunk, own.chunk)
        assert there.observation.instruction == own.observation.instruction
        assert np.array_equal(there.observation.images["front"], own.observation.images["front"])
    assert {mixed.episodes[i]["id"].split("/")[0] for i in range(len(mixed.episodes))} == {"a", "b"}
    assert [mixed.texts(i) for i in range(len(mixed.episodes))] == [
        s.texts(i) for s in sets for i in range(len(s.episodes))
    ]
    assert len(set(mixed.frame_of_sample)) == sum(len(set(s.frame_of_sample)) for s in sets)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.3), (0.2, 3.0)])
@pytest.mark.parametrize("balance", [True, False])
def test_sets_are_drawn_by_their_weights_whatever_their_sizes(world, tmp_path, weights, balance) -> None:
    mixed = of(world, *weights)
    order = Order(mixed, mixed.train, config(world, tmp_path / "x", balance=balance, batch=8), world=1)
    epochs = 30
    drawn = np.concatenate([order._epoch(e) for e in range(epochs)])
    assert len(drawn) == epochs * len(mixed.train)
    share = np.bincount(mixed.set_of_sample[drawn], minlength=2) / len(drawn)
    assert np.abs(share - np.array(weights) / sum(weights)).max() < 0.02
    assert set(drawn) <= set(mixed.train.tolist())
    if balance:  # kinds alike within a set
        of_a = Counter(mixed.named_kinds[i] for i in drawn if mixed.set_of_sample[i] == 0)
        assert abs(of_a["touch"] / sum(of_a.values()) - 0.5) < 0.03


def test_one_set_is_drawn_as_before_there_were_several(world, tmp_path) -> None:
    """The order of a run on one set is part of what a seed stands for."""
    alone = Dataset.open(world / "a")
    order = Order(alone, alone.train, config(world, tmp_path / "x", mix=(), data=world / "a"), world=1)
    kinds = np.array([alone.named_kinds[i] for i in alone.train])
    rng = np.random.default_rng([0, 101, 2])
    groups = [alone.train[kinds == k] for k in sorted(set(kinds.tolist()))]
    share = -(-len(alone.train) // len(groups))
    drawn = [
        np.concatenate([rng.permutation(group) for _ in range(-(-share // len(group)))])[:share] for group in groups
    ]
    together = np.concatenate(drawn)
    assert np.array_equal(order._epoch(2), together[rng.permutation(len(together))][: len(alone.train)])


def test_statistics_are_those_of_all_training_episodes(world) -> None:
    mixed = of(world, 1, 0.5)
    fit = NormalizerFit(mixed.robot)
    for name in "ab":
        one = Dataset.open(world / name)
        for states, actions in one.training_numbers():
            windows, valid = chunks(actions, starts(len(states), one.stride), one.horizon)
            fit.add(windows, states[starts(len(states), one.stride)], valid)
    assert mixed.normalizer.to_dict() == fit.finish().to_dict()
    assert mixed.normalizer.to_dict() != Dataset.open(world / "a").normalizer.to_dict()
    assert of(world, 1, 0.5).hash == mixed.hash
    assert of(world, 1, 0.6).hash != mixed.hash


def test_a_run_says_what_it_draws_measures_each_set_and_goes_on_exactly(world, tmp_path, interrupted_at_step) -> None:
    whole = finetune(config(world, tmp_path / "whole"))
    told = " ".join(str(line.get("note", "")) for line in read(tmp_path / "whole.run" / "log.jsonl"))
    assert "2 sets: a 66.7%" in told
    assert "one normaliser, fitted on all of them" in told
    assert set(whole.validation["sets"]) == {"a", "b"}
    counts = {n: one["samples"] for n, one in whole.validation["sets"].items()}
    assert sum(counts.values()) == whole.validation["samples"]
    weighted = sum(one["mae_rad"] * counts[n] for n, one in whole.validation["sets"].items()) / sum(counts.values())
    assert weighted == pytest.approx(whole.validation["mae_rad"], rel=0.25)  # chunks end differently often
    interrupted_at_step(4, config(world, tmp_path / "cut"))
    finetune(config(world, tmp_path / "cut"))
    files = [load_file(tmp_path / n / "weights" / "adapter.safetensors") for n in ("whole", "cut")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][k], files[1][k]) for k in files[0])
    with pytest.raises(AthenaError, match="another run"):
        finetune(config(world, tmp_path / "cut", mix=(f"{world / 'a'}=1", f"{world / 'b'}=0.7"), max_steps=8))


@pytest.mark.parametrize(
    ("text", "found"),
    [("a", ("a", 1.0)), ("a=0.3", ("a", 0.3)), ("x=y/a=2", ("x=y/a", 2.0)), ("org/name=1e-3", ("org/name", 1e-3))],
)
def test_a_set_is_written_with_its_weight(text, found) -> None:
    assert WeightedSet.parse(text) == WeightedSet(*found)


@pytest.mark.parametrize("text", ["a=0", "a=-1", "a=nan", "a=inf", "a=much"])
def test_a_weight_that_is_none_is_refused(text) -> None:
    with pytest.raises(DatasetError, match="weight"):
        WeightedSet.parse(text)


def test_a_folder_with_a_sign_in_its_name_is_a_folder(tmp_path) -> None:
    (tmp_path / "rate=0.3").mkdir()
    assert WeightedSet.parse(str(tmp_path / "rate=0.3")).weight == 1.0


def test_what_cannot_be_mixed_is_refused_with_what_differs(world, tmp_path) -> None:
    made(tmp_path, "long", 0, 4, horizon=6)
    with pytest.raises(DatasetError, match=r"chunks of 4 steps .* 6"):
        MixedSet.open_all([WeightedSet(str(world / "a")), WeightedSet(str(tmp_path / "long"))])
    with pytest.raises(DatasetError, match="named twice"):
        MixedSet.open_all([WeightedSet(str(world / "a")), WeightedSet(str(world / "b")), WeightedSet(str(world / "b"))])
    other = Dataset.open(world / "b")
    other.robot = type(other.robot).from_dict({**other.robot.to_dict(), "name": "cousin", "control_hz": 20.0})
    from athena_vla.dataset import mixed

    with pytest.raises(DatasetError, match=r"robot 'toy', .* of 'cousin': control_hz, name differ"):
        mixed._require_alike("a", Dataset.open(world / "a"), "b", other)


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        (["--data", "a"], ["--data", "a"]),
        (["--data", "a=1", "b=0.3", "--out", "x"], ["--mix", "a=1", "b=0.3", "--out", "x"]),
        (["--out", "x", "--data", "a", "b"], ["--out", "x", "--mix", "a", "b"]),
        (["--data", "a=2"], ["--mix", "a=2"]),
    ],
)
def test_the_command_line_takes_sets_behind_data(words, parsed) -> None:
    assert arguments.in_order(COMMANDS["train"], words) == parsed


def test_a_set_that_is_not_there_is_named_before_anything_is_opened(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(AthenaError, match="nothing at 'b'"):
        arguments.require_inputs("train", COMMANDS["train"], ["--data", "a=1", "b=0.3"])
