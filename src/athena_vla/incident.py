"""What a black box kept, for people and programs: a page, an episode for the next dataset, and a bag for ROS tools.

Reads a black box; changes nothing in it.
"""

import html
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from athena_vla import files
from athena_vla.control.black_box_reader import Kept, read_box
from athena_vla.control.runtime import LEVELS
from athena_vla.control.trace import Trace
from athena_vla.embodiment import Array
from athena_vla.errors import MissingDependency, RecordingError
from athena_vla.recordings.formats.isaac_folder import write_episode
from athena_vla.ros2.bag import write_bag
from athena_vla.ros2.messages import JointMap
from athena_vla.sim.deployed_episodes import trace_to_episode

COLOURS = ("#2b6cb0", "#c05621")
STYLE = (
    "body{font:15px system-ui;margin:2em auto;max-width:70em;color:#222}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}svg{background:#fafafa;margin:.3em 0}"
    ".small{color:#666;font-size:13px}"
)
WIDTH, HEIGHT = 900, 90  # [px] of a joint's plot
MOST_POINTS = 1500  # of a line


@dataclass(frozen=True, kw_only=True)
class IncidentConfig:
    """What happened, from the black box of a robot: a page, an episode and a bag."""

    box: Path
    """Folder of the black box, or one of its files."""
    out: Path = Path("incident")
    """Folder that is made."""
    at: str = ""
    """Around this moment only, by the wall clock: HH:MM or HH:MM:SS; empty takes all."""
    around: float = 30.0
    """This long before and after it. [s]"""


@dataclass(frozen=True)
class IncidentResult:
    """Where things are, and what the box says in short."""

    robot: str
    began: str
    seconds: float
    commands: int
    ended_by: str
    events: int
    cut_off: int  # bytes of records that the end of the program cut off
    page: str
    episode: str
    bag: str

    def __str__(self) -> str:
        return (
            f"'{self.robot}' from {self.began}, {self.seconds:.1f} s, {self.commands} commands, {self.events} events; "
            f"ended by: {self.ended_by}.\nPage: {self.page}\nEpisode: {self.episode}\nBag: {self.bag}"
        )


def incident(config: IncidentConfig) -> IncidentResult:
    """Raises `RecordingError` for what is no black box, for a moment that it does not have, or a folder that exists."""
    kept = read_box(config.box)
    if config.out.exists():
        raise RecordingError(f"'{config.out}' exists already; give another folder with --out.")
    if config.at:
        kept = _around(kept, config.at, config.around)
    if not len(kept.trace.times):
        raise RecordingError(f"'{config.box}' has no command in that time; nothing was driven.")
    name = time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(kept.wall[0]))
    episode = "none: no observation was kept with its images"
    with files.whole_folder(config.out, RecordingError) as folder:
        if kept.trace.frames:
            whole = trace_to_episode(kept.trace, kept.robot, id=name, success=_success(kept.trace))
            if len(whole.actions):
                episode = str(config.out / write_episode(folder / "episode", whole).relative_to(folder))
        bag = str(config.out / f"{name}.mcap")
        try:
            write_bag(folder / f"{name}.mcap", kept.trace, JointMap(kept.robot))
        except MissingDependency as error:
            bag = f"none: {error}"
        (folder / "incident.html").write_text(_page(kept, config.box), encoding="utf-8")
    page = config.out / "incident.html"
    return IncidentResult(
        robot=kept.robot.name,
        began=_clock(kept.wall[0]),
        seconds=float(np.ptp(kept.wall)),
        commands=len(kept.wall),
        ended_by=kept.trace.ended_by,
        events=len(kept.trace.events),
        cut_off=kept.cut_off,
        page=str(page),
        episode=episode,
        bag=bag,
    )


def _success(trace: Trace) -> bool | None:
    """What the last run was marked with after it ended; None where nobody marked it."""
    mark = None
    for event in trace.events:
        mark = event.words.startswith("yes") if event.kind == "success" else None
    return mark


