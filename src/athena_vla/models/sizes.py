"""Full-size specifications by family name, for planning and for measurements with random weights."""

import importlib
from typing import Any, cast

import torch

from athena_vla.errors import ModelError, UnknownName
from athena_vla.models.architecture import FAMILIES, Spec
from athena_vla.models.tiny_tokenizer import tiny_tokenizer_files
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
    with torch.device("meta"):
        return cast(VisionLanguageModel, kind.from_spec(spec, tiny_tokenizer_files()).eval())
