"""What a fine-tuning gives back, in memory and as the `result.json` of its run folder. Values only."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from athena_vla import files
from athena_vla.errors import TrainingError
from athena_vla.finetune.finetune_config import FinetuneConfig

FILE = "result.json"


@dataclass(frozen=True)
class FinetuneResult:
    """What came out, and what it took."""

    bundle: Path
    run_folder: Path
    steps: int
    chosen_step: int  # the step whose weights the bundle holds
    trainable: int
    total: int
    seconds: float  # of training in this call
    samples_per_second: float
    validation: dict[str, Any] = field(default_factory=dict)  # loss, mae_rad, per_joint_rad; {} without a split
    notes: tuple[str, ...] = ()
    step_seconds: float = 0.0  # per optimiser step in this call; on a CPU its time and not the clock's
    peak_memory_gb: float = 0.0  # [GB] while it trained: of the GPU, or resident in this process

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total
        lines = [
            f"{self.bundle}: trained {self.trainable:,} of {self.total:,} parameters ({share:.3f}%), "
            f"{self.steps} steps in {self.seconds:.0f} s ({self.samples_per_second:.0f} samples/s), "
            f"weights of step {self.chosen_step}"
        ]
        if solved := self.validation.get("success"):
            lines.append(
                f"{solved['solved']} of {solved['scenes']} scenes solved in the simulator; these selected the weights, "
                "so judge them on others: athena evaluate"
            )
        elif self.validation:
            lines.append(
                f"validation loss {self.validation['loss']:.4f}, mean error {self.validation['mae_rad']:.4f} rad; "
                "judge it closed loop: athena evaluate"
            )
        return "\n".join([*lines, f"curves and checkpoints: {self.run_folder}", *self.notes])

    def write(self) -> None:
        raw = dataclasses.asdict(self)
        content = {k: str(v) if isinstance(v, Path) else v for k, v in raw.items()}
        files.write_json(self.run_folder / FILE, content, TrainingError)


def result_of(config: FinetuneConfig) -> FinetuneResult:
    """The result that the main process of a finished run left."""
    raw = json.loads((config.run_folder / FILE).read_text())
    paths = {name: Path(raw[name]) for name in ("bundle", "run_folder")}
    return FinetuneResult(**{**raw, **paths, "notes": tuple(raw["notes"])})
