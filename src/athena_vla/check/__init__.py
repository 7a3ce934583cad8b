"""Episode, recording -> findings: what is wrong, where, why it matters and what to do. Edits nothing.

One pass over the recording, one episode in memory at a time; each kind of defect has its own module.
"""

from athena_vla.check.checking import CheckConfig, CheckReport, check
from athena_vla.check.findings import RULES, Finding

__all__ = ["RULES", "CheckConfig", "CheckReport", "Finding", "check"]
