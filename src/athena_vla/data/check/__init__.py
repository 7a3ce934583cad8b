"""Episode, recording -> findings: what is wrong, where, why it matters and what to do. Edits nothing.

One pass over the recording, one episode in memory at a time; each kind of defect has its own module.
"""

from athena_vla.data.check.findings import RULES, Finding
from athena_vla.data.check.run import CheckConfig, CheckReport, check

__all__ = ["RULES", "CheckConfig", "CheckReport", "Finding", "check"]
