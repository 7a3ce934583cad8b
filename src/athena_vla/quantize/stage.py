"""The stage `quantize`: a float bundle in, a bundle with 8- or 4-bit weights out, its error measured in radians."""

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from athena_vla import bundle as bundles
from athena_vla.bundle import Bundle
from athena_vla.data.dataset import Dataset
from athena_vla.embodiment import Observation
from athena_vla.errors import BundleError, DatasetError, UnknownName
from athena_vla.models.packed import Packed
from athena_vla.models.store import StoreWriter, TensorStore, as_float
from athena_vla.policy import Policy, asked, replay, sensitivity
from athena_vla.quantize import choose, codes
from athena_vla.quantize.calibrate import IN_MEMORY, opened, quantize_in_order, second_moment, used_in
from athena_vla.quantize.choose import Layer
from athena_vla.quantize.parts import Parts
from athena_vla.quantize.sensitivity import ROWS, filled, sampled, sensitivities

Method = Literal["gptq", "clip", "nearest"]
METHODS: tuple[Method, ...] = ("gptq", "clip", "nearest")
FEW = 2  # held-out frames for such a model: each answer of the float weights reads all of them from disk
LARGEST_HALF = 65504.0
Progress = Callable[[int, int, str], None]  # done, total, what


def _quiet(done: int, total: int, what: str) -> None:
    """No progress."""


@dataclass(frozen=True)
class QuantizeConfig:
    """Settings of `athena quantize`."""

    input: Path
    """Bundle with float weights: base or merged."""
    out: Path
    """Where the quantised bundle goes."""
    bits: Literal[4, 8] = 4
    """4: groups with fp16 scales, worst layers lifted to 8; 8: per output channel."""
    method: Method = "gptq"
    """gptq: rounding errors compensated; clip: scales clipped to the data; nearest: plain rounding."""
    group: int = 128
    """Inputs per scale at 4 bits; halved where the layer's input has no such divisor. TensorRT takes 64 and 128."""
    data: Path | None = None
    """Built dataset: calibration frames from its train split, held-out frames from validation. None: golden frames."""
    frames: int = 64
    """Calibration frames."""
    held_out: int = 64
    """Frames the error is reported on."""
    graphs: tuple[str, ...] = ("language",)
    """Graphs whose linear layers are quantised, where the family has them; the others stay in 16 bits."""
    keep: tuple[str, ...] = ("lm_head",)
    """Layers that stay in 16 bits although they run in those graphs, by the last part of their name. The robot's own
    heads always do."""
    vision_bits: Literal[8, 16] = 16
    """8: the layers of vision towers and projector per output channel in 8 bits, for machines with little memory."""
    budget_bits: float = 5.0
    """Mean bits per quantised weight, scales included, up to which the worst layers are lifted to 8 bits."""
    sensitivity: bool = True
    """Measure each layer's action error; without, only layers that cannot be grouped get 8 bits."""
    sensitivity_every: int = 4
    """Of a model that does not fit into memory, the layers of every n-th block are measured, on one frame; those
    between lie on the line between them."""
    check: bool = True
    """Replay the golden observations, ask the sensitivity gates, measure the error on held-out frames; minutes where
    the model does not fit into memory. Without, the bundle is not served."""
    rest: Literal[16, 32] = 16
    """Bits of all other matrices."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Of the choice of frames."""


@dataclass(frozen=True)
class QuantizeResult:
    """What was quantised, and the error it costs."""

    path: Path
    mean_bits: float  # of the quantised weights, scales included
    lifted: int  # layers in 8 bits in a 4-bit bundle
    layers: int
    bytes: int  # all weights on disk
    parent_bytes: int
    error: dict[str, Any]  # [rad], quantised against float on frames not used for calibration
    deviation: dict[str, Any]  # [rad], golden replay
    minutes: float
    peak_gb: float

    def __str__(self) -> str:
        shrink = self.parent_bytes / self.bytes
        what = (
            f"quantised {self.layers} layers to {self.mean_bits:.2f} bits ({self.lifted} in 8), {shrink:.1f}x smaller"
        )
        error = "action error not measured"
        if self.error:
            error = f"action error mean {self.error['mean_rad']:.5f}, p95 {self.error['p95_rad']:.5f} rad"
        return f"{what}; {error}; {self.minutes:.1f} minutes, {self.peak_gb:.1f} GB at most: {self.path}"


