"""The exported graphs compiled by OpenVINO; the fastest known single pass on x86 processors. Knows no cards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla.engines.graph_files import graph_file
from athena_vla.engines.host_memory import HostMemory
from athena_vla.errors import DeviceError, ExportError, MissingDependency
from athena_vla.machine.device import parse
from athena_vla.models.contract import Engine, Taken, Values


class OpenVino(Engine):
    """One compiled graph with one request each, made on first use. Raises `DeviceError` for a card by name."""

    def __init__(self, folder: Path, stage_info: Mapping[str, Any], threads: int = 1, device: str = "auto") -> None:
        if parse(device)[0] == "cuda":
            raise DeviceError(f"OpenVINO does not run on '{device}'; take --backend onnxruntime, or --device cpu.")
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
        self.memory = HostMemory()
        self.taken = Taken("openvino", "cpu", why="" if device == "cpu" else "OpenVINO runs on the processor")

    def run(self, graph: str, values: Values, /) -> Values:
        request, kinds = self.requests.get(graph) or self.load(graph)
        feed = {k: np.asarray(values[k]).astype(kind, copy=False) for k, kind in kinds.items() if k in values}
        request.infer({k: np.ascontiguousarray(v) for k, v in feed.items()})
        # Copied: the request's memory is overwritten by its next run.
        ports = request.get_compiled_model().outputs
        arrays = [(port.names, np.array(request.get_tensor(port).data)) for port in ports]
        # A port may carry the names of several equal values of the graph; the host loop knows one of them.
        return {name: array for names, array in arrays for name in names}

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
