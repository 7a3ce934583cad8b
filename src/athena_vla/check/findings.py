"""What a check says: one finding with a stable code, and the literal table of all codes.

The table holds severity, why it matters and what to do; a check only adds what was seen and where.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from athena_vla.errors import UnknownName

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Rule:
    """What a code stands for."""

    severity: Severity
    why: str
    fix: str


@dataclass(frozen=True)
class Finding:
    """One thing a check saw; `frames` are [start, stop) of the episode."""

    code: str
    severity: Severity
    message: str
    episode: str | None
    frames: tuple[int, int] | None
    why: str
    fix: str

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "frames": list(self.frames) if self.frames else None}


RULES: dict[str, Rule] = {
    "file.lfs_pointer": Rule(
        "error", "A pointer file holds an address, not the data.", "git lfs pull, then check again."
    ),
    "episode.unreadable": Rule(
        "error",
        "An episode that cannot be read is left out of every set built from this recording.",
        "Copy or record it again, or remove it.",
    ),
    "recording.empty": Rule("error", "There is nothing to train on.", "Record episodes; see docs/your-own-data.md."),
    "metadata.count": Rule(
        "warning",
        "Readers that trust the metadata stop early or run past the end.",
        "Convert the recording: athena data convert writes true counts.",
    ),
    "metadata.length": Rule(
        "warning",
        "The episode's declared length is not what the file holds: it was cut off or written twice.",
        "Record it again, or convert the recording, which writes the true length.",
    ),
    "episode.cut": Rule(
        "warning",
        "The recorder was stopped before it had written the end; the last seconds are missing.",
        "Look at how the episode ends, and leave it out with --exclude where the task is not done.",
    ),
    "episode.short": Rule(
        "warning",
        "A chunk cannot be filled: its tail is padding that does not train.",
        "Use a smaller --horizon or drop it.",
    ),
    "episode.duplicate": Rule(
        "warning",
        "The same motion twice counts double in training, and leaks when one copy is held out.",
        "Remove one; a build keeps duplicates on one side of the split.",
    ),
    "episode.overlap": Rule(
        "warning",
        "Frames that two episodes share count double in training, and leak when one of them is held out.",
        "Cut takes without overlap; a build keeps such episodes on one side of the split.",
    ),
    "split.leakage": Rule(
        "error",
        "Validation that repeats training measures memory, not skill.",
        "Build the set again: athena data build keeps duplicates together.",
    ),
    "clock.missing": Rule(
        "warning", "Without a rate, speeds and delays are unknown.", "Say how fast frames follow each other: --fps HZ."
    ),
    "clock.not_finite": Rule("error", "Frames cannot be put in order.", "Record again, or drop the time stamps."),
    "clock.backwards": Rule(
        "error", "Time runs backwards or stands still: frames are swapped or repeated.", "Sort or drop those frames."
    ),
    "clock.rate": Rule(
        "error",
        "The policy learns motions faster or slower than they were, and replays them at that speed.",
        "Set the true rate: --fps HZ.",
    ),
    "clock.drift": Rule(
        "warning",
        "The interval changes over the episode: joint and camera streams on other clocks run apart.",
        "Align by time stamp: athena data align shows by how much.",
    ),
    "clock.dropped": Rule(
        "warning",
        "Motion across a gap looks like a jump that the robot is asked to repeat.",
        "Split the episode there.",
    ),
    "camera.none": Rule(
        "warning", "A vision-language-action policy cannot be trained without images.", "Record a camera."
    ),
    "camera.missing": Rule(
        "error",
        "The metadata promises this camera; readers fail or silently train without it.",
        "Fetch or record the video.",
    ),
    "camera.count": Rule(
        "error",
        "Images and joint rows pair up wrongly from the first missing one on.",
        "Record again, or cut the episode to the frames that have images.",
    ),
    "camera.unreadable": Rule("error", "An image that cannot be decoded stops training.", "Copy the file again."),
    "camera.black": Rule("error", "The policy learns to act blind.", "Check the camera; drop those frames."),
    "camera.frozen": Rule(
        "error",
        "The robot moves while the image stands still: the policy learns to ignore the image.",
        "Drop the episode or those frames.",
    ),
    "camera.repeated": Rule(
        "warning",
        "Repeated images during motion mean a camera slower than the clock or dropped frames.",
        "Record with the true camera rate, or align at a lower rate.",
    ),
    "camera.stale_start": Rule(
        "warning",
        "The first image belongs to the moment before the reset, often to the previous episode.",
        "Leave it out: --drop-head 1.",
    ),
    "number.not_finite": Rule(
        "error", "One NaN makes the loss NaN and ends the training.", "Cut or repair those rows."
    ),
    "joint.unnamed": Rule(
        "warning",
        "Columns without names can only be matched to a robot by position, where order errors hide.",
        "Name them: --joints FILE, or --robot asserts that robot's order.",
    ),
    "joint.mismatch": Rule(
        "error", "The recording does not have the joints of this robot.", "Choose the robot, or give --joint-map FILE."
    ),
    "column.unused": Rule(
        "warning",
        "Recorded commands that no joint or channel of the robot takes are not learned.",
        "Name them as [[channel]] in the robot's description, or with --joint-map FILE, unless they do not matter.",
    ),
    "column.unused_state": Rule(
        "info",
        "Recorded measurements that no joint or channel of the robot takes are not seen by the policy.",
        "Name them as [[channel]] with observed = true, where the policy should see them.",
    ),
    "channel.limits": Rule(
        "warning",
        "Commands beyond a channel's limits train the policy to ask for what the safety filter must refuse.",
        "Check the unit and sign of these channels, and their limits in the robot's description.",
    ),
    "channel.unit": Rule(
        "error", "A channel is recorded in another unit than the robot's.", "Convert it before it is recorded."
    ),
    "channel.rate": Rule(
        "warning",
        "The channel may not change that fast; the filter will hold it back.",
        "Check the rate, or raise max_rate if the robot can do it.",
    ),
    "articulation.several": Rule(
        "error",
        "Joint positions are recorded, but of several robots or parts: without a choice no state is trained on.",
        "Choose: --articulation NAME, or several in order: --articulation left_arm,right_arm.",
    ),
    "stream.unused": Rule("info", "These recorded streams do not become part of a set.", "Nothing, if that is meant."),
    "column.unreadable": Rule(
        "info", "A column that holds no plain numbers is left out.", "Nothing, if it is not needed."
    ),
    "camera.depth": Rule("info", "Depth is not colour: the stream is left out.", "Train on a colour camera."),
    "camera.joined_by_rank": Rule(
        "warning",
        "Images and rows can only be paired in their order, which hides a lost frame.",
        "Write time stamps of rows and images on one clock.",
    ),
    "camera.joined_by_time": Rule(
        "info",
        "Rows were cut and images were not; each row has the image of its time.",
        "Nothing: it is as it should be.",
    ),
    "camera.pictures_lost": Rule("error", "Rows without an image cannot be trained on.", "Cut those rows."),
    "camera.sparse": Rule("info", "Images are more seldom than rows and are held.", "Render every step."),
    "camera.shared_span": Rule(
        "error", "Two episodes show the same images: the files of one of them were mixed up.", "Convert or merge again."
    ),
    "episode.unlisted": Rule("info", "Files that the episode table does not name are left out.", "Remove the files."),
    "episode.duplicate_number": Rule(
        "warning", "Two episodes have one number: a session was resumed and counted from 0.", "Convert the recording."
    ),
    "joint.width": Rule(
        "info",
        "Actions and states have a different number of columns, so the actions are not one target per joint.",
        "Fine for end-effector actions; a joint policy needs joint targets.",
    ),
    "joint.degrees": Rule(
        "error", "Values look like degrees; everything here is in radians.", "Convert them: multiply by pi / 180."
    ),
    "joint.percent": Rule(
        "error",
        "Values look like percent of each motor's range, as LeRobot stores normalised motors, and not like radians.",
        "Convert every joint with its own calibrated range, or record in degrees; pi / 180 would be wrong.",
    ),
    "joint.ticks": Rule(
        "error", "Values look like counts of a servo, not radians.", "Convert them with the servo's calibration."
    ),
    "joint.limits": Rule(
        "warning",
        "Targets beyond the mechanical limits train the policy to ask for what the safety filter must refuse.",
        "Check units, order and sign of these joints.",
    ),
    "joint.velocity": Rule(
        "warning", "The robot cannot follow; the filter will hold it back.", "Check the rate, or slow the motion."
    ),
    "joint.jump": Rule("warning", "A jump in one frame is a glitch or a cut, not a motion.", "Cut the episode there."),
    "joint.constant": Rule(
        "info",
        "A joint that hardly moves gives a tiny range; the normaliser widens it instead of dividing by nothing.",
        "Lock it in the robot's description if it never should move.",
    ),
    "joint.saturated": Rule(
        "warning",
        "The target sits at its extreme for long: it was clipped, and the range of the normaliser ends there.",
        "Check the teleoperation range of these joints.",
    ),
    "action.none": Rule("warning", "Images without actions cannot train a policy.", "Record actions."),
    "action.constant": Rule("error", "No action ever changes: the recording holds no behaviour.", "Record again."),
    "action.next_state": Rule(
        "info",
        "The actions are the states one step later: what happened, not what was commanded.",
        "Fine for imitation; the controller's tracking error is not in the data.",
    ),
    "action.same_state": Rule(
        "warning",
        "The target of each row is where the robot is already: a policy learns to stand still.",
        "Record what was commanded, or take the next row's state as the target.",
    ),
    "joint.outside": Rule(
        "error",
        "Targets leave the limits in most frames: other units, another order or sign, or another robot.",
        "Check --joints, units and the robot's description.",
    ),
    "camera.uniform": Rule(
        "error",
        "Images of one colour show nothing: the policy learns to act blind.",
        "Check the camera and its format.",
    ),
    "action.delta": Rule(
        "warning",
        "Actions follow the change of the state, not the state: they look relative, and joints default to absolute.",
        "Set mode = 'delta' for these joints in the robot's description.",
    ),
    "action.unrelated": Rule(
        "warning",
        "Actions follow neither the joint positions nor their change: end-effector commands, or another joint order.",
        "A joint policy needs joint targets; give their order with --joints FILE if that is what they are.",
    ),
    "action.lag": Rule(
        "info",
        "The state follows the action late; a policy that sees the state learns this delay.",
        "athena data align shows it per stream; keep it if the robot has it too.",
    ),
    "replay.mismatch": Rule(
        "warning",
        "Replaying the actions with the best first-order tracking does not reproduce the states.",
        "Check joint order, units and alignment of these joints.",
    ),
    "motion.idle": Rule(
        "info",
        "Long intervals without motion teach standing still; some of it is needed.",
        "Trim only if it hurts: --fix trim-idle.",
    ),
    "language.missing": Rule(
        "warning",
        "Without an instruction a policy cannot learn to listen.",
        "Write one, or build with --instruction TEXT.",
    ),
    "language.useless": Rule(
        "warning",
        "An instruction that says nothing teaches the policy to ignore words.",
        "Write what is done, with what.",
    ),
    "language.predictable": Rule(
        "warning",
        "A policy that sees what will be asked can do well without listening, and does not follow another instruction.",
        "Record each scene with several instructions, in mixed order; then train with --pair-instructions.",
    ),
    "success.missing": Rule(
        "warning",
        "Whether the demonstration succeeded is not recorded; failures would be learned.",
        "Record `success`.",
    ),
    "success.false": Rule(
        "info", "A failed demonstration is left out of a build.", "--keep-failed uses it all the same."
    ),
    "token.coarse": Rule(
        "info",
        "One bin of a 255-bin action tokeniser is the smallest motion such a policy can express.",
        "Use a continuous head, or delta joints, where this is too coarse.",
    ),
}


def finding_from(raw: Mapping[str, Any]) -> Finding:
    """Inverse of `Finding.to_dict`."""
    frames = raw["frames"]
    return finding(str(raw["code"]), str(raw["message"]), raw["episode"], tuple(frames) if frames else None)


def finding(code: str, message: str, episode: str | None = None, frames: tuple[int, int] | None = None) -> Finding:
    """A finding of a known code."""
    rule = RULES[code]
    return Finding(code, rule.severity, message, episode, frames, rule.why, rule.fix)


def some(items: Sequence[object], most: int = 6) -> str:
    """The first few of a list, and how many more."""
    text = ", ".join(str(i) for i in items[:most])
    return text if len(items) <= most else f"{text} and {len(items) - most} more"


DECIMAL, WHOLE = re.compile(r"(?<![\w.])-?\d+\.\d+"), re.compile(r"(?<![\w.])-?\d+(?![\w.])")
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


def by_code(same: Sequence[Finding]) -> str:
    """One line for all findings of one code: how many, and the worst of them."""
    worst = max(same, key=_size)
    count = f" ({len(same)} times)" if len(same) > 1 else ""
    frames = f" [{worst.frames[0]}:{worst.frames[1]}]" if worst.frames else ""
    where = f"{'worst in ' if len(same) > 1 else ''}episode {worst.episode}{frames}: " if worst.episode else ""
    return f"{worst.severity} {worst.code}{count}: {where}{worst.message}"


def lines(findings: Sequence[Finding]) -> list[str]:
    """One line per code, errors last."""
    codes = sorted({(SEVERITIES.index(f.severity), f.code) for f in findings})
    return [by_code([f for f in findings if f.code == code]) for _, code in codes]


def explained(code: str, findings: Sequence[Finding]) -> str:
    """Why a code matters, what to do, and every finding of it. Raises `UnknownName`."""
    if code not in RULES:
        raise UnknownName("code of a finding", code, RULES)
    rule, same = RULES[code], [f for f in findings if f.code == code]
    said = [f"{code} ({rule.severity}): {rule.why}", f"What to do: {rule.fix}"]
    return "\n".join([*said, *(in_full(f) for f in same)] if same else [*said, "There is none in this recording."])


def in_full(found: Finding) -> str:
    """One finding with its place."""
    where = f"{found.episode or 'all'}" + (f" [{found.frames[0]}:{found.frames[1]}]" if found.frames else "")
    return f"{found.severity:<8}{found.code:<22}{where}: {found.message}"


def _size(found: Finding) -> tuple[float, int]:
    """How bad a finding is beside others of its code: the largest measure in its message, then its frames."""
    measures = DECIMAL.findall(found.message) or WHOLE.findall(found.message)
    first, stop = found.frames or (0, 0)
    return max((abs(float(m)) for m in measures), default=0.0), stop - first
