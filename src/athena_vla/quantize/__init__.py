"""Weights in 8 or 4 bits, chosen by the error they cause in the robot's joints."""

from athena_vla.quantize.quantize_config import QuantizeConfig, QuantizeResult
from athena_vla.quantize.quantizing import quantize

__all__ = ["QuantizeConfig", "QuantizeResult", "quantize"]
