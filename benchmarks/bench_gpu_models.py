"""All three families at full size on a GPU, bf16, random weights: one training step, and `act` against its own floor.

    python benchmarks/bench_gpu_models.py                    # writes benchmarks/gpu_models.json
    python benchmarks/bench_gpu_models.py --checkpoint DIR   # with a checkpoint's weights instead of random ones
    python benchmarks/bench_gpu_models.py --tiny             # small sizes on the CPU: shows that the script runs

The floor of a pass is the larger of (weight bytes read / measured bandwidth) and (FLOPs / measured matrix throughput),
both measured on the same card just before: large copies and large bf16 products. A pass cannot be faster than that.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from athena_vla.engines.torch_engine import engine_of
from athena_vla.models import architecture
from athena_vla.models import input_gates as gates
from athena_vla.models.architecture import Tensors, run_torch
from athena_vla.models.body.body_spec import PrismaticSpec, tiny_body
from athena_vla.models.body.tiny_tokenizer import tiny_tokenizer_files
from athena_vla.models.contract import ModelInput, Taken
from athena_vla.models.loops.shared_loop import VlaSpec
from athena_vla.models.released import released_weights as checkpoint
from athena_vla.models.robot_sizes import Sizes
from athena_vla.models.sizes import full_size
from athena_vla.models.vla import VisionLanguageModel

OUT = Path(__file__).with_name("gpu_models.json")
FAMILIES = {
    "openvla": {"action_dim": 7, "state_dim": 0, "horizon": 1, "cameras": 1},
    "openvla_chunk": {"action_dim": 23, "state_dim": 23, "horizon": 16, "cameras": 1},
    "openvla_oft": {"action_dim": 7, "state_dim": 8, "horizon": 8, "cameras": 1},
}


def wait() -> None:
    """Until the card has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], repeats: int, warm: int = 3) -> list[float]:
    """Seconds of each call, the card idle before and after."""
    for _ in range(warm):
        work()
    wait()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def ceilings(device: str, *, tiny: bool) -> dict[str, float]:
    """What this card reaches: bytes read per second, bf16 FLOPs per second."""
    count, side, repeats = (2**20, 64, 2) if tiny else (2**31, 8192, 20)
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = min(timed(lambda: target.copy_(source), repeats))
    del source, target
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    product = min(timed(lambda: a @ b, repeats))
    return {"bytes_per_s": 2 * count / copy, "flops_per_s": 2 * side**3 / product}


def build(family: str, source: Path | None, seed: int, device: str, *, tiny: bool) -> VisionLanguageModel:
    """The model on the card, without ever being on the host."""
    kind = architecture.family(family)
    assert issubclass(kind, VisionLanguageModel)
    torch.manual_seed(seed)
    if tiny:
        return kind.from_spec(kind.spec_on(tiny_body(), Sizes.of_dict(FAMILIES[family])), {}).eval()
    spec = full_size(family, **FAMILIES[family])
    assert isinstance(spec, VlaSpec)
    if source is not None:
        loaded = checkpoint.load(source, "bfloat16", device=device, output=kind.reads_tokens)
        model = kind(dataclasses.replace(spec, body=loaded.spec), loaded.tokenizer_files, loaded.body)
        return model.to(device, torch.bfloat16).eval()
    with torch.device("meta"):
        model = kind(spec, tiny_tokenizer_files(spec.body.text.vocabulary))
    model = model.to(torch.bfloat16).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.eval()


def observation(model: VisionLanguageModel, seed: int = 0) -> ModelInput:
    random = np.random.default_rng(seed)
    return ModelInput(
        images=tuple(random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(model.spec.cameras)),
        state=random.uniform(-1, 1, model.spec.state_dim).astype(np.float32),
        instruction="pick up the red cube and place it on the plate",
    )


