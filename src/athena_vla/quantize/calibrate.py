"""Hooks around a policy's linear layers: which graph uses them, what comes in, and quantising them on the way.

Layers are quantised in the order they run, each on inputs that already carry the error of the layers before it, in one
pass over the calibration frames. Weights may come from disk layer by layer, so the pass is the same for 7B.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from athena_vla.embodiment import Observation
from athena_vla.models.architecture import Architecture, TorchEngine
from athena_vla.models.contract import Tapped
from athena_vla.models.weights.packed import Packed
from athena_vla.policy import Policy

MOST_ROWS = 8192  # input rows per layer that go into a second moment; more change little and cost time


def torch_model(policy: Policy) -> Architecture:
    """The torch model behind a policy; layers are looked at, and quantised, in torch alone."""
    engine = policy.engine.engine if isinstance(policy.engine, Tapped) else policy.engine
    assert isinstance(engine, TorchEngine)
    return engine.model


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Weight name -> layer; a weight that two layers share appears once."""
    seen: set[int] = set()
    found: dict[str, nn.Linear] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module) not in seen:
            seen.add(id(module))
            found[f"{path}.weight"] = module
    return found


def used_in(meta_model: Architecture, graphs: Sequence[str]) -> dict[str, str]:
    """Weight name -> graph for the layers that run inside the named graphs, in the order they run.

    `meta_model` has no weights: the graphs run on their examples on the meta device, which costs nothing at any size.
    """
    order: dict[str, str] = {}
    running = ""
    hooks = []
    for name, layer in linears(meta_model).items():

        def note(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            order.setdefault(name, running)

        hooks.append(layer.register_forward_pre_hook(note))
    try:
        with torch.inference_mode():
            for graph in meta_model.graphs():
                running = graph.name
                if graph.name in graphs:
                    graph.module(**graph.example)
    finally:
        for hook in hooks:
            hook.remove()
    return order


def quantize_in_order(
    policy: Policy,
    frames: Sequence[Observation],
    names: Sequence[str],
    choose: Callable[[str, Tensor, Tensor], Packed],
) -> None:
    """One pass; each named layer gets `choose(name, weight, inputs)` when its inputs are known.

    The layer computes with the quantised weight from then on. The pass ends with the last of them.
    """
    waiting = set(names)
    hooks = []
    for name, layer in linears(torch_model(policy)).items():
        if name not in waiting:
            continue

        def visit(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            if name not in waiting:
                return
            waiting.discard(name)
            weight = module.weight
            assert isinstance(weight, Tensor)
            quantized = choose(name, weight.detach().float(), inputs[0])
            if not waiting:
                raise _AllChosen
            with torch.no_grad():
                weight.copy_(quantized.dequantize())

        hooks.append(layer.register_forward_pre_hook(visit))
    try:
        with torch.inference_mode(), suppress(_AllChosen):
            policy.act_batch(list(frames))
    finally:
        for hook in hooks:
            hook.remove()
    assert not waiting, f"layers never ran: {sorted(waiting)[:3]}"


class _AllChosen(Exception):
    """Nothing is left to do in the pass: the answer itself is of no interest."""


def second_moment(inputs: Tensor) -> Tensor:
    """X^T X / n over all rows (evenly thinned beyond MOST_ROWS), float32."""
    rows = inputs.detach().reshape(-1, inputs.shape[-1])
    if len(rows) > MOST_ROWS:
        rows = rows[:: -(-len(rows) // MOST_ROWS)]
    rows = rows.float()
    return rows.t() @ rows / len(rows)
