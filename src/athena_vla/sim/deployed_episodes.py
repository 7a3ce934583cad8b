"""A deployment as a recording: the trace of an episode on a robot becomes an `Episode` like any other.

Knows traces and episodes; the format it is written in is the caller's choice.
"""

import numpy as np

from athena_vla.control.teleoperator import SOURCES
from athena_vla.control.trace import Trace
from athena_vla.embodiment import Embodiment
from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Episode, Origin
from athena_vla.recordings.marks import Marks, StepSource
from athena_vla.recordings.streams import Clock
from athena_vla.recordings.texts import said


def trace_to_episode(trace: Trace, robot: Embodiment, *, id: str, success: bool | None = None) -> Episode:
    """What was seen at each control step, and the command that had been executed when the step was over.

    Actions are what the motors got, after the safety filter, for every joint. Steps that a person or a script commanded
    in place of the policy are marked as corrections. Needs a trace with `record_images`.
    """
    if not trace.frames:
        raise RecordingError(f"Episode {id}: the trace has no images; run it with RuntimeConfig(record_images=True).")
    stamps = np.array([o.time for o in trace.frames])
    # The last command that was given before the next control step began.
    last = np.searchsorted(trace.times, stamps + 1.0 / robot.control_hz - 1e-6) - 1
    whole = (last >= 0) & (trace.times[last] >= stamps - 1e-6)
    frames = [o for o, keep in zip(trace.frames, whole, strict=True) if keep]
    sources: list[StepSource] = ["policy"] * len(frames)
    if len(trace.sources):
        sources = [SOURCES[i] for i in trace.sources[last[whole]]]
    return Episode(
        id=id,
        clock=Clock(stamps[whole], robot.control_hz),
        joint_names=trace.joint_names,
        actions=trace.commands[last[whole]],
        state_names=robot.state_names,
        states=np.array([o.state for o in frames]),
        cameras={c: [o.images[c] for o in frames] for c in robot.camera_names},
        texts=said((trace.instruction,), len(frames)),
        marks=Marks.from_sources(sources, success),
        source=f"deployment of {trace.robot}",
        origin=Origin(
            robot=trace.robot,
            metadata={"interventions": dict(trace.interventions), "deadline_misses": trace.deadline_misses},
        ),
    )