def floor(model: VisionLanguageModel, inputs: Tensors, ceiling: dict[str, float]) -> dict[str, float]:
    """Seconds below which one `act` cannot get, part by part."""
    body: PrismaticSpec = model.body_spec
    vision = sum(p.numel() for p in model.body.vision_backbone.parameters())
    projector = sum(p.numel() for p in model.body.projector.parameters())
    layers = sum(p.numel() for p in model.body.language_model.model.layers.parameters())
    output = body.text.rows * body.text.width if body.text.output else 0
    heads = sum(p.numel() for name in model.head_modules() for p in model.get_submodule(name).parameters())
    prompt = inputs["input_ids"].shape[1]
    patches = body.patches * model.spec.cameras
    count = model.spec.horizon * model.spec.action_dim

    def pass_(parameters: int, rows: int) -> float:
        return max(2 * parameters / ceiling["bytes_per_s"], 2 * parameters * rows / ceiling["flops_per_s"])

    seconds = {"vision": pass_(vision + projector, patches)}
    if model.reads_tokens:
        seconds["prefill"] = pass_(layers, patches + prompt) + pass_(output, 1)
        seconds["steps"] = (count - 1) * pass_(layers + output, 1)
    else:
        extra = model.spec.horizon + 1 if model.family.endswith("chunk") else count + 2
        seconds["language"] = pass_(layers, patches + prompt + extra)
        seconds["head"] = pass_(heads, model.spec.horizon)
    seconds["total"] = sum(seconds.values())
    return seconds


def train_step(model: VisionLanguageModel, inputs: Tensors) -> dict[str, Any]:
    """One forward, loss and backward of every weight; no optimiser."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    device = inputs["input_ids"].device
    target = torch.zeros(1, model.spec.horizon, model.spec.action_dim, device=device)
    valid = torch.ones(1, model.spec.horizon, dtype=torch.bool, device=device)
    start = time.perf_counter()
    loss = model.loss(inputs, target, valid)
    loss.backward()
    wait()
    seconds = time.perf_counter() - start
    finite = all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    without = [n for n, p in model.named_parameters() if p.grad is None]
    model.zero_grad(set_to_none=True)
    return {
        "loss": float(loss.detach()),
        "seconds_first": seconds,
        "gradients_finite": finite,
        "parameters_without_gradient": len(without),
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    }


def measure(
    family: str, source: Path | None, ceiling: dict[str, float], repeats: int, device: str, *, tiny: bool
) -> dict[str, Any]:
    model = build(family, source, 0, device, tiny=tiny)
    inputs = model.place(model.collate([observation(model)]))
    result: dict[str, Any] = {
        "sizes": FAMILIES[family],
        "parameters": sum(p.numel() for p in model.parameters()),
        "vision_calls": gates.require_vision_runs_once(model.loop, model.engine()),
        "sensitivity": dict(gates.check_model(model.loop, model.engine()).changes),
        "train_step": train_step(model, inputs),
        "floor_s": floor(model, inputs, ceiling),
    }
    run, item = run_torch(model), observation(model, seed=1)
    # `decode` starts from inputs on the card; `act` from a camera image and words, and ends with numbers on the host.
    ways: dict[str, Callable[[], Any]] = {
        "decode_eager": lambda: model.decode(run, inputs, {}),
        "act_eager": lambda: model.decode(run, model.collate([item]), {}).float().cpu(),
    }
    if inputs["input_ids"].is_cuda:
        held = engine_of(model, Taken("torch", device))
        arrays = model.loop.collate([item])
        ready = arrays | {n: v for n, v in inputs.items() if v.is_floating_point()}
        ways |= {
            "decode_cuda_graph": lambda: model.loop.decode(held, ready, {}),
            "act_cuda_graph": lambda: model.loop.decode(held, model.loop.collate([item]), {}),
        }
    for name, work in ways.items():
        with torch.inference_mode():
            seconds = sorted(timed(work, repeats))
        median = statistics.median(seconds)
        result[name] = {
            "median_s": median,
            "p95_s": seconds[int(0.95 * (len(seconds) - 1))],
            "times_floor": median / result["floor_s"]["total"],
            "actions_per_s": model.spec.horizon / median,
        }
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if not (options.tiny or torch.cuda.is_available()):
        print("bench_gpu_models: not run. It needs a CUDA GPU with 40 GB of memory; torch sees none here.")
        return
    device = "cpu" if options.tiny else "cuda"
    ceiling = ceilings(device, tiny=options.tiny)
    report: dict[str, Any] = {
        "what": "small sizes on a CPU: not a measurement" if options.tiny else "measured on this device",
        "device": "cpu" if options.tiny else torch.cuda.get_device_name(0),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "command": "python " + " ".join(sys.argv),
        "weights": str(options.checkpoint or "random"),
        "ceilings": ceiling,
        "families": {},
    }
    for family in options.families:
        report["families"][family] = measure(
            family, options.checkpoint, ceiling, options.repeats, device, tiny=options.tiny
        )
        print(family, json.dumps(report["families"][family], indent=1), flush=True)
    temporary = options.out.with_suffix(".part")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.rename(options.out)


if __name__ == "__main__":
    main()
