"""Models that do not fit into memory: their float weights stay on disk and are read module by module in every pass."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from athena_vla.bundle import Bundle
from athena_vla.engines.torch_engine import torch_device
from athena_vla.models.architecture import TorchEngine
from athena_vla.models.contract import Taken
from athena_vla.models.released.pretrained import ReleasedWeights
from athena_vla.models.weights.store import TensorStore, as_float
from athena_vla.policy import Policy

IN_MEMORY = 4_000_000_000  # [bytes] of weights up to which whole float models are held
RESIDENT = 2_000_000  # weights of a layer up to which it stays in memory while a large model streams through it


def is_large(store: TensorStore | ReleasedWeights) -> bool:
    """Whether a model with these weights is streamed."""
    return store.bytes > IN_MEMORY


@contextmanager
def opened(bundle: Bundle, device: str = "auto") -> Iterator[Policy]:
    """The bundle's policy in float32; the weights of a large one stay on disk and are read in every pass.

    They are computed with on `device`: a card needs room for the largest layer and for what stays resident.
    """
    with bundle.store() as store:
        choice = torch_device(device)
        taken = Taken("torch", choice.device, choice.name, choice.why, precision="float32")
        if not is_large(store):
            # Eagerly on a card too: who opens a model so looks into its layers, and a replayed graph runs no hooks.
            model = bundle.model(choice.device)
            yield Policy(bundle.robot, bundle.normalizer, model.loop, TorchEngine(model, taken), name=bundle.path.name)
            return
        model = bundle.meta_model().eval()
        with streamed(model, store, device=choice.device):
            # The engine is made inside: it asks the weights where inputs belong.
            engine = TorchEngine(model, taken)
            yield Policy(bundle.robot, bundle.normalizer, model.loop, engine, name=bundle.path.name)


@contextmanager
def streamed(model: nn.Module, store: TensorStore, resident: int | None = None, device: str = "cpu") -> Iterator[None]:
    """Give a model on the meta device its weights module by module, just before each runs, and take them back after.

    A pass over a model that does not fit into memory. What has at most `resident` weights, and what is no plain layer,
    is loaded for good: such parameters may be used outside their module's own forward (query tokens, tables).
    """
    most, hooks = RESIDENT if resident is None else resident, []
    for path, module in model.named_modules():
        own = list(module.named_parameters(recurse=False))
        if not own:
            continue
        prefix = f"{path}." if path else ""
        large = max(p.numel() for _, p in own) > most
        if large and isinstance(module, (nn.Linear, nn.Conv2d)):

            def fetch(module: nn.Module, inputs: object, prefix: str = prefix) -> None:
                for name, _ in list(module.named_parameters(recurse=False)):
                    stored = store.read(prefix + name)
                    weight = as_float(stored)
                    # Of float32 that is the mapped file itself, and every page that is written into would stay.
                    weight = weight.clone() if weight is stored else weight
                    setattr(module, name, nn.Parameter(weight.to(device), requires_grad=False))

            def release(module: nn.Module, inputs: object, output: object) -> None:
                for name, parameter in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))

            hooks.append(module.register_forward_pre_hook(fetch))
            hooks.append(module.register_forward_hook(release))
        else:
            for name, _ in own:
                setattr(module, name, nn.Parameter(as_float(store.read(prefix + name)).to(device), requires_grad=False))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
