"""Options that make instructions count: pairs of one scene in a batch, and a margin between instructions."""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportArgumentType=false, reportCallIssue=false

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.dataset.mixed import MixedSet, WeightedSet
from athena_vla.errors import ModelError, TrainingError
from athena_vla.finetune import FinetuneConfig, finetune
from athena_vla.finetune.base import start
from athena_vla.finetune.batches import Loader, Order
from athena_vla.finetune.listening.margin import OTHER, WORDS, margin_loss
from athena_vla.finetune.listening.scene_pairs import SAME, ScenePairs, coarse
from athena_vla.finetune.listening.swapped import OtherInstructions, meanings
from athena_vla.finetune.log import read
from athena_vla.models.architecture import Architecture
from athena_vla.policy import Policy
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.texts import said
from recordings import Pixels, clean, pictures, write
from small_bundles import small_run, write_base
from test_training_numbers import gradient, relative

FAMILIES = {"openvla": {"tokens": True}, "openvla_chunk": {}, "openvla_oft": {"oft": True}}
LENGTH = 12
SAYS = {  # direction of the shoulder -> wordings of it; what is said first differs from episode to episode
    1.0: ("raise the arm", "lift the arm up"),
    -1.0: ("lower the arm", "let the arm down"),
}


def told(number: int, scene: int, direction: float, wordings: Sequence[str] = ()) -> Episode:
    """From the same start and image in a scene the shoulder goes up or down: only the text says which."""
    episode = clean(scene, length=LENGTH)
    t = np.arange(LENGTH) / LENGTH
    actions = np.tile([0.1, 0.1, 0.3], (LENGTH, 1))
    actions[:, 1] += direction * 0.5 * (1 - np.cos(np.pi * (t + 1 / LENGTH))) / 2
    actions[:, 0] += 0.02 * scene * t
    states = np.concatenate([[[0.1, 0.1, 0.3]], actions[:-1]])
    texts = tuple(wordings) or (SAYS[direction] if number % 4 < 2 else SAYS[direction][::-1])
    return dataclasses.replace(
        episode,
        id=f"episode_{number:04d}",
        actions=actions.astype(np.float32),
        states=states.astype(np.float32),
        cameras={"front": Pixels(pictures(states, scene))},
        texts=said(texts, LENGTH),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, toy) -> Path:
    """Six scenes, each told both ways; and a set whose scenes are all different."""
    root = tmp_path_factory.mktemp("listening")
    write(root / "twins", *(told(i, i // 2, (1.0, -1.0)[i % 2]) for i in range(12)))
    write(root / "apart", *(told(i, i, (1.0, -1.0)[i % 2]) for i in range(8)))
    for name in ("twins", "apart"):
        build(
            BuildConfig(input=root / name, out=root / f"{name}_set", robot="toy", horizon=4, workers=1, validation=0.0)
        )
    for name, kind in FAMILIES.items():
        write_base(root / name, toy, **kind)
    return root


def config(world: Path, out: Path, **changes) -> FinetuneConfig:
    fields = {
        "model": str(world / "openvla_chunk"),
        "data": world / "twins_set",
        "out": out,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "clip_norm": 0.0,
        "max_steps": 4,
        "augment": False,
        "cache_features": "never",
        "precision": "fp32",
        "device": "cpu",
        "select": "last",
        "log_every": 1,
    }
    return small_run(**{**fields, **changes})


def order(dataset: Dataset, cfg: FinetuneConfig, world: int = 1) -> Order:
    return Order(dataset, dataset.train, cfg, world, ScenePairs(dataset, dataset.train, cfg.seed))


def scene_of(dataset: Dataset, index: int) -> int:
    """By construction: episodes 2k and 2k + 1 show scene k."""
    return int(dataset.episodes[int(dataset.episode_of_sample[index])]["id"].rsplit("_")[-1]) // 2


def test_every_second_draw_is_the_same_scene_told_otherwise(world: Path) -> None:
    dataset = Dataset.open(world / "twins_set")
    cfg = FinetuneConfig(batch=4, accumulation=1, seed=3)
    paired, plain = order(dataset, cfg), Order(dataset, dataset.train, cfg, 1)
    for step in range(40):
        batch = paired.micro_batch(step, 0, 0)
        assert batch[::2] == plain.micro_batch(step, 0, 0)[::2], "half of the draws stay as they are"
        for one, two in zip(batch[::2], batch[1::2], strict=True):
            first, second = dataset[one], dataset[two]
            assert scene_of(dataset, one) == scene_of(dataset, two)
            assert first.episode != second.episode
            assert first.frame == second.frame
            ways = [next(d for d, texts in SAYS.items() if s.observation.instruction in texts) for s in (first, second)]
            assert ways[0] == -ways[1]


def test_pairs_are_the_same_for_any_split_of_a_step(world: Path) -> None:
    dataset = Dataset.open(world / "twins_set")
    cfg = FinetuneConfig(batch=8, accumulation=1, seed=3)
    one = order(dataset, cfg)
    two = order(dataset, dataclasses.replace(cfg, batch=2, accumulation=2), 2)
    for step in range(20):
        parts = [two.micro_batch(step, part, rank) for part in range(2) for rank in range(2)]
        assert one.micro_batch(step, 0, 0) == [i for part in parts for i in part]
    with pytest.raises(TrainingError, match=r"an even number of samples in a step.*it is 3"):
        order(dataset, dataclasses.replace(cfg, batch=3))


def test_a_frame_past_the_partners_end_meets_its_last(world: Path, tmp_path: Path) -> None:
    short = told(1, 0, -1.0)
    cut = dataclasses.replace(
        short,
        clock=dataclasses.replace(short.clock, stamps=short.timestamps[:8]),
        actions=short.actions[:8],
        states=short.states[:8],
        cameras={"front": Pixels(pictures(np.asarray(short.states[:8], np.float64), 0))},
        texts=said(SAYS[-1.0], 8),
    )
    write(tmp_path / "rec", told(0, 0, 1.0), cut)
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="toy", horizon=4, workers=1, validation=0.0))
    dataset = Dataset.open(tmp_path / "set")
    pairs = ScenePairs(dataset, dataset.train, 0)
    last = next(i for i in range(len(dataset)) if dataset[i].episode == "episode_0000" and dataset[i].frame == 11)
    found = pairs.partner(last, 5)
    assert found is not None
    assert (dataset[found].episode, dataset[found].frame) == ("episode_0001", 7)


def test_a_set_without_pairs_is_drawn_as_without_the_option_and_says_so(world: Path, tmp_path: Path) -> None:
    cfg = config(world, tmp_path / "policy", data=world / "apart_set", pair_instructions=True)
    finetune(cfg)
    plain = dataclasses.replace(cfg, out=tmp_path / "plain", pair_instructions=False)
    finetune(plain)
    one, two = (load_file(c.out / "weights" / "adapter.safetensors") for c in (cfg, plain))
    assert all(torch.equal(one[k], v) for k, v in two.items())
    said_at_start = [x["note"] for x in read(cfg.run_folder / "log.jsonl") if "note" in x]
    assert any(n.startswith("Pairs of instructions: the set has none") for n in said_at_start)
    dataset = Dataset.open(world / "twins_set")
    assert "216 of 216" not in ScenePairs(dataset, dataset.train, 0).meaning
    assert (
        f"{len(dataset.train)} of {len(dataset.train)} training samples, in 6 scenes"
        in ScenePairs(dataset, dataset.train, 0).meaning
    )


def test_wordings_of_one_request_in_one_scene_are_no_pair(world: Path, tmp_path: Path) -> None:
    """Recorded twice with a wording in common: the same request."""
    again = (told(0, 0, 1.0, ("raise the arm", "lift the arm up")), told(1, 0, 1.0, ("lift the arm up", "arm up")))
    write(tmp_path / "rec", *again, told(2, 1, -1.0))
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="toy", horizon=4, workers=1, validation=0.0))
    dataset = Dataset.open(tmp_path / "set")
    assert ScenePairs(dataset, dataset.train, 0).paired == 0


