"""The numbers of training: a step's gradient however it is split, what is stored, what is said, what is refused."""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportArgumentType=false, reportCallIssue=false

import dataclasses
import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from athena_vla.bundle import Bundle
from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.errors import AthenaError, InvalidObservation, TrainingError, UnknownName
from athena_vla.finetune import (
    PRESETS,
    CheckpointConfig,
    FinetuneConfig,
    bundle_of_checkpoint,
    checkpoint,
    finetune,
    loop,
)
from athena_vla.finetune.batches import Order
from athena_vla.finetune.evaluation import weak_joints
from athena_vla.finetune.log import read
from athena_vla.finetune.mark_weights import that_count
from athena_vla.models.openvla_chunk import OpenVLAChunk
from athena_vla.models.openvla_oft import OpenVLAOFT
from athena_vla.models.released import pretrained
from athena_vla.models.robot_sizes import Sizes
from athena_vla.policy import Policy, require_replay
from athena_vla.recordings.marks import Marks
from recordings import Pixels, clean, write
from small_bundles import small_model, small_run, write_base

FAMILIES = {"openvla": {"tokens": True}, "openvla_chunk": {}, "openvla_oft": {"oft": True}}


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy) -> Path:
    """Eight short episodes and chunks of eight steps: most samples are partly padding."""
    root = tmp_path_factory.mktemp("padded")
    write(root / "rec", *(clean(i, length=10) for i in range(8)))
    build(BuildConfig(input=root / "rec", out=root / "set", robot="toy", horizon=8, workers=1, validation=0.2))
    for name, kind in FAMILIES.items():
        write_base(root / name, toy, **kind)
    return root


def config(world: Path, out: Path, **changes) -> FinetuneConfig:
    fields = {
        "model": str(world / "openvla_chunk"),
        "data": world / "set",
        "out": out,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "clip_norm": 0.0,
        "max_steps": 4,
        "evaluate_every": 2,
        "evaluate_samples": 2,
        "augment": False,
        "cache_features": "never",
        "precision": "fp32",
        "device": "cpu",
        "select": "last",
        "log_every": 1,
    }
    return small_run(**{**fields, **changes})


def gradient(cfg: FinetuneConfig) -> torch.Tensor:
    """Of the first step, from the first moment that AdamW keeps of it."""
    stored = load_file(cfg.run_folder / "checkpoints" / "step-000001" / "optimizer.safetensors")
    return torch.cat([stored[k].double().flatten() for k in sorted(stored) if k.endswith("exp_avg")]) / 0.1


def first_step(world: Path, out: Path, **changes) -> torch.Tensor:
    cfg = config(world, out, max_steps=1, evaluate_every=1, **changes)
    finetune(cfg)
    return gradient(cfg)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_split_in_any_way_has_the_gradient_of_the_whole(world, tmp_path, family):
    """Padded chunks, drawn prefixes and noise on the state: relative L2 in float32."""
    common = {"model": str(world / family), "state_noise": 0.1}
    if family == "openvla_chunk":
        common["prefix"] = 3
    whole = first_step(world, tmp_path / "16x1", batch=16, accumulation=1, **common)
    split = first_step(world, tmp_path / "1x16", batch=1, accumulation=16, **common)
    assert relative(split, whole) <= 1e-5
    other = first_step(world, tmp_path / "other", batch=8, accumulation=1, **common)
    assert relative(other, whole) > 1e-2, "other samples give another gradient: the test would be empty"


