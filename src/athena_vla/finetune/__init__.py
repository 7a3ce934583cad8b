"""Fine-tuning with LoRA, QLoRA, DoRA, in full, or the heads only. Bundle in, new bundle out."""

from athena_vla.finetune.finetune_config import PRESETS, FinetuneConfig
from athena_vla.finetune.finetuning import finetune
from athena_vla.finetune.result import FinetuneResult
from athena_vla.finetune.written import CheckpointConfig, CheckpointResult, bundle_of_checkpoint

__all__ = [
    "PRESETS",
    "CheckpointConfig",
    "CheckpointResult",
    "FinetuneConfig",
    "FinetuneResult",
    "bundle_of_checkpoint",
    "finetune",
]
