"""A bundle's model in torch: float weights, or quantised ones on their codes as they are stored (`packed`).

Says which device it took, and why not a card. The way to a card was not run on one by us.
"""

import torch

from athena_vla.bundle import Bundle
from athena_vla.errors import DeviceError
from athena_vla.machine.device import Choice, Runtime, choose, version_of
from athena_vla.models.architecture import TorchEngine
from athena_vla.models.contract import Taken


def torch_runtime() -> Runtime:
    """The torch that is installed, as `device.choose` asks about it."""
    hip = getattr(torch.version, "hip", None)
    built = None if hip else version_of(torch.version.cuda)
    return Runtime(f"torch {torch.__version__}", built, "rocm" if hip else "")


def torch_device(word: str, needs: int = 0) -> Choice:
    """The device that `word` stands for in torch. Raises `DeviceError`, `UnknownName`."""
    choice = choose(word, torch_runtime(), needs=needs)
    if choice.is_cuda and not torch.cuda.is_available():
        why = "driver and build fit, but torch cannot start CUDA (torch.cuda.init() says why)"
        if word != "auto":
            raise DeviceError(f"Device '{word}' cannot be taken: {why}. --device cpu needs no card.")
        return Choice("cpu", why=why)
    return choice


def open_torch(bundle: Bundle, device: str = "auto") -> TorchEngine:
    """The bundle's model in torch. Raises `BundleError`, `DeviceError`."""
    choice = torch_device(device, _bytes(bundle))
    model = bundle.model(choice.device)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
    return TorchEngine(model, Taken("torch", choice.device, choice.name, choice.why, precision=", ".join(kinds)))


def open_packed(bundle: Bundle, device: str = "auto") -> TorchEngine:
    """A quantised bundle on its codes, on the processor. Raises `BundleError`, `DeviceError`."""
    if device not in ("auto", "cpu"):
        raise DeviceError(f"Backend 'packed' computes on the processor, not on '{device}'; take --backend torch.")
    why = "" if device == "cpu" else "packed computes on the processor"
    return TorchEngine(bundle.packed_model(), Taken("packed", "cpu", why=why, precision="bfloat16"))


def _bytes(bundle: Bundle) -> int:
    """[bytes] the weights take, about: what lies in the files of the bundle that has them."""
    manifest = bundle.manifest
    if manifest.adapter:
        return bundle.release().store().bytes if manifest.checkpoint else _bytes(bundle.parent())
    return bundle.store().bytes
