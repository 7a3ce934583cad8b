"""A bundle's graphs as ONNX, for the CPU here or for TensorRT on a device; and the gates a bundle must pass."""

from athena_vla.engines.deployment_config import deployment_config, verdict, write_deployment_config
from athena_vla.export.exporting import ExportConfig, ExportResult, export
from athena_vla.export.serving_gates import GateConfig, GateLimits, GateReport, check

__all__ = [
    "ExportConfig",
    "ExportResult",
    "GateConfig",
    "GateLimits",
    "GateReport",
    "check",
    "deployment_config",
    "export",
    "verdict",
    "write_deployment_config",
]
