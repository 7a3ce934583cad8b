"""A card on which nothing is computed: loaded before torch, in a process of its own.

Tensors on it have a device, a type and a shape. What is written for a card runs, and is refused where devices or types
do not fit. `Watch` counts what it would cost: bytes, kernels, and how often the host would wait for the card.
"""

import ctypes
import importlib.util
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("guard.cpp")
BLOCK = 512  # [bytes] what CUDA's allocator rounds up to
# Operators that move no data: views, and what only asks.
FREE = ("view", "aten::t", "transpose", "expand", "slice", "detach", "unsqueeze", "select", "permute", "split", "alias")
FREE = (*FREE, "as_strided", "squeeze", "empty", "is_same_size", "unbind", "_unsafe_view", "chunk", "narrow")


def load() -> None:
    """Build the device and load it. Nothing may have imported torch before."""
    assert "torch" not in sys.modules, "the card has to be there before torch"
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder = Path(spec.origin).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "card.so"
        include, lib = torch_folder / "include", torch_folder / "lib"
        command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{include}", str(SOURCE), "-o", str(library)]
        subprocess.run([*command, f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10", "-ltorch_cpu"], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


load()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.cuda.amp.common  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses import fake_tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

import athena_vla.engines.torch_engine  # noqa: E402
from athena_vla.machine.device import Choice  # noqa: E402
from athena_vla.models import architecture, precision  # noqa: E402
from athena_vla.models.weights import opening, packed_linear  # noqa: E402
from athena_vla.models.weights.store import TensorStore  # noqa: E402

fake_tensor.CONSTANT_NUMEL_LIMIT = -1  # small constants are fakes too: nothing moves them to a card
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda *_, **__: True
precision._capability = lambda _: (8, 9)


def _numpy(tensor: Any, *args: Any, **options: Any) -> Any:
    """Zeros for a tensor that has no numbers, and torch's own refusals."""
    if not isinstance(tensor, FakeTensor):
        return _real_numpy(tensor, *args, **options)
    if tensor.device.type == "cuda":
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")
    if tensor.dtype == torch.bfloat16:
        raise TypeError("Got unsupported ScalarType BFloat16")
    if tensor.requires_grad:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
    return np.zeros(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


_real_numpy = torch.Tensor.numpy
torch.Tensor.numpy = _numpy  # pyright: ignore[reportAttributeAccessIssue]


def _apply(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """Moves by new parameters: torch swaps the old ones in place, which fakes, watched by their mode, cannot be."""
    for child in module.children() if recurse else ():
        child._apply(function)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(function(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
    return module


nn.Module._apply = _apply  # pyright: ignore[reportAttributeAccessIssue]


def _from_disk(read: Any) -> Any:
    """Files are read as they are: what has been read becomes fake where it meets a fake."""

    def really(*args: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return read(*args, **options)

    return really


architecture.Graph.__post_init__ = lambda self: None  # compares addresses, and a fake has none
for _name in ("stored", "mapped"):
    setattr(TensorStore, _name, _from_disk(getattr(TensorStore, _name)))
opening.load_file = _from_disk(opening.load_file)


class Watch(TorchDispatchMode):
    """What runs on the card: its peak of bytes, its kernels, and how often the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.kernels = 0
        self.waits: Counter[str] = Counter()
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name()
        if "_local_scalar_dense" in name:
            self.waits["read a number"] += args[0].device.type == "cuda"
            return 0.5
        if name.startswith("aten::copy_"):
            self.waits["copied to the host"] += args[0].device.type == "cpu" and args[1].device.type == "cuda"
        elif name.startswith(("aten::_to_copy", "aten::to.")):
            named = [a for a in (*args[1:], kwargs.get("device")) if isinstance(a, (str, torch.device))]
            down = any(torch.device(d).type == "cpu" for d in named)
            self.waits["copied to the host"] += down and args[0].device.type == "cuda"
            up = args[0].device.type == "cpu" and any(torch.device(d).type == "cuda" for d in named)
            flags = [a for a in args[1:] if isinstance(a, bool)]
            self.waits["copied to the card"] += up and not kwargs.get("non_blocking", flags[0] if flags else False)
        elif name in ("aten::nonzero", "aten::masked_select", "aten::_unique2"):
            self.waits[name] += 1
        out = func(*args, **kwargs)
        leaves = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.device.type == "cuda"]
        self.kernels += bool(leaves) and not any(part in name for part in FREE)
        for tensor in leaves:
            self._hold(tensor)
        return out

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        if key in self.held:
            return
        self.held[key] = -(-storage.nbytes() // BLOCK) * BLOCK
        self.now += self.held[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self.held.pop(key, 0)


@contextmanager
def card() -> Iterator[Watch]:
    """A piece of code in which `cuda` is a device, and every engine that asks is given it."""
    place = athena_vla.engines.torch_engine
    asked = place.torch_device
    packed_linear.card_kernels = lambda: (
        None
    )  # Triton launches on a real card alone; its kernels have tests of their own
    place.torch_device = lambda word="auto", needs=0: Choice("cpu" if word == "cpu" else "cuda:0", "a card of no kind")
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
            yield watch
    finally:
        place.torch_device = asked
