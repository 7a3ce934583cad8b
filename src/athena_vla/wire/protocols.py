"""What existing clients send and expect, as pure functions: openpi's messages, OpenVLA's `/act` and its OFT form.

Knows the three vocabularies and the robot's cameras; nothing of sockets, models or encodings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from athena_vla.control.plausible import require_plausible
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation
from athena_vla.errors import InvalidObservation

MAX_INSTRUCTION = 2000  # characters
MAX_PREFIX = 1000  # rows
REST_EXTRAS = ("unnorm_key",)


@dataclass(frozen=True)
class Request:
    """One question, understood: what to ask the policy and how the answer has to look."""

    observation: Observation
    form: Literal["openpi", "single", "oft"]
    request_id: int | None = None  # echoed, so that a client can prove that an answer is its own


@dataclass(frozen=True)
class RequestParser:
    """Turns messages into observations of one robot.

    `state_optional` is for policies that never look at the state (a released openvla-7b with absolute targets): where
    a client sends none, the robot's default pose stands in. Nothing is filled in otherwise.
    """

    robot: Embodiment
    state_optional: bool = False

    def parse(self, message: Any, form: Literal["openpi", "rest"]) -> Request:
        """Raises `InvalidObservation` with what the robot needs."""
        if not isinstance(message, dict) or not all(isinstance(k, str) for k in message):
            raise InvalidObservation("A request is a map from names to values.")
        return self._openpi(message) if form == "openpi" else self._rest(message)

    def _openpi(self, message: dict[str, Any]) -> Request:
        cameras = self.robot.camera_names
        names = {f"observation/{c}": c for c in cameras} | {f"observation/images/{c}": c for c in cameras}
        # openpi's examples call the main camera `image` and the second one `wrist_image`.
        for alias, camera in zip(("observation/image", "observation/wrist_image"), cameras, strict=False):
            names.setdefault(alias, camera)
        if "observation/committed" in message:  # what clients before 0.2.0 call it
            message = {**message, "observation/action_prefix": message["observation/committed"]}
            del message["observation/committed"]
        known = {*names, "observation/state", "observation/action_prefix", "prompt", "time", "request_id"}
        self._refuse_unknown(message, known)
        images = self._images(message, names)
        request_id = message.get("request_id")
        if request_id is not None and (type(request_id) is not int or not 0 <= request_id < 2**63):
            raise InvalidObservation("request_id must be a whole number of at least 0.")
        observation = Observation(
            images=images,
            state=self._state(message.get("observation/state"), "observation/state"),
            instruction=self.text(message.get("prompt"), "prompt"),
            time=self._time(message.get("time", 0.0)),
            action_prefix=self._rows(message.get("observation/action_prefix")),
        )
        return Request(self.checked(observation), "openpi", request_id)

    def _rest(self, message: dict[str, Any]) -> Request:
        oft = "full_image" in message
        cameras = self.robot.camera_names
        aliases = ("full_image", "left_wrist_image", "right_wrist_image") if oft else ("image",)
        names = dict(zip(aliases, cameras, strict=False))
        names |= {f"{c}_image": c for c in cameras}
        self._refuse_unknown(message, {*names, "instruction", "state", *REST_EXTRAS})
        key = message.get("unnorm_key")
        if key is not None and key != self.robot.name:
            raise InvalidObservation(
                f"unnorm_key '{str(key)[:80]}' is not here: this server un-normalises for '{self.robot.name}' only. "
                "Leave the key out or send that name."
            )
        observation = Observation(
            images=self._images(message, names),
            state=self._state(message.get("state"), "state"),
            instruction=self.text(message.get("instruction"), "instruction"),
        )
        return Request(self.checked(observation), "oft" if oft else "single")

    def checked(self, observation: Observation) -> Observation:
        """The same observation, which fits the robot and can be true. Raises `InvalidObservation`."""
        observation.require(self.robot)
        require_plausible(self.robot, observation.state)
        return observation

    def _refuse_unknown(self, message: Mapping[str, Any], known: set[str]) -> None:
        unknown = sorted(set(message) - known)
        if unknown:
            raise InvalidObservation(
                f"'{self.robot.name}' does not know {[k[:80] for k in unknown[:8]]}; it takes {sorted(known)}."
            )

    def _images(self, message: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, NDArray[np.uint8]]:
        images: dict[str, NDArray[np.uint8]] = {}
        for key, camera in names.items():
            if key not in message:
                continue
            if camera in images:
                raise InvalidObservation(f"Camera '{camera}' was sent twice.")
            value = message[key]
            if not isinstance(value, np.ndarray):
                raise InvalidObservation(f"'{key}' must be an image array, it is {type(value).__name__}.")
            images[camera] = value
        return images

    def _state(self, value: Any, key: str) -> Array:
        if value is None and self.state_optional:
            return self.robot.state_columns.default
        robot = self.robot
        what = "joint positions in rad" if not robot.observed_channels else "joint positions in rad and channels"
        wanted = f"'{key}' must be an array of {robot.state_dim} {what}, in the robot's order"
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise InvalidObservation(f"{wanted}.")
        if value.shape != (self.robot.state_dim,):  # before a megabyte of bytes becomes eight of floats
            said = f"; {robot.state_columns.wrong_width(value.shape)}" if robot.observed_channels else ""
            raise InvalidObservation(f"{wanted}; it has the shape {list(value.shape)}{said}.")
        return value.astype(np.float64)

    @staticmethod
    def _rows(value: Any) -> Array | None:
        if value is not None and (not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu"):
            raise InvalidObservation("'observation/action_prefix' must be an array of rows [p, D] in rad.")
        if value is not None and (value.ndim != 2 or len(value) > MAX_PREFIX or value.shape[1] > 1000):
            raise InvalidObservation(
                f"'observation/action_prefix' must be rows [p, D], at most {MAX_PREFIX}; it has the shape "
                f"{list(value.shape)}."
            )
        return None if value is None else value.astype(np.float64)

    @staticmethod
    def text(value: Any, key: str) -> str:
        """An instruction that somebody may have meant. Raises `InvalidObservation`."""
        if not isinstance(value, str) or not value.strip():
            raise InvalidObservation(f"'{key}' must be an instruction in words.")
        if len(value) > MAX_INSTRUCTION:
            raise InvalidObservation(f"'{key}' has {len(value)} characters; {MAX_INSTRUCTION} are the most.")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a character: JSON can say it, no text is made of it
            raise InvalidObservation(f"'{key}' is no text: {error.reason} at character {error.start}.") from error
        return value

    @staticmethod
    def _time(value: Any) -> float:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise InvalidObservation("'time' must be a number of seconds.")
        if not np.isfinite(value):
            raise InvalidObservation("'time' must be a finite number of seconds.")
        return float(value)


def answer(request: Request, chunk: ActionChunk, timing: Mapping[str, float]) -> Any:
    """The reply in the client's own form: a map (openpi), one action [D] (single) or a list of H actions (OFT)."""
    if request.form == "single":
        return chunk.positions[0]
    if request.form == "oft":
        return list(chunk.positions)
    reply: dict[str, Any] = {
        "actions": chunk.positions,
        "action_timestamp": chunk.time,
        "server_timing": dict(timing),
    }
    if request.request_id is not None:
        reply["request_id"] = request.request_id
    return reply


def metadata_of(robot: Embodiment, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a client is told on connecting: names, order, units and rates, beside what the caller adds (hashes)."""
    own = {
        "protocol": "athena-vla/1 openpi",
        "robot": robot.name,
        "embodiment_hash": robot.hash,
        "cameras": list(robot.camera_names),
        "state_names": list(robot.state_names),
        "action_names": list(robot.action_names),
        "units": list(robot.action_columns.units),
        "action_type": "absolute position targets",
        "dt": 1.0 / robot.control_hz,
        "control_hz": robot.control_hz,
        "command_hz": robot.command_hz,
    }
    clash = sorted(set(own) & set(extra))
    if clash:
        raise InvalidObservation(f"Metadata of the server may not redefine {clash}.")
    return own | dict(extra)
