from athena_vla.evaluate.commands import CompareConfig as CompareConfig
from athena_vla.evaluate.commands import EvaluateConfig as EvaluateConfig
from athena_vla.evaluate.commands import Loop as Loop
from athena_vla.evaluate.commands import compare as compare
from athena_vla.evaluate.commands import evaluate as evaluate

__all__ = ["CompareConfig", "EvaluateConfig", "Loop", "compare", "evaluate"]