def test_the_gradient_is_that_of_one_loss_over_the_whole_step(world, tmp_path):
    """An oracle of its own: one forward pass of the very samples, by the model's own loss."""
    from athena_vla.finetune.base import start
    from athena_vla.finetune.batches import Loader

    cfg = config(world, tmp_path / "run", batch=2, accumulation=4, max_steps=1, evaluate_every=1, balance=False)
    finetune(cfg)
    dataset = Dataset.open(cfg.data)
    begin = start(cfg, dataset)
    order = Order(dataset, dataset.train, cfg, 1)
    indices = [i for part in range(4) for i in order.micro_batch(0, part, 0)]
    assert len({int(dataset[i].valid.sum()) for i in indices}) > 1, "no padding: the test would be empty"
    batch = Loader(dataset, begin.model, cfg, None).plain(indices)
    begin.model.train()
    begin.model.loss(batch.inputs, batch.target, batch.valid).backward()
    named = {n: p.grad for n, p in begin.model.named_parameters() if p.grad is not None}
    wanted = torch.cat([named[k].double().flatten() for k in sorted(named)])
    stored = load_file(cfg.run_folder / "checkpoints" / "step-000001" / "optimizer.safetensors")
    got = torch.cat([stored[f"{k}|exp_avg"].double().flatten() for k in sorted(named)]) / 0.1
    assert relative(got, wanted) <= 1e-5
    logged = [x["loss"] for x in read(cfg.run_folder / "log.jsonl") if "loss" in x]
    loss = begin.model.loss(batch.inputs, batch.target, batch.valid)
    assert logged == pytest.approx([float(loss.detach())], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_have_the_gradient_of_one(world, tmp_path, family, sharding):
    common = {"model": str(world / family), "state_noise": 0.1}
    one = first_step(world, tmp_path / "one", batch=16, accumulation=1, **common)
    split = {"batch": 2, "accumulation": 4, "processes": 2, "sharding": sharding}
    two = first_step(world, tmp_path / "two", **split, **common)
    assert relative(two, one) <= 1e-5


@pytest.mark.slow
def test_an_evaluation_shared_by_two_processes_is_that_of_one(world, tmp_path):
    """Five samples over two processes: one of them has one less, and nothing is counted twice."""
    found = []
    for processes in (1, 2):
        cfg = config(
            world,
            tmp_path / str(processes),
            batch=4 // processes,
            processes=processes,
            max_steps=1,
            evaluate_every=1,
            evaluate_samples=5,
            learning_rate=1e-9,
        )
        finetune(cfg)
        found.append(next(x["validation"] for x in read(cfg.run_folder / "log.jsonl") if "validation" in x))
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    assert found[0]["per_joint_rad"] == pytest.approx(found[1]["per_joint_rad"], rel=1e-4)


def poisoned(monkeypatch, at: int, value: float = math.inf) -> None:
    """From step `at` on a gradient overflows while the loss is fine."""
    original = loop.Trainer._step

    def step(self, number):
        if number == at:
            next(iter(self.parameters.values())).register_hook(lambda g: g + value)
        return original(self, number)

    monkeypatch.setattr(loop.Trainer, "_step", step)


def stored_tensors(folder: Path) -> list[torch.Tensor]:
    files = itertools.chain.from_iterable(f.glob("*.safetensors") for f in folder.iterdir())
    return [t for file in files for t in load_file(file).values() if t.is_floating_point()]


@pytest.mark.parametrize("at", [3, 5])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_no_weight(world, tmp_path, monkeypatch, at, clip):
    """In the last step too (of six), with clipping and without."""
    cfg = config(world, tmp_path / "run", max_steps=6, checkpoint_every=1, clip_norm=clip)
    with monkeypatch.context() as patched:
        poisoned(patched, at)
        with pytest.raises(TrainingError, match=rf"gradient became inf at step {at + 1} and no weight was changed"):
            finetune(cfg)
    folder = cfg.run_folder / "checkpoints"
    assert checkpoint.steps(folder)[-1] == at
    assert all(bool(t.isfinite().all()) for t in stored_tensors(folder))
    assert finetune(cfg).steps == 6, "the same command goes on"


def test_such_steps_are_left_out_and_counted_where_that_is_the_policy(world, tmp_path, monkeypatch, capsys):
    cfg = config(world, tmp_path / "run", max_steps=6, not_finite="skip")
    original, taken = loop.Trainer._step, []

    def step(self, number):
        hook = next(iter(self.parameters.values())).register_hook(lambda g: g * math.nan) if number == 2 else None
        before = {n: p.detach().clone() for n, p in self.parameters.items()}
        found = original(self, number)
        taken.append(any(not torch.equal(before[n], p) for n, p in self.parameters.items()))
        if hook:
            hook.remove()
        return found

    monkeypatch.setattr(loop.Trainer, "_step", step)
    result = finetune(cfg)
    assert taken == [True, True, False, True, True, True]
    assert any("1 steps were left out" in n for n in result.notes)
    assert "step 3: the gradient is not finite; the step is left out" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_never_stored(world, tmp_path, monkeypatch):
    """A finite gradient and a step that overflows all the same, in the last step: no later one would find it."""
    cfg = config(world, tmp_path / "run", max_steps=3, checkpoint_every=1, evaluate_every=3)
    original = loop.Trainer._step

    def step(self, number):
        found = original(self, number)
        if number == 2:
            with torch.no_grad():
                next(iter(self.parameters.values())).fill_(math.inf)
        return found

    monkeypatch.setattr(loop.Trainer, "_step", step)
    with pytest.raises(TrainingError, match=r"After step 3 1 tensors are not finite.*checkpoint of step 2 is kept"):
        finetune(cfg)
    assert not cfg.out.exists()
    assert all(bool(t.isfinite().all()) for t in stored_tensors(cfg.run_folder / "checkpoints"))


@pytest.mark.parametrize(("evaluate_every", "checkpoint_every", "keep"), [(2, 5, 2), (5, 2, 1), (3, 100, 1)])
def test_the_best_step_is_kept_whatever_the_intervals(world, tmp_path, evaluate_every, checkpoint_every, keep):
    """With a rate at which validation gets worse after the first evaluation, as in any overfit."""
    cfg = config(
        world,
        tmp_path / "run",
        max_steps=10,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        keep=keep,
        select="best",
        learning_rate=0.3,
    )
    result = finetune(cfg)
    losses = {x["step"]: x["validation"]["loss"] for x in read(cfg.run_folder / "log.jsonl") if "validation" in x}
    assert result.chosen_step == min(losses, key=losses.__getitem__)
    kept = load_file(cfg.run_folder / "checkpoints" / f"step-{result.chosen_step:06d}" / "adapter.safetensors")
    written = load_file(cfg.out / "weights" / "adapter.safetensors")
    assert all(torch.equal(written[k], v) for k, v in kept.items())


def test_a_run_stopped_in_its_evaluation_has_lost_no_step(world, tmp_path, monkeypatch):
    whole, broken = (config(world, tmp_path / n, select="best", learning_rate=1e-2) for n in ("whole", "broken"))
    finetune(whole)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finetune(broken)
    assert checkpoint.steps(broken.run_folder / "checkpoints") == [2]
    finetune(broken)
    a, b = ([x for x in read(c.run_folder / "log.jsonl") if "validation" in x] for c in (whole, broken))
    assert a == b, "the evaluation that was cut is made up for"
    one, two = (load_file(c.out / "weights" / "adapter.safetensors") for c in (whole, broken))
    assert all(torch.equal(one[k], v) for k, v in two.items())


def test_a_bundle_of_any_checkpoint(world, tmp_path, monkeypatch):
    cfg = config(world, tmp_path / "run", max_steps=6, checkpoint_every=1, keep=9, learning_rate=1e-2)
    with monkeypatch.context() as patched:
        original = loop.Trainer._step
        patched.setattr(
            loop.Trainer, "_step", lambda s, n: original(s, n) if n < 4 else (_ for _ in ()).throw(OSError("pulled"))
        )
        with pytest.raises(OSError, match="pulled"):
            finetune(cfg)
    assert not cfg.out.exists()
    made = bundle_of_checkpoint(CheckpointConfig(run=cfg.run_folder, step=3, out=tmp_path / "three"))
    assert made.steps == (1, 2, 3, 4)
    bundle = Bundle.open(made.bundle)
    assert require_replay(Policy.of(bundle), bundle)["max_rad"] == 0.0
    assert bundle.manifest.stage_info["chosen_step"] == 3
    stored = load_file(cfg.run_folder / "checkpoints" / "step-000003" / "adapter.safetensors")
    written = load_file(made.bundle / "weights" / "adapter.safetensors")
    assert all(torch.equal(written[k], v) for k, v in stored.items())
    newest = bundle_of_checkpoint(CheckpointConfig(run=cfg.out, out=tmp_path / "best"))
    best = min(
        (x for x in read(cfg.run_folder / "log.jsonl") if "validation" in x), key=lambda x: x["validation"]["loss"]
    )
    assert newest.step == best["step"]
    with pytest.raises(UnknownName, match=r"checkpoint in .*'9'.*1, 2, 3, 4"):
        bundle_of_checkpoint(CheckpointConfig(run=cfg.run_folder, step=9, out=tmp_path / "nine"))
    with pytest.raises(TrainingError, match="is no run"):
        bundle_of_checkpoint(CheckpointConfig(run=tmp_path, out=tmp_path / "none"))
    finished = finetune(cfg)
    same = bundle_of_checkpoint(CheckpointConfig(run=cfg.run_folder, step=6, out=tmp_path / "six"))
    a, b = (load_file(p / "weights" / "adapter.safetensors") for p in (finished.bundle, same.bundle))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("changes", [{"max_steps": 6}, {"max_steps": 0, "epochs": 6 * 4 / 70}])
def test_a_finished_run_is_extended_to_what_the_longer_run_would_be(world, tmp_path, changes):
    """At a constant rate."""
    short = config(world, tmp_path / "run", max_steps=3, dropout=0.2)
    whole = dataclasses.replace(short, out=tmp_path / "whole", max_steps=6)
    changes = {**changes, **({"epochs": 6 * 4 / len(Dataset.open(short.data).train)} if "epochs" in changes else {})}
    finetune(short)
    assert finetune(dataclasses.replace(short, **changes)).steps == 6
    finetune(whole)
    a, b = (load_file(p / "weights" / "adapter.safetensors") for p in (short.out, whole.out))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(TrainingError, match=r"6 steps far, and 2 are asked for.*athena checkpoint"):
        finetune(dataclasses.replace(short, max_steps=2))


def test_what_changes_no_number_makes_no_other_run(world, tmp_path, capsys):
    cfg = config(world, tmp_path / "run", max_steps=2)
    finetune(cfg)
    before = load_file(cfg.out / "weights" / "adapter.safetensors")
    changes = {"patience": 3, "threads": 2, "evaluate_samples": 6, "evaluate_every": 1, "device": "auto", "keep": 1}
    for name, value in {**changes, "gradient_checkpointing": True, "not_finite": "skip", "select": "best"}.items():
        finetune(dataclasses.replace(cfg, **{name: value}))
        assert all(torch.equal(before[k], v) for k, v in load_file(cfg.out / "weights" / "adapter.safetensors").items())
    finetune(dataclasses.replace(cfg, batch=2, accumulation=2, max_steps=3))
    assert "the same samples in every step, in other parts" in capsys.readouterr().err
    with pytest.raises(TrainingError, match=r"another run .*batch: 2 there, 8 now"):
        finetune(dataclasses.replace(cfg, batch=8))
    with pytest.raises(TrainingError, match=r"another run .*learning_rate"):
        finetune(dataclasses.replace(cfg, learning_rate=5e-3))


def test_another_length_of_a_schedule_is_said(world, tmp_path, capsys):
    cfg = config(world, tmp_path / "run", max_steps=2, schedule="cosine")
    finetune(cfg)
    finetune(dataclasses.replace(cfg, max_steps=4))
    assert (
        "planned for 2 steps and now has 4: from here on the learning rate follows the cosine"
        in capsys.readouterr().err
    )


def test_only_named_kinds_are_balanced_and_the_draws_are_said(tmp_path, toy):
    """Six episodes of very different lengths, a sentence of its own for each: none is drawn more often."""
    lengths = (10, 20, 60, 80, 100, 120)
    texts = [f"put item number {i} into the box" for i in range(6)]
    episodes = [
        clean(i, length=n, instructions=(t,), kind="") for i, (n, t) in enumerate(zip(lengths, texts, strict=True))
    ]
    write(tmp_path / "rec", *episodes)
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="toy", horizon=4, workers=1, validation=0.0))
    dataset = Dataset.open(tmp_path / "set")
    order = Order(dataset, dataset.train, FinetuneConfig(batch=5, accumulation=2), 1)
    steps = order.steps_of(3.0)
    assert steps == math.ceil(3 * sum(lengths) / 10)
    drawn = Counter(i for s in range(steps) for p in range(2) for i in order.micro_batch(s, p, 0))
    assert set(drawn.values()) == {3}
    said = order.meaning(steps)
    assert f"An epoch is {sum(lengths)} draws" in said
    assert "a frame is drawn 3 to 3 times." in said


