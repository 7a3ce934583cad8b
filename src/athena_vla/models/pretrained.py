"""A released checkpoint as one of the families: the pretrained body with heads for a robot. Gated when loaded.

Knows checkpoints and families, nothing of data or training.
"""

from pathlib import Path
from typing import cast

from athena_vla.models import checkpoint, gates
from athena_vla.models.architecture import Architecture, family
from athena_vla.models.vla import VisionLanguageModel, VlaSpec


def from_release(
    name: str,
    source: str | Path,
    *,
    action_dim: int,
    state_dim: int,
    horizon: int,
    cameras: int = 1,
    precision: checkpoint.Precision = "bfloat16",
    device: str = "cpu",
    revision: str | None = None,
    offline: bool = False,
    check: bool = True,
) -> Architecture:
    """Body, tokenizer and image processing from a folder or Hub id; heads of family `name` fresh.

    `check` asks the loaded model whether it sees and listens (a few forward passes). Raises `ModelError`,
    `BlindPolicy`.
    """
    kind = cast(type[VisionLanguageModel], family(name))
    loaded = checkpoint.load(
        source, precision, device=device, output=kind.reads_tokens, revision=revision, offline=offline
    )
    spec = kind.spec_type(  # pyright: ignore[reportCallIssue]
        horizon=horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        cameras=cameras,
        body=loaded.spec,  # pyright: ignore[reportCallIssue]
    )
    model = kind(cast(VlaSpec, spec), loaded.tokenizer_files, loaded.body).eval()
    weight = loaded.body.language_model.model.norm.weight
    for head in model.head_modules():
        model.get_submodule(head).to(device=weight.device, dtype=weight.dtype)
    if check:
        gates.require_vision_runs_once(model, f"The model loaded from '{source}'")
        gates.check_model(model).require(f"The model loaded from '{source}'")
    return model
