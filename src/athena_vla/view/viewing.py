"""`athena data view`: episodes of a recording or a set, as pages or in Rerun, with a policy's chunks over them."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import athena_vla.embodiment as embodiment
from athena_vla import files
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError, MissingDependency, UnknownName, ViewError
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.several import SEPARATOR
from athena_vla.view.html_page import Flagging, Pages, file_safe, page_name
from athena_vla.view.recorded_timeline import timeline_of
from athena_vla.view.timeline import Timeline
from athena_vla.view.view_config import ViewConfig, ViewResult
from athena_vla.view.viewed import Viewed, opened

Complete = Callable[[Timeline, Episode], Timeline]  # what a timeline gets beside what was recorded


def view(config: ViewConfig, progress: Progress = quiet) -> ViewResult:
    """Draw the episodes. Raises `ViewError`, `RecordingError`, `DatasetError`, `MissingDependency`, `UnknownName`."""
    config.require()
    in_rerun = _in_rerun(config)
    robot = embodiment.load(config.robot) if config.robot else None
    seen = opened(config, robot, progress)
    if robot is not None and seen.robot is not None and seen.robot.name != robot.name:
        raise ViewError(
            f"'{config.input}' is a built set for robot '{seen.robot.name}', which it brings along; leave --robot out."
        )
    ids = _chosen(seen.ids, config)
    notes: list[str] = []
    complete = _completion(config, seen, notes)
    unread: dict[str, str] = {}
    timelines = _timelines(config, seen, ids, complete, unread, progress)
    pages = (config, seen, ids, timelines, unread, notes)
    written = _to_rerun(config, ids, timelines) if in_rerun else _to_pages(*pages)
    notes += [f"episode {i} is not shown: {why}" for i, why in unread.items()]
    left = 0 if config.episodes else len(seen.ids) - len(ids)
    shown = tuple(i for i in ids if i not in unread)
    return ViewResult(shown, tuple(written), tuple(dict.fromkeys(notes)), left)


def _in_rerun(config: ViewConfig) -> bool:
    """Raises `MissingDependency` where Rerun is asked for and not installed."""
    wanted = config.save is not None or config.show == "rerun"
    is_there = find_spec("rerun") is not None
    if wanted and not is_there:
        raise MissingDependency("rerun-sdk", "view", "to show recordings in Rerun (--show pages needs nothing)")
    has_screen = sys.platform != "linux" or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
    return wanted or (config.show == "auto" and is_there and has_screen)


def _chosen(ids: tuple[str, ...], config: ViewConfig) -> list[str]:
    """Raises `UnknownName` for an episode that is not there, `ViewError` where there is none at all."""
    if not ids:
        raise ViewError(f"'{config.input}' holds no episodes.")
    if not config.episodes:
        return list(ids[: config.most])
    own = {i.rsplit(SEPARATOR, 1)[-1]: i for i in ids}
    for name in config.episodes:
        if name not in ids and name not in own:
            raise UnknownName(f"episode in '{config.input}'", name, ids)
    return list(dict.fromkeys(name if name in ids else own[name] for name in config.episodes))


def _completion(config: ViewConfig, seen: Viewed, notes: list[str]) -> Complete:
    """Poses and chunks, as far as they are asked for and can be had."""
    robot = seen.robot
    steps: list[Complete] = []
    if config.policy is not None:
        from athena_vla.view.predicted_chunks import Predictions

        predictions = Predictions(config.policy, config.device)
        theirs = predictions.policy.robot
        if robot is not None and robot.action_names != theirs.action_names:
            raise ViewError(
                f"Policy '{config.policy}' is for robot '{theirs.name}' with actions {', '.join(theirs.action_names)}; "
                f"'{config.input}' is looked at as '{robot.name}' with {', '.join(robot.action_names)}."
            )
        robot = robot or theirs
        steps.append(lambda t, e: predictions.added(t, e, config.chunks))
    if robot is None:
        notes.append("no robot is named, so there are no units, limits and body: --robot NAME")
    poses = _poses(config, robot, notes)
    return lambda timeline, episode: _through([*([poses] if poses else []), *steps], timeline, episode)


def _through(steps: list[Complete], timeline: Timeline, episode: Episode) -> Timeline:
    for step in steps:
        timeline = step(timeline, episode)
    return timeline


def _poses(config: ViewConfig, robot: Embodiment | None, notes: list[str]) -> Complete | None:
    if config.model is None and (robot is None or not robot.mjcf):
        return None
    try:
        from athena_vla.view.posed import body_of, with_pose
    except MissingDependency as error:
        if config.model is not None:
            raise
        notes.append(f"the robot's body is not drawn: {error}")
        return None
    body = body_of(robot, config.model)
    if body is None:
        notes.append("the robot's body is not drawn: its model does not ship; --model FILE names an MJCF or URDF")
        return None
    return lambda timeline, _: with_pose(timeline, body)


def _timelines(
    config: ViewConfig, seen: Viewed, ids: list[str], complete: Complete, unread: dict[str, str], progress: Progress
) -> Iterator[Timeline]:
    """One timeline after the other; an episode that cannot be read is said, and costs the others nothing."""
    for number, episode_id in enumerate(ids):
        progress(number, len(ids), "drawing episodes", episode_id)
        try:
            episode = seen.read(episode_id)
        except AthenaError as error:
            if config.episodes:
                raise
            unread[episode_id] = str(error)
            continue
        robot = seen.robot
        yield complete(timeline_of(episode, robot, seen.segments(episode), seen.findings(episode)), episode)
    progress(len(ids), len(ids), "drawing episodes")
    if len(unread) == len(ids):
        raise ViewError(f"Not one of the {len(ids)} episodes of '{config.input}' can be read. {unread[ids[0]]}")


def _to_rerun(config: ViewConfig, ids: list[str], timelines: Iterator[Timeline]) -> list[Path]:
    from athena_vla.view import rerun_view

    if config.save is None:
        rerun_view.show(timelines, config.width)
        return []
    written = []
    for timeline in timelines:
        several = config.save.with_name(f"{config.save.stem}-{file_safe(timeline.id)}.rrd")
        path = config.save if len(ids) == 1 else several
        if path.exists() and not config.overwrite:
            raise ViewError(f"'{path}' is there already. Choose another name, or replace it with --overwrite.")
        written.append(rerun_view.save(path, timeline, config.width))
    return written


def _to_pages(
    config: ViewConfig,
    seen: Viewed,
    ids: list[str],
    timelines: Iterator[Timeline],
    unread: dict[str, str],
    notes: list[str],
) -> list[Path]:
    place = {episode_id: i for i, episode_id in enumerate(ids)}
    names = [page_name(i, episode_id) for i, episode_id in enumerate(ids)]
    key = hashlib.sha256(str(config.input.resolve()).encode()).hexdigest()[:16]
    flagging = Flagging(config.input.resolve().name, f"athena-flags-{key}", seen.build)
    with (
        files.claim(
            config.out,
            overwrite=config.overwrite,
            what="pages of a view",
            ours=_is_view,
            reads=config.input,
            error=ViewError,
        ),
        files.whole_folder(config.out, ViewError) as made,
    ):
        pages = Pages(made, names, flagging, config.width, config.megabytes)
        links = [pages.write_episode(place[t.id], t) for t in timelines]
        links += [pages.write_unread(place[i], i, why) for i, why in unread.items()]
        links.sort(key=lambda link: link.file)
        pages.write_index(links, notes)
    return [config.out / "index.html", *(config.out / link.file for link in links)]


def _is_view(out: Path) -> bool:
    index = out / "index.html"
    return index.is_file() and 'content="athena data view"' in index.read_text(errors="replace")[:2000]
