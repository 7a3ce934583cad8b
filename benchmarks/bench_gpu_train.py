"""Training openvla-7b's sizes on one GPU: peak memory, step time, utilisation, and plain transformers + peft beside it.

    python benchmarks/bench_gpu_train.py --out benchmarks/train_gpu.json

Random weights: speed and memory do not depend on them. Aims: QLoRA
humanoid_default below 20 GB at micro-batch 4 and below 12 GB at 1, LoRA in bfloat16 below 24 GB at 1, utilisation of
45% at 8, one and a half times the samples per second of the plain recipe.
"""
# bitsandbytes has no types, and parts of torch modules are replaced here.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import dataclasses
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from athena_vla.bench.facts import device_facts
from athena_vla.finetune import PRESETS
from athena_vla.models import lora, openvla, openvla_chunk
from athena_vla.models.body.tiny_tokenizer import tiny_tokenizer_files
from athena_vla.models.lora import LoraSettings
from athena_vla.models.sizes import weightless
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan import DEVICES, training_memory

PROMPT = 32  # tokens
WARM = 5  # optimiser steps that are not counted
DENSE_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "RTX 4090": 165e12, "L4": 121e12}  # [FLOP/s], data sheets


@dataclass(frozen=True)
class GpuBenchConfig:
    out: Path = Path("benchmarks/train_gpu.json")
    """Where the numbers go."""
    steps: int = 20
    """Timed optimiser steps per row, after five that are not counted."""
    rows: tuple[str, ...] = ()
    """These rows alone, by name; none given means all."""
    tiny: bool = False
    """Tiny sizes on the CPU: shows that the script runs, measures nothing of interest."""


