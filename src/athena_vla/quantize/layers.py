"""The layers of a bundle to quantise, those that are lifted to 8 bits, and the codes of each."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from athena_vla.bundle import Bundle
from athena_vla.embodiment import Observation
from athena_vla.errors import ModelError, UnknownName
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import StoreWriter, TensorStore, as_float
from athena_vla.offload import is_large, opened
from athena_vla.progress import Progress
from athena_vla.quantize import choose, codes
from athena_vla.quantize.calibrate import quantize_in_order, second_moment, used_in
from athena_vla.quantize.choose import Layer
from athena_vla.quantize.parts import LayerParts
from athena_vla.quantize.quantize_config import Method, QuantizeConfig
from athena_vla.quantize.sensitivity import ROWS, filled, sampled, sensitivities

MEASURING, QUANTISING, CHECKING = "measuring layers", "quantising layers", "checking the bundle"


def plan_layers(config: QuantizeConfig, source: Bundle, store: TensorStore) -> list[Layer]:
    """The layers to quantise in the order they run, before any is lifted. Raises `UnknownName`."""
    meta_model = source.meta_model().eval()
    graphs = (*config.graphs, *(("vision",) if config.vision_bits == 8 else ()))
    heads = tuple(f"{h}." for h in meta_model.head_modules())
    order = {
        name: graph
        for name, graph in used_in(meta_model, graphs).items()
        if not name.startswith(heads) and name.removesuffix(".weight").rpartition(".")[2] not in config.keep
    }
    if not order:
        known = sorted({g.name for g in meta_model.graphs()})
        raise UnknownName("graph with linear layers", ", ".join(graphs), known)
    shapes = {name: store.shape(name) for name in order}
    return [
        choose.first_choice(
            name, graph, (shapes[name][0], shapes[name][1]), 8 if graph == "vision" else config.bits, config.group
        )
        for name, graph in order.items()
    ]


def lift(
    config: QuantizeConfig,
    source: Bundle,
    layers: list[Layer],
    calibration: Sequence[Observation],
    parts: LayerParts,
    progress: Progress,
) -> list[Layer]:
    """Measure the action error of layers, and lift the worst to 8 bits within the budget."""
    large = is_large(source.store())
    shown = calibration[: 1 if large else ROWS]
    # Of a large model only those that can be lifted: every layer costs a pass.
    asked = sampled([x for x in layers if x.bits == 4], config.sensitivity_every) if large else layers
    known = parts.sensitivities()

    def report(new: Mapping[str, float]) -> None:
        parts.measured(new)
        known.update(new)
        progress(len(known), len(asked), MEASURING)

    with opened(source, config.device) as policy:
        sensitivities(policy, shown, [x for x in asked if x.name not in known], report)
    found = filled(layers, known)
    layers = [dataclasses.replace(x, sensitivity_rad=found.get(x.name), measured=x.name in known) for x in layers]
    return choose.lift_worst(layers, config.budget_bits)


@dataclass
class FinishedLayers:
    """Finished layers: written, kept for a run that goes on after an interruption, and shown."""

    parts: LayerParts
    writer: StoreWriter
    total: int
    progress: Progress
    errors: dict[str, float] = field(default_factory=dict)  # relative, of the layer's own output

    def settle(self, layer: Layer, compute: Callable[[], tuple[Packed, float]]) -> Packed:
        """The layer's codes: those of an earlier run, or computed now."""
        found = self.parts.codes(layer.name)
        if found is None or (found[0].bits, found[0].group, found[0].shape) != (layer.bits, layer.group, layer.shape):
            found = compute()
            self.parts.finished(layer.name, *found)
        packed, self.errors[layer.name] = found
        self.writer.add(layer.name, packed)
        self.progress(len(self.errors), self.total, QUANTISING)
        return packed


def choose_codes(
    config: QuantizeConfig,
    source: Bundle,
    layers: list[Layer],
    calibration: Sequence[Observation],
    finished: FinishedLayers,
) -> list[Layer]:
    """Computes the codes of every layer into `finished`; returns the layers with the error they cost."""
    store = source.store()
    large = is_large(store)
    plan = {x.name: x for x in layers}

    def on_inputs(name: str, weight: Tensor, inputs: Tensor) -> Packed:
        return finished.settle(plan[name], lambda: _coded(config.method, plan[name], weight, second_moment(inputs)))

    if large and config.method == "nearest":  # weight by weight, no pass over frames: as if inputs were white

        def alone(layer: Layer) -> tuple[Packed, float]:
            return _coded("nearest", layer, as_float(store.read(layer.name)), torch.ones(layer.shape[1]))

        for layer in layers:
            finished.settle(layer, lambda layer=layer: alone(layer))
    else:
        with opened(source, config.device) as policy:
            quantize_in_order(policy, calibration, list(plan), on_inputs)
    return [dataclasses.replace(x, output_error=finished.errors[x.name]) for x in layers]


def _coded(method: Method, layer: Layer, weight: Tensor, moment: Tensor) -> tuple[Packed, float]:
    """A weight's codes by the method, and the error they cost on inputs with that second moment.

    Raises `ModelError` for a weight with values that are no numbers, or too large for a scale of 16 bits.
    """
    bad = int((~weight.isfinite()).sum())
    if bad:
        raise ModelError(
            f"Weight '{layer.name}' has {bad} values that are not finite: its file is broken, or its training diverged."
        )
    if method == "gptq":
        packed = codes.compensated(weight, layer.bits, layer.group, moment)
    elif method == "clip":
        packed = codes.clipped(weight, layer.bits, layer.group, moment.diagonal())
    else:
        packed = codes.nearest(weight, layer.bits, layer.group)
    if not packed.scales.isfinite().all():
        raise ModelError(
            f"Weight '{layer.name}' has values up to {float(weight.abs().max()):.3g}, too large for scales of 16 bits: "
            "it was not trained to this, look at the checkpoint."
        )
    return packed, codes.output_error(weight, packed, moment)
