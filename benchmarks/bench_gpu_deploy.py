"""The full-size policies on a CUDA GPU through the product's own engine: a chunk and tokens, in bf16 and in 4 bits.

    python benchmarks/bench_gpu_deploy.py       # needs torch with CUDA, 40 GB of its memory and 16 GB of disk
    python benchmarks/bench_gpu_deploy.py --dry # small models on the CPU, nothing measured: tries the script itself

Random weights: only times, memory and the distance between CPU and GPU mean anything. A time's floor is the larger of
its arithmetic and its bytes, at what this card reached just before. Writes benchmarks/gpu_deploy.json.
"""
# transformers types its configurations and models as the arguments of a decorator.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from torch import Tensor, nn

from athena_vla.engines.torch_engine import engine_of
from athena_vla.models.architecture import TorchEngine
from athena_vla.models.contract import ModelInput, Taken, Tapped, Values
from athena_vla.models.loops.shared_loop import stage_of
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.models.weights.packed_linear import CardLinear
from athena_vla.policy import Policy
from bench_gpu_models import ceilings
from bench_load_7b import Peak, anonymous
from seven_b import FAMILIES, frame, meta_model, write_bundle

OUT = Path(__file__).with_name("gpu_deploy.json")
GROUP = 128
WORDS = "pick up the red cube and put it into the box"


@dataclass(frozen=True)
class Place:
    """Where it runs; dry: on the CPU, small and once."""

    device: str
    dry: bool

    @property
    def repeats(self) -> tuple[int, int]:
        return (1, 2) if self.dry else (10, 100)

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--parts", nargs="+", help="these alone, by name")
    options = parser.parse_args()
    dry = options.dry
    if not dry and not torch.cuda.is_available():
        print("bench_gpu_deploy: not run. There is no CUDA device.")
        return
    place = Place("cpu" if dry else "cuda:0", dry)
    report: dict[str, Any] = {
        "kind": "dry run, nothing measured" if dry else "measured_here",
        "command": "python " + " ".join(sys.argv),
        "gpu": None if dry else torch.cuda.get_device_name(0),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "ceilings": ceilings(place.device, tiny=dry),
        "wanted": {"chunk_times_floor": 3.0, "decode_share_bf16": 0.6, "decode_share_int4": 0.3},
    }
    parts: dict[str, Callable[[], Any]] = {
        "chunk_bf16": lambda: chunk(place, report["ceilings"], four_bit=False),
        "chunk_int4": lambda: chunk(place, report["ceilings"], four_bit=True),
        "tokens_bf16": lambda: tokens(place, report["ceilings"], four_bit=False),
        "tokens_int4": lambda: tokens(place, report["ceilings"], four_bit=True),
        "transformers": lambda: rival(place),
        "bundle": lambda: from_disk(place),
    }
    parts = {n: parts[n] for n in options.parts or parts}
    for name, part in parts.items():
        start = time.perf_counter()
        try:
            report[name] = part()
        except (RuntimeError, ImportError) as error:  # out of memory on a smaller card: the others still count
            report[name] = {"status": "failed", "problem": str(error)[:500]}
        report[name]["part_took_s"] = time.perf_counter() - start
        gc.collect()
        if not dry:
            torch.cuda.empty_cache()
            part_file = options.out.with_suffix(".part")
            part_file.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
        print(name, json.dumps(report[name]), flush=True)
    if not dry:
        options.out.with_suffix(".part").rename(options.out)
    failed = [n for n in parts if report[n].get("status") == "failed"]
    sys.exit(f"bench_gpu_deploy: {', '.join(failed)} failed." if failed else 0)


def policy(place: Place, kind: str, *, four_bit: bool) -> VisionLanguageModel:
    """A family with random weights made where they are used; with `four_bit` every layer of decoder and towers."""
    model = meta_model(kind, place.dry).to(torch.bfloat16).to_empty(device=place.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    heads = tuple(model.head_modules())
    if four_bit:
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and not path.startswith(heads) and not module.in_features % GROUP:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, quantized(module))
    return model.eval()


