"""Fine-tuning that asks the planner what to change where a device ran out of memory."""

import dataclasses

import torch

from athena_vla.finetune import PRESETS, FinetuneConfig, FinetuneResult
from athena_vla.finetune import finetune as plain_finetune
from athena_vla.finetune.solving import Players, nobody
from athena_vla.models.architecture import Architecture
from athena_vla.models.lora import LoraSettings
from athena_vla.models.sizes import weightless
from athena_vla.plan.devices import DEVICES
from athena_vla.plan.training import training_plan
from athena_vla.progress import Progress

__all__ = ["PRESETS", "FinetuneConfig", "FinetuneResult", "finetune"]


def finetune(config: FinetuneConfig, progress: Progress | None = None, players: Players = nobody) -> FinetuneResult:
    """Fine-tune as configured. Raises what `athena_vla.finetune.finetune` raises."""
    return plain_finetune(config, out_of_memory, progress, players)


def out_of_memory(model: Architecture, config: FinetuneConfig, settings: LoraSettings) -> str:
    """What to change, from the planner and the memory of the card that was too small."""
    card = DEVICES["rtx4090"]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        # Less than before: what just ran did not fit, whatever was predicted.
        card = dataclasses.replace(card, label=properties.name, memory_gb=0.9 * properties.total_memory / 1e9)
    plan = training_plan(
        weightless(model.family, model.spec),
        settings,
        card,
        batch=config.batch,
        accumulation=config.accumulation,
        checkpointing=config.gradient_checkpointing,
        optimizer=config.optimizer,
    )
    remedy = plan.remedy or "--quantization nf4, or a card with more memory"
    return (
        f"{card.label} ran out of memory with --batch {config.batch}. Try {remedy}. Finished checkpoints are kept and "
        "the same command goes on from them; `athena plan --gpu` shows every choice."
    )