def test_a_moved_object_makes_another_scene_and_a_codec_does_not() -> None:
    rng = np.random.default_rng(0)
    image = pictures(np.zeros((1, 3)), 3, 96, 96)[0]
    noisy = np.clip(image.astype(int) + rng.normal(0, 3, image.shape).round().astype(int), 0, 255).astype(np.uint8)
    moved = pictures(np.array([[0.12, 0.0, 0.0]]), 3, 96, 96)[0]  # by four pixels of 96
    assert np.abs(coarse(image) - coarse(noisy)).max() <= SAME
    assert np.abs(coarse(image) - coarse(moved)).max() > SAME


def test_several_sets_are_paired_within_each(world: Path) -> None:
    mixed = MixedSet.open_all([WeightedSet(str(world / "twins_set")), WeightedSet(str(world / "apart_set"))])
    assert isinstance(mixed, MixedSet)
    pairs = ScenePairs(mixed, mixed.train, 0)
    assert {int(mixed.set_of_sample[i]) for s in pairs.samples.values() for i in s} == {0}
    assert pairs.paired == len(Dataset.open(world / "twins_set").train)
    for index in range(0, len(mixed), 17):
        assert mixed.instruction(index) == mixed[index].observation.instruction
        assert mixed.episodes[int(mixed.episode_of_sample[index])]["id"] == mixed[index].episode


