"""The full-size policies on a CUDA GPU: a chunk in bf16, tokens in bf16 and int4, as CUDA graphs, beside transformers.

    python benchmarks/bench_gpu_deploy.py       # from a bare checkout; needs torch with CUDA; gpu_deploy.json
    python benchmarks/bench_gpu_deploy.py --dry # a small model on the CPU, nothing measured: tries the script itself

Random weights are made on the card: only times mean anything. Targets on an H200-class card: a chunk of 16 steps in at
most 20 ms; decoding at half of the measured bandwidth or more. Not yet run on a GPU by us.
"""
# transformers types its configurations and models as the arguments of a decorator.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from torch import Tensor, nn

OUT = Path(__file__).with_name("gpu_deploy.json")
GROUP = 128
SLOTS, FILLED, ROWS, TOKENS = 320, 300, 306, 23  # cache, position in it, rows of a chunk's pass, tokens of an action


@dataclass(frozen=True)
class Place:
    """Where it runs; dry: on the CPU, small and once."""

    device: str
    dry: bool

    @property
    def repeats(self) -> tuple[int, int]:
        return (1, 2) if self.dry else (20, 200)

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true")
    dry = parser.parse_args().dry
    if not dry and not torch.cuda.is_available():
        print("bench_gpu_deploy: not run. There is no CUDA device.")
        return
    place = Place("cpu" if dry else "cuda", dry)
    report: dict[str, Any] = {
        "kind": "dry run, nothing measured" if dry else "measured_here",
        "command": sys.argv,
        "gpu": None if dry else torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "bandwidth_gbs": bandwidth(place),
        "targets": {"act_ms": 20.0, "decode_share": 0.5},
    }
    parts: dict[str, Callable[[], Any]] = {
        "chunk": lambda: chunk(place),
        "transformers": lambda: rival(place),
        "decode": lambda: decode(place, report["bandwidth_gbs"]),
    }
    for name, part in parts.items():
        try:
            report[name] = part()
        except RuntimeError as error:  # out of memory on a smaller card, or a kernel it lacks: the others still count
            report[name] = {"status": "failed", "problem": str(error)[:500]}
        gc.collect()
    if not dry:
        OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    print(json.dumps(report, indent=1, sort_keys=True))
    failed = [n for n in parts if report[n].get("status") == "failed"]
    sys.exit(f"bench_gpu_deploy: {', '.join(failed)} failed." if failed else 0)