def build(family: str, config: GpuBenchConfig, device: torch.device) -> VisionLanguageModel:
    """The model with random weights, made on the device in bfloat16."""
    kind, sizes = (openvla.OpenVLA, openvla) if family == "tokens" else (openvla_chunk.OpenVLAChunk, openvla_chunk)
    if config.tiny:
        return kind.from_spec(sizes.tiny_spec(action_dim=23, state_dim=23), {})
    with torch.device("meta"):
        model = kind(sizes.full_7b_spec(action_dim=23, state_dim=23), tiny_tokenizer_files(32_000))
    model = model.to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.02, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def batch_of(model: VisionLanguageModel, count: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Random inputs of the right shapes; images, not cached features."""
    spec, side = model.spec, model.body_spec.towers[0].image_size
    inputs = {
        "pixel_values": torch.randn(count, model.body_spec.images.channels, side, side, device=device),
        "input_ids": torch.randint(3, 1000, (count, PROMPT), device=device),
        "prompt_mask": torch.ones(count, PROMPT, dtype=torch.bool, device=device),
        "state": torch.zeros(count, spec.state_dim, device=device),
    }
    target = torch.rand(count, spec.horizon, spec.action_dim, device=device) * 2 - 1
    return inputs, target, torch.ones(count, spec.horizon, dtype=torch.bool, device=device)


def timed(
    step: Callable[[], Tensor], parameters: list[nn.Parameter], steps: int, device: torch.device
) -> dict[str, Any]:
    """Seconds per step and peak memory."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    loss = torch.tensor(float("nan"))
    for number in range(steps + WARM):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = step()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= WARM:
            seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return {"seconds_per_step": statistics.median(seconds), "peak_gb": peak, "loss": float(loss.detach())}


def ours(
    family: str,
    settings: LoraSettings,
    batch: int,
    checkpointing: bool,
    config: GpuBenchConfig,
    device: torch.device,
    *,
    compiled: bool = False,
) -> dict[str, Any]:
    """One row of this package's way."""
    model = build(family, config, device)
    counted = lora.attach(model, settings)
    model.train()
    lora.trust_autocast(model, on=True)
    if checkpointing:
        model.checkpoint_layers()
    if compiled:
        model.compile_layers(on=True)
    data = batch_of(model, batch, device)
    row = timed(lambda: model.loss(*data), [p for p in model.parameters() if p.requires_grad], config.steps, device)
    tokens = batch * (1 + model.body_spec.patches + PROMPT + model.spec.horizon)
    decoder = sum(lora._numel(p) for n, p in model.named_parameters() if ".layers." in n and "lora_" not in n)
    vision = sum(lora._numel(p) for n, p in model.named_parameters() if "vision_backbone" in n)
    # Frozen weights: forward and the gradient of the input, 4 operations per weight and token; towers forward only.
    work = 4.0 * decoder * tokens + 2.0 * vision * batch * model.body_spec.patches
    known = next(
        (v for k, v in DENSE_BF16.items() if device.type == "cuda" and k in torch.cuda.get_device_name()), None
    )
    planned = training_memory(
        weightless(model.family, model.spec), settings, DEVICES["rtx4090"], batch=batch, checkpointing=checkpointing
    )
    row |= {"trainable": counted.trainable, "samples_per_second": batch / row["seconds_per_step"]}
    row |= {"predicted_gb": planned.allocated_gb}  # as torch counts: without slack and CUDA itself
    return row | {"utilisation": work / row["seconds_per_step"] / known if known else None}


def plain(batch: int, config: GpuBenchConfig, device: torch.device) -> dict[str, Any]:
    """transformers + peft + bitsandbytes as usually put together: labels and logits on every token."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import LlamaConfig, LlamaForCausalLM

    body = build("tokens", config, device)
    text = body.body_spec.text
    sizes = LlamaConfig(
        vocab_size=text.rows,
        hidden_size=text.width,
        intermediate_size=text.mlp_width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        num_key_value_heads=text.kv_heads,
    )
    body.body.language_model = nn.Identity()  # only its vision part is used here; before the second decoder is made
    gc.collect()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # made in float32 it would take 27 GB for a moment
    try:
        with device:
            llama = LlamaForCausalLM(sizes)
    finally:
        torch.set_default_dtype(before)
    _quantize(llama)
    llama = prepare_model_for_kbit_training(llama, use_gradient_checkpointing=True)
    names = [t for t in PRESETS["humanoid_default"].targets if t != "lm_head"]
    llama = get_peft_model(llama, LoraConfig(r=64, lora_alpha=16, lora_dropout=0.1, target_modules=names))
    inputs, _, _ = batch_of(body, batch, device)
    ids = torch.randint(3, 1000, (batch, PROMPT + 24), device=device)
    body.requires_grad_(False)

    def step() -> Tensor:
        patches = body.body.vision(inputs["pixel_values"].to(next(body.parameters()).dtype))
        words = llama.get_input_embeddings()(ids)
        x = torch.cat([words[:, :1], patches.to(words.dtype), words[:, 1:]], dim=1)
        blank = torch.full(patches.shape[:2], -100, device=device)
        return llama(inputs_embeds=x, labels=torch.cat([ids[:, :1], blank, ids[:, 1:]], dim=1)).loss

    row = timed(step, [p for p in llama.parameters() if p.requires_grad], config.steps, device)
    return row | {"samples_per_second": batch / row["seconds_per_step"]}


def _quantize(llama: nn.Module) -> None:
    import bitsandbytes as bnb

    for name, module in list(llama.named_modules()):
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            small = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                device="meta",  # its own weight is replaced at once
            )
            small.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4", module=small)
            parent, _, last = name.rpartition(".")
            setattr(llama.get_submodule(parent), last, small.to(module.weight.device))
    llama.is_loaded_in_4bit = True  # pyright: ignore[reportAttributeAccessIssue]


def main(config: GpuBenchConfig) -> None:
    if not config.tiny and not torch.cuda.is_available():
        print("bench_gpu_train: not run. It needs a CUDA GPU; --tiny runs its code on the CPU, which measures nothing.")
        return
    device = torch.device("cpu" if config.tiny else "cuda")
    default = LoraSettings(**PRESETS["humanoid_default"].lora())
    nf4 = dataclasses.replace(default, quantization="nf4")
    rows: dict[str, dict[str, Any]] = {}
    plans: dict[str, Callable[[], dict[str, Any]]] = {
        "qlora_default_batch1": lambda: ours("tokens", nf4, 1, True, config, device),
        "qlora_default_batch4": lambda: ours("tokens", nf4, 4, True, config, device),
        "lora_bf16_batch1": lambda: ours("tokens", default, 1, True, config, device),
        "lora_bf16_batch8": lambda: ours("chunk", LoraSettings(rank=32), 8, False, config, device),
        "plain_qlora_batch4": lambda: plain(4, config, device),
        "plain_qlora_batch1": lambda: plain(1, config, device),
        "lora_bf16_batch16": lambda: ours("chunk", LoraSettings(rank=32), 16, False, config, device),
        "dora_bf16_batch8": lambda: ours("chunk", LoraSettings(rank=32, dora=True), 8, False, config, device),
        "lora_bf16_batch8_compiled": lambda: ours(
            "chunk", LoraSettings(rank=32), 8, False, config, device, compiled=True
        ),
        "lora_bf16_batch16_compiled": lambda: ours(
            "chunk", LoraSettings(rank=32), 16, False, config, device, compiled=True
        ),
        "qlora_default_batch1_compiled": lambda: ours("tokens", nf4, 1, True, config, device, compiled=True),
        "qlora_default_batch4_compiled": lambda: ours("tokens", nf4, 4, True, config, device, compiled=True),
    }
    plans = {n: plans[n] for n in config.rows or plans}
    for name, measure in plans.items():
        try:
            rows[name] = measure()
        except torch.OutOfMemoryError as error:
            rows[name] = {"out_of_memory": str(error)[:200]}
        except Exception as error:  # one row that fails costs the others nothing
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(name, json.dumps(rows[name]), flush=True)
        config.out.with_suffix(".part").write_text(json.dumps({"what": "cut short", "rows": rows}, indent=1) + "\n")
    label = "tiny sizes on a CPU: not a measurement" if config.tiny else "measured on this GPU"
    result = {"what": label, "command": " ".join(sys.argv), "rows": rows, "machine": device_facts()}
    config.out.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n")
    config.out.with_suffix(".part").rename(config.out)


if __name__ == "__main__":
    main(tyro.cli(GpuBenchConfig))
