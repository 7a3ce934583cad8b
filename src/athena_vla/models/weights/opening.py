"""A model with the weights of a folder. Of a large one its shapes first, then tensor by tensor, where it is to be.

No weight of a large model is drawn at random, copied twice or held on the way: types stay as stored, and on a processor
weights stay views of their files.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from athena_vla.errors import ModelError
from athena_vla.models import lora
from athena_vla.models.architecture import Architecture
from athena_vla.models.contract import Spec
from athena_vla.models.precision import multiply_natively
from athena_vla.models.sizes import without_weights
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import TensorStore, as_float, misfits

LARGE = 2_000_000_000  # [bytes] of stored weights; smaller models compute in float32, which holds 16 bits exactly


def open_model(
    kind: type[Architecture], spec: Spec, tokenizer_files: Mapping[str, bytes], store: TensorStore, device: str = "cpu"
) -> Architecture:
    """A family's model with the weights of a folder. Raises `ModelError` naming what does not fit."""
    wide = store.bytes < LARGE
    if wide and len(set(store.places.values())) == 1:
        # As they always were: the numbers that initialising draws come before those that a training draws, and copies
        # lie in memory otherwise than views of a file, which changes the last bit of a product.
        model = kind.from_spec(spec, tokenizer_files)
        _require_fit(model, store)
        own = model.state_dict()
        model.load_state_dict({n: as_float(store.read(n)).to(own[n].dtype) for n in store.names})
        return model.eval().to(device)
    with without_weights():
        model = kind.from_spec(spec, tokenizer_files)
    _require_fit(model, store)
    for name in store.names:
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path).register_parameter(leaf, nn.Parameter(_placed(store.read(name), device, wide)))
    multiply_natively(model, device)
    return model.eval()


def _require_fit(model: Architecture, store: TensorStore) -> None:
    problems = misfits(model.state_dict(), {n: torch.empty(store.shape(n), device="meta") for n in store.names})
    if problems:
        raise ModelError(
            f"The weights of '{store.folder}' do not fit: {'; '.join(problems[:8])} ({len(problems)} in all)."
        )


def _placed(stored: Tensor | Packed, device: str, wide: bool) -> Tensor:
    if isinstance(stored, Packed):
        return stored.dequantize().to(device, torch.float32 if wide else torch.bfloat16)
    return stored.to(device, torch.float32 if wide else stored.dtype)


def adapted(model: Architecture, settings: lora.LoraSettings, file: Path, device: str = "cpu") -> Architecture:
    """A base with the adapter and the heads of a file, all of it on `device`: heads are made on the host."""
    lora.attach(model, settings)
    lora.load(model, load_file(file))
    return model.eval().to(device)
