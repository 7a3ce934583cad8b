"""Which engine runs a bundle: PyTorch, ONNX Runtime, OpenVINO or TensorRT, on a processor or on a card.

All of them execute the family's same host loop. This file knows bundles and engines, no families; torch is imported
only for bundles that it runs.
"""

from typing import Literal

from athena_vla.bundle import Bundle
from athena_vla.engines.llama_cpp_engine import LlamaCpp
from athena_vla.engines.onnxruntime_engine import OnnxRuntime, Providers
from athena_vla.engines.openvino_engine import OpenVino
from athena_vla.engines.tensorrt_engine import TensorRT
from athena_vla.errors import ExportError, UnknownName
from athena_vla.models.contract import Engine, HostLoop

Name = Literal["auto", "torch", "packed", "onnxruntime", "openvino", "tensorrt", "llama.cpp"]
TORCH = ("torch", "packed")
EXPORTED = ("onnxruntime", "openvino", "tensorrt", "llama.cpp")
LARGE = 1_000_000_000  # [bytes] of quantised weights from which they are run as they are stored


def open_backend(
    bundle: Bundle, name: Name = "auto", threads: int = 1, device: str = "auto", providers: Providers = "auto"
) -> tuple[HostLoop, Engine]:
    """The model's host loop, and the engine that runs its graphs; `engine.taken` says what it runs on.

    `packed` is torch on quantised weights as they are stored, in bfloat16. `auto` is ONNX Runtime for exported bundles,
    packed for quantised ones that are large or run on a card, and torch for the others. `device` is auto, cpu, cuda or
    cuda:N. Raises `ExportError` where the bundle does not hold what the backend runs, `DeviceError` for a card that was
    asked for and cannot be had.
    """
    if name not in ("auto", *TORCH, *EXPORTED):
        raise UnknownName("backend", name, ("auto", *TORCH, *EXPORTED))
    exported = bundle.manifest.stage == "exported"
    if name in TORCH or (name == "auto" and not exported):
        from athena_vla.engines.torch_engine import open_packed, open_torch, torch_device

        as_stored = name == "packed"
        if name == "auto" and bundle.manifest.stage == "quantized":
            size = bundle.store().bytes
            as_stored = size > LARGE or torch_device(device, needs=size).is_cuda
        engine = open_packed(bundle, device) if as_stored else open_torch(bundle, device)
        return engine.model.loop, engine
    if not exported:
        raise ExportError(f"Bundle '{bundle.path}' is not exported; run `athena export` on it before using {name}.")
    folder, info = bundle.path / "weights", bundle.manifest.stage_info
    if name == "llama.cpp" or (name == "auto" and "llama" in info):
        return bundle.loop, LlamaCpp(folder, info, threads, device)
    if name == "openvino":
        return bundle.loop, OpenVino(folder, info, threads, device)
    if name == "tensorrt":
        return bundle.loop, TensorRT(folder, info, device)
    return bundle.loop, OnnxRuntime(folder, info, threads, device, providers)
