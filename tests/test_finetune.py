"""The stage end to end on the toy robot: what it writes, exact resume, the feature cache, and every bad input."""
# A method of accelerate is replaced, and its scaler exists only with mixed precision.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import athena_vla.embodiment as embodiment
from athena_vla.bundle import Bundle
from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.errors import AthenaError, DatasetError, TrainingError
from athena_vla.finetune import PRESETS, FinetuneConfig, base, checkpoint, features, finetune, launch, loop
from athena_vla.finetune.batches import Loader, Order
from athena_vla.finetune.log import RunLog, read
from athena_vla.finetune.result import result_of
from athena_vla.models.lora import LoraSettings
from athena_vla.plan import advised_finetune
from athena_vla.policy import Policy, require_replay
from athena_vla.progress import Nowhere, Progress, State
from recordings import clean, write
from small_bundles import small_run, write_base, write_finetuned


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy) -> Path:
    """A folder with a base bundle and a dataset of six short episodes of three kinds."""
    root = tmp_path_factory.mktemp("world")
    kinds = ("touch", "touch", "touch", "wave", "touch", "wave")
    write(root / "rec", *(clean(i, length=14, kind=k) for i, k in enumerate(kinds)))
    build(BuildConfig(input=root / "rec", out=root / "set", robot="toy", horizon=4, workers=1, validation=0.2))
    write_base(root / "base", toy)
    return root


def config(world: Path, out: Path, **changes) -> FinetuneConfig:
    fields = {
        "model": str(world / "base"),
        "data": world / "set",
        "out": out,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "max_steps": 6,
        "evaluate_every": 3,
        "augment_variants": 1,
        "log_every": 1,
    }
    return small_run(**{**fields, **changes})


def weights(result_or_path) -> dict[str, torch.Tensor]:
    path = getattr(result_or_path, "bundle", result_or_path)
    return load_file(path / "weights" / "adapter.safetensors")


def losses(cfg: FinetuneConfig) -> list[float]:
    return [x["loss"] for x in read(cfg.run_folder / "log.jsonl") if "loss" in x]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    cfg = config(world, tmp_path_factory.mktemp("out") / "policy", max_steps=24, evaluate_every=8, tensorboard=True)
    return cfg, finetune(cfg)


def test_a_bundle_comes_out_that_answers_as_it_was_recorded(world, trained):
    cfg, result = trained
    bundle = Bundle.open(result.bundle)
    assert bundle.manifest.stage == "finetuned"
    assert bundle.manifest.parent_hash == Bundle.open(world / "base").hash
    assert bundle.manifest.dataset_hash == Dataset.open(world / "set").hash
    assert bundle.manifest.config == launch.with_precision(cfg).to_dict()
    assert bundle.normalizer.to_dict() == Dataset.open(world / "set").normalizer.to_dict()
    assert require_replay(Policy.of(bundle), bundle)["max_rad"] == 0.0
    assert {"vision_calls", "sensitivity_black_white", "sensitivity_language"} <= set(bundle.manifest.gates)
    assert bundle.manifest.gates["vision_calls"].passed


def test_a_set_without_images_is_refused_before_a_model_is_made(world, tmp_path):
    toy = (Path(embodiment.__file__).parent / "robots/toy.toml").read_text()
    blind = tmp_path / "blind.toml"
    blind.write_text(toy[: toy.index("[[camera]]")] + toy[toy.index("[[joint]]") :])
    root = write(tmp_path / "rec", *(replace(clean(i, length=14), cameras={}) for i in range(3)))
    with pytest.raises(DatasetError, match="nothing was recorded by any camera"):
        build(BuildConfig(input=root, out=tmp_path / "seeing", robot="toy", horizon=4, workers=1))
    build(BuildConfig(input=root, out=tmp_path / "set", robot=str(blind), horizon=4, workers=1, validation=0.4))
    with pytest.raises(TrainingError, match=r"has no images: 'toy' has no camera"):
        finetune(replace(config(world, tmp_path / "policy"), data=tmp_path / "set"))


