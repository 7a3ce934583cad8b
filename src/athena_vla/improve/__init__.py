"""Improving: rounds of play, corrections, training and comparison; a policy is kept unless it is worse."""

from athena_vla import lazy

_HOMES = {
    "ImproveConfig": "improve_config",
    "ImproveResult": "round_result",
    "RoundResult": "round_result",
    "decide": "keeping_rule",
    "improve": "improving",
}
__all__ = [*_HOMES]
__getattr__ = lazy.names(__name__, _HOMES)
