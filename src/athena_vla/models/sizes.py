"""Full-size specifications by family name, for planning and for measurements with random weights."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode

from athena_vla.errors import ModelError, UnknownName
from athena_vla.models.architecture import FAMILIES
from athena_vla.models.body.tiny_tokenizer import tiny_tokenizer_files
from athena_vla.models.contract import Spec
from athena_vla.models.vla import VisionLanguageModel


def full_size(family: str, **sizes: Any) -> Spec:
    """The 7B specification of a family for a robot's sizes. Raises `UnknownName`, `ModelError`."""
    if family not in FAMILIES:
        raise UnknownName("model family", family, FAMILIES)
    module = importlib.import_module(FAMILIES[family].partition(":")[0])
    try:
        return cast(Spec, module.full_7b_spec(**sizes))
    except (AttributeError, TypeError) as error:
        raise ModelError(f"Family '{family}' has no full-size specification for {sizes}: {error}.") from error


def weightless(family: str, spec: Spec) -> VisionLanguageModel:
    """A model of any size on the meta device, with a small tokenizer: for counting, not for running."""
    module, _, name = FAMILIES[family].partition(":")
    kind = getattr(importlib.import_module(module), name)
    with without_weights():
        return cast(VisionLanguageModel, kind.from_spec(spec, tiny_tokenizer_files()).eval())


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Models made inside have shapes alone: nothing is allocated, and nothing drawn at random."""
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    """torch.nn.init does nothing: on the meta device its random numbers load torch's compiler, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))
