"""What a sample's loss under another instruction lacks of a margin, added to its loss.

Knows the names of the tensors that carry words, no family.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from athena_vla.models.architecture import SMALLEST_WEIGHT, Architecture, Tensors
from athena_vla.models.contract import ModelInput

WORDS = ("input_ids", "prompt_mask")  # inputs that carry the instruction
OTHER = "other_"  # before the name of an input: what it is under another instruction


def other_inputs(
    model: Architecture, texts: Sequence[str], states: Sequence[NDArray[np.float32]], cameras: int
) -> Tensors:
    """The inputs that carry words, of these texts, under names of their own; images are left blank."""
    blank = tuple(np.zeros((1, 1, 3), np.uint8) for _ in range(cameras))
    items = [ModelInput(images=blank, state=s, instruction=t) for t, s in zip(texts, states, strict=True)]
    made = model.collate(items)
    return {OTHER + name: made[name] for name in WORDS}


def margin_loss(model: Architecture, inputs: Tensors, target: Tensor, valid: Tensor, margin: float) -> Tensor:
    """Mean over all counted terms of a sample's loss, and of what its loss under another instruction lacks of it plus
    `margin`. Both are means over the sample's terms, so that parts of a step add up as they do without.
    """
    plain = {k: v for k, v in inputs.items() if not k.startswith(OTHER)}
    plain = model.with_images_encoded(plain)
    right, counts = model.sums(plain, target, valid)
    wrong, _ = model.sums({**plain, **{n: inputs[OTHER + n] for n in WORDS}}, target, valid)
    lacking = torch.relu(margin * counts + right - wrong)
    return (right + lacking).sum() / counts.sum().clamp(min=SMALLEST_WEIGHT)
