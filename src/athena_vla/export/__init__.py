"""A bundle's graphs as ONNX, for the CPU here or for TensorRT on a device; and the gates a bundle must pass."""

from athena_vla import lazy

_HOMES = {
    "ExportConfig": "export_config",
    "ExportResult": "exporting",
    "GateConfig": "gate_config",
    "GateLimits": "gate_config",
    "GateReport": "serving_gates",
    "check": "serving_gates",
    "export": "exporting",
}
__all__ = [*_HOMES]
__getattr__ = lazy.names(__name__, _HOMES)