def test_another_instruction_never_says_the_same(world: Path) -> None:
    dataset = Dataset.open(world / "twins_set")
    episodes = range(len(dataset.episodes))
    assert len(set(meanings(dataset, episodes).values())) == 2, "wordings that meet in an episode say the same"
    for pairs in (None, ScenePairs(dataset, dataset.train, 0)):
        other = OtherInstructions(dataset, episodes, pairs)
        drawn = set()
        for index in dataset.train.tolist():
            own = dataset.instruction(index)
            text = other.text(index, np.random.default_rng(index))
            drawn.add(text)
            assert next(d for d, t in SAYS.items() if own in t) == -next(d for d, t in SAYS.items() if text in t)
        assert drawn == {t for texts in SAYS.values() for t in texts}


def test_a_margin_needs_two_requests(world: Path, tmp_path: Path) -> None:
    write(tmp_path / "rec", *(told(i, i, 1.0) for i in range(3)))
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="toy", horizon=4, workers=1, validation=0.0))
    with pytest.raises(TrainingError, match="are wordings of one request"):
        finetune(config(world, tmp_path / "policy", data=tmp_path / "set", language_margin=0.1))
    with pytest.raises(TrainingError, match="--language-margin must not be negative"):
        config(world, tmp_path / "policy", language_margin=-1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_what_it_is_said_to_be(world: Path, tmp_path: Path, family: str) -> None:
    """Counted by hand, sample by sample, from the family's own loss of one sample."""
    cfg = config(world, tmp_path / "run", model=str(world / family), batch=8, language_margin=0.3)
    dataset = Dataset.open(cfg.data)
    begin = start(cfg, dataset)
    loader = Loader(dataset, begin.model, cfg, None)
    indices = dataset.train[np.linspace(0, len(dataset.train) - 1, 8).astype(int)].tolist()
    batch = loader.training(indices, 0)
    model = begin.model.eval()
    assert len({float(v.sum()) for v in batch.valid}) > 1, "no padding: the test would be empty"
    with torch.no_grad():
        got = float(margin_loss(model, batch.inputs, batch.target, batch.valid, 0.3))
        total, count, biting = 0.0, 0.0, 0
        for row in range(8):
            one = {k: v[row : row + 1] for k, v in batch.inputs.items() if not k.startswith(OTHER)}
            other = {**one, **{n: batch.inputs[OTHER + n][row : row + 1] for n in WORDS}}
            target, valid = batch.target[row : row + 1], batch.valid[row : row + 1]
            right, wrong = (float(model.loss(x, target, valid)) for x in (one, other))
            terms = float(model.counted(valid))
            biting += 0.3 + right > wrong
            total, count = total + terms * (right + max(0.0, 0.3 + right - wrong)), count + terms
    assert biting
    assert got == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_split_in_any_way_has_the_gradient_of_the_whole(world: Path, tmp_path: Path, family: str) -> None:
    # Above what two fresh answers differ by, so that every hinge is on its slope.
    common = {"model": str(world / family), "state_noise": 0.1, "max_steps": 1, "language_margin": 0.5}
    found = []
    for name, batch, accumulation in (("whole", 16, 1), ("split", 2, 8)):
        cfg = config(world, tmp_path / name, batch=batch, accumulation=accumulation, pair_instructions=True, **common)
        finetune(cfg)
        found.append(gradient(cfg))
    assert relative(found[1], found[0]) <= 1e-5
    without = config(
        world, tmp_path / "without", batch=16, pair_instructions=True, **{**common, "language_margin": 0.0}
    )
    finetune(without)
    assert relative(gradient(without), found[0]) > 1e-3, "the margin changes nothing: the test would be empty"


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
@pytest.mark.parametrize("family", ["openvla", "openvla_chunk"])
def test_two_processes_have_the_gradient_of_one(world: Path, tmp_path: Path, family: str, sharding: str) -> None:
    common = {"model": str(world / family), "max_steps": 1, "language_margin": 0.5, "pair_instructions": True}
    found = []
    for name, split in (("one", {"batch": 16}), ("two", {"batch": 4, "accumulation": 2, "processes": 2})):
        cfg = config(world, tmp_path / name, sharding=sharding, **split, **common)
        finetune(cfg)
        found.append(gradient(cfg))
    assert relative(found[1], found[0]) <= 1e-5


def test_an_interrupted_run_goes_on_bit_by_bit(world: Path, tmp_path: Path, interrupted_at_step) -> None:
    whole = config(
        world,
        tmp_path / "whole",
        max_steps=6,
        checkpoint_every=2,
        pair_instructions=True,
        language_margin=0.2,
        dropout=0.2,
        state_noise=0.05,
        cache_features="always",
    )
    finetune(whole)
    broken = dataclasses.replace(whole, out=tmp_path / "broken")
    interrupted_at_step(5, broken)
    finetune(broken)
    one, two = (load_file(c.out / "weights" / "adapter.safetensors") for c in (whole, broken))
    assert all(torch.equal(one[k], v) for k, v in two.items())
    with pytest.raises(TrainingError, match="another run .*language_margin: 0.2 there"):
        finetune(dataclasses.replace(whole, language_margin=0.1))


def lost_when_swapped(cfg: FinetuneConfig) -> float:
    """[rad] by how much the error of the shoulder grows at the first frame when the other way is told."""
    dataset = Dataset.open(cfg.data)
    policy = Policy.load(cfg.out)
    swapped = {a: b for one, two in ((1.0, -1.0), (-1.0, 1.0)) for a, b in zip(SAYS[one], SAYS[two], strict=True)}
    lost = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if sample.frame == 0:
            seen = sample.observation
            other = dataclasses.replace(seen, instruction=swapped[seen.instruction])
            right, wrong = (np.abs(policy.act(o).positions - sample.chunk)[:, 1].mean() for o in (seen, other))
            lost.append(wrong - right)
    return float(np.mean(lost))


def test_with_the_margin_another_instruction_costs_more(world: Path, tmp_path: Path) -> None:
    """Image and state are the same and only the text differs: after as many steps the policy listens more."""
    lost = {}
    for margin in (0.0, 0.3):
        steps = {"max_steps": 60, "batch": 16, "learning_rate": 3e-3, "cache_features": "always"}
        cfg = config(world, tmp_path / str(margin), language_margin=margin, **steps)
        finetune(cfg)
        lost[margin] = lost_when_swapped(cfg)
    assert lost[0.3] > 0.1
    assert lost[0.3] > 4 * lost[0.0]


def test_a_family_without_a_loss_of_each_sample_says_so(world: Path, tmp_path: Path) -> None:
    begin = start(config(world, tmp_path / "x"), Dataset.open(world / "twins_set"))
    with pytest.raises(ModelError, match="has no loss of each sample; train without --language-margin"):
        Architecture.sums(begin.model, {}, torch.zeros(1, 4, 3), torch.ones(1, 4, dtype=torch.bool))
