"""Bundles of a very small model for the tests of the deployment stages."""
# bitsandbytes and peft have no types, and parts of torch modules are reached by name.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from athena_vla import bundle as bundles
from athena_vla.bundle import Bundle, Manifest
from athena_vla.dataset.normalize import Normalizer, NormalizerFit
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.finetune import FinetuneConfig
from athena_vla.models import lora, openvla, openvla_chunk, openvla_oft
from athena_vla.models.architecture import Architecture
from athena_vla.models.lora import LoraSettings
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.models.weights.store import StoreWriter, save_tensors
from athena_vla.policy import Policy, record_golden

BODY = {"image_size": 32, "patch": 8, "tower_width": 32, "width": 128, "layers": 2, "mlp_width": 256}


def observations(robot: Embodiment, count: int, seed: int = 0) -> list[Observation]:
    """Random frames with different instructions, so that prompts have different lengths."""
    generator = np.random.default_rng(seed)
    texts = ("raise the arm", "point at the small red cube on the table", "squat")
    return [
        Observation(
            images={c.name: generator.integers(0, 255, (c.height, c.width, 3), dtype=np.uint8) for c in robot.cameras},
            state=generator.uniform(robot.state_columns.lower, robot.state_columns.upper),
            instruction=texts[i % len(texts)],
        )
        for i in range(count)
    ]


def normalizer(robot: Embodiment, horizon: int) -> Normalizer:
    generator = np.random.default_rng(1)
    columns = robot.state_columns
    states = generator.uniform(columns.lower, columns.upper, (64, len(columns)))
    fit = NormalizerFit(robot)
    fit.add(robot.action_of(states)[:, None].repeat(horizon, axis=1), states)
    return fit.finish()


def small_model(
    robot: Embodiment, *, tokens: bool = False, oft: bool = False, seed: int = 0, horizon: int = 0
) -> VisionLanguageModel:
    """The one-pass family, with `tokens` the autoregressive one, with `oft` OpenVLA-OFT."""
    torch.manual_seed(seed)
    sizes = {"action_dim": robot.action_dim, "state_dim": robot.state_dim, "cameras": len(robot.cameras)}
    if tokens:
        return openvla.OpenVLA.from_spec(openvla.tiny_spec(**sizes, horizon=horizon or 1, **BODY), {}).eval()
    if oft:
        return openvla_oft.OpenVLAOFT.from_spec(openvla_oft.tiny_spec(**sizes, horizon=horizon or 4, **BODY), {}).eval()
    spec = openvla_chunk.tiny_spec(**sizes, horizon=horizon or 4, **BODY)
    model = openvla_chunk.OpenVLAChunk.from_spec(spec, {}).eval()
    with torch.no_grad():  # a fresh head answers almost the same to everything; errors must show in radians
        model.head.fc2.weight.mul_(20)
    return model


def write_base(
    path: Path,
    robot: Embodiment,
    *,
    tokens: bool = False,
    oft: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    return write_model(path, robot, small_model(robot, tokens=tokens, oft=oft, seed=seed), dtype=dtype)


def write_model(
    path: Path,
    robot: Embodiment,
    model: Architecture,
    frames: Sequence[Observation] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """A base bundle of any model; `frames` are its golden observations, `dtype` is what its weights are stored in."""
    model.eval()
    statistics = normalizer(robot, model.spec.horizon)
    golden = record_golden(Policy.of_model(model, robot, statistics), frames or observations(robot, 3))
    manifest = Manifest(
        stage="base",
        family=model.family,
        spec=model.spec.to_dict(),
        robot=robot.to_dict(),
        normalizer=statistics.to_dict(),
    )
    with bundles.writing(path, manifest, golden, model.tokenizer_files()) as folder:
        writer = StoreWriter(folder / "weights")
        for name, tensor in model.state_dict().items():
            writer.add(name, tensor.to(dtype))
        writer.close()
    return Bundle.open(path)


def write_finetuned(path: Path, base: Bundle, settings: LoraSettings, seed: int = 1) -> Bundle:
    """As after training: adapters and heads that differ from the base's."""
    model = base.model()
    lora.attach(model, settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 0.05 if "lora_" in name else 0.01
                parameter.add_(torch.randn_like(parameter) * scale)
    golden = record_golden(
        Policy.of_model(model.eval(), base.robot, base.normalizer), observations(base.robot, 3, seed=seed)
    )
    manifest = dataclasses.replace(
        base.manifest,
        stage="finetuned",
        parent_hash=base.hash,
        parent_path=str(base.path),
        adapter=json.loads(json.dumps(dataclasses.asdict(settings))),
        files={},
    )
    with bundles.writing(path, manifest, golden, base.tokenizer_files()) as folder:
        save_tensors(lora.state(model), folder / "weights" / "adapter.safetensors")
    return Bundle.open(path)


@torch.no_grad()
def peft_merge(model: Architecture) -> dict[str, torch.Tensor]:
    """The weights that peft itself merges in memory, all in float32, under the names of the plain model."""
    merged = {n.replace(".base_layer", ""): t.float() for n, t in model.state_dict().items() if ".lora_" not in n}
    for path, module in model.named_modules():
        four = type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")
        if four:
            import bitsandbytes

            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            name = path.removesuffix(".base_layer")
            merged = {k: v for k, v in merged.items() if not k.startswith(f"{name}.weight")}
            merged[f"{name}.weight"] = weight.float()
    for path, module in model.named_modules():
        if hasattr(module, "lora_variant"):
            weight = merged[f"{path}.weight"].clone()
            if "default" in module.lora_variant:
                merged[f"{path}.weight"] = module.lora_variant["default"].merge_safe(module, "default", weight)
            else:
                merged[f"{path}.weight"] = weight + module.get_delta_weight("default").float()
    return merged


def small_run(**settings) -> FinetuneConfig:
    """A fine-tuning of seconds that shows nothing on the terminal."""
    fields = {"rank": 4, "accumulation": 1, "batch": 4, "tensorboard": False, "progress": False}
    return FinetuneConfig(**{**fields, **settings})
