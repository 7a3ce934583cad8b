"""Bundles of the full-size policy with random weights: checkpoint -> base -> int4 -> ONNX. Used by bench_7b_cpu.py.

Weights come from a checkpoint that scripts/write_random_7b.py wrote, and every stage is the product's own. Rounding is
to the nearest code: GPTQ at this size takes hours on two cores and changes no time. Knows no engines.
"""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from athena_vla import bundle as bundles
from athena_vla import embodiment
from athena_vla.bench.facts import peak_memory_gb
from athena_vla.bundle import Bundle, Golden, Manifest
from athena_vla.data.normalize import NormalizerFit
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.export import ExportConfig, export
from athena_vla.models import sizes
from athena_vla.models.store import StoreWriter, TensorStore
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.quantize import QuantizeConfig, quantize

FAMILIES = {"chunk": "openvla_chunk", "tokens": "openvla"}
INSTRUCTION = "pick up the red cube and put it into the box"
PREFIX = "body."  # families keep the released weights under it


def robot() -> Embodiment:
    """athena with its first camera only."""
    raw = embodiment.load("athena").to_dict()
    raw["cameras"] = raw["cameras"][:1]
    return Embodiment.from_dict(raw)


def frame() -> Observation:
    """A random image and the resting pose."""
    one = robot()
    camera = one.cameras[0]
    image = np.random.default_rng(0).integers(0, 255, (camera.height, camera.width, 3), dtype=np.uint8)
    return Observation({camera.name: image}, one.default.copy(), INSTRUCTION)


def skeleton(kind: str, small: bool) -> VisionLanguageModel:
    """One of the two families without weights."""
    import importlib

    one, family = robot(), FAMILIES[kind]
    wanted: dict[str, Any] = {"action_dim": one.action_dim, "state_dim": one.state_dim, "cameras": 1}
    wanted["horizon"] = 16 if kind == "chunk" else 1
    if not small:
        return sizes.weightless(family, sizes.full_size(family, **wanted))
    module = importlib.import_module(f"athena_vla.models.{family}")
    # The vision of a tiny model has nothing of the checkpoint's; its weights are made up here.
    return sizes.weightless(family, module.tiny_spec(**wanted, width=256, mlp_width=512, layers=3))


def timed(record: dict[str, Any], name: str, work: Any) -> Any:
    start = time.perf_counter()
    result = work()
    record[name] = {"seconds": time.perf_counter() - start, "peak_resident_gb_so_far": peak_memory_gb()}
    print(f"{name}: {record[name]}", flush=True)
    return result


def write_bundle(out: Path, kind: str, small: bool, read: Any, stage: bundles.Stage, info: dict[str, Any]) -> Path:
    """A bundle whose weights `read(name)` gives, and made up where it gives None (heads; everything if small)."""
    model, one = skeleton(kind, small), robot()
    horizon = model.spec.horizon
    states = np.random.default_rng(0).uniform(one.lower, one.upper, (64, one.state_dim))
    fit = NormalizerFit(one)
    fit.add(states[:, None, one.action_index].repeat(horizon, axis=1), states)
    manifest = Manifest(
        stage=stage,
        family=model.family,
        spec=model.spec.to_dict(),
        robot=one.to_dict(),
        normalizer=fit.finish().to_dict(),
        stage_info=info,
    )
    generator = torch.Generator().manual_seed(0)
    # Random weights have no golden answer; the frame is there so that the bundle is complete.
    golden = Golden((frame(),), np.zeros((1, horizon, one.action_dim)))
    with bundles.writing(out, manifest, golden, model.tokenizer_files()) as folder:
        writer = StoreWriter(folder / "weights")
        for name, like in model.state_dict().items():
            weight = read(name)
            writer.add(name, made_up(name, like, generator) if weight is None else weight)
        writer.close()
    return out


def made_up(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if like.ndim < 2:
        return torch.zeros(like.shape) if name.endswith("bias") else torch.ones(like.shape)
    return torch.randn(like.shape, generator=generator) * like.shape[-1] ** -0.5


def prepare(checkpoint: Path | None, work: Path, small: bool, vision_bits: int) -> dict[str, Any]:
    """Both families exported under `work`; large intermediate bundles are removed as soon as they are not needed."""
    record: dict[str, Any] = {"rounding": "nearest", "vision_bits": vision_bits, "checkpoint": not small}
    work.mkdir(parents=True, exist_ok=True)
    store = None if small or checkpoint is None else TensorStore(checkpoint)

    def released(name: str) -> Any:
        key = name.removeprefix(PREFIX)
        return store.read(key) if store is not None and key in store.names else None

    base = work / "base"
    timed(record, "copy_into_a_bundle", lambda: write_bundle(base, "tokens", small, released, "base", {}))
    config = QuantizeConfig(
        input=base,
        out=work / "int4",
        method="nearest",
        sensitivity=False,
        vision_bits=cast(Any, vision_bits),
        threads=2,
    )
    made = timed(record, "quantize", lambda: quantize(config))
    record["quantize"] |= {"peak_resident_gb": made.peak_gb, "mean_bits": made.mean_bits, "bytes": made.bytes}
    shutil.rmtree(base)
    tokens = Bundle.open(work / "int4", verify=False)
    packed = tokens.store()

    def quantized(name: str) -> Any:
        return packed.read(name) if name in packed.names else None

    info = tokens.manifest.stage_info
    timed(
        record,
        "other_family",
        lambda: write_bundle(work / "int4-chunk", "chunk", small, quantized, "quantized", info),
    )
    for kind, source in (("tokens", work / "int4"), ("chunk", work / "int4-chunk")):
        settings = ExportConfig(source, work / kind, accuracy="int8", compare=False, fixed_batch=True, threads=2)
        result = timed(record, f"export_{kind}", lambda settings=settings: export(settings))
        record[f"export_{kind}"]["bytes"] = result.bytes
        shutil.rmtree(source)
    record["peak_resident_gb"] = peak_memory_gb()
    (work / "prepare.json").write_text(json.dumps(record, indent=1))
    return record


def decoder_bytes(spec: Any, scale_bits: int = 16) -> int:
    """Bytes of the decoder's linear layers: 4-bit codes and one scale per 128 inputs."""
    text = dataclasses.replace(spec)
    per_layer = text.width * text.head_width * (2 * text.heads + 2 * text.kv_heads) + 3 * text.width * text.mlp_width
    return int(text.layers * per_layer * (4 + scale_bits / 128) / 8)
