"""Which topic of a ROS 2 bag is what: the joint states, the targets, cameras, words, success; guessed, or from a TOML.

state = "/joint_states"                        # sensor_msgs/JointState
targets = ["/arm_controller/joint_trajectory"]  # JointTrajectory or JointState; none: the next joint positions
instruction = "/task"                          # std_msgs/String
success = "/success"                           # std_msgs/Bool
[cameras]
front = "/camera/color/image_raw"              # sensor_msgs/Image or CompressedImage
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from athena_vla.errors import RecordingError, UnknownName

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STATE = "sensor_msgs/msg/JointState"
TARGETS = ("trajectory_msgs/msg/JointTrajectory", STATE)
IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
TEXT, FLAG = "std_msgs/msg/String", "std_msgs/msg/Bool"
COMMAND = re.compile(r"command|cmd|target|desired|action", re.IGNORECASE)
WORDS = re.compile(r"task|instruction|prompt|language", re.IGNORECASE)
SUCCESS = re.compile(r"success", re.IGNORECASE)
DEPTH = re.compile(r"depth|compressedDepth|infra|disparity", re.IGNORECASE)
OF_EVERY_IMAGE = ("image_raw", "image", "compressed", "color", "rgb")
KNOWN = ("state", "targets", "instruction", "success", "cameras")


@dataclass(frozen=True)
class BagTopics:
    """Topics by their meaning; "" and () where there is none."""

    state: str
    targets: tuple[str, ...] = ()
    instruction: str = ""
    success: str = ""
    cameras: Mapping[str, str] = field(default_factory=dict)  # camera -> topic

    def __str__(self) -> str:
        """As the TOML that says the same."""
        lines = [f'state = "{self.state}"']
        lines += [f"targets = [{', '.join(f'{chr(34)}{t}{chr(34)}' for t in self.targets)}]"] if self.targets else []
        lines += [f'{k} = "{v}"' for k, v in (("instruction", self.instruction), ("success", self.success)) if v]
        lines += ["[cameras]", *(f'{k} = "{v}"' for k, v in self.cameras.items())] if self.cameras else []
        return "\n".join(lines)


def guessed(types: Mapping[str, str], source: str) -> BagTopics:
    """From topic -> type. Raises `RecordingError` where no topic, or no one topic, holds joint states."""
    states = [t for t, kind in types.items() if kind == STATE]
    measured = [t for t in states if not COMMAND.search(t)]
    named = [t for t in measured if t.endswith("joint_states")]
    chosen = measured if len(measured) == 1 else named
    if len(chosen) != 1:
        found = ", ".join(sorted(measured or states)) or "none"
        raise RecordingError(
            f"'{source}' has no single topic of joint states (sensor_msgs/JointState): {found}. Say which with "
            '--topics FILE, a TOML that begins with: state = "/TOPIC".'
        )
    trajectories = [t for t, kind in types.items() if kind == TARGETS[0]]
    targets = trajectories or [t for t in states if COMMAND.search(t)]
    texts = [t for t, kind in types.items() if kind == TEXT]
    words = [t for t in texts if WORDS.search(t)] or (texts if len(texts) == 1 else [])
    flags = [t for t, kind in types.items() if kind == FLAG and SUCCESS.search(t)]
    images = [t for t, kind in types.items() if kind in IMAGES and not DEPTH.search(t)]
    return BagTopics(
        state=chosen[0],
        targets=tuple(sorted(targets)),
        instruction=words[0] if len(words) == 1 else "",
        success=flags[0] if len(flags) == 1 else "",
        cameras=_short(sorted(images)),
    )


def read_topics(path: Path, types: Mapping[str, str], source: str) -> BagTopics:
    """From a TOML file. Raises `RecordingError` for one that is none, `UnknownName` for topics that are not there."""
    if not path.is_file():
        raise RecordingError(f"There is no file '{path}' for --topics.")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecordingError(f"'{path}' is no TOML: {error}") from error
    for key in raw:
        if key not in KNOWN:
            raise UnknownName(f"key in '{path}'", key, KNOWN)
    targets = raw.get("targets", [])
    targets = [targets] if isinstance(targets, str) else targets
    cameras = raw.get("cameras", {})
    if not isinstance(raw.get("state"), str) or not isinstance(targets, list) or not isinstance(cameras, dict):
        raise RecordingError(
            f"""'{path}' must say state = "/TOPIC"; targets is a list, [cameras] is NAME = "/TOPIC"."""
        )
    found = BagTopics(
        state=raw["state"],
        targets=tuple(map(str, targets)),
        instruction=str(raw.get("instruction", "")),
        success=str(raw.get("success", "")),
        cameras={str(k): str(v) for k, v in cameras.items()},
    )
    wanted = (
        (found.state, (STATE,)), *((t, TARGETS) for t in found.targets), (found.instruction, (TEXT,)),
        (found.success, (FLAG,)), *((t, IMAGES) for t in found.cameras.values()),
    )  # fmt: skip
    for topic, kinds in wanted:
        if topic and topic not in types:
            raise UnknownName(f"topic in '{source}'", topic, types)
        if topic and types[topic] not in kinds:
            raise RecordingError(f"Topic '{topic}' of '{source}' is a {types[topic]}, expected {' or '.join(kinds)}.")
    return found


def _short(topics: list[str]) -> dict[str, str]:
    """Names of cameras: the part of a topic that tells it from the others, without what every image topic says."""
    plain = {t: [p for p in t.split("/") if p and p not in OF_EVERY_IMAGE] for t in topics}
    names: dict[str, str] = {}
    for topic, parts in plain.items():
        name = parts[-1] if parts else "camera"
        if sum(bool(p) and p[-1] == name for p in plain.values()) > 1:
            name = "_".join(parts)
        while name in names:
            name += "_2"
        names[name] = topic
    return names
