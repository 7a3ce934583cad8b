"""Open loop, closed loop and comparison against baselines, with intervals."""

from athena_vla import lazy

_HOMES = {
    "CompareConfig": "evaluate_config",
    "EvaluateConfig": "evaluate_config",
    "Loop": "evaluate_config",
    "compare": "commands",
    "evaluate": "commands",
}
__all__ = [*_HOMES]
__getattr__ = lazy.names(__name__, _HOMES)
