"""AdamW in its three forms, and the learning rate of each step. Knows no data and no files."""

import math

import torch
from torch import nn

from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.models.architecture import Architecture
from athena_vla.models.weights import nf4 as four_bit


def make_optimizer(
    model: Architecture, parameters: dict[str, nn.Parameter], config: FinetuneConfig
) -> torch.optim.Optimizer:
    """AdamW with separate rates for heads and body; vectors are not decayed. Raises `TrainingError`."""
    heads = tuple(f"{path}." for path in model.head_modules())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = config.head_learning_rate or config.learning_rate
        rate = rate if name.startswith(heads) else config.learning_rate
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    listed = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(listed, fused=True)
    bnb = four_bit.library(f"for --optimizer {config.optimizer}")
    paged = config.optimizer == "paged_adamw8bit" and next(iter(parameters.values())).is_cuda  # pages are a GPU's
    kind = bnb.optim.PagedAdamW8bit if paged else bnb.optim.AdamW8bit
    return kind(listed)


def rate_at(step: int, steps: int, config: FinetuneConfig) -> float:
    """Factor on the peak learning rate at a step, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    share = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1 - share if config.schedule == "linear" else 1.0


def long_warmup(steps: int, config: FinetuneConfig) -> str:
    """A sentence where the warm-up leaves little of the run; "" else."""
    warm = config.warmup_steps
    if 2 * warm <= steps:
        return ""
    reached = max(rate_at(s, steps, config) for s in range(steps))
    return (
        f"The warm-up of {warm} steps {'is longer than' if warm >= steps else 'takes more than half of'} the run of "
        f"{steps}: the learning rate reaches {100 * reached:.0f}% of its peak. Lower --warmup-steps, or train longer."
    )
