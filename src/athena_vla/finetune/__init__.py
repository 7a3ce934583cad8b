"""Fine-tuning with LoRA, QLoRA, DoRA, in full, or the heads only. Bundle in, new bundle out."""

from athena_vla.finetune.finetune_config import PRESETS, FinetuneConfig
from athena_vla.finetune.finetuning import finetune
from athena_vla.finetune.result import FinetuneResult

__all__ = ["PRESETS", "FinetuneConfig", "FinetuneResult", "finetune"]
