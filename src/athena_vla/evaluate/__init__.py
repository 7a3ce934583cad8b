"""Open loop, closed loop and comparison against baselines, with intervals."""

from athena_vla.evaluate.commands import CompareConfig, EvaluateConfig, Loop, compare, evaluate

__all__ = ["CompareConfig", "EvaluateConfig", "Loop", "compare", "evaluate"]