def test_it_learns_and_leaves_its_curves(trained):
    cfg, result = trained
    curve = losses(cfg)
    assert len(curve) == 24
    assert np.mean(curve[-4:]) < 0.7 * np.mean(curve[:4])
    assert result.validation["mae_rad"] == pytest.approx(np.mean(list(result.validation["per_joint_rad"].values())))
    assert set(result.validation["per_joint_rad"]) == {"base", "shoulder", "finger"}
    assert (cfg.run_folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert any((cfg.run_folder / "tensorboard").iterdir())
    assert json.loads((cfg.run_folder / "result.json").read_text())["steps"] == 24
    assert result_of(cfg) == result
    said = [x["note"] for x in read(cfg.run_folder / "log.jsonl") if "note" in x]
    share = 100 * result.trainable / result.total
    assert f"trainable {result.trainable:,} of {result.total:,} parameters ({share:.3f}%)" in said
    assert result.peak_memory_gb > 0.1
    assert 0 < result.step_seconds < result.seconds


def test_only_the_last_checkpoints_and_the_best_are_kept_and_none_holds_the_base(trained):
    cfg, result = trained
    folder = cfg.run_folder / "checkpoints"
    assert set(checkpoint.steps(folder)) == {16, 24} | {result.chosen_step}
    assert set(load_file(folder / "step-000024" / "adapter.safetensors")) == set(weights(result))
    assert not any("base_layer" in k or "vision" in k for k in weights(result))


def test_an_interrupted_run_goes_on_bit_by_bit(world, tmp_path, interrupted_at_step):
    whole = config(world, tmp_path / "whole", dropout=0.2, state_noise=0.05, checkpoint_every=2, select="last")
    finetune(whole)
    broken = dataclasses.replace(whole, out=tmp_path / "broken")
    interrupted_at_step(5, broken)
    assert not broken.out.exists()
    assert checkpoint.steps(broken.run_folder / "checkpoints")[-1] == 4
    finetune(broken)
    a, b = weights(whole.out), weights(broken.out)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert losses(whole) == losses(broken)


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_same_weights(world, tmp_path):
    whole = config(world, tmp_path / "whole", checkpoint_every=1, select="last", max_steps=12, keep=3)
    finetune(whole)
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, pathlib\n"
        "from athena_vla.finetune import FinetuneConfig, finetune\n"
        f"finetune({dataclasses.replace(whole, out=tmp_path / 'killed')!r})\n".replace("PosixPath", "pathlib.Path")
    )
    folder = tmp_path / "killed.run" / "checkpoints"
    for wanted in (2, 7):
        process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "OMP_NUM_THREADS": "1"})
        while process.poll() is None and (checkpoint.steps(folder) or [0])[-1] < wanted:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    finetune(dataclasses.replace(whole, out=tmp_path / "killed"))
    a, b = weights(whole.out), weights(tmp_path / "killed")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_cut_checkpoint_is_skipped_with_a_warning_for_the_one_before(world, tmp_path, capsys):
    cfg = config(world, tmp_path / "policy", checkpoint_every=2, select="last")
    finetune(cfg)
    before = weights(cfg.out)
    last = cfg.run_folder / "checkpoints" / "step-000006" / "optimizer.safetensors"
    last.write_bytes(last.read_bytes()[:100])
    finetune(cfg)
    said = capsys.readouterr().err
    assert "step-000006" in said
    assert "skipped" in said
    assert "Going on from the checkpoint of step 4" in said
    assert all(torch.equal(before[k], v) for k, v in weights(cfg.out).items())


def test_another_run_in_the_folder_is_not_continued(world, tmp_path):
    cfg = config(world, tmp_path / "policy", max_steps=2)
    finetune(cfg)
    with pytest.raises(TrainingError, match=r"another run .*rank: 4 there, 8 now"):
        finetune(dataclasses.replace(cfg, rank=8))
    other = tmp_path / "other"
    build(BuildConfig(input=world / "rec", out=other, robot="toy", horizon=4, workers=1, validation=0.4))
    with pytest.raises(TrainingError, match="another run .*dataset"):
        finetune(dataclasses.replace(cfg, data=other))
    assert finetune(dataclasses.replace(cfg, rank=8, overwrite=True)).steps == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_features_give_the_same_loss_as_pictures(world, tmp_path, precision):
    common = {"augment": False, "precision": precision, "max_steps": 3}
    cached = config(world, tmp_path / "cached", cache_features="always", **common)
    plain = config(world, tmp_path / "plain", cache_features="never", **common)
    finetune(cached)
    finetune(plain)
    # The cache is stored in half precision: exact for bfloat16 features, 5e-4 relative for float32.
    assert losses(cached) == pytest.approx(losses(plain), rel=2e-4 if precision == "fp32" else 2e-3)


