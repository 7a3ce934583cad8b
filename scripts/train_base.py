"""Train the small generic base model that ships with the package, from nothing, on one CPU core.

    python scripts/train_base.py --work runs/base

Two phases. Grounding: images of three coloured shapes, "find the red cube" -> where it is in the image and from the
pelvis. Motions: recordings of generic tasks (the simulator's split `base`, which shares no verb with the demo's tasks),
mixed with grounding. What helped and what did not is in docs/experiments.md; the result is described in
src/athena_vla/assets/base/README.md.
"""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import ctypes
import dataclasses
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from athena_vla import bundle as bundles
from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.dataset.normalize import Normalizer
from athena_vla.finetune import FinetuneConfig, features
from athena_vla.finetune.batches import Loader, Order
from athena_vla.models.openvla_chunk import OpenVLAChunk, tiny_spec
from athena_vla.models.precision import native_bf16
from athena_vla.models.weights.store import save_tensors
from athena_vla.policy import Policy, record_golden
from athena_vla.sim.grounding import render_grounding
from athena_vla.sim.record import RecordConfig, record
from base_grounding import HORIZON, Pictures, Questions


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Everything the base depends on."""

    work: Path = Path("runs/base")
    """Renders, recordings and weights on the way; finished parts are reused."""
    out: Path = Path("src/athena_vla/assets/base")
    """The bundle."""
    scenes: int = 16_000
    """Grounding images, three questions each."""
    grounding_steps: int = 2_500
    """Steps of phase one, 24 images each."""
    episodes: int = 1_200
    """Recordings of generic motions."""
    motion_steps: int = 1_800
    """Steps of phase two, each with `motion_batch` samples and 8 images."""
    motion_batch: int = 64
    """Samples per step of phase two."""
    learning_rate: float = 1.5e-3
    """Peak, of phase one; phase two starts at two thirds of it."""
    seed: int = 0
    """Of everything."""
    workers: int = 1
    """Processes that render and record."""
    patch: int = 12
    """Edge of a vision patch. [px]"""
    width: int = 128
    """Of the decoder."""
    layers: int = 4
    """Of the decoder."""
    tower_width: int = 64
    """Of each vision tower."""


def main(config: BaseConfig) -> None:
    """Render, record, train, measure, write the bundle."""
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(config.seed)
    config.work.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    pictures_file = render(config, "grounding", config.scenes, config.seed)
    test_file = render(config, "grounding_test", 512, config.seed + 77)
    dataset = motions(config)
    normalizer = fit_normalizer(dataset, pictures_file)
    prepared = time.process_time() - started

    spec = tiny_spec(
        action_dim=dataset.robot.action_dim,
        state_dim=dataset.robot.state_dim,
        horizon=HORIZON,
        patch=config.patch,
        tower_width=config.tower_width,
        tower_blocks=3,
        tower_heads=2,
        width=config.width,
        layers=config.layers,
        heads=2,
        kv_heads=2,
    )
    model = OpenVLAChunk.from_spec(spec, {})
    initialise(model)
    questions = Questions(model)
    pictures, test = (Pictures(f, config.patch, normalizer) for f in (pictures_file, test_file))
    started = time.process_time()
    saved = config.work / "grounded.safetensors"
    if saved.is_file():
        print(f"reusing {saved}")
        questions.load_state_dict(load_file(saved))
    else:
        ground(questions, pictures, test, config)
        save_tensors(questions.state_dict(), saved)
    act(questions, pictures, dataset, normalizer, config)
    trained = time.process_time() - started
    scores = {"grounding": grounding_scores(questions, test), "motions": motion_scores(model, dataset, normalizer)}
    scores["cpu_seconds"] = {"render_and_record": round(prepared), "train": round(trained)}
    write(model, dataset, normalizer, scores, config)
    print(json.dumps(scores, indent=1))


def render(config: BaseConfig, name: str, count: int, seed: int) -> Path:
    """Grounding images in one file."""
    file = config.work / f"{name}-{count}-{seed}.npz"
    if not file.is_file():
        batches = list(render_grounding(count, seed=seed, workers=config.workers))
        names = [f.name for f in dataclasses.fields(batches[0])]
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **{n: np.concatenate([getattr(b, n) for b in batches]) for n in names})  # pyright: ignore
        partial.rename(file)
    return file


def motions(config: BaseConfig) -> Dataset:
    """Recordings of generic tasks, built as any user's."""
    recordings, built = config.work / f"recordings{config.episodes}", config.work / f"dataset{config.episodes}"
    record(
        RecordConfig(
            out=recordings, episodes=config.episodes, split="base", seed=1000 + config.seed, workers=config.workers
        )
    )
    if not built.is_dir():
        build(BuildConfig(input=recordings, out=built, robot="athena", horizon=HORIZON, workers=config.workers))
    return Dataset.open(built)