def test_the_draws_that_are_said_are_those_that_are_made(tmp_path, toy):
    kinds = ("touch", "touch", "touch", "", "wave", "")
    write(tmp_path / "rec", *(clean(i, length=10 + i, kind=k) for i, k in enumerate(kinds)))
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="toy", horizon=4, workers=1, validation=0.0))
    dataset = Dataset.open(tmp_path / "set")
    order = Order(dataset, dataset.train, FinetuneConfig(batch=7, accumulation=1), 1)
    drawn = np.zeros(len(dataset), int)
    for step in range(40):
        np.add.at(drawn, order.micro_batch(step, 0, 0), 1)
    per_frame = np.bincount(dataset.frame_of_sample, drawn)
    assert f"a frame is drawn {int(per_frame.min())} to {int(per_frame.max())} times: 3 kinds" in order.meaning(40)
    shares = Counter(k for i, k in enumerate(dataset.named_kinds) for _ in range(drawn[i]))
    assert max(shares.values()) - min(shares.values()) <= 0.05 * sum(shares.values())


@pytest.mark.parametrize(
    ("warmup", "said"), [(100, "is longer than the run of 4"), (3, "takes more than half"), (2, "")]
)
def test_a_warm_up_that_the_run_is_too_short_for_is_said(world, tmp_path, capsys, warmup, said):
    cfg = config(world, tmp_path / "run", warmup_steps=warmup)
    finetune(cfg)
    err = capsys.readouterr().err
    assert (said in err) if said else ("warm-up" not in err)
    if warmup == 100:
        rates = [x["rate"] for x in read(cfg.run_folder / "log.jsonl") if "rate" in x]
        assert f"reaches {100 * rates[-1] / cfg.learning_rate:.0f}% of its peak" in err


