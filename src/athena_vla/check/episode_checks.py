"""All checks of one episode but those of its images: cheap enough to run while a set is built."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from athena_vla.check.action_state import check_idle, check_relations
from athena_vla.check.cameras import check_missing
from athena_vla.check.clocks import check_clock
from athena_vla.check.findings import Finding, finding
from athena_vla.check.joints import check_limits, check_motion, check_names, check_numbers
from athena_vla.check.language import check_language, check_success
from athena_vla.check.units import check_units
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError, NotFinite
from athena_vla.recordings.alignment import Alignment, align
from athena_vla.recordings.episode import Episode

OF_EPISODE = (  # notes of readers that are findings
    "articulation.several", "column.unreadable", "camera.depth", "camera.joined_by_rank", "camera.joined_by_time",
    "camera.pictures_lost", "camera.sparse", "episode.cut", "stream.unused",
)  # fmt: skip


def episode_findings(
    episode: Episode,
    robot: Embodiment | None,
    horizon: int,
    joint_map: Mapping[str, str] | None = None,
    *,
    replay: bool = True,
) -> Iterator[Finding]:
    """Findings about clock, numbers, names, units, motion, words and labels.

    `replay` simulates the controller, which takes longer than everything else together.
    """
    declared = episode.origin.declared_length
    if declared is not None and declared != len(episode):
        message = f"The metadata declares {declared} frames, the file holds {len(episode)}."
        yield finding("metadata.length", message, episode.id)
    if len(episode) < horizon:
        yield finding("episode.short", f"{len(episode)} frames cannot fill one chunk of {horizon}.", episode.id)
    yield from (finding(n.code, sentence(n.text), episode.id) for n in episode.notes if n.code in OF_EPISODE)
    yield from check_clock(episode)
    yield from check_numbers(episode)
    if not joint_map:
        yield from check_names(episode, robot)
    yield from check_units(episode, robot)
    yield from check_motion(episode, robot)
    yield from check_relations(episode, replay=replay)
    yield from check_idle(episode)
    yield from check_language(episode)
    yield from check_success(episode)
    yield from check_missing(episode)
    if robot is not None:
        yield from _against_robot(episode, robot, joint_map or {})


def _against_robot(episode: Episode, robot: Embodiment, joint_map: Mapping[str, str]) -> Iterator[Finding]:
    fps = episode.clock.rate(robot.control_hz)
    # Joints only, at the recorded rate: images have their own checks.
    as_recorded = replace(robot, cameras=(), control_hz=fps, command_hz=fps)
    try:
        aligned = align(episode, as_recorded, Alignment(fps=fps, joint_map=joint_map))
    except NotFinite:
        return  # said by the check of numbers
    except AthenaError as error:
        yield finding("joint.mismatch", str(error), episode.id)
        return
    streams = [n for n in aligned.notes if n.code == "stream.unused"]
    yield from (finding(n.code, sentence(n.text), episode.id) for n in streams)
    yield from check_limits(episode, robot, aligned.actions.astype(np.float64))


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
