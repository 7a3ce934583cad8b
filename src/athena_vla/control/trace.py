"""What happened in one episode on a robot: everything a report, a replay or the next dataset needs, as plain arrays.

Knows no file format: turning a trace into a recording is the business of whoever may write recordings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import ActionChunk, Array, Observation


@dataclass(frozen=True)
class Trace:
    """The executed episode. Commands run at `command_hz`, observations at the steps at which the robot was observed."""

    robot: str
    joint_names: tuple[str, ...]
    instruction: str
    times: Array  # [n] [s] robot clock at which each command was given
    targets: Array  # [n, J] [rad] what was asked for, before the safety filter
    commands: Array  # [n, J] [rad] what the motors got
    levels: NDArray[np.int8]  # [n] rung of the fallback ladder, index into `runtime.LEVELS`
    state_times: Array  # [m] [s]
    states: Array  # [m, J] [rad] measured
    chunks: tuple[ActionChunk, ...]  # accepted ones, in the order of use
    latencies: Array  # [k] [s] wall clock from question to answer
    delays: Array  # [k] [s] robot clock from observation to use
    interventions: Mapping[str, int]  # of the safety filter in this episode
    touched_steps: int  # commands with at least one intervention
    deadline_misses: int  # control steps for which no current chunk was there
    overruns: int  # command periods that started late, in real time
    errors: tuple[str, ...]  # faults of the actor, the camera or a chunk, in words
    ended_by: str  # "duration" | "until"
    frames: tuple[Observation, ...] = field(default=())  # only where asked for
