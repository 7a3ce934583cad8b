"""Training speed on a CPU: this package's stage against the common recipe, same sizes, batch, optimiser and data.

    python benchmarks/bench_train.py --out benchmarks/train_cpu.json

The recipe: transformers' Llama with eager attention, peft's LoRA, vision computed in every step, labels on every token
and logits for every position, as in the usual fine-tuning script for vision-language models. Both train the token
family's targets (23 action tokens per frame) in bfloat16 autocast with AdamW on one thread. CPU seconds, not wall
clock, so that other work on the machine matters less; rounds alternate and medians stand beside all values.
"""
# transformers types its configurations and models as the arguments of a decorator.
# pyright: reportCallIssue=false

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import nn

from athena_vla import bundle as bundles
from athena_vla.bench.facts import device_facts
from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.embodiment import Embodiment, load
from athena_vla.finetune import FinetuneConfig, finetune
from athena_vla.models import lora, openvla, openvla_chunk
from athena_vla.models.body.attention import attend
from athena_vla.models.lora import LoraSettings
from athena_vla.models.precision import native_bf16
from athena_vla.models.weights.store import save_tensors
from athena_vla.policy import Policy, encode, record_golden
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats.isaac_folder import write_episode
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.streams import Clock
from athena_vla.recordings.texts import said

SIZES = {"image_size": 96, "patch": 8, "tower_width": 96, "tower_blocks": 3, "width": 128, "layers": 4, "heads": 4}


@dataclass(frozen=True)
class TrainBenchConfig:
    out: Path = Path("benchmarks/train_cpu.json")
    """Where the numbers go."""
    batch: int = 32
    """Samples per step."""
    steps: int = 20
    """Steps per measurement, after one that is not counted."""
    rounds: int = 3
    """Alternating measurements per row."""


class Noise:
    """Frames of noise: speed does not depend on what is in an image."""

    def __init__(self, count: int, seed: int) -> None:
        self.images = np.random.default_rng(seed).integers(0, 255, (count, 96, 96, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        return self.images[index]


def make_data(folder: Path, robot: Embodiment, horizon: int) -> Path:
    """Twelve recordings of thirty frames."""
    for i in range(12):
        rng = np.random.default_rng(i)
        path = rng.uniform(-0.2, 0.2, robot.state_dim) * np.sin(np.arange(30) / 5)[:, None] + robot.default
        path = np.clip(path, robot.lower, robot.upper).astype(np.float32)
        write_episode(
            folder / f"rec{horizon}",
            Episode(
                id=f"episode_{i:03d}",
                clock=Clock.at_rate(30, robot.control_hz, "recorded"),
                joint_names=robot.action_joints,
                actions=path[:, robot.action_index],
                state_names=robot.joint_names,
                states=path,
                cameras={"head": Noise(30, i)},
                texts=said(("touch the red cube on the left side of the table",), 30),
                marks=Marks(True),
            ),
        )
    out = folder / f"set{horizon}"
    build(BuildConfig(input=folder / f"rec{horizon}", out=out, robot=robot.name, horizon=horizon, workers=1))
    return out


def make_base(path: Path, dataset: Dataset, *, tokens: bool) -> None:
    """A bundle with random weights."""
    robot, kind = dataset.robot, openvla if tokens else openvla_chunk
    spec = kind.tiny_spec(action_dim=robot.action_dim, state_dim=robot.state_dim, horizon=dataset.horizon, **SIZES)
    torch.manual_seed(0)
    family = openvla.OpenVLA if tokens else openvla_chunk.OpenVLAChunk
    model = family.from_spec(spec, {}).eval()
    policy = Policy.of_model(model, robot, dataset.normalizer)
    manifest = bundles.Manifest(
        stage="base",
        family=model.family,
        spec=model.spec.to_dict(),
        robot=robot.to_dict(),
        normalizer=dataset.normalizer.to_dict(),
    )
    golden = record_golden(policy, [dataset[0].observation])
    with bundles.writing(path, manifest, golden, model.tokenizer_files()) as folder:
        save_tensors(model.state_dict(), folder / bundles.MODEL_FILE)


class Recipe(nn.Module):
    """The common recipe around the same vision part."""

    def __init__(self, model: openvla.OpenVLA) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        text = model.body_spec.text
        llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=text.rows,
                hidden_size=text.width,
                intermediate_size=text.mlp_width,
                num_hidden_layers=text.layers,
                num_attention_heads=text.heads,
                num_key_value_heads=text.kv_heads,
                attn_implementation="eager",
            )
        )
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        self.llama = get_peft_model(llama, LoraConfig(r=16, lora_alpha=32, target_modules=names))
        self.body = model.body.requires_grad_(False)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        patches = self.body.vision(pixels)
        words = self.llama.get_input_embeddings()(ids)
        x = torch.cat([words[:, :1], patches.to(words.dtype), words[:, 1:]], dim=1)
        # Labels are the inputs, on every token; images have none.
        blank = torch.full(patches.shape[:2], -100)
        return self.llama(inputs_embeds=x, labels=torch.cat([ids[:, :1], blank, ids[:, 1:]], dim=1)).loss


