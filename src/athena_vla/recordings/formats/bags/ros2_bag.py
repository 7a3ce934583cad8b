"""ROS 2 bags, MCAP and sqlite3: joint states by name, targets in force, images held until the next, each by its stamp.

One bag is one episode; a folder of bags is a recording. Read with the `rosbags` library, without a ROS installation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import BrokenEpisode, Episode, Frames, RecordingInfo
from athena_vla.recordings.formats.bags.bag_images import BagImages
from athena_vla.recordings.formats.bags.bag_messages import BagReader, messages, numbers_in, opened, rate_of
from athena_vla.recordings.formats.bags.bag_topics import BagTopics, guessed, read_topics
from athena_vla.recordings.formats.common import (
    BaseRecording,
    OpenOptions,
    broken_note,
    depth_note,
    guarded,
    natural_key,
    unused,
)
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.notes import Note
from athena_vla.recordings.streams import Clock, Stream
from athena_vla.recordings.texts import Texts, from_frames

NAME = "ros2_bag"
SUFFIXES = (".mcap", ".db3")
ROS1 = b"#ROSBAG V2.0"
NOT_DATA = ("/rosout", "/parameter_events", "/tf", "/tf_static", "/clock", "/robot_description")

Array = NDArray[np.float64]


def detect(path: Path) -> bool:
    """True for a bag, or a folder of bags."""
    return bool(_bags(path))


def refuse(path: Path) -> None:
    """Raises `RecordingError` for a bag of ROS 1, by name: asked where no format is at home."""
    for old in sorted(path.glob("*.bag")) if path.is_dir() else [path] if path.suffix == ".bag" else []:
        with open(old, "rb") as file:
            is_old = file.read(len(ROS1)) == ROS1
        if is_old:
            convert = f"rosbags-convert --src {old.name} --dst bag2"
            raise RecordingError(f"'{old}' is a bag of ROS 1, which is not read. Convert it: {convert}.")


def open_path(path: Path, options: OpenOptions) -> "Ros2Bag":
    return Ros2Bag(path, options)


def _bags(path: Path) -> dict[str, Path]:
    """Episode id -> what rosbags opens."""
    if path.is_file():
        return {path.stem: path} if path.suffix in SUFFIXES else {}
    if (path / "metadata.yaml").is_file() and any(f.suffix in SUFFIXES for f in path.iterdir()):
        return {path.name: path}
    found = {p.name: p for p in path.iterdir() if p.is_dir() and (p / "metadata.yaml").is_file() and _holds(p)}
    return found or {p.stem: p for p in path.iterdir() if p.is_file() and p.suffix in SUFFIXES}


def _holds(folder: Path) -> bool:
    return any(f.suffix in SUFFIXES for f in folder.iterdir())


class Ros2Bag(BaseRecording):
    """One bag, or a folder of them."""

    format = NAME

    def __init__(self, path: Path, options: OpenOptions) -> None:
        super().__init__(path, options)
        self.bags = _bags(path)

    def ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.bags, key=natural_key))

    def topics(self, episode_id: str) -> BagTopics:
        """The topics that are read, as given or as guessed."""
        with opened(self.bags[episode_id]) as bag:
            return self._topics(bag, self.bags[episode_id])

    def read(self, episode_id: str, /) -> Episode:
        if episode_id not in self.bags:
            raise RecordingError(f"There is no bag '{episode_id}' in '{self.path}'.")
        path = self.bags[episode_id]
        with guarded(f"bag '{path}'"), opened(path) as bag:
            return self._read(episode_id, path, bag)

    def info(self) -> RecordingInfo:
        episodes = list(self.episodes())
        good = [e for e in episodes if isinstance(e, Episode)]
        broken = [broken_note(e) for e in episodes if isinstance(e, BrokenEpisode)]
        if not good:
            raise RecordingError(f"'{self.path}' holds no readable bag: {broken[0] if broken else 'it is empty'}")
        first = good[0]
        said = [e.success for e in good if e.success is not None]
        topics = str(self.topics(first.id)).replace("\n", "; ")
        notes = [*first.notes, *broken, Note("column.renamed", f"topics are read as: {topics}")]
        return RecordingInfo(
            format=NAME,
            version="2",
            robot="",
            joint_names=first.joint_names,
            state_names=first.state_names,
            cameras={n: s[0].shape[:2] for n, s in first.cameras.items()},  # pyright: ignore[reportArgumentType]
            fps=first.fps,
            episodes=len(good),
            frames=sum(len(e) for e in good),
            tasks=tuple(dict.fromkeys(t for e in good for t in e.instructions)),
            duration=sum(len(e) / e.fps for e in good),
            successes=sum(said) if said else None,
            notes=tuple(notes),
        )

    def _topics(self, bag: BagReader, path: Path) -> BagTopics:
        if self.options.topics is not None:
            return read_topics(self.options.topics, bag.topics, str(path))
        return guessed(bag.topics, str(path))

    def _read(self, episode_id: str, path: Path, bag: BagReader) -> Episode:
        topics = self._topics(bag, path)
        notes = [Note("episode.cut", bag.cut, episode=episode_id)] if bag.cut else []
        states = _joint_states(bag, topics.state, path)
        times, positions = states.times, states.values["position"]
        rate = self.options.fps or rate_of(times)
        targets = _targets(bag, topics.targets, times, states.names, positions, notes)
        cameras: dict[str, Frames] = {}
        for name, topic in topics.cameras.items():
            stream = BagImages.of(path, bag, topic)
            if stream is None:
                notes.append(depth_note(topic, episode_id))
                continue
            place = np.searchsorted(stream.times, times + 1e-9, side="right") - 1
            if (place < 0).any():
                later = f"{stream.times[0] - times[0]:.2f} s after the joints"
                late = f"camera '{name}' begins {later}; its first image stands for the rows before"
                notes.append(Note("camera.sparse", late, (name,), episode_id))
            cameras[name] = stream.rows(np.maximum(place, 0))
        taken = {topics.state, *topics.targets, topics.instruction, topics.success, *topics.cameras.values()}
        streams, left = _streams(bag, taken, times[0])
        streams |= {kind: Stream(v) for kind, v in states.values.items() if kind != "position"}
        notes += unused(left, "topics", episode_id)
        success = [bool(m.data) for _, m in messages(bag, topics.success)] if topics.success else []
        return Episode(
            id=episode_id,
            clock=Clock(times - times[0], rate),
            joint_names=states.names,
            actions=targets,
            state_names=states.names,
            states=positions,
            cameras=cameras,
            texts=_texts(bag, topics.instruction, times),
            marks=Marks(success[-1] if success else None),
            source=f"{NAME}:{path}",
            streams=streams,
            notes=tuple(notes),
        )


@dataclass(frozen=True)
class _States:
    times: Array  # [T] [s]
    names: tuple[str, ...]
    values: Mapping[str, Array]  # position, velocity, effort -> [T, J]


def _joint_states(bag: BagReader, topic: str, path: Path) -> _States:
    """Rows at the messages that name the most joints; what others say is held from its own message on."""
    said = list(messages(bag, topic))
    if not said:
        raise RecordingError(f"Topic '{topic}' of '{path}' holds no message.")
    names = tuple(dict.fromkeys(n for _, m in said for n in m.name))
    place = {n: i for i, n in enumerate(names)}
    most = max(len(m.name) for _, m in said)
    kinds = [k for k in ("position", "velocity", "effort") if any(len(getattr(m, k)) for _, m in said)]
    if "position" not in kinds:
        raise RecordingError(f"Topic '{topic}' of '{path}' says no joint positions.")
    now = {k: np.full(len(names), np.nan) for k in kinds}
    times: list[float] = []
    rows: dict[str, list[Array]] = {k: [] for k in kinds}
    for time, m in said:
        columns = [place[n] for n in m.name]
        for kind in kinds:
            values = np.asarray(getattr(m, kind), np.float64)
            if len(values) == len(columns):
                now[kind][columns] = values
        if len(m.name) == most and not np.isnan(now["position"]).any() and (not times or time > times[-1]):
            times.append(time)
            for kind in kinds:
                rows[kind].append(now[kind].copy())
    if not times:
        raise RecordingError(f"Topic '{topic}' of '{path}' never says all of {', '.join(names)} at once.")
    values = {k: np.stack(v) for k, v in rows.items()}
    return _States(np.array(times), names, {k: v for k, v in values.items() if np.isfinite(v).all()})


def _targets(
    bag: BagReader, topics: tuple[str, ...], times: Array, names: tuple[str, ...], positions: Array, notes: list[Note]
) -> Array:
    """The position that each joint was last told to reach; without any command, the next recorded position."""
    if not topics:
        notes.append(Note("action.next_positions", "no topic holds targets: targets are the next joint positions"))
        return np.concatenate([positions[1:], positions[-1:]])
    place = {n: i for i, n in enumerate(names)}
    told: list[tuple[float, list[int], Array]] = []
    strange: set[str] = set()
    for topic in topics:
        for time, m in messages(bag, topic):
            joints = list(m.joint_names if hasattr(m, "joint_names") else m.name)
            point = m.points[-1].positions if hasattr(m, "points") and len(m.points) else getattr(m, "position", ())
            if len(point) != len(joints):
                continue
            strange |= set(joints) - set(place)
            pairs = [(place[n], float(x)) for n, x in zip(joints, point, strict=True) if n in place]
            told.append((time, [c for c, _ in pairs], np.array([x for _, x in pairs])))
    told.sort(key=lambda t: t[0])
    targets, now, at = np.empty_like(positions), np.full(len(names), np.nan), 0
    for row, time in enumerate(times):
        while at < len(told) and told[at][0] <= time:
            now[told[at][1]] = told[at][2]
            at += 1
        targets[row] = np.where(np.isnan(now), positions[row], now)
    silent = [n for n, x in zip(names, now, strict=True) if np.isnan(x)]
    if silent:
        said = f"{len(silent)} joints were never commanded; their position stands for the target: {', '.join(silent)}"
        notes.append(Note("joint.unmatched", said, tuple(silent)))
    if strange:
        without = f"commanded joints without a state: {', '.join(sorted(strange))}"
        notes.append(Note("column.unused", without, tuple(sorted(strange))))
    return targets


def _texts(bag: BagReader, topic: str, times: Array) -> Texts:
    """What was said last before each row; before the first text, the first one."""
    said = [(t, str(m.data)) for t, m in messages(bag, topic)] if topic else []
    if not said:
        return ()
    place = np.maximum(np.searchsorted([t for t, _ in said], times + 1e-9, side="right") - 1, 0)
    return from_frames([[said[i][1] for i in place]])


def _streams(bag: BagReader, taken: set[str], start: float) -> tuple[dict[str, Stream], set[str]]:
    """(topics of numbers, each with its own clock; the names of the others)."""
    streams: dict[str, Stream] = {}
    left: set[str] = set()
    for topic in sorted(bag.topics.keys() - taken - set(NOT_DATA)):
        if bag.topics[topic].endswith(("Image", "PointCloud2", "LaserScan")):
            left.add(topic)
            continue
        times: list[float] = []
        rows: list[list[float]] = []
        for time, m in messages(bag, topic):
            times.append(time)
            rows.append(list(numbers_in(m)))
        widths = {len(r) for r in rows}
        if len(widths) != 1 or not widths - {0} or len(rows) < 2:
            left.add(topic)
            continue
        stamps = np.array(times) - start
        streams[topic.strip("/")] = Stream(np.array(rows), Clock(stamps, rate_of(stamps)))
    return streams, left
