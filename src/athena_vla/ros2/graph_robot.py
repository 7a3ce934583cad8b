"""The robot behind a ROS 2 graph: the latest messages are what it perceives, trajectories are what it does."""

import threading
from typing import Any

import numpy as np

from athena_vla.embodiment import Array, Embodiment, Observation
from athena_vla.errors import InvalidObservation, UnknownName
from athena_vla.ros2.channel_topics import PACKAGES, ChannelTopic, ChannelTopics, by_topic
from athena_vla.ros2.graph import Graph
from athena_vla.ros2.messages import JointMap, Message, header, image, seconds
from athena_vla.ros2.parameters import STAMPS, Parameters, named_joints
from athena_vla.ros2.trajectory_points import TrajectoryPoints


class GraphRobot:
    """The robot behind the graph: the latest messages are what it perceives."""

    def __init__(self, graph: Graph, body: Embodiment, joints: JointMap, parameters: Parameters) -> None:
        """Raises `UnknownName`, `InvalidEmbodiment` and `SafetyError` for parameters that do not fit."""
        if parameters["stamp"] not in STAMPS:
            raise UnknownName("stamp of trajectories", parameters["stamp"], STAMPS)
        self.embodiment, self._joints, self._parameters = body, joints, parameters
        self._graph, self._lock = graph, threading.Lock()
        self._channels = ChannelTopics.of(body, parameters["command_channels"], parameters["state_channels"])
        self._state: tuple[float, Array] | None = None
        self._measured: dict[str, tuple[float, float]] = {}
        self._images: dict[str, tuple[float, Any]] = {}
        self._task = parameters["task"]
        self._commanded = named_joints(body, parameters["joints"])
        self._columns = body.index(self._commanded)
        self._pending: list[Array] = []
        self._goals = graph.goals(parameters["action"]) if parameters["action"] else None
        # A goal is sent when its control step is over: its first commands are that old already.
        waited = 1.0 / body.control_hz if self._goals is not None else 0.0
        stamped = parameters["stamp"] == "now"
        self._points = TrajectoryPoints(body, lead=parameters["lead_s"] + waited * stamped, stamped=stamped)
        careless = parameters["command_best_effort"]
        topic = parameters["command_topic"]
        self._send = graph.publisher("trajectory_msgs/JointTrajectory", topic, best_effort=careless)
        self._others = {
            topic: graph.publisher(f"{PACKAGES[places[0].kind]}/{places[0].kind}", topic, best_effort=careless)
            for topic, places in by_topic(self._channels.commands).items()
        }
        self._listen(parameters)

    def _listen(self, parameters: Parameters) -> None:
        latest = {"best_effort": parameters["best_effort"], "depth": parameters["depth"]}
        measured = by_topic(self._channels.states)
        beside = measured.pop(parameters["state_topic"], [])
        listen = self._graph.subscribe
        listen("sensor_msgs/JointState", parameters["state_topic"], lambda m: self._on_state(m, beside), **latest)
        for topic, places in measured.items():
            kind = f"{PACKAGES[places[0].kind]}/{places[0].kind}"
            listen(kind, topic, lambda m, p=places: self._on_channels(p, m), **latest)
        for camera in self.embodiment.camera_names:
            topic = parameters["image_topic"].format(camera=camera)
            listen("sensor_msgs/Image", topic, lambda m, c=camera: self._on_image(c, m), **latest)
        listen("std_msgs/String", parameters["task_topic"], self._on_task)

    @property
    def time(self) -> float:
        return self._graph.now()

    def observe(self) -> Observation:
        with self._lock:
            state, images, task, measured = self._state, dict(self._images), self._task, dict(self._measured)
        if self._goals is not None and self._goals.refusal:
            raise InvalidObservation(self._goals.refusal)
        now, oldest = self.time, self._parameters["stale_s"]

        def late(stamp: float) -> bool:
            return abs(now - stamp) > oldest

        if state is None or late(state[0]):
            raise InvalidObservation(
                f"No JointState on {self._parameters['state_topic']} for {oldest} s.{_ago(state, now)}"
            )
        channels = [c.name for c in self.embodiment.observed_channels]
        gone = [c for c in channels if c not in measured or late(measured[c][0])]
        if gone:
            raise InvalidObservation(f"No value of the channels {', '.join(gone)} for {oldest} s.")
        blind = [c for c in self.embodiment.camera_names if c not in images or late(images[c][0])]
        if blind:
            raise InvalidObservation(f"No image of cameras {blind} for {oldest} s.")
        whole = np.concatenate([state[1], np.array([measured[c][1] for c in channels])])
        return Observation({c: image(m) for c, (_, m) in images.items()}, whole, task, state[0])

    def command(self, positions: Array, /) -> None:
        body, count = self.embodiment, len(self.embodiment.joints)
        angles, rest = positions[:count], positions[count:]
        head = header(self._stamp(), self._parameters["frame_id"])
        for topic, _, content in self._channels.command_messages(rest, head):
            self._others[topic](content)
        if self._goals is None:
            self._send(self._joint_trajectory(angles[None]))
            return
        # A goal per control step: an action server is no place for goals at the motor rate.
        self._pending.append(angles)
        if len(self._pending) >= round(body.command_hz / body.control_hz):
            rows, self._pending = np.array(self._pending), []
            self._goals.send(self._joint_trajectory(rows))

    def _stamp(self) -> float:
        """Zero means to a controller: from now on. A time of ours is in its past by the way here, and by our clocks."""
        return 0.0 if self._parameters["stamp"] == "zero" else self.time

    def _joint_trajectory(self, rows: Array) -> Message:
        points = self._points.add(self.time, rows)
        frame, rows = self._parameters["frame_id"], points.rows[:, self._columns]
        return self._joints.timed_trajectory(self._commanded, rows, points.times, points.begin, frame)

    def _on_state(self, message: Any, beside: list[ChannelTopic]) -> None:
        try:
            state = self._joints.state(message)
        except InvalidObservation as error:
            self._warn(error)
            return
        with self._lock:
            self._state = (self._stamp_of(message), state)
        self._on_channels(beside, message)

    def _on_channels(self, places: list[ChannelTopic], message: Any) -> None:
        try:
            values = {p.channel: (self._stamp_of(message), p.value(message)) for p in places}
        except InvalidObservation as error:
            self._warn(error)
            return
        with self._lock:
            self._measured.update(values)

    def _on_image(self, camera: str, message: Any) -> None:
        with self._lock:
            self._images[camera] = (self._stamp_of(message), message)

    def _on_task(self, message: Any) -> None:
        with self._lock:
            self._task = message.data

    def _stamp_of(self, message: Any) -> float:
        """[s] when it was measured; a message without a stamp, or with zero, counts from its arrival."""
        head = getattr(message, "header", None)
        return (seconds(head.stamp) if head is not None else 0.0) or self.time

    def _warn(self, error: InvalidObservation) -> None:
        self._graph.warn(str(error))


def _ago(state: tuple[float, Array] | None, now: float) -> str:
    if state is None:
        return ""
    age = now - state[0]
    return f" The last one is stamped {abs(age):.2f} s {'ago' if age >= 0 else 'ahead of this clock'}."
