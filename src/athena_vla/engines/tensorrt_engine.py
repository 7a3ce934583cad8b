"""Run TensorRT engines that were built on this very device; refuses engines of another GPU or TensorRT version.

Needs tensorrt and CUDA's runtime library, not torch. Not run on a device by us: the logic around it is tested against
stand-ins for both libraries.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla import files
from athena_vla.engines.cuda_memory import CudaMemory, CudaRuntime, OnCard
from athena_vla.errors import DeviceError, ExportError, MissingDependency, UnknownName
from athena_vla.machine.device import Runtime, choose, parse
from athena_vla.models.contract import Engine, Taken, Value, Values

RECORD = "engines.json"  # written by the bundle's device/build_on_device.py
_STREAM = 0  # the default one, which the copies between the graphs are made in


@dataclass(frozen=True)
class Plan:
    """A loaded engine and what is asked of it at every call: its ports, and the shapes of each profile."""

    engine: Any
    inputs: dict[str, np.dtype[Any]]
    outputs: dict[str, np.dtype[Any]]
    profiles: tuple[dict[str, Any], ...]  # per profile: input -> smallest, usual and largest shape

    @classmethod
    def of(cls, engine: Any, tensorrt: Any) -> "Plan":
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        kinds = {n: _numpy_type(tensorrt, engine.get_tensor_dtype(n)) for n in names}
        inputs = {n: k for n, k in kinds.items() if engine.get_tensor_mode(n) == tensorrt.TensorIOMode.INPUT}
        profiles = range(engine.num_optimization_profiles)
        ranges = tuple({n: engine.get_tensor_profile_shape(n, i) for n in inputs} for i in profiles)
        return cls(engine, inputs, {n: k for n, k in kinds.items() if n not in inputs}, ranges)


class TensorRT(Engine):
    """One engine per graph and one context per kind of call, loaded on first use; outputs stay on the device."""

    def __init__(
        self, folder: Path, stage_info: Mapping[str, Any], device: str = "auto", cuda: CudaRuntime | None = None
    ) -> None:
        try:
            import tensorrt
        except ImportError as error:
            raise MissingDependency("tensorrt", "export", "to run TensorRT engines; it comes with JetPack") from error
        if parse(device)[0] == "cpu":
            raise DeviceError("TensorRT runs on cards only; take --backend onnxruntime with --device cpu.")
        self.tensorrt = tensorrt
        self.folder = folder
        self.record = _record(folder)
        index = 0
        if cuda is None:
            version = str(getattr(tensorrt, "__version__", ""))
            named = device if device != "auto" else "cuda"
            index = choose(named, Runtime(f"tensorrt {version}", (0, 0))).index
        self.cuda = cuda or CudaRuntime(index)
        self.memory = self.card = CudaMemory(self.cuda)
        self.gpu = self.cuda.name()
        self.taken = Taken("tensorrt", f"cuda:{self.cuda.index}", self.gpu)
        self.runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
        self.engines: dict[str, Plan] = {}
        self.contexts: dict[tuple[str, int], Any] = {}

    def run(self, graph: str, values: Values, /) -> Values:
        plan = self.engines.get(graph) or self._load(graph)
        context = self._context(graph, plan, values)
        held: dict[str, OnCard] = {}  # keeps the memory alive until the run has ended
        outputs: Values = {}
        for port, kind in plan.inputs.items():
            held[port] = self.card.put(values[port], kind)
            if not context.set_input_shape(port, held[port].shape):
                raise _outside(graph, port, held[port].shape)
            context.set_tensor_address(port, held[port].pointer)
        for port, kind in plan.outputs.items():
            outputs[port] = self.card.empty(tuple(context.get_tensor_shape(port)), kind)
            context.set_tensor_address(port, outputs[port].pointer)
        if not context.execute_async_v3(_STREAM):
            raise ExportError(f"TensorRT could not run graph '{graph}' of '{self.folder}'; see its messages above.")
        self.cuda.wait()
        return outputs

    def wait(self) -> None:
        self.cuda.wait()

    def _load(self, name: str) -> Plan:
        entry = self.record["graphs"].get(name)
        if not isinstance(entry, dict) or entry.get("status") not in ("built", "suspicious"):
            raise UnknownName(f"engine in '{self.folder}'", name, sorted(self.record["graphs"]))
        if entry["status"] == "suspicious":
            raise ExportError(f"The engine '{name}' was built but did not pass its check: {entry['problem']}")
        self._require_same(name, entry)
        # Mapped, not read: a board has no room for a plan of some gigabytes beside the engine that is made of it.
        with open(self.folder / f"{name}.plan", "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as plan:
            engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ExportError(f"TensorRT cannot load '{name}.plan' of '{self.folder}'; build it again on this device.")
        self.engines[name] = Plan.of(engine, self.tensorrt)
        return self.engines[name]

    def _context(self, name: str, engine: Plan, values: Values) -> Any:
        """The context of the first profile that takes the inputs: kernels are chosen for each kind of call."""
        for port in engine.inputs:
            if port not in values:
                raise ExportError(f"Graph '{name}' needs the input '{port}'; it was given {sorted(values)}.")
        outside = ""
        for i, ranges in enumerate(engine.profiles):
            outside = next((p for p in engine.inputs if not _within(_shape(values[p]), ranges[p])), "")
            if outside:
                continue
            if (name, i) not in self.contexts:
                context = engine.engine.create_execution_context()
                context.set_optimization_profile_async(i, _STREAM)
                self.contexts[name, i] = context
            return self.contexts[name, i]
        raise _outside(name, outside, _shape(values[outside]))

    def _require_same(self, name: str, entry: dict[str, Any]) -> None:
        """An engine runs only with the TensorRT version, the GPU and the graph it was built for."""
        here = self.tensorrt.__version__
        lacks = [k for k in ("tensorrt", "device", "onnx_sha256", "plan_sha256") if k not in entry]
        if lacks or not isinstance(entry["device"], Mapping):
            raise ExportError(
                f"'{self.folder / RECORD}' is damaged: it does not say {', '.join(lacks) or 'the device'} of engine "
                f"'{name}'. Run device/build_on_device.py again."
            )
        if entry["tensorrt"] != here:
            raise ExportError(
                f"The engine '{name}' was built with TensorRT {entry['tensorrt']}, here is {here}; run "
                "device/build_on_device.py again."
            )
        gpu, built = self.gpu, entry["device"].get("gpu", "")
        if built and built != gpu:
            raise ExportError(f"The engine '{name}' was built on '{built}', this is '{gpu}'; build it on this device.")
        for file, key in ((f"{name}.onnx", "onnx_sha256"), (f"{name}.plan", "plan_sha256")):
            if _hash(self.folder / file) != entry[key]:
                raise ExportError(f"'{self.folder / file}' is not the file engine '{name}' belongs to; build it again.")


def _hash(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise ExportError(f"'{path}' cannot be read ({reason}); run device/build_on_device.py again.") from problem


def _outside(name: str, port: str, shape: tuple[int, ...]) -> ExportError:
    return ExportError(
        f"Graph '{name}': input '{port}' of shape {list(shape)} is outside the engine's profiles; build again "
        "with wider ranges in device/engines.json."
    )


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(value.shape)


def _within(shape: tuple[int, ...], ranges: Any) -> bool:
    low, _, high = ranges
    return len(shape) == len(low) and all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))


def _record(folder: Path) -> dict[str, Any]:
    file = folder / RECORD
    if not file.is_file():
        raise ExportError(
            f"'{folder}' holds no TensorRT engines: run device/build_on_device.py on the device. Until then the ONNX "
            "graphs run with --backend onnxruntime."
        )
    try:
        record: Any = json.loads(file.read_text())
    except (OSError, ValueError) as problem:
        raise ExportError(f"'{file}' cannot be read ({problem}); run device/build_on_device.py again.") from problem
    if not isinstance(record, dict) or not isinstance(record.get("graphs", {}), dict):
        raise ExportError(f"'{file}' is damaged: it lists no graphs. Run device/build_on_device.py again.")
    if record.get("engine") != "tensorrt":
        raise ExportError(f"No engine was built for '{folder}': {record.get('reason', 'no reason recorded')}.")
    return record


def _numpy_type(tensorrt: Any, kind: Any) -> np.dtype[Any]:
    table = {
        tensorrt.DataType.FLOAT: np.dtype(np.float32),
        tensorrt.DataType.HALF: np.dtype(np.float16),
        tensorrt.DataType.INT32: np.dtype(np.int32),
        tensorrt.DataType.INT64: np.dtype(np.int64),
        tensorrt.DataType.BOOL: np.dtype(np.bool_),
    }
    if kind not in table:
        raise ExportError(f"An engine port has type {kind}, which the host loop does not use.")
    return table[kind]
