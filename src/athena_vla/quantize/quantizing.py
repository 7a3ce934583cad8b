"""The stage `quantize`: a float bundle in, a bundle with 8- or 4-bit weights out, its error measured in radians."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import athena_vla.bundle as bundles
from athena_vla.bundle import Bundle
from athena_vla.dataset.dataset import Dataset
from athena_vla.embodiment import Observation
from athena_vla.errors import DatasetError
from athena_vla.gate import Gate
from athena_vla.machine import peak_resident_gb
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import StoreWriter, TensorStore
from athena_vla.offload import is_large, opened
from athena_vla.policy import Policy, asked, replay, sensitivity
from athena_vla.progress import Progress, quiet
from athena_vla.quantize import choose
from athena_vla.quantize.layers import CHECKING, MEASURING, QUANTISING, FinishedLayers, choose_codes, lift, plan_layers
from athena_vla.quantize.measured import ActionError
from athena_vla.quantize.parts import LayerParts
from athena_vla.quantize.quantize_config import QuantizeConfig, QuantizeResult
from athena_vla.version import __version__

FEW = 2  # held-out frames for such a model: each answer of the float weights reads all of them from disk
LARGEST_HALF = 65504.0


def quantize(config: QuantizeConfig, progress: Progress = quiet) -> QuantizeResult:
    """Write the quantised bundle. Raises `BundleError`, `DatasetError`, `UnknownName`.

    Layers that an interrupted run with the same settings had finished are taken over.
    """
    started = time.perf_counter()
    source = Bundle.open(config.input)
    config.require(source)
    with bundles.claim(config.out, overwrite=config.overwrite, reads=config.input):
        return _quantize(config, source, progress, started)


def _quantize(config: QuantizeConfig, source: Bundle, progress: Progress, started: float) -> QuantizeResult:
    calibration, held_out, origin = frames(config, source)
    torch.set_num_threads(config.threads)
    store = source.store()
    manifest = dataclasses.replace(
        source.manifest,
        stage="quantized",
        parent_hash=source.hash,
        parent_path=str(source.path),
        config={"quantize": config.plain()},
        deviation={},
        gates={},
        stage_info={},
        files={},
    )
    layers = plan_layers(config, source, store)
    parts = LayerParts(config.out, _key(config, source, origin))
    with bundles.writing(config.out, manifest, source.golden, source.tokenizer_files()) as folder:
        measures = config.bits == 4 and config.sensitivity
        progress.plan({MEASURING: 3.0 * measures, QUANTISING: 6.0, CHECKING: 1.0 * config.check})
        if measures:
            layers = lift(config, source, layers, calibration, parts, progress)
        writer = StoreWriter(folder / "weights")
        layers = choose_codes(config, source, layers, calibration, FinishedLayers(parts, writer, len(layers), progress))
        done = {x.name for x in layers}
        for name in store.names:
            if name not in done:
                writer.add(name, _rest(store.read(name), config.rest))
        writer.close()
        measured = Measured()
        if config.check:
            progress(0, 1, CHECKING)
            bundles.seal(folder, manifest)
            measured = _measure(Bundle.open(folder), source, held_out, config.device)
        info = {
            "bits": config.bits,
            "mean_bits": choose.mean_bits(layers),
            "layers": choose.table(layers),
            "calibration": origin,
            "action_error": measured.error.to_dict() if measured.error else {},
            "minutes": (time.perf_counter() - started) / 60,
            "peak_gb": peak_resident_gb(),
        }
        final = dataclasses.replace(manifest, deviation=measured.deviation, gates=measured.gates, stage_info=info)
        bundles.seal(folder, final)
        size = TensorStore(folder / "weights").bytes
    parts.remove()
    return QuantizeResult(
        path=config.out,
        mean_bits=info["mean_bits"],
        lifted=sum(x.bits == 8 for x in layers) if config.bits == 4 else 0,
        layers=len(layers),
        bytes=size,
        parent_bytes=store.bytes,
        error=measured.error,
        deviation=measured.deviation,
        minutes=info["minutes"],
        peak_gb=info["peak_gb"],
    )


@dataclass(frozen=True)
class Measured:
    """What the quantised weights do, where they were asked."""

    deviation: dict[str, Any] = field(default_factory=dict)  # [rad], golden replay
    gates: dict[str, Gate] = field(default_factory=dict)
    error: ActionError | None = None  # against the float weights on held-out frames


def _measure(written: Bundle, source: Bundle, held_out: list[Observation], device: str) -> Measured:
    """Replay, sensitivity gates and the action error; of a large model on fewer frames, on its codes as stored."""
    large = is_large(source.store())
    final = Policy.of(written, "auto" if large else "torch", device=device)
    deviation = dict(replay(final, source.golden))
    gates = sensitivity(final, source.golden.observations[: 1 if large else None])
    shown = held_out[: FEW if large else None]
    answers = choose.batch_chunks(final, shown)
    del final  # before the float weights are opened
    with opened(source, device) as reference:
        expected = choose.batch_chunks(reference, shown)
    rows = choose.answered(shown, source.spec.horizon)
    return Measured(deviation, gates, choose.action_error(answers, expected, source.robot.action_names, rows))


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

    prefix = source.loop.prefix

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


def _rest(weight: Tensor | Packed, bits: int) -> Tensor | Packed:
    """Matrices in 16 bits where they fit; vectors (norms, biases) stay as they are: they weigh nothing."""
    if isinstance(weight, Packed) or bits == 32 or weight.ndim < 2 or weight.dtype != torch.float32:
        return weight
    return weight.half() if float(weight.abs().max()) <= LARGEST_HALF else weight


def _key(config: QuantizeConfig, source: Bundle, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What finished layers depend on: data and settings that reach them, and the program."""
    unrelated = ("input", "out", "data", "threads", "check", "rest", "held_out")
    settings = {k: v for k, v in config.plain().items() if k not in unrelated}
    return {"program": __version__, "source": source.hash, "calibration": origin, **settings}