def test_every_instruction_is_read_before_the_first_step(tmp_path, toy, monkeypatch):
    """In the validation split too, where only the evaluation would meet it."""
    episodes = [clean(i, length=10) for i in range(6)]
    for number in range(6):
        long = clean(number, length=10, instructions=("touch the red box " * 200,))
        root = tmp_path / str(number)
        write(root / "rec", *episodes[:number], long, *episodes[number + 1 :])
        build(BuildConfig(input=root / "rec", out=root / "set", robot="toy", horizon=4, workers=1, validation=0.2))
        dataset = Dataset.open(root / "set")
        if any(e["split"] == "validation" and len(dataset.texts(i)[0]) > 999 for i, e in enumerate(dataset.episodes)):
            break
    else:
        pytest.fail("no episode with the long instruction came into the validation split")
    write_base(root / "base", toy)
    monkeypatch.setattr(loop.Trainer, "_step", lambda *_: pytest.fail("a step was made"))
    cfg = config(root, tmp_path / "run", model=str(root / "base"), data=root / "set")
    with pytest.raises(
        TrainingError, match=r"1 of 6 episodes have an instruction that the model cannot read\. \S+: The (pro|ins)"
    ):
        finetune(cfg)
    with pytest.raises(InvalidObservation):
        Bundle.open(root / "base").model().require_instruction("")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha": 0.0}, "--alpha must be a positive number"),
        ({"alpha": -16.0}, "--alpha must be a positive number"),
        ({"alpha": math.nan}, "--alpha must be a positive number"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and at most"),
        ({"augment_crop": 1.5}, "--augment-crop must be at least 0.01 and at most 1"),
        ({"augment_crop": 0.0}, "--augment-crop must be at least 0.01 and at most 1"),
        ({"state_noise": math.nan}, "--state-noise must not be negative"),
        ({"head_learning_rate": math.nan}, "--head-learning-rate must not be negative"),
        ({"weight_decay": math.inf}, "--weight-decay must not be negative"),
        ({"clip_norm": math.inf}, "--clip-norm must not be negative"),
        ({"rank": 0}, "--rank must be at least 1"),
        ({"not_finite": "ignore"}, "Known: refuse, skip"),
    ],
)
def test_values_out_of_their_range_are_refused(change, said):
    with pytest.raises(AthenaError, match=said):
        FinetuneConfig(**change)


