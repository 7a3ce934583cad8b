"""What a black box kept, as a trace: also where the program was killed in the middle of a record.

Knows the records of `black_box`; decides nothing about what happened.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla.control.black_box import CHUNK, COMMAND, HEAD, MAGIC, NOTE, SEEN, START, VERSION, checksum, image_of
from athena_vla.control.teleoperator import CONTROL, SOURCES, Source, source_in
from athena_vla.control.trace import Event, Trace
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation
from athena_vla.errors import RecordingError

LARGEST = 1 << 28  # bytes of one record


@dataclass(frozen=True)
class Kept:
    """A read black box."""

    robot: Embodiment
    trace: Trace
    wall: Array  # [n] [s] unix time of each command
    event_wall: Array  # [e] [s] unix time of each event
    cut_off: int  # bytes at ends of files that are no whole records
    without_images: int  # observations whose images did not fit


def read_box(where: str | Path) -> Kept:
    """A folder of a black box, or one of its files. Raises `RecordingError` for what is none."""
    path = Path(where)
    files = sorted(path.glob("*.box")) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        raise RecordingError(f"'{path}' is no black box: a folder with files 000001.box, or one of them.")
    records: list[tuple[int, float, float, bytes]] = []
    cut = 0
    for file in files:
        found, rest = _records(file)
        records += found
        cut += rest
    starts = [json.loads(data) for kind, _, _, data in records if kind == START]
    if not starts:
        raise RecordingError(f"'{path}' has no whole record: nothing was kept, or it is another file.")
    if starts[-1].get("version") != VERSION:
        raise RecordingError(f"'{path}' was written by another version: {starts[-1].get('version')}, not {VERSION}.")
    robot = Embodiment.from_dict(starts[-1]["robot"])
    try:
        return _kept(robot, records, cut)
    except (ValueError, KeyError, TypeError, IndexError, struct.error, zlib.error) as error:
        raise RecordingError(f"'{path}' has a record that does not fit '{robot.name}': {error}.") from error


def _records(file: Path) -> tuple[list[tuple[int, float, float, bytes]], int]:
    """Whole records of one file, and the bytes behind the last of them."""
    data, place = file.read_bytes(), 0
    found = []
    while place + HEAD.size <= len(data):
        magic, kind, size, check, wall, moment = HEAD.unpack_from(data, place)
        end = place + HEAD.size + size
        if magic != MAGIC or size > LARGEST or end > len(data):
            break
        payload = data[place + HEAD.size : end]
        if checksum(kind, wall, moment, payload) != check:
            break
        found.append((kind, wall, moment, payload))
        place = end
    return found, len(data) - place


def _kept(robot: Embodiment, records: list[tuple[int, float, float, bytes]], cut: int) -> Kept:
    joints, state_dim = robot.command_dim, robot.state_dim
    rows: list[tuple[float, float, Array]] = []
    frames: list[Observation] = []
    seen: list[tuple[float, Array]] = []
    chunks: list[ActionChunk] = []
    policies: list[str] = []
    events: list[Event] = []
    event_wall: list[float] = []
    sources: list[int] = []
    source: Source = "policy"
    instruction, bare = "", 0
    for kind, wall, moment, data in records:
        if kind == START:
            source = source_in(str(json.loads(data).get("control", source)))  # a file may begin in a take-over
        elif kind == COMMAND:
            values = np.frombuffer(data, dtype=np.float64)
            if len(values) != 2 + 2 * joints:
                raise ValueError(f"a command of {len(values)} numbers")
            rows.append((moment, wall, values))
            sources.append(SOURCES.index(source))
        elif kind == SEEN:
            head, rest = _split(data)
            state = np.frombuffer(rest[: 8 * state_dim], dtype=np.float64)
            instruction = str(head["instruction"])
            seen.append((moment, state))
            images, place = {}, 8 * state_dim
            for camera, (height, width, channels, size) in head["images"].items():
                images[camera] = image_of(rest[place : place + size], height, width, channels)
                place += size
            if set(images) == set(robot.camera_names):
                frames.append(Observation(images, state, instruction, moment))
            else:
                bare += 1
        elif kind == CHUNK:
            head, rest = _split(data)
            positions = np.frombuffer(rest, dtype=np.float64).reshape(head["shape"])
            chunks.append(ActionChunk(positions, tuple(head["joints"]), float(head["dt"]), float(head["time"])))
            if head["policy"] and head["policy"] not in policies:
                policies.append(head["policy"])
        elif kind == NOTE:
            what, words = json.loads(data)
            events.append(Event(moment, str(what), str(words)))
            source = source_in(str(words)) if what == CONTROL else source
            event_wall.append(wall)
    table = np.array([v for _, _, v in rows], dtype=np.float64).reshape(-1, 2 + 2 * joints)
    ended = next((e.words for e in reversed(events) if e.kind == "end"), "cut off")
    trace = Trace(
        robot=robot.name,
        joint_names=robot.command_names,
        units=robot.command_columns.units,
        state_names=robot.state_names,
        instruction=instruction,
        times=np.array([t for t, _, _ in rows]),
        targets=table[:, 2 : 2 + joints],
        commands=table[:, 2 + joints :],
        levels=table[:, 1].astype(np.int8),
        state_times=np.array([t for t, _ in seen]),
        states=np.array([q for _, q in seen]).reshape(-1, state_dim),
        chunks=tuple(chunks),
        latencies=np.empty(0),
        delays=np.empty(0),
        interventions={},
        touched_steps=int((np.abs(table[:, 2 : 2 + joints] - table[:, 2 + joints :]) > 1e-12).any(axis=1).sum()),
        deadline_misses=0,
        overruns=0,
        errors=tuple(e.words for e in events if e.kind == "error"),
        ended_by=ended,
        frames=tuple(frames),
        stamps=table[:, 0],
        policies=tuple(policies),
        events=tuple(events),
        braking_from=len(rows),
        sources=np.array(sources, dtype=np.int8),
    )
    return Kept(robot, trace, np.array([w for _, w, _ in rows]), np.array(event_wall), cut, bare)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack_from("<I", data)
    return json.loads(data[4 : 4 + size]), data[4 + size :]
