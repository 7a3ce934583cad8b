"""The report, one self-contained HTML page made from a run folder."""

from athena_vla.report.assemble import ReportConfig, ReportResult, report

__all__ = ["ReportConfig", "ReportResult", "report"]
