"""The safety filter on recordings of a robot that has no simulator: chunks are followed from recorded poses.

The body follows every command exactly, and its cameras go on showing the recorded frame: this shows what the filter
does with the policy's chunks, and nothing of success.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from athena_vla.control.runtime import RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.evaluate.baselines import Actor
from athena_vla.evaluate.results import EpisodeResult
from athena_vla.evaluate.violations import count_violations
from athena_vla.recordings.episode import Sample

SECONDS = 2.0  # of the robot's clock from each pose


class RecordedBody:
    """A robot that stands in a recorded pose, then does what it is told."""

    def __init__(self, robot: Embodiment, sample: Sample) -> None:
        self.embodiment = robot
        self.sample = sample
        self.time = 0.0
        columns = robot.command_columns
        self.told = np.clip(robot.command_of(sample.observation.state.astype(np.float64)), columns.lower, columns.upper)
        place = robot.state_columns.places(robot.command_names)
        self._seen, self._place = place >= 0, place[place >= 0]  # commands that are measured, and where in the state

    def observe(self) -> Observation:
        seen = self.sample.observation
        state = seen.state.astype(np.float64)
        state[self._place] = self.told[self._seen]
        return Observation(seen.images, state, seen.instruction, self.time)

    def command(self, positions: NDArray[np.float64], /) -> None:
        self.told = np.array(positions, np.float64)
        self.time += 1.0 / self.embodiment.command_hz


def follow(name: str, actor: Actor, samples: Sequence[Sample], robot: Embodiment) -> list[EpisodeResult]:
    """One short episode from the pose of each sample, through the deployed loop and filter."""
    owners = {joint.group: "policy" for joint in robot.joints if joint.owner == "balance"}
    config = RuntimeConfig(owners=owners, latch=False)  # type: ignore[arg-type]
    rows = []
    for number, sample in enumerate(samples):
        body, guard = RecordedBody(robot, sample), SafetyFilter(robot)
        start = body.told.copy()
        trace = run_episode(body, actor, guard, duration=SECONDS, config=config)
        found = count_violations(trace.commands, start, robot)
        rows.append(
            EpisodeResult(
                actor=name,
                scene=number,
                task="recorded pose",
                instruction=sample.observation.instruction,
                success=False,
                time_to_success=None,
                commands=len(trace.commands),
                touched=trace.touched_steps,
                interventions={k: int(v) for k, v in sorted(trace.interventions.items())},
                interventions_by_joint=guard.interventions_by_joint,
                violations=found.total,
                worst_velocity=found.worst_velocity,
                worst_acceleration=found.worst_acceleration,
                errors=trace.errors,
                wall={"per_act": 0.0},
            )
        )
    return rows
