"""Stage: fine-tune with LoRA, QLoRA, DoRA, in full, or the heads only. Bundle in, new bundle out."""

from athena_vla.finetune.config import PRESETS, FinetuneConfig
from athena_vla.finetune.result import FinetuneResult
from athena_vla.finetune.stage import finetune

__all__ = ["PRESETS", "FinetuneConfig", "FinetuneResult", "finetune"]
