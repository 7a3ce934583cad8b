"""Bundles of the full-size policy with random weights: checkpoint -> base -> int4 -> ONNX. Used by bench_7b_cpu.py.

Weights come from a checkpoint that scripts/write_random_7b.py wrote, and every stage is the product's own. Rounding is
to the nearest code: GPTQ at this size takes an hour of CPU (quantize_7b.json) and changes no time. Knows no engines.
"""

import importlib
import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from athena_vla import bundle as bundles
from athena_vla import embodiment
from athena_vla.bundle import Bundle, Golden, Manifest
from athena_vla.dataset.normalize import NormalizerFit
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.export import ExportConfig, export
from athena_vla.machine import peak_resident_gb
from athena_vla.models import sizes
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.models.weights.store import StoreWriter, TensorStore
from athena_vla.quantize import QuantizeConfig, quantize

FAMILIES = {"chunk": "openvla_chunk", "tokens": "openvla"}
INSTRUCTION = "pick up the red cube and put it into the box"
THREADS = 2
PREFIX = "body."  # families keep the released weights under it


def robot() -> Embodiment:
    """athena with its first camera only."""
    raw = embodiment.load("athena").to_dict()
    raw["cameras"] = raw["cameras"][:1]
    return Embodiment.from_dict(raw)


def frame(seed: int = 0) -> Observation:
    """A random image and the resting pose."""
    one = robot()
    camera = one.cameras[0]
    image = np.random.default_rng(seed).integers(0, 255, (camera.height, camera.width, 3), dtype=np.uint8)
    return Observation({camera.name: image}, one.default.copy(), INSTRUCTION)


def meta_model(kind: str, small: bool) -> VisionLanguageModel:
    """One of the two families without weights."""
    one, family = robot(), FAMILIES[kind]
    wanted: dict[str, Any] = {"action_dim": one.action_dim, "state_dim": one.state_dim, "cameras": 1}
    wanted["horizon"] = 16 if kind == "chunk" else 1
    if not small:
        return sizes.weightless(family, sizes.full_size(family, **wanted))
    module = importlib.import_module(f"athena_vla.models.{family}")
    # The vision of a tiny model has nothing of the checkpoint's; its weights are made up here.
    return sizes.weightless(family, module.tiny_spec(**wanted, width=256, mlp_width=512, layers=3))


class Steps:
    """Finished steps of the preparation with what they cost; kept on disk, so that the next run goes on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        if name in self.done:
            return
        start, cpu = time.perf_counter(), time.process_time()
        facts = work()
        self.done[name] = {
            **facts,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "load_1min": os.getloadavg()[0],
            "peak_resident_gb_so_far": peak_resident_gb(),
        }
        self.file.write_text(json.dumps(self.done, indent=1))


def write_bundle(
    out: Path, kind: str, small: bool, read: Any, stage: bundles.Stage, info: dict[str, Any], frames: int = 1
) -> Path:
    """A bundle whose weights `read(name)` gives, and made up where it gives None (heads; everything if small)."""
    model, one = meta_model(kind, small), robot()
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
    # Random weights have no golden answer; the frames are there so that the bundle is complete, and to calibrate on.
    golden = Golden(tuple(map(frame, range(frames))), np.zeros((frames, horizon, one.action_dim)))
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


def of_checkpoint(checkpoint: Path | None) -> Callable[[str], Any]:
    """What a released checkpoint holds of a family's weights by their name; None for all else."""
    store = None if checkpoint is None else TensorStore(checkpoint)

    def read(name: str) -> Any:
        key = name.removeprefix(PREFIX)
        return store.read(key) if store is not None and key in store.names else None

    return read


def write_decoder(source: Path, out: Path) -> dict[str, Any]:
    """The same numbers for llama.cpp."""
    made = export(ExportConfig(source, out, target="llama.cpp", compare=False, threads=THREADS))
    return {"bytes": made.bytes}


def prepare(checkpoint: Path | None, work: Path, small: bool, vision_bits: int) -> dict[str, Any]:
    """Both families under `work`, quantised (`int4`, `int4-chunk`) and exported (`tokens`, `chunk`); 20 GB."""
    work.mkdir(parents=True, exist_ok=True)
    steps = Steps(work / "prepare.json")
    base, int4, other = work / "base", work / "int4", work / "int4-chunk"

    def copy() -> dict[str, Any]:
        write_bundle(base, "tokens", small, of_checkpoint(None if small else checkpoint), "base", {})
        return {}

    def shrink() -> dict[str, Any]:
        bits = cast(Any, vision_bits)
        made = quantize(
            QuantizeConfig(
                base, int4, method="nearest", sensitivity=False, check=False, vision_bits=bits, threads=THREADS
            )
        )
        shutil.rmtree(base)
        return {"mean_bits": made.mean_bits, "bytes": made.bytes, "rounding": "nearest", "vision_bits": vision_bits}

    def derive() -> dict[str, Any]:
        tokens = Bundle.open(int4, verify=False)
        packed = tokens.store()
        read = {n: n for n in packed.names}
        info = tokens.manifest.stage_info
        write_bundle(other, "chunk", small, lambda n: packed.read(n) if n in read else None, "quantized", info)
        return {}

    def write_graphs(source: Path, kind: str) -> dict[str, Any]:
        made = export(
            ExportConfig(source, work / kind, accuracy="int8", compare=False, fixed_batch=True, threads=THREADS)
        )
        return {"bytes": made.bytes}

    steps.run("copy_into_a_bundle", copy)
    steps.run("quantize", shrink)
    steps.run("derive_chunk_family", derive)
    steps.run("export_chunk", lambda: write_graphs(other, "chunk"))
    steps.run("export_tokens", lambda: write_graphs(int4, "tokens"))
    for source, kind in ((other, "chunk"), (int4, "tokens")):
        steps.run(f"export_{kind}_llama_cpp", partial(write_decoder, source, work / f"{kind}-llama"))
    return {"status": "measured here", "from_checkpoint": not small, **steps.done}
