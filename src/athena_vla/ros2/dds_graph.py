"""The graph through DDS alone, where ROS is not installed: CycloneDDS speaks what ROS 2 nodes speak on the wire.

Topics, type names and plain CDR are those of ROS 2. Services and actions are not offered: what rclpy offers as a
service is here a topic `/athena_vla/NAME` of std_msgs/Empty. Never met a real ROS 2 node; in the tests two processes of
ours talk to each other.
"""
# pyright: reportMissingImports=false

import logging
import os
import time
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import quoteattr

from athena_vla.errors import MissingDependency, SafetyError
from athena_vla.ros2.graph import Answer, Goals
from athena_vla.ros2.messages import Message

LOOPBACK = "lo"
QUIET = 5.0  # [s] between two warnings of the same words
_log = logging.getLogger(__name__)


def configuration(network: str) -> str:
    """CycloneDDS's settings for one network interface; the loopback interface has no multicast."""
    alone = network == LOOPBACK
    peers = '<Peers><Peer address="127.0.0.1"/></Peers>' if alone else ""
    return (
        "<CycloneDDS><Domain><General>"
        f"<Interfaces><NetworkInterface name={quoteattr(network)}/></Interfaces>"
        f"<AllowMulticast>{'false' if alone else 'default'}</AllowMulticast>"
        f"</General><Discovery><ParticipantIndex>auto</ParticipantIndex>{peers}</Discovery></Domain></CycloneDDS>"
    )


class DdsGraph:
    """One participant. `network` is the interface it speaks on; the loopback interface unless another is named.

    The domain is `ROS_DOMAIN_ID`, or 0. Raises `MissingDependency`, and `SafetyError` where DDS cannot start there.
    """

    def __init__(self, network: str = LOOPBACK, domain: int | None = None) -> None:
        try:
            from cyclonedds.core import DDSException
            from cyclonedds.domain import Domain, DomainParticipant
        except ImportError as error:
            raise MissingDependency("cyclonedds", "dds", "to speak DDS without a ROS installation") from error
        number = int(os.environ.get("ROS_DOMAIN_ID") or 0) if domain is None else domain
        try:
            self._domain = Domain(number, configuration(network))
            self._participant = DomainParticipant(number)
        except DDSException as error:
            raise SafetyError(f"DDS cannot start on network '{network}', domain {number}: {error}.") from error
        self._kept: list[Any] = []  # readers and writers end with their objects
        self._said: dict[str, float] = {}

    def now(self) -> float:
        return time.time()

    def subscribe(
        self, kind: str, topic: str, call: Callable[[Any], None], *, best_effort: bool = False, depth: int = 1
    ) -> None:
        from cyclonedds.core import Listener
        from cyclonedds.sub import DataReader, Subscriber

        class Arrived(Listener):
            def on_data_available(self, reader: Any) -> None:
                for message in reader.take(N=depth):
                    if hasattr(message, "sample_info") and message.sample_info.valid_data:
                        call(message)

        where = self._topic(kind, topic)
        quality = _quality(best_effort, depth)
        self._kept.append(DataReader(Subscriber(self._participant), where, quality, Arrived()))

    def publisher(self, kind: str, topic: str, *, best_effort: bool = False) -> Callable[[Message], None]:
        from cyclonedds.pub import DataWriter, Publisher

        from athena_vla.ros2.dds_types import made, type_of

        message = type_of(kind)
        writer = DataWriter(Publisher(self._participant), self._topic(kind, topic), _quality(best_effort, 1))
        self._kept.append(writer)
        return lambda fields: writer.write(made(message, fields))

    def offer(self, name: str, call: Callable[[], Answer]) -> None:
        """A topic `/athena_vla/NAME` of std_msgs/Empty; what comes of it is logged."""

        def called(message: object) -> None:
            done, said = call()
            _log.warning("%s: %s (%s)", name, said, "done" if done else "nothing was done")

        self.subscribe("std_msgs/Empty", f"/athena_vla/{name}", called)

    def goals(self, name: str) -> Goals:
        raise SafetyError(f"DDS alone has no actions, so '{name}' cannot be sent goals: leave `action` empty.")

    def warn(self, text: str) -> None:
        if time.monotonic() - self._said.get(text, -QUIET) >= QUIET:
            self._said[text] = time.monotonic()
            _log.warning(text)

    def inform(self, text: str) -> None:
        self.warn(text)

    def _topic(self, kind: str, topic: str) -> Any:
        from cyclonedds.topic import Topic

        from athena_vla.ros2.dds_types import type_of

        return Topic(self._participant, f"rt/{topic.lstrip('/')}", type_of(kind), _quality(False, 1))


def _quality(best_effort: bool, depth: int) -> Any:
    """ROS 2's defaults: keep the last messages, volatile, reliable unless told otherwise, CDR as of XTypes 1."""
    from cyclonedds.core import Policy, Qos
    from cyclonedds.util import duration

    reliable = Policy.Reliability.BestEffort if best_effort else Policy.Reliability.Reliable(duration(milliseconds=100))
    return Qos(
        reliable,
        Policy.Durability.Volatile,
        Policy.History.KeepLast(depth),
        Policy.DataRepresentation(use_cdrv0_representation=True),
    )