def fit_normalizer(dataset: Dataset, pictures: Path) -> Normalizer:
    """Statistics of the motions, with the states widened to the poses of the images."""
    samples = [dataset[int(i)] for i in dataset.train[:: max(1, len(dataset.train) // 20_000)]]
    states = np.stack([s.observation.state for s in samples])
    fitted = Normalizer.fit(dataset.robot, np.stack([s.chunk for s in samples]), states)
    with np.load(pictures, allow_pickle=False) as stored:
        posed = stored["states"]
    low, high = np.quantile(posed, [0.005, 0.995], axis=0)
    return dataclasses.replace(
        fitted, state_low=np.minimum(fitted.state_low, low), state_high=np.maximum(fitted.state_high, high)
    )


@torch.no_grad()
def initialise(model: OpenVLAChunk) -> None:
    """Keys start equal to queries: alike then attends to alike, and words find patches that resemble them."""
    for layer in model.body.language_model.model.layers:
        layer.self_attn.q_proj.weight.mul_(1.3)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def optimizer_for(questions: Questions, rate: float) -> torch.optim.AdamW:
    table = questions.model.body.language_model.model.embed_tokens.weight
    others = [p for p in questions.parameters() if p is not table]
    groups = [{"params": others, "weight_decay": 0.02}, {"params": [table], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def descend(questions: Questions, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(questions.parameters(), 1.0)
    optimizer.step()


def cosine(step: int, steps: int, warmup: int = 60, floor: float = 0.02) -> float:
    return min(1.0, (step + 1) / warmup) * max(floor, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def ground(questions: Questions, pictures: Pictures, test: Pictures, config: BaseConfig) -> None:
    """Phase one."""
    rng = np.random.default_rng([config.seed, 1])
    optimizer = optimizer_for(questions, config.learning_rate)
    for step in range(config.grounding_steps):
        batch = pictures.batch(rng.integers(0, pictures.count, 24), augmented=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16()):
            loss = questions(batch, rng)
        descend(questions, optimizer, loss, config.learning_rate * cosine(step, config.grounding_steps))
        if (step + 1) % 100 == 0:
            print("grounding", step + 1, round(loss.item(), 3), grounding_scores(questions, test), flush=True)


def act(questions: Questions, pictures: Pictures, dataset: Dataset, normalizer: Normalizer, config: BaseConfig) -> None:
    """Phase two: generic motions, with grounding so that it is not forgotten. Vision stays as it is, and is cached."""
    model, rate = questions.model, config.learning_rate * 2 / 3
    rng = np.random.default_rng([config.seed, 2])
    model.body.vision_backbone.requires_grad_(False)
    model.body.projector.requires_grad_(False)
    dataset.normalizer = normalizer
    # Colours are varied, so that a recording cannot be told by its table; crops would move objects.
    drawn = FinetuneConfig(
        batch=config.motion_batch, accumulation=1, augment_crop=1.0, state_noise=0.02, seed=config.seed
    )
    cached = features.prepare(
        model, dataset, drawn, Accelerator(cpu=True, mixed_precision="bf16" if native_bf16() else "no")
    )
    loader, order = Loader(dataset, model, drawn, cached), Order(dataset, dataset.train, drawn, 1)
    optimizer = optimizer_for(questions, rate)
    for step in range(config.motion_steps):
        samples = loader.training(order.micro_batch(step, 0, 0), step)
        batch = pictures.batch(rng.integers(0, pictures.count, 8), augmented=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16()):
            motion = model.loss(samples.inputs, samples.target, samples.valid)
            loss = 4.0 * motion + questions(batch, rng)
        descend(questions, optimizer, loss, rate * cosine(step, config.motion_steps))
        if (step + 1) % 100 == 0:
            print("motions", step + 1, round(motion.item(), 4), round(loss.item(), 3), flush=True)


@torch.inference_mode()
def grounding_scores(questions: Questions, test: Pictures) -> dict[str, float]:
    """On unseen images, one question each, asked as the deployed model is: median error and share below 3 cm."""
    model, errors = questions.model, []
    for first in range(0, test.count, 64):
        index = np.arange(first, min(first + 64, test.count))
        batch = test.batch(index, augmented=False)
        which = torch.from_numpy(index % 3)
        rows = torch.arange(len(index))
        asked = [
            questions.prefix + questions.words(int(batch["colours"][r, w]), int(batch["shapes"][r, w]), int(r) % 16)[0]
            for r, w in zip(rows, which, strict=True)
        ]
        longest = max(map(len, asked))
        ids = torch.full((len(asked), longest), model.prompter.pad)
        for row, question in zip(ids, asked, strict=True):
            row[: len(question)] = torch.tensor(question)
        mask = torch.arange(longest) < torch.tensor([len(q) for q in asked])[:, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16()):
            hidden = model.hidden(model.body.vision(batch["pixels"]), ids, mask, batch["state"])
        answer = questions.place(hidden[:, -1].float())
        metres = (answer - batch["place"][rows, which])[:, 2:4] * torch.tensor([0.10, 0.25])
        errors.append(metres.norm(dim=1)[batch["visible"][rows, which] > 0])
    error = torch.cat(errors)
    return {
        "median_cm": round(100 * float(error.median()), 2),
        "p90_cm": round(100 * float(error.quantile(0.9)), 2),
        "within_3_cm": round(float((error < 0.03).float().mean()), 3),
        "n": len(error),
    }


@torch.inference_mode()
def motion_scores(model: OpenVLAChunk, dataset: Dataset, normalizer: Normalizer) -> dict[str, float]:
    """Mean absolute error on the validation episodes. [rad]"""
    model.eval()
    policy = Policy.of_model(model, dataset.robot, normalizer)
    samples = [dataset[int(i)] for i in dataset.validation[:: max(1, len(dataset.validation) // 256)]]
    errors = [
        np.abs(chunk.positions - s.chunk)[s.valid].mean()
        for s, chunk in zip(samples, policy.act_batch([s.observation for s in samples]), strict=True)
    ]
    return {"mae_rad": round(float(np.mean(errors)), 4), "n": len(errors)}


def write(
    model: OpenVLAChunk, dataset: Dataset, normalizer: Normalizer, scores: dict[str, object], config: BaseConfig
) -> None:
    """The bundle; weights are rounded to half precision first, so that the golden chunks are what they give."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    model.eval()
    policy = Policy.of_model(model, dataset.robot, normalizer)
    chosen = dataset.validation[:: max(1, len(dataset.validation) // 4)][:4]
    golden = record_golden(policy, [dataset[int(i)].observation for i in chosen])
    manifest = bundles.Manifest(
        stage="base",
        family=model.family,
        spec=model.spec.to_dict(),
        robot=dataset.robot.to_dict(),
        normalizer=normalizer.to_dict(),
        dataset_hash=dataset.hash,
        config={k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()},
        stage_info={"scores": scores, "machine": platform.processor() or platform.machine()},
    )
    card = config.out / "README.md"
    text = card.read_text() if card.is_file() else ""
    with bundles.writing(config.out, manifest, golden, model.tokenizer_files()) as folder:
        save_tensors({k: t.half() for k, t in model.state_dict().items()}, folder / bundles.MODEL_FILE)
    if text:  # the model card is written by people and is no part of what the hashes bind
        card.write_text(text)


def keep_memory() -> None:
    """Ask glibc not to give freed memory back: every step needs the same again, and page faults cost a tenth."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


if __name__ == "__main__":
    main(tyro.cli(BaseConfig))
