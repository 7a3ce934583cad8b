"""Two small parts of a driven run: an actor that keeps the pose, and a robot with another instruction."""

from dataclasses import replace

from athena_vla.control.runtime import Robot
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation

HOLD = "hold"  # a policy that keeps the robot where it is


class Hold:
    """An actor that asks for the pose the robot is in."""

    policy_id = HOLD

    def __init__(self, body: Embodiment) -> None:
        self._body = body
        self._pose: Array | None = None

    def act(self, observation: Observation) -> ActionChunk:
        body = self._body
        if self._pose is None:
            self._pose = observation.state[body.action_index].astype(float)
        return ActionChunk(
            self._pose[None].repeat(16, axis=0), body.action_joints, 1 / body.control_hz, observation.time
        )


class Told:
    """A robot with another instruction."""

    def __init__(self, robot: Robot, task: str) -> None:
        self._robot, self._task = robot, task
        self.embodiment = robot.embodiment

    @property
    def time(self) -> float:
        return self._robot.time

    def observe(self) -> Observation:
        return replace(self._robot.observe(), instruction=self._task)

    def command(self, positions: Array, /) -> None:
        self._robot.command(positions)
