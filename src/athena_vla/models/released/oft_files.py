"""The files beside an OpenVLA-OFT checkpoint: action head and proprio projector, with their step suffixes and prefixes.

What the checkpoint does not store (chunk length, normalisation) is the platform's. Knows no prompts or images.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from athena_vla.errors import ModelError
from athena_vla.models.openvla_oft import L1Head
from athena_vla.models.parallel import StateProjector
from athena_vla.models.released.dataset_statistics import Kind
from athena_vla.models.released.released_weights import Precision
from athena_vla.models.weights.store import misfits


class Platform(NamedTuple):
    horizon: int
    kind: Kind


PLATFORMS: dict[str, Platform] = {
    "libero": Platform(8, "bounds_q99"),
    "aloha": Platform(25, "bounds"),
    "bridge": Platform(5, "bounds_q99"),
}


@dataclass(frozen=True)
class OftFiles:
    """Which of the known files a folder holds."""

    action_head: Path | None
    proprio_projector: Path | None

    @property
    def any(self) -> bool:
        return self.action_head is not None or self.proprio_projector is not None

    @property
    def names(self) -> list[str]:
        return [p.name for p in (self.action_head, self.proprio_projector) if p is not None]


@dataclass(frozen=True)
class OftParts:
    """Modules loaded from them; None where the folder has no such file."""

    head: L1Head | None
    proprio: StateProjector | None


def find(folder: Path) -> OftFiles:
    """Look for `<part>--<step>_checkpoint.*`. Raises `ModelError` where several steps lie side by side."""

    def one(part: str) -> Path | None:
        pattern = re.compile(rf"{part}--(\w+)_checkpoint\.(pt|safetensors)")
        found: dict[str, dict[str, Path]] = {}
        for path in folder.iterdir():
            if match := pattern.fullmatch(path.name):
                found.setdefault(match.group(1), {})[match.group(2)] = path
        if len(found) > 1:
            raise ModelError(
                f"'{folder}' holds several {part} files (steps {', '.join(sorted(found))}); keep the one to be used."
            )
        # The same weights where both exist; safetensors needs no unpickling.
        kinds = next(iter(found.values()), {})
        return kinds.get("safetensors") or kinds.get("pt")

    film = one("vision_backbone")
    if film is not None:
        raise ModelError(
            f"'{film}' holds a FiLM vision backbone, which is not supported; without it the model would answer "
            "wrongly. Use a checkpoint that was trained without FiLM."
        )
    return OftFiles(one("action_head"), one("proprio_projector"))


def load(files: OftFiles, width: int, precision: Precision) -> OftParts:
    """Build and fill the modules, strictly. Raises `ModelError` for a head of another kind."""
    dtype = torch.bfloat16 if precision == "nf4" else getattr(torch, precision)
    head, proprio = None, None
    if files.action_head is not None:
        weights = read_part(files.action_head)
        if "model.fc2.weight" not in weights or "model.fc1.weight" not in weights:
            raise ModelError(
                f"'{files.action_head}' is not an L1 action head (it holds {sorted(weights)[:3]}, ...); diffusion "
                "heads are not supported."
            )
        blocks = {k.split(".")[2] for k in weights if k.startswith("model.mlp_resnet_blocks.")}
        head = L1Head(len(blocks), width, weights["model.fc2.weight"].shape[0])
        _fill(head, weights, files.action_head, dtype)
    if files.proprio_projector is not None:
        weights = read_part(files.proprio_projector)
        first = weights.get("fc1.weight")
        if first is None:
            raise ModelError(f"'{files.proprio_projector}' is not a proprio projector: it holds {sorted(weights)[:4]}.")
        proprio = StateProjector(first.shape[1], width)
        _fill(proprio, weights, files.proprio_projector, dtype)
    return OftParts(head, proprio)


def read_part(path: Path) -> dict[str, Tensor]:
    """Tensors by name, without the `module.` that distributed training put in front of each."""
    try:
        raw = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"'{path}' cannot be read as weights ({type(error).__name__}: {error}).") from error
    if not isinstance(raw, dict) or not all(isinstance(v, Tensor) for v in raw.values()):
        raise ModelError(f"'{path}' holds something else than named tensors.")
    return {str(k).removeprefix("module."): v for k, v in raw.items()}


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    own = module.state_dict()
    wrong = misfits(own, weights)
    if wrong:
        raise ModelError(f"'{path}' does not fit: {'; '.join(wrong[:6])} ({len(wrong)} in all).")
    module.load_state_dict(weights)
    module.to(dtype).eval()
