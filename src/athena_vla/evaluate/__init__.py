"""Open loop, closed loop and comparison against baselines, with intervals.

Statistics and results are read without torch, so the commands are imported when they are asked for.
"""
# Names are loaded when they are first asked for; __init__.pyi says what they are.
# pyright: reportUnsupportedDunderAll=false

from typing import Any

__all__ = ["CompareConfig", "EvaluateConfig", "Loop", "compare", "evaluate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from athena_vla.evaluate import commands

    return getattr(commands, name)