def test_targets_that_the_family_has_no_layer_for_are_a_sentence(world, tmp_path):
    with pytest.raises(AthenaError, match="openvla_chunk has no layer for lm_head, so nothing would be adapted"):
        finetune(config(world, tmp_path / "run", targets=("lm_head",)))


def test_a_config_comes_back_and_an_unknown_field_is_refused():
    for preset in PRESETS.values():
        assert FinetuneConfig.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    with pytest.raises(UnknownName, match="'rnak'"):
        FinetuneConfig.from_dict({"rnak": 4})


def test_weak_joints_are_those_with_a_large_error_against_their_range(toy):
    ranges = {j.name: j.upper - j.lower for j in toy.joints}
    shares = dict(zip(ranges, (0.2, 0.01, 0.09), strict=True))
    said = weak_joints({n: shares[n] * ranges[n] for n in ranges}, toy)
    first, _, third = ranges
    assert said.index(f"{first} ") < said.index(f"{third} "), "the worst first"
    assert "2 of 3 joints" in said
    assert "(20%)" in said
    assert weak_joints(dict.fromkeys(ranges, 0.0), toy) == ""


def square_set(tmp_path, toy) -> Path:
    """One episode whose pictures hold a white square of 24 in a black frame of 64 x 48 pixels."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[12:36, 20:44] = 255
    pixels = Pixels(np.repeat(picture[None], 12, axis=0))
    write(tmp_path / "rec", *(dataclasses.replace(clean(i, length=12), cameras={"front": pixels}) for i in range(4)))
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="toy", horizon=4, workers=1, validation=0.25))
    return tmp_path / "set"


def share_of_white(pixels: torch.Tensor) -> float:
    """Of the area, by how bright it is between black and white: borders count in part."""
    first = pixels[0, 0]
    black, white = first[0, 0], first[first.shape[0] // 2, first.shape[1] // 2]
    return float(((first - black) / (white - black)).mean())


@pytest.mark.parametrize("crop", [0.9, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_sees_objects_as_large_as_in_training(tmp_path, toy, crop, family):
    """A crop of an area makes a square's area larger by one over it: in training, in evaluation and when acting."""
    from athena_vla.finetune.base import start
    from athena_vla.finetune.batches import Loader
    from athena_vla.policy import encode

    data = square_set(tmp_path, toy)
    write_base(tmp_path / "base", toy, **FAMILIES[family])
    cfg = config(tmp_path, tmp_path / "run", model=str(tmp_path / "base"), data=data, augment=True, augment_crop=crop)
    cfg = dataclasses.replace(cfg, max_steps=1, evaluate_every=1)
    begin = start(cfg, Dataset.open(data))
    loader = Loader(begin.dataset, begin.model, cfg, None)
    whole = 24 * 24 / (48 * 64)
    trained = np.mean([share_of_white(loader.training([0], step).inputs["pixel_values"]) for step in range(20)])
    assert trained == pytest.approx(whole / crop, rel=0.03)
    finetune(cfg)
    bundle = Bundle.open(cfg.out)
    policy = Policy.of(bundle)
    item = encode(begin.dataset[0].observation, bundle.robot, bundle.normalizer)
    seen = torch.from_numpy(policy.loop.collate([item])["pixel_values"])
    for pixels in (loader.plain([0]).inputs["pixel_values"], seen):
        assert share_of_white(pixels) == pytest.approx(trained, rel=0.03)
    plain = dataclasses.replace(cfg, augment=False, out=tmp_path / "plain")
    uncut = Loader(begin.dataset, start(plain, begin.dataset).model, plain, None)
    for pixels in (uncut.plain([0]), uncut.training([0], 0)):
        assert share_of_white(pixels.inputs["pixel_values"]) == pytest.approx(whole, rel=0.03)