def test_the_feature_cache_is_used_again_and_depends_on_what_it_was_made_from(world, tmp_path, monkeypatch):
    shutil.copytree(world / "set", tmp_path / "set", ignore=shutil.ignore_patterns(".cache"))
    cfg = config(world, tmp_path / "policy", data=tmp_path / "set", max_steps=1)
    finetune(cfg)
    files = sorted((tmp_path / "set" / ".cache").glob("features-*.npy"))
    assert len(files) == 1
    assert np.load(files[0], mmap_mode="r").shape[:2] == (6 * 14, 2)

    def forbidden(*arguments):
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(features, "_compute", forbidden)
        finetune(dataclasses.replace(cfg, out=tmp_path / "again"))
        with pytest.raises(AssertionError, match="computed again"):
            finetune(dataclasses.replace(cfg, out=tmp_path / "third", seed=1))


def test_vision_that_trains_is_never_cached(world, tmp_path):
    cfg = config(world, tmp_path / "policy", projector=True, max_steps=1)
    with pytest.raises(TrainingError, match="cannot be cached"):
        finetune(dataclasses.replace(cfg, cache_features="always"))
    before = set((world / "set" / ".cache").glob("features-*"))
    finetune(cfg)
    assert set((world / "set" / ".cache").glob("features-*")) == before
    assert any("projector" in k for k in weights(cfg.out))


@pytest.mark.parametrize("method", ["full", "heads"])
def test_other_methods_write_bundles_too(world, tmp_path, method):
    cfg = config(world, tmp_path / "policy", method=method, max_steps=2)
    result = finetune(cfg)
    bundle = Bundle.open(result.bundle)
    assert require_replay(Policy.of(bundle), bundle)["max_rad"] == 0.0


def test_accumulation_equals_a_larger_batch(world, tmp_path):
    """Two forward passes of two equal one of four, to rounding."""
    common = {"precision": "fp32", "max_steps": 2, "clip_norm": 0.0, "augment": False, "learning_rate": 1e-3}
    finetune(config(world, tmp_path / "one", batch=4, **common))
    finetune(config(world, tmp_path / "two", batch=2, accumulation=2, **common))
    a, b = losses(config(world, tmp_path / "one")), losses(config(world, tmp_path / "two"))
    assert a == pytest.approx(b, rel=1e-5)


def test_activation_checkpointing_changes_no_gradient(world, tmp_path):
    common = {"precision": "fp32", "max_steps": 2, "augment": False}
    finetune(config(world, tmp_path / "plain", **common))
    finetune(config(world, tmp_path / "less", gradient_checkpointing=True, **common))
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "less")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


