"""The full-size one-pass policy on a CUDA GPU: bf16 with CUDA graphs, and the bandwidth share of single-token decoding.

    python benchmarks/bench_gpu_deploy.py       # from a bare checkout; needs torch with CUDA; gpu_deploy.json

Random weights are made on the card: only times mean anything. Targets on an H200-class card: a chunk of 16 steps in at
most 20 ms; decoding at half of the measured bandwidth or more. Written, and not yet run on a GPU by us.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch

OUT = Path(__file__).with_name("gpu_deploy.json")
GROUP = 128


def main() -> None:
    if not torch.cuda.is_available():
        print("bench_gpu_deploy: not run. There is no CUDA device.")
        return
    from athena_vla.models import sizes
    from athena_vla.models.llama import Llama
    from athena_vla.models.tiny_tokenizer import tiny_tokenizer_files

    report: dict[str, Any] = {
        "kind": "measured_here",
        "command": sys.argv,
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "bandwidth_gbs": bandwidth(),
    }
    spec = sizes.full_size("openvla_chunk", action_dim=23, state_dim=23, horizon=16, cameras=1)
    from athena_vla.models.architecture import family

    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = family("openvla_chunk").from_spec(spec, tiny_tokenizer_files()).eval()
    torch.set_default_dtype(torch.float32)
    graphs = {g.name: g for g in model.graphs()}
    stages = {name: timed(graphed(g.module, g.example)) for name, g in graphs.items()}
    report["chunk"] = {"stages_ms": stages, "act_ms": sum(s["median"] for s in stages.values())}
    language = next(m for m in model.modules() if isinstance(m, Llama))
    report["decode_bf16"] = decode(language, report["bandwidth_gbs"])
    report["decode_int4"] = int4_linear(report["bandwidth_gbs"])
    report["targets"] = {"act_ms": 20.0, "decode_share": 0.5}
    OUT.write_text(json.dumps(report, indent=1, sort_keys=True))
    print(json.dumps(report, indent=1, sort_keys=True))


def graphed(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    """One call captured in a CUDA graph: no launch overhead, fixed addresses."""
    held = {k: v.clone() for k, v in inputs.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(3):
            module(**held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        module(**held)
    return graph.replay


def timed(call: Callable[[], None], warmup: int = 20, runs: int = 200) -> dict[str, float]:
    for _ in range(warmup):
        call()
    torch.cuda.synchronize()
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) * 1e3)
    return {"median": float(np.median(samples)), "p95": float(np.quantile(samples, 0.95)), "n": runs}


def decode(language: Any, measured: float) -> dict[str, Any]:
    """Single-token steps against a cache of 320 slots."""

    class Step(torch.nn.Module):
        def forward(self, x: torch.Tensor, position: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Any:
            return language.step(x, position, keys, values)

    spec = language.spec
    shape = (spec.layers, 1, spec.kv_heads, 320, spec.head_width)
    cuda: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    inputs = {
        "x": torch.randn(1, 1, spec.width, **cuda),
        "position": torch.tensor([300], device="cuda"),
        "keys": torch.zeros(shape, **cuda),
        "values": torch.zeros(shape, **cuda),
    }
    with torch.inference_mode():
        result = timed(graphed(Step(), inputs))
    moved = sum(p.numel() for n, p in language.named_parameters() if "layers" in n) * 2
    rate = 1e3 / result["median"]
    return {**result, "tokens_per_second": rate, "share_of_bandwidth": rate * moved / 1e9 / measured}


def int4_linear(measured: float) -> dict[str, Any]:
    """One layer's linear work with torch's own int4 kernel, which is what the runner uses on CUDA."""
    widths = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    layers = []
    for rows, columns in widths * 8:
        packed = torch.randint(0, 255, (rows, columns // 2), dtype=torch.uint8, device="cuda")
        codes = torch.ops.aten._convert_weight_to_int4pack(packed, 8)
        scales = torch.ones(columns // GROUP, rows, 2, dtype=torch.bfloat16, device="cuda")
        layers.append((codes, scales, columns))
    inputs = {c: torch.randn(1, c, dtype=torch.bfloat16, device="cuda") for c in (4096, 11008)}

    class Layers(torch.nn.Module):
        def forward(self) -> Any:
            return [torch.ops.aten._weight_int4pack_mm(inputs[c], w, GROUP, s) for w, s, c in layers]

    result = timed(graphed(Layers(), {}))
    moved = sum(r * c for r, c in widths * 8) * (4 + 32 / GROUP) / 8
    return {**result, "layers": 8, "share_of_bandwidth": moved / 1e6 / result["median"] / measured}


def bandwidth() -> float:
    """[GB/s] best copy of 4 GB, reads and writes counted."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * source.numel() / (time.perf_counter() - start) / 1e9)
    return best


if __name__ == "__main__":
    main()
