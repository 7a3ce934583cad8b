"""Trajectories as goals of a FollowJointTrajectory server: what became of each, and when that is a fault of the robot.

A goal that a newer one takes the place of ends as canceled; that is how it should be. One that is refused, or that the
controller gives up, did not move the robot: it counts as a missing observation until a later one is accepted.
"""

import threading
from typing import Any

from athena_vla.errors import SafetyError
from athena_vla.ros2.graph_messages import trajectory
from athena_vla.ros2.messages import Message

CODES = {
    -1: "invalid goal",
    -2: "invalid joints",
    -3: "old header stamp",
    -4: "path tolerance violated",
    -5: "goal tolerance violated",
}
CANCELED = 5  # action_msgs/GoalStatus


class JointGoals:
    """A client whose goals follow each other. `refusal` is empty while the controller does what it is told."""

    def __init__(self, node: Any, name: str) -> None:
        """Raises `SafetyError` where no such server answers within five seconds."""
        from control_msgs.action import FollowJointTrajectory
        from rclpy.action import ActionClient

        self._name, self._kind = name, FollowJointTrajectory
        self._client = ActionClient(node, FollowJointTrajectory, name)
        if not self._client.wait_for_server(timeout_sec=5.0):
            raise SafetyError(f"There is no FollowJointTrajectory server '{name}'.")
        self._lock = threading.Lock()
        self._sent = self._judged = 0
        self.refusal = ""

    def send(self, fields: Message, /) -> None:
        """Take the place of the goal before; the answers come later, in the node's thread."""
        with self._lock:
            self._sent += 1
            number = self._sent
        future = self._client.send_goal_async(self._kind.Goal(trajectory=trajectory(fields)))
        future.add_done_callback(lambda done: self._answered(number, done))

    def _answered(self, number: int, future: Any) -> None:
        try:
            handle = future.result()
        except Exception as error:  # whatever the middleware raises, the goal was not taken
            self._note(number, f"the goal could not be sent: {error}")
            return
        if not handle.accepted:
            self._note(number, "it refused a goal")
            return
        self._note(number, "")
        handle.get_result_async().add_done_callback(lambda done: self._ended(number, done))

    def _ended(self, number: int, future: Any) -> None:
        try:
            answer = future.result()
        except Exception as error:
            self._note(number, f"its result was lost: {error}")
            return
        code = int(answer.result.error_code)
        replaced = answer.status == CANCELED and number < self._sent
        if code < 0 and not replaced:
            said = str(getattr(answer.result, "error_string", "")) or CODES.get(code, f"error {code}")
            self._note(number, f"it ended a goal: {said}")

    def _note(self, number: int, problem: str) -> None:
        """The newest goal decides; an older answer that comes late changes nothing."""
        with self._lock:
            if number < self._judged:
                return
            self._judged = number
            self.refusal = f"Controller '{self._name}': {problem}." if problem else ""