def test_features_that_are_cached_are_cropped_alike(tmp_path, toy):
    """Variant 0 of the cache is what the policy will see: the features of its own pixels."""
    from athena_vla.finetune.base import start
    from athena_vla.policy import encode

    data = square_set(tmp_path, toy)
    write_base(tmp_path / "base", toy)
    changes = {"augment": True, "augment_crop": 0.5, "cache_features": "always", "augment_variants": 2}
    cfg = config(tmp_path, tmp_path / "run", model=str(tmp_path / "base"), data=data, max_steps=1, **changes)
    finetune(cfg)
    (file,) = (data / ".cache").glob("features-*.npy")
    stored = np.load(file)
    begin = start(cfg, Dataset.open(data))
    item = encode(begin.dataset[0].observation, begin.dataset.robot, begin.dataset.normalizer)
    with torch.no_grad():
        acting = begin.model.encode_images(begin.model.collate([item]))[0].numpy()
        crop = begin.model.encode_images(begin.model.collate([dataclasses.replace(item, cropped=True)]))[0].numpy()
    assert np.abs(stored[0, 0] - acting).max() < 2e-3 * np.abs(acting).max()
    assert np.abs(stored[0, 0] - crop).max() > 0.05 * np.abs(acting).max(), "the whole picture differs: a test"


