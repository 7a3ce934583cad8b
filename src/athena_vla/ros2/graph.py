"""What the node needs of a ROS 2 graph, whatever carries it: rclpy where ROS is installed, else DDS alone."""

from collections.abc import Callable
from typing import Any, Protocol

from athena_vla.ros2.messages import Message

Answer = tuple[bool, str]  # of a service: whether it was done, and a sentence


class Goals(Protocol):
    """Trajectories as goals of a controller, one after the other."""

    refusal: str  # empty while the controller does what it is told

    def send(self, trajectory: Message, /) -> None: ...


class Graph(Protocol):
    """Topics by name and kind, such as `sensor_msgs/JointState`; messages have the fields of their kind."""

    def now(self) -> float:
        """[s] of the graph's clock."""
        ...

    def subscribe(
        self, kind: str, topic: str, call: Callable[[Any], None], *, best_effort: bool = False, depth: int = 1
    ) -> None:
        """Call with every message, from a thread of the graph's own."""
        ...

    def publisher(self, kind: str, topic: str, *, best_effort: bool = False) -> Callable[[Message], None]:
        """What sends the fields of a message."""
        ...

    def offer(self, name: str, call: Callable[[], Answer]) -> None:
        """Let people call something by name."""
        ...

    def goals(self, name: str) -> Goals:
        """A controller that takes goals. Raises `SafetyError` where there is none."""
        ...

    def warn(self, text: str) -> None: ...

    def inform(self, text: str) -> None: ...
