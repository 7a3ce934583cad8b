from athena_vla.finetune.checkpoint_config import CheckpointConfig as CheckpointConfig
from athena_vla.finetune.finetune_config import PRESETS as PRESETS
from athena_vla.finetune.finetune_config import FinetuneConfig as FinetuneConfig
from athena_vla.finetune.finetuning import finetune as finetune
from athena_vla.finetune.result import FinetuneResult as FinetuneResult
from athena_vla.finetune.written import CheckpointResult as CheckpointResult
from athena_vla.finetune.written import bundle_of_checkpoint as bundle_of_checkpoint

__all__ = [
    "PRESETS",
    "CheckpointConfig",
    "CheckpointResult",
    "FinetuneConfig",
    "FinetuneResult",
    "bundle_of_checkpoint",
    "finetune",
]
