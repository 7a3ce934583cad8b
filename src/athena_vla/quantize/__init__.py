"""Weights in 8 or 4 bits, chosen by the error they cause in the robot's joints."""

from athena_vla import lazy

_HOMES = {
    "QuantizeConfig": "quantize_config",
    "QuantizeResult": "quantize_config",
    "quantize": "quantizing",
}
__all__ = [*_HOMES]
__getattr__ = lazy.names(__name__, _HOMES)