def test_a_base_that_saw_other_crops_keeps_its_heads(toy):
    model = small_model(toy)
    sizes = dataclasses.replace(Sizes.of(model.spec), crop_area=0.8)
    other = pretrained.bind(model, "openvla_chunk", sizes)
    assert Sizes.of(other.spec) == sizes
    one, two = model.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], v) for k, v in two.items())
    assert pretrained.bind(other, "openvla_chunk", Sizes.of(other.spec)) is other


def test_sizes_are_frozen_and_take_no_other_name(toy):
    good = {"action_dim": 3, "state_dim": 3, "horizon": 4}
    with pytest.raises(UnknownName, match="'propio'.*proprio"):
        Sizes.of_dict(good | {"propio": False})
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sizes(**good).horizon = 5  # pyright: ignore[reportAttributeAccessIssue]
    body = small_model(toy).body_spec
    spec = OpenVLAChunk.spec_on(body, Sizes(**good, proprio=False))
    assert spec.proprio is False  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AthenaError, match="cannot be given a prefix"):
        OpenVLAOFT.spec_on(body, Sizes(**good, prefix=2))


def test_marks_weigh_the_steps_they_stand_on(tmp_path, toy, world):
    """Against one loss over the whole step with weights put down by hand; failures are never drawn."""
    from athena_vla.finetune.base import start
    from athena_vla.finetune.batches import Loader

    ends = (True, False, None, True)
    human = np.arange(10) >= 6
    marks = [Marks.from_flags(human, True) if i == 3 else Marks(ended) for i, ended in enumerate(ends)]
    write(tmp_path / "rec", *(dataclasses.replace(clean(i, length=10), marks=m) for i, m in enumerate(marks)))
    common = {"robot": "toy", "horizon": 4, "workers": 1, "validation": 0.0, "keep_failed": True}
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", **common))
    dataset = Dataset.open(tmp_path / "set")
    assert [m.success for m in dataset.marks] == list(ends), "the marks came through the build"
    cfg = config(world, tmp_path / "run", data=tmp_path / "set", batch=4, accumulation=2, max_steps=1, balance=False)
    cfg = dataclasses.replace(cfg, weight=("success=0.5", "failure=0", "correction=3"))
    finetune(cfg)
    begin = start(cfg, dataset)
    loader = Loader(dataset, begin.model, cfg, None)
    by_hand = {0: np.full(10, 0.5), 1: np.zeros(10), 2: np.ones(10), 3: np.where(human, 3.0, 0.5)}
    drawn = that_count(dataset, dataset.train, np.concatenate([by_hand[i] for i in range(4)]).astype(np.float32))
    assert {dataset[int(i)].episode for i in drawn} == {"episode_0000", "episode_0002", "episode_0003"}
    order = Order(dataset, drawn, cfg, 1)
    indices = [i for part in range(2) for i in order.micro_batch(0, part, 0)]
    weights = torch.zeros(8, 4)
    for row, sample in enumerate(dataset[i] for i in indices):
        number = int(sample.episode[-1])
        for step in range(4):
            if sample.frame + step < 10:
                weights[row, step] = by_hand[number][sample.frame + step]
    batch = loader.plain(indices)
    begin.model.train()
    begin.model.loss(batch.inputs, batch.target, weights).backward()
    named = {n: p.grad for n, p in begin.model.named_parameters() if p.grad is not None}
    wanted = torch.cat([named[k].double().flatten() for k in sorted(named)])
    stored = load_file(cfg.run_folder / "checkpoints" / "step-000001" / "optimizer.safetensors")
    got = torch.cat([stored[f"{k}|exp_avg"].double().flatten() for k in sorted(named)]) / 0.1
    assert relative(got, wanted) <= 1e-5
    said = [x["note"] for x in read(cfg.run_folder / "log.jsonl") if "note" in x]
    assert any(
        "10 frames count 0 times, 16 frames count 0.5 times, 10 frames count 1 times, 4 frames" in n for n in said
    )


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (("sucess=1",), "'sucess'.*Known: success, failure, correction"),
        (("failure",), "write a mark and a number"),
        (("failure=-1",), "must not be negative"),
        (("success=nan",), "must not be negative, and finite"),
    ],
)
def test_weights_that_make_no_sense_are_refused(world, tmp_path, weight, said):
    with pytest.raises(AthenaError, match=said):
        finetune(config(world, tmp_path / "run", weight=weight))


def test_with_every_step_at_weight_nothing_no_sample_is_left(world, tmp_path):
    with pytest.raises(TrainingError, match="no sample of .* counts"):
        finetune(config(world, tmp_path / "run", weight=("success=0",)))


def test_a_run_that_stops_by_the_clock_leaves_a_bundle_and_goes_on(world, tmp_path, capsys):
    cfg = config(world, tmp_path / "run", max_steps=4, max_hours=1e-9)
    assert finetune(cfg).steps == 1
    assert Bundle.open(cfg.out).manifest.stage_info["steps"] == 1
    assert "Stopped after 1e-09 h at step 1 of 4" in capsys.readouterr().err
    whole = dataclasses.replace(cfg, max_hours=0.0, out=tmp_path / "whole")
    finetune(dataclasses.replace(cfg, max_hours=0.0))
    finetune(whole)
    a, b = (load_file(c.out / "weights" / "adapter.safetensors") for c in (cfg, whole))
    assert all(torch.equal(a[k], v) for k, v in b.items())