def quantize(config: QuantizeConfig, progress: Progress = _quiet) -> QuantizeResult:
    """Write the quantised bundle. Raises `BundleError`, `DatasetError`, `UnknownName`.

    Layers that an interrupted run with the same settings had finished are taken over.
    """
    started = time.perf_counter()
    source = Bundle.open(config.input)
    _require(config, source)
    calibration, held_out, origin = frames(config, source)
    torch.set_num_threads(config.threads)
    store = source.store()
    large = store.bytes > IN_MEMORY
    manifest = dataclasses.replace(
        source.manifest,
        stage="quantized",
        parent_hash=source.hash,
        parent_path=str(source.path),
        config={"quantize": _plain(config)},
        deviation={},
        gates={},
        stage_info={},
        files={},
    )
    with bundles.writing(config.out, manifest, source.golden, source.tokenizer_files()) as folder:
        parts = Parts(config.out, _key(config, source, origin))
        layers = plan_layers(config, source, store)
        if config.bits == 4 and config.sensitivity:
            layers = _lift(config, source, layers, calibration, parts, progress)
        writer = StoreWriter(folder / "weights")
        layers = _choose_codes(config, source, layers, calibration, Ledger(parts, writer, len(layers), progress))
        done = {x.name for x in layers}
        for name in store.names:
            if name not in done:
                writer.add(name, _rest(store.read(name), config.rest))
        writer.close()
        error: dict[str, Any] = {}
        deviation: dict[str, Any] = {}
        gates: dict[str, Any] = {}
        if config.check:
            bundles.seal(folder, manifest)
            # auto: a large one runs on its codes as they are stored
            final = Policy.of(Bundle.open(folder), "auto" if large else "torch")
            deviation = replay(final, source.golden)
            gates = sensitivity(final, source.golden.observations[: 1 if large else None])
            shown = held_out[: FEW if large else None]
            answers = choose.batch_chunks(final, shown)
            del final
            with opened(source, large) as reference:
                expected = choose.batch_chunks(reference, shown)
            rows = choose.answered(shown, source.spec.horizon)
            error = choose.action_error(answers, expected, source.robot.action_joints, rows)
        info = {
            "bits": config.bits,
            "mean_bits": choose.mean_bits(layers),
            "layers": choose.table(layers),
            "calibration": origin,
            "action_error": error,
            "minutes": (time.perf_counter() - started) / 60,
            "peak_gb": peak_gb(),
        }
        bundles.seal(folder, dataclasses.replace(manifest, deviation=deviation, gates=gates, stage_info=info))
        size = TensorStore(folder / "weights").bytes
    parts.remove()
    return QuantizeResult(
        path=config.out,
        mean_bits=info["mean_bits"],
        lifted=sum(x.bits == 8 for x in layers) if config.bits == 4 else 0,
        layers=len(layers),
        bytes=size,
        parent_bytes=store.bytes,
        error=error,
        deviation=deviation,
        minutes=info["minutes"],
        peak_gb=info["peak_gb"],
    )


def frames(config: QuantizeConfig, source: Bundle) -> tuple[list[Observation], list[Observation], dict[str, Any]]:
    """Calibration frames, held-out frames, and where they came from. Raises `DatasetError` for another robot's data."""
    if config.data is None:
        golden = list(source.golden.observations)
        return golden, golden, {"source": "golden", "frames": len(golden)}
    data = Dataset.open(config.data)
    if data.robot.hash != source.robot.hash:
        raise DatasetError(
            f"'{config.data}' was recorded on '{data.robot.name}' ({data.robot.hash}), the bundle drives "
            f"'{source.robot.name}' ({source.robot.hash}): calibrate on the bundle's own robot."
        )
    generator = np.random.default_rng(config.seed)

    prefix = source.skeleton().prefix

    def some(indices: Sequence[int] | np.ndarray, count: int) -> list[Observation]:
        picked = generator.permutation(np.asarray(indices))[:count]
        return asked([data[int(i)] for i in sorted(picked)], prefix)

    held = data.validation if len(data.validation) else data.train
    origin = {
        "source": "dataset",
        "dataset_hash": data.hash,
        "seed": config.seed,
        "held_out": bool(len(data.validation)),
    }
    calibration = some(data.train, config.frames)
    return calibration, some(held, config.held_out), {**origin, "frames": len(calibration)}


def plan_layers(config: QuantizeConfig, source: Bundle, store: TensorStore) -> list[Layer]:
    """The layers to quantise in the order they run, before any is lifted. Raises `UnknownName`."""
    skeleton = source.skeleton().eval()
    graphs = (*config.graphs, *(("vision",) if config.vision_bits == 8 else ()))
    heads = tuple(f"{h}." for h in skeleton.head_modules())
    order = {
        name: graph
        for name, graph in used_in(skeleton, graphs).items()
        if not name.startswith(heads) and name.removesuffix(".weight").rpartition(".")[2] not in config.keep
    }
    if not order:
        known = sorted({g.name for g in skeleton.graphs()})
        raise UnknownName("graph with linear layers", ", ".join(graphs), known)
    shapes = {name: store.shape(name) for name in order}
    return [
        choose.first_choice(
            name, graph, (shapes[name][0], shapes[name][1]), 8 if graph == "vision" else config.bits, config.group
        )
        for name, graph in order.items()
    ]


