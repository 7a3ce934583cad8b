"""Blocks of memory that are alive while a pass is traced, and where in the pass the most are. Knows no devices."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from athena_vla.models.vla import VisionLanguageModel

# Phases of a pass: before the backward pass reaches the decoder, and inside of some of its layers. The others lie
# on the line between the second last and the second.
_FORWARD, _HEAD, _LAST, _SECOND_LAST, _SECOND, _FIRST = "forward", "head", "last", "second last", "second", "first"

_NO_KERNEL = ("empty", "_unsafe_view", "_reshape_alias", "lift_fresh")  # beside views


def starts_a_kernel(func: Any) -> bool:
    """Whether an operator moves data on a card."""
    return not func.is_view and not func.overloadpacket.__name__.startswith(_NO_KERNEL)


class Kernels(TorchDispatchMode):
    """Counts kernels: all, and those that multiply matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if starts_a_kernel(func) and any(isinstance(t, Tensor) for t in tree_leaves(made)):
            self.all += 1
            self.products += func.overloadpacket in flop_registry
        return made


class Live(TorchDispatchMode):
    """Adds up the blocks that operations make, and takes them off when nothing refers to them any more.

    Counts kernels too. `peaks`: of each phase the most that was held, and the most without finished gradients.
    """

    def __init__(self, model: nn.Module, counts: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.now = self.peak = self.finished = 0  # [bytes]
        self.launches = 0  # kernels
        self.flops = 0  # of products of matrices
        self.moved = 0  # [bytes] read and written by kernels that are no products of matrices
        self.counts = counts
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self.sizes: dict[int, int] = {}
        self.phase: tuple[str, ...] = (_FORWARD,)
        self.peaks: dict[str, tuple[int, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        for tensor in tensors:
            self._note(tensor)
        if tensors and starts_a_kernel(func):
            self.launches += 1
            count = flop_registry.get(func.overloadpacket)
            if count is not None:
                self.flops += count(*args, **(kwargs or {}), out_val=made)
            else:
                read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
                self.moved += sum(t.numel() * t.element_size() for t in (*read, *tensors))
        return made

    def enter(self, *names: str) -> None:
        """A new phase begins, or one that goes by several names."""
        self.phase = names
        self._compare()

    def finish(self, gradient: Tensor) -> None:
        """The gradient stays until the optimiser's step."""
        self.finished += self.sizes.get(gradient.untyped_storage()._cdata, 0)

    def _compare(self) -> None:
        self.peak = max(self.peak, self.now)
        for name in self.phase:
            whole, rest = self.peaks.get(name, (0, 0))
            self.peaks[name] = max(whole, self.now), max(rest, self.now - self.finished)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.weights or key in self.sizes or not self.counts(tensor):
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self._compare()
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


@contextmanager
def phases(model: VisionLanguageModel, live: Live) -> Iterator[None]:
    """Tell `live` where in the pass it is, and which gradients are finished."""
    layers = model.body.language_model.model.layers
    last = len(layers) - 1
    names: dict[int, tuple[str, ...]] = {last: (_LAST,), last - 1: (_SECOND_LAST,), 1: (_SECOND,), 0: (_FIRST,)}
    if last - 1 == 1:
        names[1] = (_SECOND_LAST, _SECOND)

    def watched(number: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if number == last and live.phase == (_FORWARD,):  # layers that recompute come here again
                live.enter(_HEAD)
            if output.requires_grad and live.phase in ((_FORWARD,), (_HEAD,)):
                output.register_hook(lambda gradient: live.enter(*names.get(number, ())))

        return hook

    handles = [layer.register_forward_hook(watched(i)) for i, layer in enumerate(layers)]
    trained = (p for p in model.parameters() if p.requires_grad)
    handles += [p.register_post_accumulate_grad_hook(lambda p: live.finish(cast(Tensor, p.grad))) for p in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
