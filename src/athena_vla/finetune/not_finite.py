"""What is said where training leaves the finite numbers; nothing that is not finite is ever stored."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from athena_vla.errors import TrainingError
from athena_vla.finetune import sharding
from athena_vla.recordings.episode import Sample

IN_A_ROW = 25  # steps left out one after the other; fp16 halves its first scale some sixteen times
_NAMED = 16  # frames


def refusal(step: int, loss: float, norm: float, samples: Sequence[Sample], kept: str, in_a_row: int) -> TrainingError:
    """The error of a step whose loss or gradient is not finite; every process has to call it.

    `samples` are those that this process suspects, `kept` says what is on the disk.
    """
    texts = sharding.gathered_texts(", ".join(f"{s.episode} frame {s.frame}" for s in samples))
    names = [name for text in texts for name in text.split(", ")]
    what = f"The gradient became {norm}" if math.isfinite(loss) else f"The loss became {loss}"
    again = f" ({in_a_row} times in a row)" if in_a_row > 1 else ""
    return TrainingError(
        f"{what} at step {step + 1}{again} and no weight was changed; {kept}. The batch held: "
        f"{', '.join(names[:_NAMED])}{' ...' if len(names) > _NAMED else ''}. Check these frames (athena data check), "
        "lower --learning-rate, or leave such steps out with --not-finite skip."
    )


def require_finite(tensors: Mapping[str, Tensor], step: int, kept: str) -> None:
    """Raises `TrainingError` naming the tensors that must not be stored."""
    wrong = [n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if wrong:
        raise TrainingError(
            f"After step {step} {len(wrong)} tensors are not finite, '{wrong[0]}' among them: they are not stored, and "
            f"{kept}. Lower --learning-rate or set --clip-norm, and run the same command again."
        )
