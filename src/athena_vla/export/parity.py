"""Exported graphs against torch: the same inputs through both, graph by graph, so that a difference has a place."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from athena_vla.bundle import Bundle
from athena_vla.engines.onnxruntime_engine import OnnxRuntime
from athena_vla.errors import ExportError
from athena_vla.models.contract import Array, Tapped, Values
from athena_vla.models.weights.store import TensorStore
from athena_vla.offload import is_large, opened

HALF_TOLERANCE = 0.05  # relative RMS: float16 activations through a deep graph; the replay in radians is what counts


@dataclass(frozen=True)
class Limits:
    """What a graph may differ by."""

    absolute: float  # float32 weights
    relative: float  # RMS, quantised weights


@dataclass(frozen=True)
class Call:
    """One call of a graph by the host loop."""

    graph: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def graphs(
    source: Bundle, exported: Bundle, store: TensorStore, limits: Limits, device: str = "auto"
) -> dict[str, dict[str, Any]]:
    """Per graph: largest absolute and relative RMS difference over all calls the golden observations cause.

    Raises `ExportError` for a graph beyond its limit.
    """
    info = exported.manifest.stage_info
    half = info["precision"] == "float16"
    results: dict[str, dict[str, Any]] = {}
    with at_full_accuracy(exported.path / "weights", info) as folder:
        session = {"session.qdq_matmulnbits_accuracy_level": 1}
        engine = OnnxRuntime(folder, {**info, "session": session}, 1, device)
        for call in reference_calls(source, store, device=device):
            got = engine.run(call.graph, call.inputs)
            for name, answer in call.outputs.items():
                expected = answer.astype(np.float32)
                delta = (engine.memory.read(got[name]).astype(np.float32) - expected).astype(np.float64)
                size = max(float(np.sqrt(np.square(expected.astype(np.float64)).mean())), 1e-12)
                entry = results.setdefault(call.graph, {"max_abs": 0.0, "relative_rms": 0.0, "calls": 0})
                entry["max_abs"] = max(entry["max_abs"], float(np.abs(delta).max()))
                entry["relative_rms"] = max(entry["relative_rms"], float(np.sqrt(np.square(delta).mean()) / size))
                entry["calls"] += 1
    packed = bool(store.packed)
    for graph, entry in results.items():
        if half:
            entry["limit"] = {"relative_rms": HALF_TOLERANCE}
        elif packed:
            entry["limit"] = {"relative_rms": limits.relative}
        else:
            entry["limit"] = {"max_abs": limits.absolute}
        over = {k: v for k, v in entry["limit"].items() if not entry[k] <= v}
        if over:
            raise ExportError(
                f"Exported graph '{graph}' differs from torch by {entry}: more than {over}. Nothing was written; "
                "this is an error of the exporter or of the runtime, not of the model."
            )
    return results


def reference_calls(source: Bundle, store: TensorStore, most: int = 2, device: str = "auto") -> list[Call]:
    """What torch answers, call by call, for the first golden observations; weights stay on disk if they do not fit."""
    large = is_large(store)
    observations = source.golden.observations[: 1 if large else most]
    calls: list[Call] = []
    with opened(source, device) as policy:
        memory = policy.engine.memory

        def run(name: str, values: Values) -> Values:
            outputs = policy.engine.run(name, values)
            # Copies: the host loop writes into its cache between the calls.
            read = [{k: np.array(memory.read(v)) for k, v in some.items()} for some in (values, outputs)]
            calls.append(Call(name, *read))
            return outputs

        dataclasses.replace(policy, engine=Tapped(policy.engine, run)).chunks(observations)
    return calls


@contextmanager
def at_full_accuracy(folder: Path, info: dict[str, Any]) -> Iterator[Path]:
    """The folder with all 4- and 8-bit layers computing in float32; a copy of the graphs, not of the weights."""
    if info["form"] != "contrib" or info["accuracy_level"] == 1:
        yield folder
        return
    twin = folder / "accurate"
    twin.mkdir()
    try:
        for file in folder.iterdir():
            if file.suffix == ".onnx":
                model = onnx.load(str(file), load_external_data=False)
                for node in model.graph.node:
                    for attribute in node.attribute:
                        if attribute.name == "accuracy_level":
                            attribute.i = 1
                (twin / file.name).write_bytes(model.SerializeToString())
            elif file.is_file():
                (twin / file.name).hardlink_to(file)  # runtimes refuse links that lead out of the folder
        yield twin
    finally:
        for file in twin.iterdir():
            file.unlink()
        twin.rmdir()
