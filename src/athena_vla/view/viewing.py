"""`athena data view`: episodes of a recording or a set, as pages or in Rerun, with a policy's chunks over them."""

import hashlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import athena_vla.embodiment as embodiment
from athena_vla import files
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError, MissingDependency, ViewError
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.several import episodes_named
from athena_vla.view.html_page import Flagging, Pages, file_safe, page_name
from athena_vla.view.recorded_timeline import timeline_of
from athena_vla.view.timeline import Posing, Predicting, Timeline
from athena_vla.view.view_config import ViewConfig, ViewResult
from athena_vla.view.viewed import Viewed, opened


def view(config: ViewConfig, progress: Progress = quiet) -> ViewResult:
    """Draw the episodes. Raises `ViewError`, `RecordingError`, `DatasetError`, `MissingDependency`, `UnknownName`."""
    config.require()
    in_rerun = _in_rerun(config)
    predictions = _predictions(config)
    robot = embodiment.load(config.robot) if config.robot else None
    if robot is None and predictions is not None:
        robot = predictions.robot
    seen = opened(config, robot, progress)
    _require_one_robot(config, robot, seen, predictions)
    ids = _chosen(seen.ids, config)
    notes: list[str] = []
    if seen.robot is None:
        notes.append("no robot is named, so there are no units and limits: --robot NAME")
    poses = _poses(config, seen.robot, notes)
    unread: dict[str, str] = {}
    timelines = _timelines(config, seen, ids, unread, progress)
    if predictions is not None:
        timelines = ((predictions.added(t, e, config.chunks), e) for t, e in timelines)
    drawn = (poses.posed(t) if poses else t for t, _ in timelines)
    written = _to_rerun(config, ids, drawn) if in_rerun else _to_pages(config, seen, ids, drawn, unread, notes)
    notes += [f"episode {i} is not shown: {why}" for i, why in unread.items()]
    left = 0 if config.episodes else len(seen.ids) - len(ids)
    return ViewResult(tuple(i for i in ids if i not in unread), tuple(written), tuple(notes), left)


def _in_rerun(config: ViewConfig) -> bool:
    """Raises `MissingDependency` where Rerun is asked for and not installed."""
    wanted = config.save is not None or config.show == "rerun"
    is_there = find_spec("rerun") is not None
    if wanted and not is_there:
        raise MissingDependency("rerun-sdk", "view", "to show recordings in Rerun (--show pages needs nothing)")
    has_screen = sys.platform != "linux" or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
    if wanted and config.save is None and not has_screen:
        raise ViewError(  # Rerun itself would wait for its viewer for ever
            "There is no screen here for the Rerun viewer. --save FILE.rrd writes a file for it, and --show pages "
            "needs no viewer."
        )
    return wanted or (config.show == "auto" and is_there and has_screen)


def _chosen(ids: tuple[str, ...], config: ViewConfig) -> list[str]:
    """Raises `UnknownName` for an episode that is not there, `ViewError` where there is none at all."""
    if not ids:
        raise ViewError(f"'{config.input}' holds no episodes.")
    if not config.episodes:
        return list(ids[: config.most])
    kind = f"episode in '{config.input}'"
    return list(dict.fromkeys(i for name in config.episodes for i in episodes_named(ids, name, kind)))


def _predictions(config: ViewConfig) -> Predicting | None:
    if config.policy is None:
        return None
    from athena_vla.view.predicted_chunks import Predictions

    return Predictions(config.policy, config.device)


def _require_one_robot(
    config: ViewConfig, robot: Embodiment | None, seen: Viewed, predictions: Predicting | None
) -> None:
    """Raises `ViewError` where what is looked at, --robot and --policy do not speak of the same columns."""
    if robot is not None and seen.robot is not None and seen.robot.name != robot.name and config.robot:
        raise ViewError(
            f"'{config.input}' is a built set for robot '{seen.robot.name}', which it brings along; leave --robot out."
        )
    theirs = predictions.robot if predictions else None
    if theirs is not None and seen.robot is not None and seen.robot.action_names != theirs.action_names:
        raise ViewError(
            f"Policy '{config.policy}' is for robot '{theirs.name}' with actions {', '.join(theirs.action_names)}; "
            f"'{config.input}' is looked at as '{seen.robot.name}' with {', '.join(seen.robot.action_names)}."
        )


def _poses(config: ViewConfig, robot: Embodiment | None, notes: list[str]) -> Posing | None:
    """The robot's body, where it has one and MuJoCo is there; what is missing is said."""
    if config.model is None and (robot is None or not robot.mjcf):
        return None
    try:
        from athena_vla.view.posed import body_of
    except MissingDependency as error:
        if config.model is not None:
            raise
        notes.append(f"the robot's body is not drawn: {error}")
        return None
    beside = (
        Path(config.robot).parent / robot.mjcf if robot and config.robot and config.robot.endswith(".toml") else None
    )
    body = body_of(robot, config.model or (beside if beside and beside.is_file() else None))
    if body is None:
        notes.append("the robot's body is not drawn: its model does not ship; --model FILE names an MJCF or URDF")
    return body


def _timelines(
    config: ViewConfig, seen: Viewed, ids: list[str], unread: dict[str, str], progress: Progress
) -> Iterator[tuple[Timeline, Episode]]:
    """One timeline after the other; of many, one that cannot be read is said, and costs the others nothing."""
    for number, episode_id in enumerate(ids):
        progress(number, len(ids), "drawing episodes", episode_id)
        try:
            episode = seen.read(episode_id)
        except AthenaError as error:
            if config.episodes:
                raise
            unread[episode_id] = str(error)
            continue
        yield timeline_of(episode, seen.robot, seen.segments(episode), seen.findings(episode)), episode
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
