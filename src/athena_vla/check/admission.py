"""What of a check stops a build: errors, and actions that are no joint targets, unless they are allowed by code."""

from collections.abc import Collection, Iterable, Sequence

from athena_vla.check.findings import Finding, by_code
from athena_vla.embodiment import Embodiment
from athena_vla.errors import DatasetError

NOT_TARGETS = ("action.unrelated", "action.delta")
ELSEWHERE = ("camera.missing", "file.lfs_pointer", "joint.mismatch")  # an episode that lacks what it needs is left out


def refused(findings: Iterable[Finding], robot: Embodiment, allowed: Collection[str]) -> list[Finding]:
    """The findings that stop a build for this robot."""
    takes_deltas = all(robot.joint(n).mode == "delta" for n in robot.action_joints)
    return [
        f
        for f in findings
        if f.code not in allowed
        and f.code not in ELSEWHERE
        and (f.severity == "error" or (f.code in NOT_TARGETS and not (f.code == "action.delta" and takes_deltas)))
    ]


def require_admissible(findings: Sequence[Finding], robot: Embodiment, allowed: Collection[str]) -> None:
    """Raises `DatasetError` with one line per code: how often, where first, and how to build all the same."""
    stopped = refused(findings, robot, allowed)
    if not stopped:
        return
    codes = sorted({f.code for f in stopped})
    lines = [by_code([f for f in stopped if f.code == code]) for code in codes]
    allow = " ".join(f"--allow {code}" for code in codes)
    raise DatasetError(
        "The recording has defects that a policy would learn, so it is not built:\n  "
        + "\n  ".join(lines)
        + f"\nRepair the recording (athena data check says how), or build all the same with {allow}."
    )
