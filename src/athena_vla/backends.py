"""Run a bundle's graphs: `run(graph_name, tensors) -> tensors` on PyTorch, ONNX Runtime, OpenVINO or TensorRT.

All backends execute the family's same host loop; this file knows files and engines, not families.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from athena_vla.bundle import Bundle
from athena_vla.errors import ExportError, MissingDependency, UnknownName
from athena_vla.models.architecture import Architecture, Run, Tensors, run_torch

Name = Literal["auto", "torch", "onnxruntime", "openvino", "tensorrt"]


def open_backend(bundle: Bundle, name: Name = "auto", threads: int = 1) -> tuple[Architecture, Run]:
    """The model's host side and a runner of its graphs.

    `auto` is torch for bundles with torch weights and ONNX Runtime for exported ones. Raises `ExportError` where the
    bundle does not hold what the backend runs.
    """
    if name not in ENGINES and name not in ("auto", "torch"):
        raise UnknownName("backend", name, ("auto", "torch", *ENGINES))
    exported = bundle.manifest.stage == "exported"
    if name == "torch" or (name == "auto" and not exported):
        model = bundle.model()
        return model, run_torch(model)
    if not exported:
        raise ExportError(f"Bundle '{bundle.path}' is not exported; run `athena export` on it before using {name}.")
    engine = ENGINES["onnxruntime" if name == "auto" else name]
    return bundle.skeleton(), engine(bundle.path / "weights", bundle.manifest.stage_info, threads)


class OnnxRuntime:
    """One session per graph, loaded on first use; weights are memory-mapped where the graph has external data."""

    suffix = "onnx"

    def __init__(self, folder: Path, stage_info: dict[str, Any], threads: int) -> None:
        self.folder = folder
        self.settings = dict(stage_info.get("session", {}))
        self.threads = threads
        self.sessions: dict[str, Any] = {}

    def __call__(self, name: str, inputs: Tensors) -> Tensors:
        session = self.sessions.get(name) or self._open(name)
        wanted = {i.name for i in session.get_inputs()}
        feed = {k: v.detach().cpu().contiguous().numpy() for k, v in inputs.items() if k in wanted}
        names = [o.name for o in session.get_outputs()]
        return {k: torch.from_numpy(np.asarray(v)) for k, v in zip(names, session.run(names, feed), strict=True)}

    def _open(self, name: str) -> Any:
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
        try:
            session = onnxruntime.InferenceSession(
                str(graph_file(self.folder, name, "onnx")), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot load graph '{name}' of '{self.folder}': {error}") from error
        self.sessions[name] = session
        return session


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
        self.compiled: dict[str, Any] = {}

    def __call__(self, name: str, inputs: Tensors) -> Tensors:
        if name not in self.compiled:
            file = graph_file(self.folder, name, "onnx")
            self.compiled[name] = self.core.compile_model(str(file), "CPU", self.config).create_infer_request()
        request = self.compiled[name]
        model = request.get_compiled_model()
        wanted = {n for port in model.inputs for n in port.names}
        request.infer({k: v.detach().cpu().contiguous().numpy() for k, v in inputs.items() if k in wanted})
        return {port.any_name: torch.from_numpy(np.array(request.get_tensor(port).data)) for port in model.outputs}


def tensorrt(folder: Path, stage_info: dict[str, Any], threads: int) -> Run:
    """Engines built on the device by the exported script; lives in its own module since it needs CUDA."""
    del threads
    from athena_vla.tensorrt_engine import TensorRT

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
