"""How far the joints move [rad] when one layer alone is rounded: many layers in one pass, for models of any size.

A pass answers copies of the frames, and in each copy another layer computes with its rounded weight: a model that is
read from disk is then read once for all of them.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athena_vla.embodiment import Observation
from athena_vla.errors import ModelError
from athena_vla.models.contract import Call, Tapped, Values
from athena_vla.models.weights.packed import Packed
from athena_vla.policy import Policy
from athena_vla.quantize.calibrate import linears, torch_model
from athena_vla.quantize.choose import Layer, batch_chunks
from athena_vla.quantize.codes import nearest

ROWS = 16  # answers in one pass
_NUMBER = re.compile(r"\.(\d+)\.")


def sensitivities(
    policy: Policy,
    frames: Sequence[Observation],
    layers: Sequence[Layer],
    report: Callable[[Mapping[str, float]], None] = lambda found: None,
) -> dict[str, float]:
    """Mean action error [rad] over frames, steps and joints when one layer alone is rounded to its bits.

    `report` gets the layers of each pass as soon as they are measured.
    """
    copies = max(1, ROWS // len(frames))
    asked = [*frames] * copies
    found: dict[str, float] = {}
    once = replace(policy, engine=Tapped(policy.engine, _seen_once(policy.engine.run, len(frames))))
    for vision, seeing in ((True, policy), (False, once)):
        alike = [x for x in layers if (x.graph == "vision") == vision]
        if not alike:
            continue
        # In a batch of the same shape: what another shape rounds differently is nobody's error.
        reference = batch_chunks(seeing, asked, len(asked))
        for some in (alike[i : i + copies] for i in range(0, len(alike), copies)):
            with rounded(torch_model(policy), some, copies):
                answers = batch_chunks(seeing, asked, len(asked))
            errors = np.abs(answers - reference).reshape(copies, -1).mean(axis=1)[: len(some)]
            new = {x.name: float(e) for x, e in zip(some, errors, strict=True)}
            found |= new
            report(new)
    return found


@contextmanager
def rounded(model: nn.Module, layers: Sequence[Layer], parts: int) -> Iterator[None]:
    """Of a batch in so many equal parts, the i-th part computes with the i-th layer rounded to its bits."""
    modules = linears(model)
    hooks = []
    for part, layer in enumerate(layers):
        chosen: list[Packed] = []  # codes are small enough to be kept for the layer's next call

        def answer(
            module: nn.Linear,
            inputs: tuple[Tensor, ...],
            output: Tensor,
            part: int = part,
            layer: Layer = layer,
            chosen: list[Packed] = chosen,
        ) -> None:
            size, rest = divmod(len(output), parts)
            if rest:
                raise ModelError(f"'{layer.name}' runs on {len(output)} rows, which are not {parts} equal parts.")
            if not chosen:
                chosen.append(nearest(module.weight.detach().float(), layer.bits, layer.group))
            mine = slice(part * size, (part + 1) * size)
            weight = chosen[0].dequantize().to(output.dtype)
            output[mine] = F.linear(inputs[0][mine], weight, module.bias)

        # First of the layer's hooks: a streamed weight is taken away by the last.
        hooks.append(modules[layer.name].register_forward_hook(answer, prepend=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def sampled(layers: Sequence[Layer], every: int) -> list[Layer]:
    """The layers of every n-th block and of the last; all that belong to no block."""
    last: dict[str, int] = {}
    for kind, number in map(_place, (x.name for x in layers)):
        last[kind] = max(number, last.get(kind, 0))
    return [x for x in layers if (p := _place(x.name))[1] % every == 0 or p[1] == last[p[0]]]


def filled(layers: Sequence[Layer], measured: Mapping[str, float]) -> dict[str, float]:
    """Sensitivities of all layers of a measured kind: between measured blocks they lie on a straight line."""
    known: dict[str, list[tuple[int, float]]] = {}
    for name, value in measured.items():
        kind, number = _place(name)
        known.setdefault(kind, []).append((number, value))
    lines = {kind: np.array(sorted(points)).T for kind, points in known.items()}
    places = {x.name: _place(x.name) for x in layers}
    return {
        name: float(np.interp(number, lines[kind][0], lines[kind][1]))
        for name, (kind, number) in places.items()
        if kind in lines
    }


def _place(name: str) -> tuple[str, int]:
    """A layer's kind (its name without the block's number) and the block."""
    match = _NUMBER.search(name)
    return (_NUMBER.sub(".*.", name, count=1), int(match[1])) if match else (name, 0)


def _seen_once(run: Call, frames: int) -> Call:
    """The same runner for batches of copies of `frames`, whose images are looked at once."""
    seen: Values = {}

    def through(name: str, inputs: Values) -> Values:
        if name != "vision":
            return run(name, inputs)
        if not seen:
            seen.update(run(name, {k: v[:frames] for k, v in inputs.items()}))
        copies = len(next(iter(inputs.values()))) // frames
        return {k: torch.cat([v] * copies) for k, v in seen.items()}

    return through