def time_recipe(base: Path, dataset: Dataset, config: TrainBenchConfig) -> float:
    """Samples per CPU second of the recipe."""
    model = bundles.Bundle.open(base).model()
    assert isinstance(model, openvla.OpenVLA)
    recipe = Recipe(model)
    optimizer = torch.optim.AdamW([p for p in recipe.parameters() if p.requires_grad], lr=1e-3)

    def step(number: int) -> None:
        index = [(number * config.batch + i) % len(dataset) for i in range(config.batch)]
        samples = [dataset[i] for i in index]
        inputs = model.collate([encode(s.observation, dataset.robot, dataset.normalizer) for s in samples])
        unit = dataset.normalizer.encode(
            np.stack([s.chunk for s in samples]), np.stack([s.observation.state for s in samples])
        )
        tokens = torch.from_numpy(model.action_tokens.encode(unit)).reshape(config.batch, -1)
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16()):  # as the stage decides
            loss = recipe(inputs["pixel_values"], torch.cat([inputs["input_ids"], tokens], dim=1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(recipe.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, config)


def timed(step: Any, config: TrainBenchConfig) -> float:
    step(0)
    started = time.process_time()
    for number in range(1, 1 + config.steps):
        step(number)
    return config.steps * config.batch / (time.process_time() - started)


def time_stage(base: Path, data: Path, folder: Path, config: TrainBenchConfig, *, cache: bool) -> float:
    """Samples per CPU second of `finetune`: the difference of a long and a short run leaves start and end out."""
    common = FinetuneConfig(
        model=str(base),
        data=data,
        out=folder / "policy",
        rank=16,
        alpha=32,
        batch=config.batch,
        accumulation=1,
        augment=False,
        cache_features="always" if cache else "never",
        max_steps=1,
        evaluate_samples=1,
        resume="never",
        overwrite=True,
        select="last",
        tensorboard=False,
        progress=False,
        device="cpu",
    )
    seconds = []
    for steps in (1, 1, 1 + config.steps):  # the first run fills the cache and imports what is imported late
        started = time.process_time()
        finetune(replace(common, max_steps=steps, evaluate_every=steps))
        seconds.append(time.process_time() - started)
    return config.steps * config.batch / (seconds[2] - seconds[1])


def time_attention() -> dict[str, float]:
    """Milliseconds of forward and backward, 64 x 4 heads x 170 rows x 32 in bfloat16: torch's kernel and ours."""
    q, k, v = (torch.randn(64, 4, 170, 32, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    mask = torch.ones(64, 1, 170, 170, dtype=torch.bool).tril()
    gradient = torch.randn(64, 4, 170, 32, dtype=torch.bfloat16)
    found: dict[str, float] = {}
    for name, function in (
        ("torch_fused", lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)),
        ("written_out", lambda: attend(q, k, v, mask)),
    ):
        times = []
        for _ in range(6):
            started = time.process_time()
            function().backward(gradient)
            times.append(time.process_time() - started)
        found[name] = round(1000 * statistics.median(times[1:]), 1)
    return found


def main(config: TrainBenchConfig) -> None:
    torch.set_num_threads(1)
    robot = load("athena")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, chunks = make_data(folder, robot, 1), make_data(folder, robot, 8)
        make_base(folder / "tokens", Dataset.open(data), tokens=True)
        make_base(folder / "chunk", Dataset.open(chunks), tokens=False)
        model = bundles.Bundle.open(folder / "tokens").model()
        counted = lora.attach(model, LoraSettings(rank=16))
        rows: dict[str, list[float]] = {}
        for _ in range(config.rounds):
            for name, measure in (
                ("recipe", lambda: time_recipe(folder / "tokens", Dataset.open(data), config)),
                ("tokens", lambda: time_stage(folder / "tokens", data, folder, config, cache=False)),
                ("tokens_cached", lambda: time_stage(folder / "tokens", data, folder, config, cache=True)),
                ("chunk_cached", lambda: time_stage(folder / "chunk", chunks, folder, config, cache=True)),
            ):
                rows.setdefault(name, []).append(round(measure(), 2))
                print(name, rows[name][-1], "samples per CPU second", flush=True)
    middle = {n: statistics.median(v) for n, v in rows.items()}
    result = {
        "what": "training speed on one CPU thread, measured here",
        "command": " ".join(sys.argv),
        "batch": config.batch,
        "sizes": SIZES,
        "trainable": counted.trainable,
        "samples_per_cpu_second": rows,
        "median": middle,
        "times_the_recipe": {n: round(v / middle["recipe"], 2) for n, v in middle.items()},
        "attention_forward_backward_ms": time_attention(),
        "machine": device_facts(),
    }
    config.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["times_the_recipe"]))


if __name__ == "__main__":
    main(tyro.cli(TrainBenchConfig))
