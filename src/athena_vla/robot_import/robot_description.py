"""Joints and limits of a published robot, from its URDF or MJCF; needs no meshes, expands no entities."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from athena_vla.errors import RobotFileError

ROUNDING = 1e-3  # [rad or m] by which the digits of one limit differ within a description
LARGEST = 64 * 2**20  # [bytes] of a description
GROUPS = (  # what a name says of a joint's place; the first that fits
    (r"finger|thumb|index|middle|ring|pinky|little|gripper|jaw|knuckle|(?<!left_)(?<!right_)hand_", "hand"),
    (r"hip|knee|ankle|leg|thigh|calf|toe", "leg"),
    (r"waist|torso|spine|trunk", "torso"),
    (r"head|neck", "head"),
    (r"shoulder|elbow|wrist|arm|forearm", "arm"),
)
SIDE = re.compile(r"(?:^|_)(left|right|l|r)(?:_|$)|^(l|r)(?=[A-Z])", re.IGNORECASE)


@dataclass(frozen=True)
class ImportedJoint:
    """A joint as its file says it."""

    name: str
    unit: str  # rad | m
    lower: float
    upper: float
    velocity: float | None  # [rad/s or m/s]; None: the file does not say
    is_continuous: bool = False
    narrowed: str = ""  # what asks for less than the joint's own range

    @property
    def group(self) -> str:
        """Guessed from the name."""
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.name).lower()
        place = next((group for pattern, group in GROUPS if re.search(pattern, plain)), "body")
        side = SIDE.search(plain)
        if place in ("torso", "head", "body") or side is None:
            return place
        return f"{'left' if side[0].strip('_')[0].lower() == 'l' else 'right'}_{place}"


@dataclass(frozen=True)
class ImportedRobot:
    """What a description holds that a robot file needs."""

    name: str
    joints: tuple[ImportedJoint, ...]
    skipped: Mapping[str, str]  # joint -> why it is no joint of the robot
    floats: bool  # the base moves freely


def read_description(path: Path) -> ImportedRobot:
    """Joints and limits of a URDF or MJCF. Raises `RobotFileError`."""
    if not path.is_file():
        raise RobotFileError(f"There is no file '{path}'.")
    if path.stat().st_size > LARGEST:
        raise RobotFileError(f"'{path}' is larger than {LARGEST // 2**20} MiB; that is no robot description.")
    text = path.read_bytes()
    if b"<!ENTITY" in text or b"<!DOCTYPE" in text:
        raise RobotFileError(f"'{path}' declares entities, which a robot description has no use for; it is not read.")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise RobotFileError(f"'{path}' is no XML: {error}") from error
    if root.tag == "robot":
        found = _urdf(root, path)
    elif root.tag == "mujoco":
        found = _mjcf(root, path)
    else:
        raise RobotFileError(f"'{path}' begins with <{root.tag}>; a URDF begins with <robot>, an MJCF with <mujoco>.")
    if not found.joints:
        why = "; ".join(f"{n}: {w}" for n, w in list(found.skipped.items())[:5]) or "it has no joints"
        raise RobotFileError(f"'{path}' has no joint that could be commanded: {why}.")
    return found


def _urdf(root: ElementTree.Element, path: Path) -> ImportedRobot:
    joints: list[ImportedJoint] = []
    skipped: dict[str, str] = {}
    without: list[str] = []
    floats = False
    for element in root.findall("joint"):
        name, kind = element.get("name", ""), element.get("type", "")
        floats |= kind == "floating"
        if kind not in ("revolute", "prismatic", "continuous"):
            if kind not in ("fixed", "floating"):
                skipped[name] = f"joints of type '{kind}' cannot be commanded"
            continue
        if (mimic := element.find("mimic")) is not None:
            skipped[name] = f"it follows '{mimic.get('joint', '')}' (mimic)"
            continue
        limit = element.find("limit")
        ends = (None, None) if limit is None else (limit.get("lower"), limit.get("upper"))
        if kind == "continuous":
            ends = (str(-math.pi), str(math.pi))
        elif limit is None or None in ends:
            without.append(name)
            continue
        lower, upper = (_number(e, f"limit of joint '{name}' in '{path}'") for e in ends)
        speed = limit.get("velocity") if limit is not None else None
        velocity = _number(speed, f"velocity of joint '{name}' in '{path}'") if speed else None
        unit = "m" if kind == "prismatic" else "rad"
        joint = ImportedJoint(name, unit, lower, upper, velocity or None, kind == "continuous")
        if (safety := element.find("safety_controller")) is not None:
            soft = (safety.get("soft_lower_limit"), safety.get("soft_upper_limit"))
            joint = _narrowed(joint, soft, 1.0, "safety_controller", path)
        joints.append(joint)
    _require_limits(path, without, "<limit lower= upper=>")
    return ImportedRobot(root.get("name", path.stem), tuple(joints), skipped, floats)


def _mjcf(root: ElementTree.Element, path: Path) -> ImportedRobot:
    if (include := root.find(".//include")) is not None:
        raise RobotFileError(
            f"'{path}' includes '{include.get('file', '')}', which is not followed. Save the whole model as one file: "
            "mj_saveLastXML, or MuJoCo's viewer."
        )
    compiler = root.find("compiler")
    in_degrees = compiler is None or compiler.get("angle", "degree") == "degree"
    classes = _class_settings(root, ("joint",))
    actuators = root.find("actuator")
    driven = {a.get("joint") for a in actuators if a.get("joint")} if actuators is not None else None
    targets = _position_targets(root, actuators if actuators is not None else ())
    joints: list[ImportedJoint] = []
    skipped: dict[str, str] = {}
    without: list[str] = []
    floats = False
    for element, childclass in _mjcf_joints(root.find("worldbody"), ""):
        settings = {**classes.get(element.get("class") or childclass, classes.get("", {})), **element.attrib}
        name, kind = element.get("name", ""), settings.get("type", "hinge")
        if element.tag == "freejoint" or kind == "free":
            floats = True
            continue
        if kind not in ("hinge", "slide"):
            skipped[name] = f"joints of type '{kind}' cannot be commanded one by one"
        elif driven is not None and name not in driven:
            skipped[name] = "no actuator drives it"
        elif "range" not in settings or settings.get("limited") == "false":
            without.append(name)
        else:
            ends = settings["range"].split()
            if len(ends) != 2:
                raise RobotFileError(
                    f"Joint '{name}' of '{path}' has the range '{settings['range']}', not two numbers."
                )
            scale = math.pi / 180 if in_degrees and kind == "hinge" else 1.0
            lower, upper = (scale * _number(e, f"range of joint '{name}' in '{path}'") for e in ends)
            joint = ImportedJoint(name, "m" if kind == "slide" else "rad", lower, upper, None)
            for ends, gear in targets.get(name, ()):
                joint = _narrowed(joint, ends, 1.0 / gear, "actuator's ctrlrange", path)
            joints.append(joint)
    _require_limits(path, without, "range=")
    return ImportedRobot(root.get("model", path.stem), tuple(joints), skipped, floats)


Ends = tuple[str | None, str | None]
ACTUATORS = ("general", "motor", "position", "velocity", "intvelocity", "damper", "cylinder", "muscle", "adhesion")


def _position_targets(
    root: ElementTree.Element, actuators: Iterable[ElementTree.Element]
) -> dict[str, list[tuple[Ends, float]]]:
    """Joint -> (smallest and largest target, gear) of the actuators that take positions; those are never in degrees."""
    classes = _class_settings(root, ACTUATORS)  # all kinds of actuators share one default
    found: dict[str, list[tuple[Ends, float]]] = {}
    for element in actuators:
        settings = {**classes.get(element.get("class") or "", classes.get("", {})), **element.attrib}
        follows = element.tag == "position" or (element.tag == "general" and settings.get("biastype") == "affine")
        ends = settings.get("ctrlrange", "").split()
        if (
            follows
            and len(ends) == 2
            and settings.get("ctrllimited") != "false"
            and "inheritrange" not in element.attrib
        ):
            gear = _number(settings.get("gear", "1").split()[0], f"gear of '{element.get('name', '')}'") or 1.0
            found.setdefault(settings.get("joint", ""), []).append(((ends[0], ends[1]), gear))
    return found


def _narrowed(joint: ImportedJoint, soft: Ends, scale: float, what: str, path: Path) -> ImportedJoint:
    """The joint within the limits that something else asks for. Raises `RobotFileError` where nothing is left."""
    of = f"{what} of joint '{joint.name}' in '{path}'"
    asked = [joint.lower if end is None else scale * _number(end, of) for end in soft[:1]]
    asked += [joint.upper if end is None else scale * _number(end, of) for end in soft[1:]]
    lower, upper = max(joint.lower, min(asked)), min(joint.upper, max(asked))
    if not lower < upper:
        raise RobotFileError(
            f"The {of} is {min(asked):g} to {max(asked):g}; the joint goes from {joint.lower:g} to {joint.upper:g}."
        )
    less = lower > joint.lower + ROUNDING or upper < joint.upper - ROUNDING
    return replace(joint, lower=lower, upper=upper, narrowed=what) if less else joint


def _class_settings(root: ElementTree.Element, tags: Sequence[str]) -> dict[str, dict[str, str]]:
    """Class -> settings of the elements of some tags; "" is the class of the top."""
    return {name: settings for d in root.findall("default") for name, settings in _classes(d, {}, tags)}


def _classes(
    element: ElementTree.Element, inherited: Mapping[str, str], tags: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    settings = dict(inherited)
    for own in element:
        settings |= own.attrib if own.tag in tags else {}
    name = element.get("class", "")
    yield name, settings
    if name == "main":
        yield "", settings
    for child in element.findall("default"):
        yield from _classes(child, settings, tags)


def _mjcf_joints(body: ElementTree.Element | None, childclass: str) -> Iterator[tuple[ElementTree.Element, str]]:
    """(joint, class it has from its bodies), depth first, as MuJoCo numbers them."""
    for element in body if body is not None else ():
        if element.tag in ("joint", "freejoint"):
            yield element, childclass
    for element in body if body is not None else ():
        if element.tag == "body":
            yield from _mjcf_joints(element, element.get("childclass", childclass))


def _require_limits(path: Path, without: list[str], how: str) -> None:
    if without:
        raise RobotFileError(
            f"'{path}' says no limits of {', '.join(without[:10])}{' ...' if len(without) > 10 else ''}. A robot "
            f"cannot be kept within limits that nobody names: add {how} to the file."
        )


def _number(text: str | None, what: str) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise RobotFileError(f"The {what} is {text!r}, no number.") from error
    if not math.isfinite(value):
        raise RobotFileError(f"The {what} is {text!r}, no finite number.")
    return value
