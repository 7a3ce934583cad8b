"""A bundle's model in torch: float weights, or quantised ones on their codes as they are stored (`packed`).

Says which device it took, and why not a card.
"""

import torch

from athena_vla.bundle import Bundle
from athena_vla.errors import DeviceError
from athena_vla.machine.device import Choice, Runtime, choose, version_of
from athena_vla.models.architecture import Architecture, TorchEngine
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
    """The bundle's model in torch; on a card by captured calls. Raises `BundleError`, `DeviceError`."""
    choice = torch_device(device, _bytes(bundle))
    model = bundle.model(choice.device)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
    return engine_of(model, Taken("torch", choice.device, choice.name, choice.why, precision=", ".join(kinds)))


def open_packed(bundle: Bundle, device: str = "auto") -> TorchEngine:
    """A quantised bundle on its codes as they are stored. Raises `BundleError`, `DeviceError`."""
    choice = torch_device(device, _bytes(bundle))
    taken = Taken("packed", choice.device, choice.name, choice.why, precision="bfloat16")
    return engine_of(bundle.packed_model(choice.device), taken)


def engine_of(model: Architecture, taken: Taken) -> TorchEngine:
    """Eagerly on a processor; on a card each kind of call is captured once and replayed."""
    if torch.device(taken.device).type != "cuda":
        return TorchEngine(model, taken)
    from athena_vla.models.captured import CapturedEngine

    return CapturedEngine(model, taken)


def _bytes(bundle: Bundle) -> int:
    """[bytes] the weights take, about: what lies in the files of the bundle that has them."""
    manifest = bundle.manifest
    if manifest.adapter:
        return bundle.release().store().bytes if manifest.checkpoint else _bytes(bundle.parent())
    return bundle.store().bytes
