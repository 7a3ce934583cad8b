"""Fine-tuning with LoRA, QLoRA, DoRA, in full, or the heads only. Bundle in, new bundle out."""

from athena_vla import lazy

_HOMES = {
    "PRESETS": "finetune_config",
    "CheckpointConfig": "checkpoint_config",
    "CheckpointResult": "written",
    "FinetuneConfig": "finetune_config",
    "FinetuneResult": "result",
    "bundle_of_checkpoint": "written",
    "finetune": "finetuning",
}
__all__ = [*_HOMES]
__getattr__ = lazy.names(__name__, _HOMES)
