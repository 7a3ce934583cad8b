"""What one action costs: every call the host loop makes, with its arithmetic and the bytes it must read.

The model runs on the meta device, so a 7B model costs nothing to count. Knows no devices.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from athena_vla.models.architecture import Architecture, Graph, Tensors
from athena_vla.models.contract import ModelInput
from athena_vla.models.loops.shared_loop import stage_of
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan.live_blocks import Kernels

LOGITS = "logits"  # the port that carries the output layer's rows


@dataclass(frozen=True)
class Call:
    """One kind of call of the host loop."""

    graph: str  # its name, or what it does where it does several things
    times: int
    tokens: int  # rows of the longest matrix product's input, the sequence length of a decoder
    flops: float
    packed_weights: int  # weights in linear layers that may be quantised
    other_weights: int
    traffic: int  # bytes of inputs that are read besides weights in 16 bits, such as a cache
    products: int = 0  # kernels that multiply matrices: what is left where everything else is fused into them
    kernels: int = 0  # all operations that move data


@dataclass(frozen=True)
class Cost:
    """All calls of one action, and what must be held."""

    calls: tuple[Call, ...]
    parameters: int
    table_parameters: int  # embedding tables: held, but read row by row
    packed_parameters: int
    horizon: int
    cache_bytes: int  # largest input of any call beside the weights, in 16 bits


def count(model: Architecture, packed_graphs: Sequence[str] = ("language",)) -> Cost:
    """Count one action of a model on the meta device."""
    assert isinstance(model, VisionLanguageModel)
    graphs = {g.name: g for g in model.graphs()}
    seen: list[Call] = []
    once: dict[tuple[object, ...], tuple[Call, dict[str, tuple[torch.Size, torch.dtype]]]] = {}
    packed_names: set[int] = set()
    language = model.body.language_model
    output = language.lm_head if language.spec.output else None

    def run(name: str, inputs: Tensors) -> Tensors:
        key = (name, tuple((k, tuple(v.shape)) for k, v in inputs.items()))
        if key not in once:
            once[key] = _measure(graphs[name], inputs, packed_graphs, packed_names, output)
        call, shapes = once[key]
        if call.flops:  # looking words up costs nothing
            seen.append(call)
        return {k: torch.zeros(shape, dtype=dtype) for k, (shape, dtype) in shapes.items()}

    side = model.body_spec.towers[0].image_size
    item = ModelInput(
        images=(np.zeros((side, side, 3), dtype=np.uint8),) * model.spec.cameras,
        state=np.zeros(model.spec.state_dim, dtype=np.float32),
        instruction="pick up the red cube and put it into the box",
    )
    with torch.inference_mode():
        model.decode(run, model.collate([item]), model.noise(1, np.random.default_rng(0)))
    times = Counter(seen)
    parameters = {id(p): p for p in model.parameters()}
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    return Cost(
        calls=tuple(Call(**{**c.__dict__, "times": n}) for c, n in times.items()),
        parameters=sum(p.numel() for p in parameters.values()),
        table_parameters=tables,
        packed_parameters=sum(parameters[i].numel() for i in packed_names),
        horizon=model.spec.horizon,
        cache_bytes=max(c.traffic for c in times),
    )


def _measure(
    graph: Graph, inputs: Tensors, packed_graphs: Sequence[str], packed_names: set[int], output: nn.Linear | None
) -> tuple[Call, dict[str, tuple[torch.Size, torch.dtype]]]:
    """Run one call on the meta device; its quantisable weights are added to `packed_names`."""
    module, outputs = graph.module, graph.outputs
    meta = {k: v.to("meta") for k, v in inputs.items()}
    rows = [0]
    weights: dict[int, int] = {}
    linear: dict[int, int] = {}
    hooks = []
    for part in module.modules():

        def note(part: nn.Module, args: tuple[Tensor, ...]) -> None:
            if isinstance(part, nn.Linear):
                rows[0] = max(rows[0], args[0].numel() // args[0].shape[-1])
                linear[id(part.weight)] = part.weight.numel()
            if not isinstance(part, nn.Embedding):
                weights.update({id(p): p.numel() for p in part.parameters(recurse=False)})

        hooks.append(part.register_forward_pre_hook(note))
    counter, kernels = FlopCounterMode(display=False), Kernels()
    with kernels, counter, torch.inference_mode():  # the counter takes linear layers apart first
        made = module(**meta)
    for hook in hooks:
        hook.remove()
    if output is not None and id(output.weight) in linear:
        # Of the output layer a graph reads the rows that it answers with, and an exported one holds no others.
        rows_read = min(
            output.out_features, max(t.shape[-1] for n, t in zip(outputs, made, strict=True) if n == LOGITS)
        )
        linear[id(output.weight)] = rows_read * output.in_features
        weights[id(output.weight)] = linear[id(output.weight)]
    packed = sum(linear.values()) if graph.name in packed_graphs else 0
    if packed:
        packed_names.update(linear)
    call = Call(
        graph=stage_of(graph.name, inputs),
        times=1,
        tokens=rows[0],
        flops=float(counter.get_total_flops()),
        packed_weights=packed,
        other_weights=sum(weights.values()) - packed,
        traffic=sum(v.numel() * 2 for v in inputs.values() if v.is_floating_point()),
        products=kernels.products,
        kernels=kernels.all,
    )
    return call, {k: (t.shape, t.dtype) for k, t in zip(outputs, made, strict=True)}


def bytes_of(call: Call, bits: float) -> float:
    """Bytes one call reads: quantised weights at `bits` per weight, everything else in 16 bits."""
    return call.packed_weights * bits / 8 + call.other_weights * 2 + call.traffic


def held_bytes(cost: Cost, bits: float) -> Mapping[str, float]:
    """Memory of weights and cache while the policy runs."""
    packed = cost.packed_parameters * bits / 8
    rest = (cost.parameters - cost.packed_parameters) * 2
    return {"quantized_gb": packed / 1e9, "rest_gb": rest / 1e9, "cache_gb": 2 * cost.cache_bytes / 1e9}