def _around(kept: Kept, at: str, around: float) -> Kept:
    """The part of a box near a time of day, on the day of its last command."""
    fields = at.split(":")
    if not (2 <= len(fields) <= 3 and all(f.isdigit() for f in fields)) or not len(kept.wall):
        raise RecordingError(f"'{at}' is no time of day; write HH:MM or HH:MM:SS.")
    day = time.localtime(kept.wall[-1])
    hour, minute, second = (*map(int, fields), 0)[:3]
    moment = time.mktime((*day[:3], hour, minute, second, 0, 0, -1))
    inside = np.abs(kept.wall - moment) <= around
    if not inside.any():
        raise RecordingError(
            f"The box has nothing within {around:g} s of {at}; it goes from {_clock(kept.wall[0])} to "
            f"{_clock(kept.wall[-1])}."
        )
    t = kept.trace
    first, last = t.times[inside][0], t.times[inside][-1]
    seen = (t.state_times >= first) & (t.state_times <= last)
    events = [(e, w) for e, w in zip(t.events, kept.event_wall, strict=True) if abs(w - moment) <= around]
    part = replace(
        t,
        times=t.times[inside],
        targets=t.targets[inside],
        commands=t.commands[inside],
        levels=t.levels[inside],
        sources=t.sources[inside],
        stamps=t.stamps[inside],
        state_times=t.state_times[seen],
        states=t.states[seen],
        frames=tuple(f for f in t.frames if first <= f.time <= last),
        chunks=tuple(c for c in t.chunks if first <= c.time <= last),
        events=tuple(e for e, _ in events),
        braking_from=int(inside.sum()),
    )
    return replace(kept, trace=part, wall=kept.wall[inside], event_wall=np.array([w for _, w in events]))


def _clock(wall: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))


def _page(kept: Kept, box: Path) -> str:
    """Everything that came from outside is escaped."""
    t = kept.trace
    rows = "".join(
        f"<tr><td>{_clock(w)}</td><td>{e.time:.2f}</td><td>{html.escape(e.kind)}</td><td>{html.escape(e.words)}</td></tr>"
        for e, w in zip(t.events, kept.event_wall, strict=True)
    )
    levels = ", ".join(f"{LEVELS[k]} {n}" for k, n in zip(*np.unique(t.levels, return_counts=True), strict=True))
    plots = "".join(
        f"<h3>{html.escape(name)}</h3>" + _plot((t.times, t.commands[:, j]), seen, t.times[t.levels > 0], t.units[j])
        for j, name in enumerate(t.joint_names)
        for seen in [_measured(t, name)]
        if np.ptp(t.commands[:, j]) > 1e-6 or (len(seen[1]) and np.ptp(seen[1]) > 1e-3)
    )
    cut = f" {kept.cut_off} bytes of the last record were cut off." if kept.cut_off else ""
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Incident of {html.escape(t.robot)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(t.robot)}, {_clock(kept.wall[0])} to {_clock(kept.wall[-1])}</h1>"
        f"<p>{html.escape(t.instruction)}</p><p>{len(t.commands)} commands ({levels}), {len(t.states)} observations, "
        f"{len(t.chunks)} chunks, policies {html.escape(', '.join(t.policies) or 'unnamed')}. Ended by: "
        f"{html.escape(t.ended_by)}.{cut}</p><p class='small'>From {html.escape(str(box))}. Blue: commanded. Orange: "
        "measured. Grey: the fallback levels were in charge. What did not move is left out.</p>"
        f"<h2>Events</h2><table><tr><th>clock</th><th>robot [s]</th><th>what</th><th></th></tr>{rows}</table>"
        f"<h2>Joints and channels</h2>{plots or '<p>None moved.</p>'}</html>"
    )


def _measured(trace: Trace, name: str) -> tuple[Array, Array]:
    """Times and values of a joint or channel; nothing where nobody measures it."""
    if name not in trace.state_names:
        return np.zeros(0), np.zeros(0)
    return trace.state_times, trace.states[:, trace.state_names.index(name)]


def _plot(commanded: tuple[Array, Array], measured: tuple[Array, Array], faulty: Array, unit: str) -> str:
    times = np.concatenate([commanded[0], measured[0]])
    values = np.concatenate([commanded[1], measured[1]])
    t0, t1, low, high = times.min(), times.max(), values.min(), values.max()
    span, tall = max(t1 - t0, 1e-9), max(high - low, 1e-9)

    def x(t: Array) -> Array:
        return (t - t0) / span * WIDTH

    shades = "".join(f"<rect x='{a:.1f}' y='0' width='2' height='{HEIGHT}' fill='#ddd'/>" for a in _thin(x(faulty)))
    lines = ""
    for (t, v), colour in zip((commanded, measured), COLOURS, strict=True):
        points = zip(_thin(x(t)), _thin(HEIGHT - (v - low) / tall * HEIGHT), strict=True)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        lines += f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.3'/>"
    scale = f"<p class='small'>{low:.3f} to {high:.3f} {unit}, {t0:.1f} to {t1:.1f} s</p>"
    return f"<svg width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}'>{shades}{lines}</svg>{scale}"


def _thin(values: Array) -> Array:
    return values[:: max(1, len(values) // MOST_POINTS)]
