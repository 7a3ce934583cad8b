"""What a shadow run shows: what would have been commanded, what the filter would have changed, what the robot did.

Knows a trace; nothing of how it came about.
"""

from dataclasses import dataclass

import numpy as np

from athena_vla.control.trace import Trace
from athena_vla.errors import SafetyError

CHANGED = 1e-12  # [rad]


@dataclass(frozen=True)
class ShadowReport:
    """Differences are between a chunk's row and the measured joint at the row's time, in rad."""

    robot: str
    seconds: float  # [s] that the run took
    commands: int
    modified: int  # commands that the filter would have changed
    interventions: dict[str, int]
    levels: dict[int, int]  # commands by level of the fallback policy
    chunks: int
    compared: int  # rows of chunks that fell into the recorded time
    horizon: tuple[float, ...]  # [s] after the observation
    mean: tuple[float, ...]  # [rad] of all joints, by horizon
    p95: tuple[float, ...]  # [rad]
    worst_joints: tuple[tuple[str, float], ...]  # the five with the largest mean difference, [rad]
    errors: tuple[str, ...]

    @classmethod
    def of(cls, trace: Trace) -> "ShadowReport":
        """Raises `SafetyError` for a run in which the robot was commanded."""
        if not trace.shadow:
            raise SafetyError(
                "This run commanded the robot: a shadow report compares with what somebody else made it do."
            )
        place = {n: i for i, n in enumerate(trace.state_names)}
        radians = {n for n, unit in zip(trace.joint_names, trace.units, strict=True) if unit == "rad"}
        rows: dict[int, list[np.ndarray]] = {}
        by_joint: dict[str, list[float]] = {}
        dt = trace.chunks[0].dt if trace.chunks else 0.0
        for chunk in trace.chunks:
            times = chunk.time + chunk.dt * np.arange(1, len(chunk.positions) + 1)
            known = (times >= trace.state_times[0]) & (times <= trace.state_times[-1])
            # What nobody measures, such as a commanded velocity, cannot be compared; what is no angle has another unit.
            compared = [(j, n) for j, n in enumerate(chunk.joint_names) if n in place and n in radians]
            if not compared:
                continue
            did = np.stack(
                [np.interp(times, trace.state_times, trace.states[:, place[n]]) for _, n in compared], axis=1
            )
            away = np.abs(chunk.positions[:, [j for j, _ in compared]] - did)
            for i in known.nonzero()[0]:
                rows.setdefault(int(i), []).append(away[i])
            for k, (_, name) in enumerate(compared):
                by_joint.setdefault(name, []).extend(away[known, k].tolist())
        order = sorted(rows)
        joints = sorted(((n, float(np.mean(v))) for n, v in by_joint.items() if v), key=lambda x: -x[1])
        changed = (np.abs(trace.targets - trace.commands) > CHANGED).any(axis=1)
        kinds, counts = np.unique(trace.levels, return_counts=True)
        return cls(
            robot=trace.robot,
            seconds=float(np.ptp(trace.times)) if len(trace.times) else 0.0,
            commands=len(trace.commands),
            modified=int(changed.sum()),
            interventions={k: int(v) for k, v in sorted(trace.interventions.items())},
            levels={int(k): int(n) for k, n in zip(kinds, counts, strict=True)},
            chunks=len(trace.chunks),
            compared=sum(len(v) for v in rows.values()),
            horizon=tuple(float((i + 1) * dt) for i in order),
            mean=tuple(float(np.mean(rows[i])) for i in order),
            p95=tuple(float(np.percentile(rows[i], 95)) for i in order),
            worst_joints=tuple(joints[:5]),
            errors=trace.errors,
        )

    def __str__(self) -> str:
        share = self.modified / max(self.commands, 1)
        lines = [
            f"Shadow run of '{self.robot}': {self.seconds:.1f} s, {self.commands} commands that nobody got, "
            f"{self.chunks} chunks.",
            f"The filter would have changed {self.modified} of them ({share:.1%}): "
            + (", ".join(f"{k} {n}" for k, n in self.interventions.items()) or "nothing")
            + ".",
        ]
        if self.compared:
            lines.append("Planned against done, mean and 95th percentile over joints [rad]:")
            steps = list(zip(self.horizon, self.mean, self.p95, strict=True))
            lines += [f"  {h:5.2f} s ahead  {m:.4f}  {p:.4f}" for h, m, p in steps[:: max(1, len(steps) // 8)]]
            lines.append("Largest: " + ", ".join(f"{n} {x:.4f}" for n, x in self.worst_joints) + ".")
        else:
            lines.append("Nothing to compare: no chunk was answered, or the robot was not observed after one.")
        return "\n".join(lines + [f"  {e}" for e in self.errors[:10]])