def _lift(
    config: QuantizeConfig,
    source: Bundle,
    layers: list[Layer],
    calibration: Sequence[Observation],
    parts: Parts,
    progress: Progress,
) -> list[Layer]:
    """Measure the action error of layers, and lift the worst to 8 bits within the budget."""
    large = source.store().bytes > IN_MEMORY
    shown = calibration[: 1 if large else ROWS]
    # Of a large model only those that can be lifted: every layer costs a pass.
    asked = sampled([x for x in layers if x.bits == 4], config.sensitivity_every) if large else layers
    known = parts.sensitivities()

    def report(new: Mapping[str, float]) -> None:
        parts.measured(new)
        known.update(new)
        progress(len(known), len(asked), "measuring layers")

    with opened(source, large) as policy:
        sensitivities(policy, shown, [x for x in asked if x.name not in known], report)
    found = filled(layers, known)
    layers = [dataclasses.replace(x, sensitivity_rad=found.get(x.name), measured=x.name in known) for x in layers]
    return choose.lift_worst(layers, config.budget_bits)


@dataclass
class Ledger:
    """Finished layers: written, kept for a run that goes on after an interruption, and shown."""

    parts: Parts
    writer: StoreWriter
    total: int
    progress: Progress
    errors: dict[str, float] = field(default_factory=dict)  # relative, of the layer's own output

    def settle(self, layer: Layer, compute: Callable[[], tuple[Packed, float]]) -> Packed:
        """The layer's codes: those of an earlier run, or computed now."""
        found = self.parts.codes(layer.name)
        if found is None:
            found = compute()
            self.parts.finished(layer.name, *found)
        packed, self.errors[layer.name] = found
        self.writer.add(layer.name, packed)
        self.progress(len(self.errors), self.total, "quantising layers")
        return packed


def _choose_codes(
    config: QuantizeConfig, source: Bundle, layers: list[Layer], calibration: Sequence[Observation], ledger: Ledger
) -> list[Layer]:
    """The codes of every layer into the ledger; the layers with the error they cost."""
    store = source.store()
    large = store.bytes > IN_MEMORY
    plan = {x.name: x for x in layers}

    def on_inputs(name: str, weight: Tensor, inputs: Tensor) -> Packed:
        layer = plan[name]

        def compute() -> tuple[Packed, float]:
            moment = second_moment(inputs)
            if config.method == "gptq":
                packed = codes.compensated(weight, layer.bits, layer.group, moment)
            elif config.method == "clip":
                packed = codes.clipped(weight, layer.bits, layer.group, moment.diagonal())
            else:
                packed = codes.nearest(weight, layer.bits, layer.group)
            return packed, codes.output_error(weight, packed, moment)

        return ledger.settle(layer, compute)

    def alone(layer: Layer) -> tuple[Packed, float]:
        weight = as_float(store.read(layer.name))
        packed = codes.nearest(weight, layer.bits, layer.group)
        # Of white inputs: none are shown.
        return packed, float((packed.dequantize() - weight).norm() / weight.norm().clamp_min(1e-12))

    if large and config.method == "nearest":  # weight by weight, no pass over frames
        for layer in layers:
            ledger.settle(layer, lambda layer=layer: alone(layer))
    else:
        with opened(source, large) as policy:
            quantize_in_order(policy, calibration, list(plan), on_inputs)
    return [dataclasses.replace(x, output_error=ledger.errors[x.name]) for x in layers]


def _rest(weight: Tensor | Packed, bits: int) -> Tensor | Packed:
    """Matrices in 16 bits where they fit; vectors (norms, biases) stay as they are: they weigh nothing."""
    if isinstance(weight, Packed) or bits == 32 or weight.ndim < 2 or weight.dtype != torch.float32:
        return weight
    return weight.half() if float(weight.abs().max()) <= LARGEST_HALF else weight


def _require(config: QuantizeConfig, source: Bundle) -> None:
    if source.manifest.stage not in ("base", "merged"):
        raise BundleError(
            f"'{source.path}' is {source.manifest.stage}; quantise a base or merged bundle"
            + (": run `athena merge` on it first." if source.manifest.stage == "finetuned" else ".")
        )
    if config.method not in METHODS:
        raise UnknownName("quantisation method", config.method, METHODS)
    if config.vision_bits not in (8, 16):
        raise UnknownName("number of bits for vision", config.vision_bits, (8, 16))
    if config.bits not in (4, 8):
        raise UnknownName("number of bits", config.bits, (4, 8))
    if config.sensitivity_every < 1:
        raise BundleError(
            f"Every {config.sensitivity_every}th block cannot be measured: --sensitivity-every is 1 or more."
        )
    if config.group < 32 or config.group & (config.group - 1):
        raise BundleError(f"A group of {config.group} inputs is not a power of two from 32; TensorRT takes 64 and 128.")


def _key(config: QuantizeConfig, source: Bundle, origin: Mapping[str, Any]) -> str:
    """What finished layers depend on."""
    settings = {k: v for k, v in _plain(config).items() if k not in ("input", "out", "data", "threads", "check")}
    return json.dumps({"source": source.hash, "calibration": origin, **settings}, indent=1, sort_keys=True)


def _plain(config: Any) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}


def peak_gb() -> float:
    """Largest resident memory of this process so far; `ru_maxrss` would carry over the parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return int(next(ln for ln in status.splitlines() if ln.startswith("VmHWM")).split()[1]) / 1e6
