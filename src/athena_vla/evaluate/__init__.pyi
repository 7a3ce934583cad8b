from athena_vla.evaluate.commands import compare as compare
from athena_vla.evaluate.commands import evaluate as evaluate
from athena_vla.evaluate.evaluate_config import CompareConfig as CompareConfig
from athena_vla.evaluate.evaluate_config import EvaluateConfig as EvaluateConfig
from athena_vla.evaluate.evaluate_config import Loop as Loop

__all__ = [
    "CompareConfig",
    "EvaluateConfig",
    "Loop",
    "compare",
    "evaluate",
]
