from athena_vla.quantize.quantize_config import QuantizeConfig as QuantizeConfig
from athena_vla.quantize.quantize_config import QuantizeResult as QuantizeResult
from athena_vla.quantize.quantizing import quantize as quantize

__all__ = [
    "QuantizeConfig",
    "QuantizeResult",
    "quantize",
]
