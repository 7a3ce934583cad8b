"""Isaac Lab's action terms, from the env.yaml that it writes beside a run: raw actions to joint targets in radians.

Isaac Lab records what a policy said. `JointPositionAction` makes a target of it, offset + scale * raw, with the default
pose as offset unless told otherwise; names, scale and offset stand in the configuration alone. Its Python tags are read
as plain values: nothing in the file is ever executed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import MissingDependency, RecordingError

LARGEST = 8 * 2**20  # [bytes] of a configuration
LITERAL = re.compile(r"[\w-]+")  # a name, and no pattern
KINDS = {  # class of a term -> how its columns become targets
    "JointPositionAction": "absolute",
    "RelativeJointPositionAction": "relative",
    "BinaryJointPositionAction": "binary",
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """One action term; patterns are those of the configuration."""

    name: str
    kind: str  # absolute | relative | binary
    asset: str
    patterns: tuple[str, ...]
    keeps_order: bool
    scale: Any
    offset: Any
    clip: Any
    opened: Mapping[str, float]  # of a binary term: joint pattern -> target
    closed: Mapping[str, float]

    def joints(self, known: Sequence[str]) -> tuple[str, ...]:
        """The joints it drives, in the order of its columns; `known` are the robot's in the simulator's order."""
        if not known:
            if all(LITERAL.fullmatch(p) for p in self.patterns):
                return self.patterns
            raise RecordingError(
                f"The joints of action term '{self.name}' are patterns ({', '.join(self.patterns)}): name the robot's "
                "joints in the simulator's order with --state-joints FILE (robot.joint_names of the scene)."
            )
        lost = [p for p in self.patterns if not any(re.fullmatch(p, j) for j in known)]
        if lost:
            raise RecordingError(
                f"Action term '{self.name}' names {', '.join(lost)}; the joints are {', '.join(known)}."
            )
        if self.keeps_order:
            ordered = [j for p in self.patterns for j in known if re.fullmatch(p, j)]
            return tuple(dict.fromkeys(ordered))
        return tuple(j for j in known if any(re.fullmatch(p, j) for p in self.patterns))


@dataclass(frozen=True)
class ActionTerms:
    """The terms of an environment in the order of their columns, the default pose of its robots, and its rate."""

    source: Path
    terms: tuple[Term, ...]
    others: tuple[str, ...]  # terms that are no joint positions: NAME (CLASS)
    poses: Mapping[str, Mapping[str, float]]  # asset -> joint pattern -> default position [rad]
    rate: float | None  # [Hz]

    def targets(
        self, raw: Array, states: Array, names: Sequence[str], *, are_targets: bool
    ) -> tuple[Array, tuple[str, ...]]:
        """Targets `[T, D]` [rad] of recorded actions `[T, A]` and the joint of each column.

        `names` are those of the `states` `[T, S]`, () where unknown. `are_targets`: the recording holds processed
        actions, which need names alone. Raises `RecordingError` where the columns are not those of the terms.
        """
        if self.others:
            raise RecordingError(
                f"'{self.source}' has action terms that are no joint positions: {', '.join(self.others)}. "
                "--targets next-state takes the joint positions that followed."
            )
        joints = [t.joints(names) for t in self.terms]
        pairs = list(zip(self.terms, joints, strict=True))
        widths = [1 if t.kind == "binary" and not are_targets else len(j) for t, j in pairs]
        if sum(widths) != raw.shape[1]:
            each = ", ".join(f"{t.name} {w}" for t, w in zip(self.terms, widths, strict=True))
            raise RecordingError(
                f"The terms of '{self.source}' have {sum(widths)} columns ({each}), the recording has {raw.shape[1]}."
            )
        columns = np.split(raw.astype(np.float64), np.cumsum(widths)[:-1], axis=1)
        made = columns if are_targets else [
            self._made(t, c, j, states, names) for t, c, j in zip(self.terms, columns, joints, strict=True)
        ]  # fmt: skip
        every = tuple(j for group in joints for j in group)
        if len(set(every)) != len(every):
            twice = sorted({j for j in every if every.count(j) > 1})
            raise RecordingError(f"Several action terms of '{self.source}' drive {', '.join(twice)}.")
        return np.concatenate(made, axis=1), every

    def _made(self, term: Term, raw: Array, joints: Sequence[str], states: Array, names: Sequence[str]) -> Array:
        if term.kind == "binary":
            values = [_matched(side, joints, np.nan) for side in (term.closed, term.opened)]
            if np.isnan(values).any():
                raise RecordingError(f"Binary term '{term.name}' has no target for each of {', '.join(joints)}.")
            return np.where(raw < 0, values[0], values[1])
        target = raw * _matched(term.scale, joints, 1.0)
        if term.offset == "default":
            pose = self.poses.get(term.asset)
            if pose is None:
                raise RecordingError(f"'{self.source}' says no default pose of '{term.asset}' (scene.{term.asset}).")
            target = target + _matched(pose, joints, 0.0)
        else:
            target = target + _matched(term.offset, joints, 0.0)
        if term.kind == "relative":
            if not names or not states.shape[1]:
                raise RecordingError(f"Relative term '{term.name}' needs joint positions, named with --state-joints.")
            target = target + states[:, [list(names).index(j) for j in joints]]
        if isinstance(term.clip, Mapping):
            bounds = np.array([_first(term.clip, j, (-np.inf, np.inf)) for j in joints], np.float64)
            target = np.clip(target, bounds[:, 0], bounds[:, 1])
        return target


def read_terms(path: Path) -> ActionTerms:
    """The action terms of an env.yaml. Raises `RecordingError` for a file that is none."""
    raw = _plain_yaml(path)
    actions, scene = raw.get("actions"), raw.get("scene")
    if not isinstance(actions, Mapping) or not isinstance(scene, Mapping):
        raise RecordingError(f"'{path}' is no environment configuration of Isaac Lab: it has no actions and scene.")
    terms: list[Term] = []
    others: list[str] = []
    for name, term in actions.items():
        if not isinstance(term, Mapping):
            continue
        kind = str(term.get("class_type", "")).rsplit(":", 1)[-1].rsplit(".", 1)[-1]
        if kind in KINDS:
            terms.append(_term(str(name), KINDS[kind], term, path))
        else:
            others.append(f"{name} ({kind or 'no class'})")
    if not terms and not others:
        raise RecordingError(f"'{path}' names no action term.")
    poses = {
        str(asset): dict(pose)
        for asset, part in scene.items()
        if isinstance(part, Mapping)
        and isinstance(start := part.get("init_state"), Mapping)
        and isinstance(pose := start.get("joint_pos"), Mapping)
    }
    sim = raw.get("sim")
    step = sim.get("dt") if isinstance(sim, Mapping) else None
    decimation = raw.get("decimation")
    rate = None
    if isinstance(step, int | float) and isinstance(decimation, int) and step * decimation > 0:
        rate = round(1.0 / (step * decimation), 6)
    return ActionTerms(path, tuple(terms), tuple(others), poses, rate)


def _term(name: str, kind: str, raw: Mapping[str, Any], path: Path) -> Term:
    patterns = raw.get("joint_names")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) for p in patterns):
        raise RecordingError(f"Action term '{name}' of '{path}' names no joints.")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise RecordingError(f"Action term '{name}' of '{path}': {pattern!r} is no pattern ({error}).") from error
    offset = raw.get("offset", 0.0)
    if kind == "absolute" and raw.get("use_default_offset", True):
        offset = "default"
    elif kind == "relative" and raw.get("use_zero_offset", True):
        offset = 0.0
    return Term(
        name=name,
        kind=kind,
        asset=str(raw.get("asset_name") or "robot"),
        patterns=tuple(patterns),
        keeps_order=bool(raw.get("preserve_order", False)),
        scale=raw.get("scale", 1.0),
        offset=offset,
        clip=raw.get("clip"),
        opened=raw.get("open_command_expr") or {},
        closed=raw.get("close_command_expr") or {},
    )


def _matched(values: Any, joints: Sequence[str], missing: float) -> Array:
    """One number for all joints, or one per pattern."""
    if isinstance(values, Mapping):
        return np.array([float(_first(values, j, missing)) for j in joints])
    try:
        return np.full(len(joints), float(values))
    except (TypeError, ValueError) as error:
        raise RecordingError(f"{values!r} is neither a number nor one for each joint pattern.") from error


def _first(values: Mapping[str, Any], joint: str, missing: Any) -> Any:
    return next((v for p, v in values.items() if re.fullmatch(str(p), joint)), missing)


def _plain_yaml(path: Path) -> Mapping[str, Any]:
    """The file as plain values; tags of Python objects become what they hold, and nothing is called."""
    try:
        import yaml
    except ImportError as error:
        raise MissingDependency("pyyaml", "isaaclab", "for the configuration of an Isaac Lab environment") from error
    if not path.is_file():
        raise RecordingError(f"There is no file '{path}'. Isaac Lab writes params/env.yaml into the folder of a run.")
    if path.stat().st_size > LARGEST:
        raise RecordingError(f"'{path}' is larger than {LARGEST // 2**20} MiB; that is no configuration.")

    class Plain(yaml.SafeLoader):
        pass

    def untagged(loader: Any, suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return loader.construct_scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_mapping(node, deep=True)

    Plain.add_multi_constructor("tag:yaml.org,2002:python/", untagged)
    Plain.add_multi_constructor("!", untagged)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=Plain)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        raise RecordingError(f"'{path}' is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, Mapping):
        raise RecordingError(f"'{path}' holds no configuration.")
    return raw
