from athena_vla.export.export_config import ExportConfig as ExportConfig
from athena_vla.export.exporting import ExportResult as ExportResult
from athena_vla.export.exporting import export as export
from athena_vla.export.gate_config import GateConfig as GateConfig
from athena_vla.export.gate_config import GateLimits as GateLimits
from athena_vla.export.serving_gates import GateReport as GateReport
from athena_vla.export.serving_gates import check as check

__all__ = [
    "ExportConfig",
    "ExportResult",
    "GateConfig",
    "GateLimits",
    "GateReport",
    "check",
    "export",
]