def quantized(layer: nn.Linear) -> CardLinear:
    """The layer on random codes of the same spread."""
    rows, columns = layer.weight.shape
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=layer.weight.device)
    scales = torch.full((rows, columns // GROUP), columns**-0.5 / 4.6, dtype=torch.float16, device=codes.device)
    return CardLinear(codes, scales, 4, layer.bias)


def observed(model: VisionLanguageModel, seed: int = 0) -> ModelInput:
    random = np.random.default_rng(seed)
    images = tuple(random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(model.spec.cameras))
    return ModelInput(images, random.uniform(-1, 1, model.spec.state_dim).astype(np.float32), WORDS)


def engine(place: Place, model: VisionLanguageModel) -> TorchEngine:
    return engine_of(model, Taken("torch", place.device))


def sizes_of(model: VisionLanguageModel) -> dict[str, dict[str, float]]:
    """Weights and stored bytes by part of the model."""
    parts = {
        "vision": [model.get_submodule("body.vision_backbone"), model.get_submodule("body.projector")],
        "layers": [model.body.language_model.model.layers],
    }
    found: dict[str, dict[str, float]] = {}
    for name, modules in parts.items():
        plain = [p for m in modules for p in m.parameters()]
        four = [c for m in modules for c in m.modules() if isinstance(c, CardLinear)]
        found[name] = {
            "weights": float(sum(p.numel() for p in plain) + sum(c.out_features * c.in_features for c in four)),
            "bytes": float(
                sum(p.nbytes for p in plain)
                + sum(b.nbytes for c in four for b in (c.codes, c.scales, c.bias) if b is not None)
            ),
        }
    return found


def chunk(place: Place, ceiling: dict[str, float], *, four_bit: bool) -> dict[str, Any]:
    """One camera, 16 steps, one pass: from a camera image and words to numbers on the host, and the pass by itself."""
    model = policy(place, "chunk", four_bit=four_bit)
    runs = engine(place, model)
    inputs, item = model.loop.collate([observed(model)]), observed(model, 1)
    ready = {n: torch.from_numpy(v).to(place.device) for n, v in inputs.items() if n in ("pixel_values", "state")}
    rows = model.body_spec.patches + inputs["input_ids"].shape[1] + model.spec.horizon + 1
    parts = sizes_of(model)
    work = 2 * (parts["vision"]["weights"] * model.body_spec.patches + parts["layers"]["weights"] * rows)
    arithmetic = work / ceiling["flops_per_s"] * 1e3
    moved = (parts["vision"]["bytes"] + parts["layers"]["bytes"]) / ceiling["bytes_per_s"] * 1e3
    ways = {
        "act": lambda: model.loop.decode(runs, model.loop.collate([item]), {}),
        "decode": lambda: model.loop.decode(runs, {**inputs, **ready}, {}),
    }
    result: dict[str, Any] = {n: timed(place, w) for n, w in ways.items()}
    eager = TorchEngine(model)
    result["eager"] = timed(place, lambda: model.loop.decode(eager, inputs, {}), 3, 20)
    result["collate"] = timed(place, lambda: model.loop.collate([item]), 3, 20)
    floor = max(arithmetic, moved)
    return {
        "ms": result,
        "rows": rows,
        "floor_ms": {"arithmetic": arithmetic, "bytes": moved},
        "times_floor": {n: result[n]["median"] / floor for n in ("act", "decode", "eager")},
        "actions_per_s": model.spec.horizon * 1e3 / result["act"]["median"],
        "memory_gb": memory(place),
        "captured": facts(runs),
    }


def tokens(place: Place, ceiling: dict[str, float], *, four_bit: bool) -> dict[str, Any]:
    """23 tokens, one after the other, and the step between them: two horizons in the same run."""
    model = policy(place, "tokens", four_bit=four_bit)
    runs = engine(place, model)
    inputs, item = model.loop.collate([observed(model)]), observed(model, 1)
    act = timed(place, lambda: model.loop.decode(runs, model.loop.collate([item]), {}), 5, 40)
    stages: dict[str, list[float]] = {}
    tapped = clocked(runs, stages, place)
    for _ in range(2 if place.dry else 8):
        model.loop.decode(tapped, inputs, {})
    count = model.spec.horizon * model.spec.action_dim
    first = float(np.median(stages["vision"]) + np.median(stages["prefill"]))
    step = (act["median"] - first) / (count - 1)
    parts = sizes_of(model)
    cache = 2 * model.body_spec.text.layers * model.body_spec.text.width * 2 * (model.body_spec.patches + 64)
    moved = parts["layers"]["bytes"] + 256 * model.body_spec.text.width * 2 + cache
    return {
        "act_ms": act,
        "stages_ms": {n: float(np.median(v)) for n, v in stages.items()},
        "ms_per_token": step,
        "tokens_per_s_while_decoding": 1e3 / step,
        "tokens_per_s_whole_act": count * 1e3 / act["median"],
        "bytes_per_token": moved,
        "share_of_bandwidth": moved / (step / 1e3) / ceiling["bytes_per_s"],
        "memory_gb": memory(place),
        "captured": facts(runs),
    }


def clocked(engine: TorchEngine, stages: dict[str, list[float]], place: Place) -> Tapped:
    """The same engine with a clock around every call."""

    def call(graph: str, values: Values) -> Values:
        place.synchronize()
        start = time.perf_counter()
        out = engine.run(graph, values)
        place.synchronize()
        stages.setdefault(stage_of(graph, values), []).append((time.perf_counter() - start) * 1e3)
        return out

    return Tapped(engine, call)


def facts(runs: TorchEngine) -> dict[str, Any]:
    return {"calls": len(getattr(runs, "calls", ())), "refused": getattr(runs, "refused", "")}


def memory(place: Place) -> float | None:
    if place.dry:
        return None
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def rival(place: Place) -> dict[str, Any]:
    """Plain transformers on the same decoder in bf16: one pass over a chunk's rows, and `generate` of an action."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, mlp, layers, heads = (256, 512, 2, 2) if place.dry else (4096, 11008, 32, 32)
    config = LlamaConfig(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        torch_dtype="bfloat16",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device=place.device)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(place.device)  # its table is no weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    rows = torch.randn(1, 306, width, dtype=torch.bfloat16, device=place.device)
    mask = torch.ones(1, 306, dtype=torch.int64, device=place.device)
    count = 23

    def generate(count: int) -> Callable[[], None]:
        options: dict[str, Any] = {"do_sample": False, "min_new_tokens": count, "max_new_tokens": count}
        return lambda: model.generate(inputs_embeds=rows, attention_mask=mask, pad_token_id=0, **options)

    with torch.inference_mode():
        once = timed(place, lambda: model.model(inputs_embeds=rows, attention_mask=mask, use_cache=False), 3, 20)
        first, whole = (timed(place, generate(n), 1, 4) for n in (1, count))
    rate = 1e3 * (count - 1) / (whole["median"] - first["median"])
    return {"pass_ms": once, "generate_ms": whole, "tokens_per_second": rate}


def from_disk(place: Place) -> dict[str, Any]:
    """A bundle of 15 GB opened on the card: seconds, memory of the host; and its answer beside the processor's."""
    maker = torch.Generator(place.device).manual_seed(0)
    like = meta_model("chunk", place.dry).state_dict()

    def read(name: str) -> Tensor:
        shape = like[name].shape
        if len(shape) < 2:
            return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=torch.bfloat16)
        weight = torch.randn(shape, generator=maker, device=place.device) * shape[-1] ** -0.5
        return weight.to("cpu", torch.bfloat16)

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = write_bundle(Path(folder) / "base", "chunk", place.dry, read, "base", {})
        written = time.perf_counter() - start
        peak = Peak()
        before = anonymous() / 1e9
        peak.start()
        start = time.perf_counter()
        card = Policy.load(path, "torch", device=place.device)
        place.synchronize()
        opened = time.perf_counter() - start
        peak.done.set()
        peak.join()
        start = time.perf_counter()
        card.act(frame())
        first = time.perf_counter() - start
        there = [card.chunks([frame(s) for s in range(2)]) for _ in range(4)][-1]
        taken = str(card.engine.taken)
        del card
        start = time.perf_counter()
        host = Policy.load(path, "torch", device="cpu", threads=torch.get_num_threads())
        here = host.chunks([frame(s) for s in range(2)])
        on_host = time.perf_counter() - start
    return {
        "family": FAMILIES["chunk"],
        "written_s": written,
        "open_s": opened,
        "first_act_s": first,
        "host_peak_anonymous_gb": peak.bytes / 1e9 - before,
        "taken": taken,
        "cpu_open_and_two_acts_s": on_host,
        "cpu_against_gpu_rad": {"max": float(np.abs(here - there).max()), "mean": float(np.abs(here - there).mean())},
        "spread_of_answers_rad": float(here.std()),
    }


def timed(place: Place, call: Callable[[], Any], warmup: int = 0, runs: int = 0) -> dict[str, float]:
    """[ms]"""
    usual = place.repeats
    for _ in range(usual[0] if place.dry or not warmup else warmup):
        call()
    place.synchronize()
    samples = []
    for _ in range(usual[1] if place.dry or not runs else runs):
        start = time.perf_counter()
        call()
        place.synchronize()
        samples.append((time.perf_counter() - start) * 1e3)
    return {"median": float(np.median(samples)), "p95": float(np.quantile(samples, 0.95)), "n": len(samples)}


if __name__ == "__main__":
    main()