def policy(place: Place, kind: str) -> Any:
    """A family with random bf16 weights made where they are used."""
    from athena_vla.models import openvla, openvla_chunk, sizes

    wanted: dict[str, Any] = {"action_dim": 23, "state_dim": 23, "cameras": 1}
    wanted["horizon"] = 16 if kind == "openvla_chunk" else 1
    module = {"openvla": openvla, "openvla_chunk": openvla_chunk}[kind]
    small = {"width": 256, "mlp_width": 512, "layers": 2, "heads": 2, "kv_heads": 2}
    spec = module.tiny_spec(**wanted, **small) if place.dry else sizes.full_size(kind, **wanted)
    model = sizes.weightless(kind, spec).to(torch.bfloat16).to_empty(device=place.device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    return model.eval()


def chunk(place: Place) -> dict[str, Any]:
    """Graph by graph, and the three after each other with one wait: one camera, 16 steps."""
    graphs = {g.name: graphed(place, g.module, g.example) for g in policy(place, "openvla_chunk").graphs()}

    def act() -> None:
        for run in graphs.values():
            run()

    return {"stages_ms": {n: timed(place, run) for n, run in graphs.items()}, "act_ms": timed(place, act)}


def decode(place: Place, measured: float) -> dict[str, Any]:
    """Single-token steps against a cache of 320 slots, output rows included: bf16 weights, then int4."""
    model = policy(place, "openvla")
    language = model.body.language_model

    class Step(nn.Module):
        def forward(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Any:
            valid = torch.ones_like(token, dtype=torch.bool)
            hidden, key, value = language.extend(language.embed(token), valid, position, keys, values)
            return model.choices(hidden).argmax(-1), key, value

    spec = language.spec
    shape = (spec.layers, 1, spec.kv_heads, SLOTS, spec.head_width)
    inputs = {
        "token": torch.zeros(1, 1, dtype=torch.int64, device=place.device),
        "position": torch.tensor([FILLED], device=place.device),
        "keys": torch.zeros(shape, dtype=torch.bfloat16, device=place.device),
        "values": torch.zeros(shape, dtype=torch.bfloat16, device=place.device),
    }
    weights = sum(m.weight.numel() for m in language.model.layers.modules() if isinstance(m, nn.Linear))
    rest = 256 * spec.width * 2 + 2 * inputs["keys"].nbytes
    result = {"bf16": share(timed(place, graphed(place, Step(), inputs)), weights * 2 + rest, measured)}
    for layer in language.model.layers:
        shrink(place, layer)
    bits = 4 + 32 / GROUP  # torch's kernel keeps a scale and a zero point in 16 bits for each group
    result["int4"] = share(timed(place, graphed(place, Step(), inputs)), weights * bits / 8 + rest, measured)
    return result


def share(times: dict[str, float], moved: float, measured: float) -> dict[str, float]:
    rate = 1e3 / times["median"]
    return {**times, "tokens_per_second": rate, "bytes": moved, "share_of_bandwidth": rate * moved / 1e9 / measured}


class Int4Linear(nn.Module):
    """torch's own int4 kernel on random codes."""

    def __init__(self, place: Place, rows: int, columns: int) -> None:
        super().__init__()
        aten = torch.ops.aten
        if place.dry:
            codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
            self.codes, self.multiply = (
                aten._convert_weight_to_int4pack_for_cpu(codes, 1),
                aten._weight_int4pack_mm_for_cpu,
            )
        else:
            pairs = torch.randint(0, 255, (rows, columns // 2), dtype=torch.uint8, device=place.device)
            self.codes, self.multiply = aten._convert_weight_to_int4pack(pairs, 8), aten._weight_int4pack_mm
        self.scales = torch.full((columns // GROUP, rows, 2), 0.01, dtype=torch.bfloat16, device=place.device)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x.reshape(-1, x.shape[-1]), self.codes, GROUP, self.scales).reshape(
            *x.shape[:-1], self.rows
        )


def shrink(place: Place, module: nn.Module) -> None:
    """Every linear layer below the module becomes an int4 one."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int4Linear(place, child.out_features, child.in_features))
        else:
            shrink(place, child)


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
    rows = torch.randn(1, ROWS, width, dtype=torch.bfloat16, device=place.device)
    mask = torch.ones(1, ROWS, dtype=torch.int64, device=place.device)

    def generate(count: int) -> Callable[[], None]:
        options: dict[str, Any] = {"do_sample": False, "min_new_tokens": count, "max_new_tokens": count}
        return lambda: model.generate(inputs_embeds=rows, attention_mask=mask, pad_token_id=0, **options)

    with torch.inference_mode():
        once = timed(place, lambda: model.model(inputs_embeds=rows, attention_mask=mask, use_cache=False), 3, 20)
        first, whole = (timed(place, generate(n), 1, 5) for n in (1, TOKENS))
    rate = 1e3 * (TOKENS - 1) / (whole["median"] - first["median"])
    return {"pass_ms": once, "generate_ms": whole, "tokens_per_second": rate}


def graphed(place: Place, module: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], Any]:
    """One call captured in a CUDA graph: no launch overhead, fixed addresses."""
    held = {k: v.clone() for k, v in inputs.items()}

    def call() -> Any:
        with torch.inference_mode():
            return module(**held)

    if place.dry:
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay() -> Any:
        graph.replay()
        return held, module  # the graph knows their addresses only: they must live as long as it is replayed

    return replay


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


def bandwidth(place: Place) -> float:
    """[GB/s] best copy of 4 GB, reads and writes counted."""
    source = torch.empty(1 << (20 if place.dry else 32), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        place.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        place.synchronize()
        best = max(best, 2 * source.numel() / (time.perf_counter() - start) / 1e9)
    return best


if __name__ == "__main__":
    main()