@pytest.mark.parametrize("cache", ["never", "always"])
def test_workers_prepare_the_very_same_batches(world, tmp_path, cache):
    common = {"max_steps": 4, "accumulation": 2, "batch": 2, "state_noise": 0.1, "cache_features": cache}
    finetune(config(world, tmp_path / "one", **common))
    finetune(config(world, tmp_path / "two", workers=2, **common))
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_error_in_a_worker_is_its_sentence(world, tmp_path, monkeypatch):
    def broken(self, indices, step, first=0):
        raise DatasetError("episode_0003 frame 7 cannot be read.")

    monkeypatch.setattr(Loader, "training", broken)
    with pytest.raises(TrainingError, match=r"^episode_0003 frame 7 cannot be read\.$"):
        finetune(config(world, tmp_path / "policy", workers=1, cache_features="never"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler means to hide it
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_give_the_same_weights(world, tmp_path, monkeypatch, checkpointing):
    """Traced and differentiated by torch.compile; generating C++ for it takes minutes and is torch's own business."""
    compiled = []

    def trace(function, **options):
        compiled.append(function)
        return original(function, backend="aot_eager", **options)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    common = {"precision": "fp32", "max_steps": 2, "augment": False, "gradient_checkpointing": checkpointing}
    finetune(config(world, tmp_path / "plain", **common))
    finetune(config(world, tmp_path / "compiled", compile=True, **common))
    ours = [f for f in compiled if getattr(f, "__name__", "") == "forward"]  # bitsandbytes compiles its own
    assert len(ours) == 2, "both decoder layers"
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    # Adam's first steps divide gradients by their size: rounding shows more than it weighs.
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)
    bundle = Bundle.open(tmp_path / "compiled")
    assert require_replay(Policy.of(bundle), bundle)["max_rad"] == 0.0, "golden answers are of the model as written"


@pytest.mark.parametrize("optimizer", ["adamw8bit", "paged_adamw8bit"])
def test_8_bit_adamw_learns_and_resumes_to_the_same_weights(world, tmp_path, interrupted_at_step, optimizer):
    """Rank 32 makes factors of 4,096 numbers, from which on bitsandbytes keeps moments in 8 bits."""
    whole = config(world, tmp_path / "whole", optimizer=optimizer, rank=32, max_steps=4, checkpoint_every=2)
    finetune(whole)
    moments = load_file(whole.run_folder / "checkpoints" / "step-000004" / "optimizer.safetensors")
    assert any(t.dtype == torch.uint8 for t in moments.values())
    broken = dataclasses.replace(whole, out=tmp_path / "broken")
    interrupted_at_step(3, broken)
    finetune(broken)
    a, b = weights(whole.out), weights(broken.out)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_weights_and_biases_runs_offline_with_no_account(world, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    cfg = config(world, tmp_path / "policy", wandb="offline", max_steps=2)
    finetune(cfg)
    runs = list((cfg.run_folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 1
    assert runs[0].stat().st_size > 500


def test_trackio_keeps_the_run_on_this_machine(world, tmp_path):
    """In a process of its own, which may not open a connection: Trackio reads its folder when it is imported."""
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed (extra trackio)")
    cfg = config(world, tmp_path / "policy", trackio=True, max_steps=3)
    script = tmp_path / "run.py"
    script.write_text(
        "import os, pathlib, socket\n"
        "def refuse(*_, **__): os._exit(9)  # an exception might be caught on the way\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from athena_vla.finetune import FinetuneConfig, finetune\n"
        f"finetune({cfg!r})\n".replace("PosixPath", "pathlib.Path")
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store"), "HF_TOKEN": "hf_" + "a" * 34}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "--json needs standard output for itself"
    with contextlib.closing(sqlite3.connect(tmp_path / "store" / "athena-vla.db")) as store:
        stored = store.execute("select step, metrics from metrics where run_name = 'policy'").fetchall()
    rows = [(step, json.loads(metrics)) for step, metrics in stored]
    found = {step: row["train/loss"] for step, row in rows if "train/loss" in row}
    assert list(found.values()) == pytest.approx(losses(cfg))
    assert sorted(found) == [1, 2, 3]
    assert any("validation/loss" in row for _, row in rows)


class Tracker(types.ModuleType):
    """What is called of Trackio, by name."""

    def __init__(self):
        super().__init__("trackio")
        self.opened, self.logged, self.closed = [], [], 0

    def init(self, **given):
        print("* Trackio metrics logged to: somewhere")
        self.opened.append(given)

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.closed += 1


def test_trackio_gets_every_curve_and_prints_nothing(world, tmp_path, monkeypatch, capsys):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    cfg = config(world, tmp_path / "policy", trackio=True)
    finetune(cfg)
    assert [(o["project"], o["name"], o["resume"]) for o in tracker.opened] == [("athena-vla", "policy", "allow")]
    assert [m["train/loss"] for _, m in tracker.logged if "train/loss" in m] == losses(cfg)
    assert [s for s, m in tracker.logged if "validation/loss" in m] == [3, 6]
    assert tracker.closed == 1
    assert capsys.readouterr().out == ""


def test_without_trackio_or_with_somewhere_to_send_to_it_is_a_sentence(world, tmp_path, monkeypatch):
    cfg = config(world, tmp_path / "policy", trackio=True)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "trackio", None)
        with pytest.raises(AthenaError, match=r"trackio.*for --trackio.*pip install"):
            finetune(cfg)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/runs")
    with pytest.raises(TrainingError, match=r"on this machine, and TRACKIO_SPACE_ID would send them away"):
        finetune(cfg)


def test_early_stopping_keeps_the_best(world, tmp_path, capsys):
    cfg = config(world, tmp_path / "policy", learning_rate=0.3, max_steps=30, evaluate_every=1, patience=2)
    result = finetune(cfg)
    assert result.steps < 30
    assert result.chosen_step == result.steps - 2
    assert "Stopped early" in capsys.readouterr().err


def test_order_is_balanced_seeded_and_the_same_for_any_number_of_processes(world):
    dataset = Dataset.open(world / "set")
    cfg = FinetuneConfig(batch=4, accumulation=1, seed=5)
    one = Order(dataset, dataset.train, cfg, 1)
    two = Order(dataset, dataset.train, dataclasses.replace(cfg, batch=2), 2)
    for step in range(30):
        assert one.micro_batch(step, 0, 0) == two.micro_batch(step, 0, 0) + two.micro_batch(step, 0, 1)
    drawn = [dataset.kinds[i] for step in range(200) for i in one.micro_batch(step, 0, 0)]
    assert abs(drawn.count("wave") / len(drawn) - 0.5) < 0.03  # a third of the recordings, half of the batches
    plain = Order(dataset, dataset.train, dataclasses.replace(cfg, balance=False), 1)
    first = [i for step in range(len(dataset.train) // 4) for i in plain.micro_batch(step, 0, 0)]
    assert len(set(first)) == len(first)  # an epoch repeats nothing
    assert set(one.micro_batch(0, 0, 0)) <= set(dataset.train.tolist())


def test_gradients_are_clipped_before_the_step(world, tmp_path, monkeypatch):
    norms = []
    original = torch.optim.AdamW.step

    def step(self, *arguments, **more):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return original(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    cfg = config(world, tmp_path / "policy", max_steps=2, clip_norm=0.01)
    finetune(cfg)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)
    logged = [x["gradient_norm"] for x in read(cfg.run_folder / "log.jsonl") if "gradient_norm" in x]
    assert min(logged) > 0.01, "the log has the norm before"


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_scaled_losses_give_the_same_weights_and_the_scale_is_resumed(
    world, tmp_path, monkeypatch, interrupted_at_step, clip_norm
):
    """The way of fp16, with numbers in float32: a power of two in and out of the gradients changes nothing."""
    common = {"precision": "fp32", "clip_norm": clip_norm, "max_steps": 5, "checkpoint_every": 2, "select": "last"}
    finetune(config(world, tmp_path / "plain", **common))
    scales = []
    original = launch.one_accelerator

    @contextlib.contextmanager
    def scaling(cfg):
        with original(cfg) as accelerator:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
            # What accelerate does itself where it computes in fp16.
            accelerator.unscale_gradients = lambda: [
                accelerator.scaler.unscale_(o.optimizer) for o in accelerator._optimizers
            ]
            yield accelerator
            scales.append(accelerator.scaler.get_scale())

    monkeypatch.setattr(launch, "one_accelerator", scaling)
    broken = config(world, tmp_path / "scaled", **common)
    interrupted_at_step(3, broken)
    finetune(broken)
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "scaled")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert scales == [2.0**13], "it grew once in five steps, over the interruption"


@pytest.mark.parametrize("shown", [True, False])
def test_progress_tells_every_step_and_its_loss(world, tmp_path, shown):
    class Seen(Nowhere):
        states: ClassVar[list[State]] = []

        def show(self, state: State) -> None:
            self.states.append(state)

    seen = Seen()
    seen.states.clear()
    log = RunLog(config(world, tmp_path / "policy", progress=shown), main=True, progress=Progress(seen))
    for step in log.track(range(3, 7), 3, 7):
        log.scalars(step + 1, {"loss": 0.5, "samples_per_second": 10.0})
    told = [(s.what, s.done, s.total, s.note) for s in seen.states]
    steps = [("step", s, 7, "loss 0.5000, 10 samples/s") for s in range(4, 8)]
    assert told == ([("step", 3, 7, ""), *steps] if shown else [])


@pytest.mark.parametrize(
    ("schedule", "wanted"), [("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0]), ("linear", [1, 0.5, 0])]
)
def test_schedules(schedule, wanted):
    cfg = FinetuneConfig(schedule=schedule, warmup_steps=10)
    assert [loop.rate_at(s, 110, cfg) for s in (10, 60, 110)] == pytest.approx(wanted)
    warm = [loop.rate_at(s, 110, cfg) for s in range(10)]
    assert warm == sorted(warm)
    assert 0 < warm[0] < warm[-1] < 1


def test_presets_have_exactly_the_users_numbers():
    linears = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    expected = {
        "humanoid_default": (64, 16, 0.1, linears | {"lm_head"}, False),
        "humanoid_efficient": (32, 16, 0.05, {"q_proj", "v_proj", "up_proj", "down_proj"}, False),
        "humanoid_high_performance": (128, 32, 0.1, linears | {"embed_tokens", "lm_head"}, True),
    }
    for name, (rank, alpha, dropout, targets, dora) in expected.items():
        p = PRESETS[name]
        assert (p.rank, p.alpha, p.dropout, set(p.targets), p.dora) == (rank, alpha, dropout, targets, dora)
        assert (p.learning_rate, p.batch, p.accumulation, p.epochs, p.warmup_steps) == (5e-5, 1, 16, 3, 100)
        assert (p.clip_norm, p.log_every, p.keep, p.select) == (1.0, 10, 2, "best")
        assert p.gradient_checkpointing
    assert {"openvla_reference", "rtx4090", "demo"} < set(PRESETS)


def test_what_trains_is_the_same_choice_in_both_configurations():
    """`FinetuneConfig` is flat for the command line and needs no torch; the adapter's settings are its fields."""
    ours = {f.name: (f.type, f.default) for f in dataclasses.fields(FinetuneConfig)}
    theirs = {f.name: (f.type, f.default) for f in dataclasses.fields(LoraSettings)}
    assert set(FinetuneConfig().lora()) == set(theirs)
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 0}, "--batch must be at least 1"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a positive number"),
        ({"patience": -1}, "--patience must not be negative"),
        ({"schedule": "exponential"}, "Known: constant, cosine, linear"),
        ({"method": "prefix"}, "Known: lora, full, heads"),
        ({"vision": True, "cache_features": "always"}, "cannot be cached"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, said):
    with pytest.raises(AthenaError, match=said):
        FinetuneConfig(**change)


def test_inputs_that_cannot_be_trained_on_are_a_sentence_each(world, tmp_path, toy):
    good = config(world, tmp_path / "policy")

    def refused(said: str, **change) -> None:
        with pytest.raises(AthenaError, match=said):
            finetune(dataclasses.replace(good, **change))
        assert not (tmp_path / "policy").exists()

    refused("is not a built dataset", data=tmp_path)
    refused("is neither a bundle", model=str(tmp_path))
    refused("There is no LoRA target 'c_attn'", targets=("c_attn",))
    refused("torch sees no GPU", device="cuda") if not torch.cuda.is_available() else None
    refused("fp16 cannot be trained on a CPU", precision="fp16", device="cpu")
    base = Bundle.open(world / "base")
    write_finetuned(tmp_path / "tuned", base, LoraSettings(rank=2))
    refused("Merge it first", model=str(tmp_path / "tuned"))
    build(BuildConfig(input=world / "rec", out=tmp_path / "far", robot="toy", horizon=20, workers=1))
    refused("horizon of 20 steps is longer than its longest episode", data=tmp_path / "far")
    build(BuildConfig(input=world / "rec", out=tmp_path / "all", robot="toy", horizon=4, workers=1, validation=0.0))
    refused("no validation episode", data=tmp_path / "all")
    result = finetune(dataclasses.replace(good, data=tmp_path / "all", select="last", max_steps=1))
    assert result.validation == {}


def test_a_loss_that_is_no_number_names_the_frames_and_keeps_the_last_checkpoint(world, tmp_path):
    cfg = config(world, tmp_path / "policy", learning_rate=1e30, clip_norm=0.0, checkpoint_every=1, max_steps=20)
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) at step \d+.*episode_000\d frame \d+") as caught:
        finetune(cfg)
    assert not cfg.out.exists()
    kept = checkpoint.steps(cfg.run_folder / "checkpoints")
    assert f"checkpoint of step {kept[-1]} is kept" in str(caught.value)


def test_memory_that_runs_out_is_answered_by_the_planner(world, tmp_path, monkeypatch):
    def full(self, step):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loop.Trainer, "_step", full)
    cfg = config(world, tmp_path / "policy")
    with pytest.raises(TrainingError, match=r"ran out of memory with --batch 4. Try --batch \d+ --accumulation \d+"):
        advised_finetune.finetune(cfg)
    assert not cfg.out.exists()


def test_memory_that_runs_out_anywhere_is_a_sentence(world, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for owner, name, said in (
        (base, "bound_model", "while .* was opened, before any step"),
        (features, "prepare", "ran out with --batch 4"),
        (loop, "measure", "ran out with --batch 4"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(TrainingError, match=said):
                finetune(config(world, tmp_path / "policy"))


def test_a_full_disk_leaves_earlier_checkpoints_alone(world, tmp_path, monkeypatch):
    cfg = config(world, tmp_path / "policy", checkpoint_every=2)
    original = checkpoint.save_file

    def full(tensors, path):
        if "lora_A" in str(next(iter(tensors))) and len(checkpoint.steps(cfg.run_folder / "checkpoints")) == 1:
            raise OSError(28, "No space left on device")
        return original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingError, match="No space left on device.*Earlier checkpoints are untouched"):
        finetune(cfg)
    folder = cfg.run_folder / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-000002"]
    assert checkpoint.load(folder, 2)[0].step == 2


def test_another_robot_gets_fresh_heads_of_its_sizes(world, tmp_path, athena, capsys):
    """The base of one robot, the recordings of another: the body stays, the heads are new."""
    write_base(tmp_path / "athena_base", athena)
    cfg = config(world, tmp_path / "policy", model=str(tmp_path / "athena_base"), max_steps=2)
    bundle = Bundle.open(finetune(cfg).bundle)
    assert bundle.spec.action_dim == 3
    assert bundle.spec.horizon == 4
    assert bundle.robot.name == "toy"
    assert "was made for 'athena', the dataset holds motions of 'toy'" in capsys.readouterr().err
    assert require_replay(Policy.of(bundle), bundle)["max_rad"] == 0.0


def test_cards_that_stay_idle_are_named(monkeypatch) -> None:
    card = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert "shows 4 cards and the run uses one of them; --gpus 4 uses all" in launch.unused_cards(card, 1)
    assert launch.unused_cards(card, 4) == launch.unused_cards(torch.device("cpu"), 1) == ""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert launch.unused_cards(card, 1) == ""


def test_each_card_gets_a_process(monkeypatch) -> None:
    """What a child is told: its rank, its card, and no word of the processor. Several cards were never run by us."""
    told: list[tuple[FinetuneConfig, dict[str, str]]] = []
    kept = {k: os.environ.get(k) for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")}
    for gpus in (2, 0):
        with monkeypatch.context() as patched:
            for name in (*kept, "MASTER_PORT", "OMP_NUM_THREADS", "ACCELERATE_USE_CPU"):
                patched.delenv(name, raising=False)
            seen = lambda c: told.append((c, dict(os.environ)))  # noqa: E731
            launch._child(FinetuneConfig(gpus=gpus, processes=1 if gpus else 2), seen, 1, 2, 1234, None)
            for name in (*kept, "MASTER_PORT", "OMP_NUM_THREADS", "ACCELERATE_USE_CPU"):
                os.environ.pop(name, None)
    (card, on_card), (processor, on_processor) = told
    assert (card.device, processor.device) == ("cuda", "cpu")
    assert on_card["LOCAL_RANK"] == on_processor["LOCAL_RANK"] == "1"
    assert on_card["WORLD_SIZE"] == on_processor["WORLD_SIZE"] == "2"
    assert "ACCELERATE_USE_CPU" not in on_card
    assert on_processor["ACCELERATE_USE_CPU"] == "true"


def test_more_cards_than_there_are_are_refused(world, tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"--gpus 4 was asked for, and torch sees 0"):
        finetune(config(world, tmp_path / "x", gpus=4))
    with pytest.raises(TrainingError, match=r"--gpus 1 was asked for, and torch sees 0"):
        finetune(config(world, tmp_path / "x", gpus=1))
    with pytest.raises(TrainingError, match="leave --device and --processes out"):
        finetune(config(world, tmp_path / "x", gpus=2, processes=2))
    assert not (tmp_path / "x").exists()


def test_one_card_needs_no_process_of_its_own(world, tmp_path, monkeypatch) -> None:
    """A child of a run with one card is alone too: it would start a child in its turn."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("a process was started"))
    assert finetune(config(world, tmp_path / "one", gpus=1)).steps == 6
