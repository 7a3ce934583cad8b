"""Run TensorRT engines that were built on this very device; refuses engines of another GPU or TensorRT version.

Needs tensorrt and torch with CUDA. Not run on a device by us: the logic around it is tested against a stand-in module.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from athena_vla.errors import ExportError, MissingDependency, UnknownName
from athena_vla.models.architecture import Tensors

RECORD = "engines.json"  # written by the bundle's device/build_on_device.py
DEVICE = "cuda"


@dataclass(frozen=True)
class Engine:
    """A loaded engine and what is asked of it at every call: its ports, and the shapes of each profile."""

    engine: Any
    inputs: dict[str, torch.dtype]
    outputs: dict[str, torch.dtype]
    profiles: tuple[dict[str, Any], ...]  # per profile: input -> smallest, usual and largest shape

    @classmethod
    def of(cls, engine: Any, tensorrt: Any) -> "Engine":
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        kinds = {n: _torch_type(tensorrt, engine.get_tensor_dtype(n)) for n in names}
        inputs = {n: k for n, k in kinds.items() if engine.get_tensor_mode(n) == tensorrt.TensorIOMode.INPUT}
        profiles = range(engine.num_optimization_profiles)
        ranges = tuple({n: engine.get_tensor_profile_shape(n, i) for n in inputs} for i in profiles)
        return cls(engine, inputs, {n: k for n, k in kinds.items() if n not in inputs}, ranges)


class TensorRT:
    """One engine per graph and one context per kind of call, loaded on first use; outputs stay on the device."""

    def __init__(self, folder: Path, stage_info: dict[str, Any]) -> None:
        try:
            import tensorrt
        except ImportError as error:
            raise MissingDependency("tensorrt", "export", "to run TensorRT engines; it comes with JetPack") from error
        self.tensorrt = tensorrt
        self.folder = folder
        self.graphs: dict[str, Any] = stage_info.get("graphs", {})
        self.record = _record(folder)
        self.runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
        self.engines: dict[str, Engine] = {}
        self.contexts: dict[tuple[str, int], Any] = {}

    def __call__(self, name: str, inputs: Tensors) -> Tensors:
        engine, stream = self.engines.get(name) or self._load(name), torch.cuda.current_stream()
        context = self._context(name, engine, inputs, stream)
        held: dict[str, torch.Tensor] = {}  # keeps the memory alive until the run has ended
        outputs: Tensors = {}
        for port, kind in engine.inputs.items():
            held[port] = inputs[port].to(device=DEVICE, dtype=kind).contiguous()
            if not context.set_input_shape(port, tuple(held[port].shape)):
                raise _outside(name, port, held[port])
            context.set_tensor_address(port, held[port].data_ptr())
        for port, kind in engine.outputs.items():
            outputs[port] = torch.empty(tuple(context.get_tensor_shape(port)), dtype=kind, device=DEVICE)
            context.set_tensor_address(port, outputs[port].data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise ExportError(f"TensorRT could not run graph '{name}' of '{self.folder}'; see its messages above.")
        stream.synchronize()
        return outputs

    def _load(self, name: str) -> "Engine":
        entry = self.record["graphs"].get(name)
        if entry is None or entry.get("status") not in ("built", "suspicious"):
            raise UnknownName(f"engine in '{self.folder}'", name, sorted(self.record["graphs"]))
        if entry["status"] == "suspicious":
            raise ExportError(f"The engine '{name}' was built but did not pass its check: {entry['problem']}")
        self._require_same(name, entry)
        engine = self.runtime.deserialize_cuda_engine((self.folder / f"{name}.plan").read_bytes())
        if engine is None:
            raise ExportError(f"TensorRT cannot load '{name}.plan' of '{self.folder}'; build it again on this device.")
        self.engines[name] = Engine.of(engine, self.tensorrt)
        return self.engines[name]

    def _context(self, name: str, engine: "Engine", inputs: Tensors, stream: Any) -> Any:
        """The context of the first profile that takes the inputs: kernels are chosen for each kind of call."""
        for port in engine.inputs:
            if port not in inputs:
                raise ExportError(f"Graph '{name}' needs the input '{port}'; it was given {sorted(inputs)}.")
        outside = ""
        for i, ranges in enumerate(engine.profiles):
            outside = next((p for p in engine.inputs if not _within(inputs[p].shape, ranges[p])), "")
            if outside:
                continue
            if (name, i) not in self.contexts:
                context = engine.engine.create_execution_context()
                context.set_optimization_profile_async(i, stream.cuda_stream)
                self.contexts[name, i] = context
            return self.contexts[name, i]
        raise _outside(name, outside, inputs[outside])

    def _require_same(self, name: str, entry: dict[str, Any]) -> None:
        """An engine runs only with the TensorRT version, the GPU and the graph it was built for."""
        here = self.tensorrt.__version__
        if entry["tensorrt"] != here:
            raise ExportError(
                f"The engine '{name}' was built with TensorRT {entry['tensorrt']}, here is {here}; run "
                "device/build_on_device.py again."
            )
        gpu, built = torch.cuda.get_device_name(0), entry["device"].get("gpu", "")
        if built and built != gpu:
            raise ExportError(f"The engine '{name}' was built on '{built}', this is '{gpu}'; build it on this device.")
        for file, key in ((f"{name}.onnx", "onnx_sha256"), (f"{name}.plan", "plan_sha256")):
            if hashlib.sha256((self.folder / file).read_bytes()).hexdigest() != entry[key]:
                raise ExportError(f"'{self.folder / file}' is not the file engine '{name}' belongs to; build it again.")


def _outside(name: str, port: str, tensor: torch.Tensor) -> ExportError:
    return ExportError(
        f"Graph '{name}': input '{port}' of shape {list(tensor.shape)} is outside the engine's profiles; build again "
        "with wider ranges in device/engines.json."
    )


def _within(shape: torch.Size, ranges: Any) -> bool:
    low, _, high = ranges
    return len(shape) == len(low) and all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))


def _record(folder: Path) -> dict[str, Any]:
    file = folder / RECORD
    if not file.is_file():
        raise ExportError(
            f"'{folder}' holds no TensorRT engines: run device/build_on_device.py on the device. Until then the ONNX "
            "graphs run with --backend onnxruntime."
        )
    record: dict[str, Any] = json.loads(file.read_text())
    if record.get("engine") != "tensorrt":
        raise ExportError(f"No engine was built for '{folder}': {record.get('reason', 'no reason recorded')}.")
    return record


def _torch_type(tensorrt: Any, kind: Any) -> torch.dtype:
    table = {
        tensorrt.DataType.FLOAT: torch.float32,
        tensorrt.DataType.HALF: torch.float16,
        tensorrt.DataType.INT32: torch.int32,
        tensorrt.DataType.INT64: torch.int64,
        tensorrt.DataType.BOOL: torch.bool,
    }
    if kind not in table:
        raise ExportError(f"An engine port has type {kind}, which the host loop does not use.")
    return table[kind]
