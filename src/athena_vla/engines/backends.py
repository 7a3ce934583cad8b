"""Run a bundle's graphs: `run(graph_name, tensors) -> tensors` on PyTorch, ONNX Runtime, OpenVINO or TensorRT.

All backends execute the family's same host loop; this file knows files and engines, not families.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from athena_vla.bundle import Bundle
from athena_vla.errors import ExportError, MissingDependency, UnknownName
from athena_vla.models.architecture import Architecture, Run, Tensors, run_torch

Name = Literal["auto", "torch", "packed", "onnxruntime", "openvino", "tensorrt"]
TORCH = ("torch", "packed")
LARGE = 1_000_000_000  # [bytes] of quantised weights from which they are run as they are stored


def open_backend(bundle: Bundle, name: Name = "auto", threads: int = 1) -> tuple[Architecture, Run]:
    """The model's host side and a runner of its graphs.

    `packed` is torch on quantised weights as they are stored, memory-mapped, in bfloat16. `auto` is ONNX Runtime for
    exported bundles, packed for large quantised ones and torch for the others. Raises `ExportError` where the bundle
    does not hold what the backend runs.
    """
    if name not in ENGINES and name not in ("auto", *TORCH):
        raise UnknownName("backend", name, ("auto", *TORCH, *ENGINES))
    exported = bundle.manifest.stage == "exported"
    if name == "packed" or (name == "auto" and bundle.manifest.stage == "quantized" and bundle.store().bytes > LARGE):
        model = bundle.packed_model()
        return model, run_torch(model)
    if name == "torch" or (name == "auto" and not exported):
        model = bundle.model()
        return model, run_torch(model)
    if not exported:
        raise ExportError(f"Bundle '{bundle.path}' is not exported; run `athena export` on it before using {name}.")
    engine = ENGINES["onnxruntime" if name == "auto" else name]
    return bundle.skeleton(), engine(bundle.path / "weights", bundle.manifest.stage_info, threads)


@dataclass(frozen=True)
class Session:
    """One loaded graph with the names and types of its ports."""

    session: Any
    inputs: dict[str, np.dtype[Any]]
    outputs: tuple[str, ...]


class OnnxRuntime:
    """One session per graph, loaded on first use; weights are memory-mapped where the graph has external data."""

    def __init__(self, folder: Path, stage_info: dict[str, Any], threads: int) -> None:
        self.folder = folder
        self.settings = dict(stage_info.get("session", {}))
        self.threads = threads
        self.sessions: dict[str, Session] = {}

    def __call__(self, name: str, inputs: Tensors) -> Tensors:
        loaded = self.sessions.get(name) or self.load(name)
        # An output of one graph goes into the next without a copy: both sides share the memory through numpy.
        feed = {k: _array(inputs[k], kind) for k, kind in loaded.inputs.items() if k in inputs}
        try:
            outputs = loaded.session.run(loaded.outputs, feed)
        except Exception as error:  # the runtime raises its own types, with the port's name in the text
            raise ExportError(f"ONNX Runtime cannot run graph '{name}' of '{self.folder}': {error}") from error
        return {k: torch.from_numpy(np.asarray(v)) for k, v in zip(loaded.outputs, outputs, strict=True)}

    def load(self, name: str) -> Session:
        """Load a graph now, rather than at its first call. Raises `ExportError`."""
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependency("onnxruntime", "export", "to run exported graphs") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in self.settings.items():
            options.add_session_config_entry(key, str(value))
        file = graph_file(self.folder, name, "onnx")
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot load graph '{name}' of '{self.folder}': {error}") from error
        kinds = {i.name: np.dtype(_KINDS[i.type]) for i in session.get_inputs()}
        self.sessions[name] = Session(session, kinds, tuple(o.name for o in session.get_outputs()))
        return self.sessions[name]


_KINDS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


def _array(tensor: torch.Tensor, kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The tensor as the port's type: graphs in 16 bits take and give 16 bits, the host loop computes in 32."""
    array = tensor.detach().cpu().contiguous().numpy()
    return array if array.dtype == kind else array.astype(kind)


class OpenVino:
    """The exported ONNX graphs compiled by OpenVINO; the fastest known single pass on this class of CPU."""

    def __init__(self, folder: Path, stage_info: dict[str, Any], threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise MissingDependency("openvino", "openvino", "to run exported graphs with OpenVINO") from error
        self.folder = folder
        self.core = openvino.Core()
        # The precision hint keeps fp32 graphs in fp32: the default silently computes in bf16 on CPUs that have it.
        self.config: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            **stage_info.get("openvino", {}),
        }
        self.requests: dict[str, tuple[Any, dict[str, np.dtype[Any]]]] = {}

    def __call__(self, name: str, inputs: Tensors) -> Tensors:
        request, kinds = self.requests.get(name) or self.load(name)
        request.infer({k: _array(inputs[k], kind) for k, kind in kinds.items() if k in inputs})
        # Copied: the request's memory is overwritten by its next run.
        ports = request.get_compiled_model().outputs
        arrays = [(port.names, np.array(request.get_tensor(port).data)) for port in ports]
        # A port may carry the names of several equal values of the graph; the host loop knows one of them.
        return {name: torch.from_numpy(array) for names, array in arrays for name in names}

    def load(self, name: str) -> tuple[Any, dict[str, np.dtype[Any]]]:
        """Compile a graph now, rather than at its first call. Raises `ExportError`."""
        file = graph_file(self.folder, name, "onnx")
        try:
            compiled = self.core.compile_model(str(file), "CPU", self.config)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot compile graph '{name}' of '{self.folder}': {error}") from error
        kinds = {port.any_name: np.dtype(port.get_element_type().to_dtype()) for port in compiled.inputs}
        self.requests[name] = (compiled.create_infer_request(), kinds)
        return self.requests[name]


def tensorrt(folder: Path, stage_info: dict[str, Any], threads: int) -> Run:
    """Engines built on the device by the exported script; lives in its own module since it needs CUDA."""
    del threads
    from athena_vla.engines.tensorrt_engine import TensorRT

    return TensorRT(folder, stage_info)


ENGINES: dict[str, Callable[[Path, dict[str, Any], int], Run]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "tensorrt": tensorrt,
}


def graph_file(folder: Path, name: str, suffix: str) -> Path:
    """The file of one exported graph. Raises `UnknownName` listing the graphs that are there."""
    file = folder / f"{name}.{suffix}"
    if not file.is_file():
        raise UnknownName(f"exported graph in '{folder}'", name, sorted(f.stem for f in folder.glob(f"*.{suffix}")))
    return file
