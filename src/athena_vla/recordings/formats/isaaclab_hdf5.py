"""Isaac Lab (and robomimic-style) HDF5: one file, many demos; states, observations, cameras, Mimic signals.

Datasets are read per demo, images per frame: a 20 GB file is never loaded. The identity
`obs.joint_pos[t+1] + default == states.joint_position[t]` says whether positions are relative and recovers the default.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError, UnknownName
from athena_vla.recordings.episode import Episode, Frames, Origin, RecordingInfo, Segment
from athena_vla.recordings.formats.common import (
    NOT_RGB,
    BaseRecording,
    OpenOptions,
    are_placeholders,
    ask_for_names,
    depth_note,
    guarded,
    natural_key,
    refuse_lfs,
    success_of,
    unused,
)
from athena_vla.recordings.formats.hdf5 import HDF5Frames, is_depth, is_hdf5, numbers_of
from athena_vla.recordings.formats.metadata import TEXT_KEYS, rate_in, text_of, texts_in
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.notes import Note
from athena_vla.recordings.streams import Clock, Stream
from athena_vla.recordings.texts import said

NAME = "isaaclab_hdf5"
JOINT_TERMS = ("joint_pos", "robot_joint_pos")
# (sim.dt [s], decimation) of environments whose files do not record them, from Isaac Lab's task configurations.
PUBLISHED_STEPS = {"Isaac-Stack-Cube-Franka": (0.01, 5), "Isaac-Stack-Cube-UR10": (0.01, 5)}
NOT_OF_ROWS = ("initial_state/", "next_obs/")  # the state before the first row, and every observation once more
LARGEST_STREAM = 4096  # numbers a row; more is an image or a point cloud
IDENTITY_TOLERANCE = 1e-3  # [rad] recorders store float32; the real files agree to 1e-6


def detect(path: Path) -> bool:
    """True for an HDF5 file with demos whose states are groups (robomimic's are plain arrays)."""
    return is_hdf5(path) and not is_robomimic(path)


def open_path(path: Path, options: OpenOptions) -> "IsaacLabHDF5":
    return IsaacLabHDF5(path, options)


def is_robomimic(path: Path) -> bool:
    """True where demos hold flat states, next observations or dones, as robomimic writes them."""
    with guarded(f"'{path}'"), h5py.File(path, "r") as file:
        data = file.get("data")
        first = next((data[k] for k in data if isinstance(data[k], h5py.Group)), None) if data is not None else None
        if first is None:
            return False
        return isinstance(first.get("states"), h5py.Dataset) or "next_obs" in first or "dones" in first


class IsaacLabHDF5(BaseRecording):
    """One HDF5 file of demos."""

    format = NAME

    def __init__(self, path: Path, options: OpenOptions) -> None:
        super().__init__(path, options)
        refuse_lfs(path)
        with guarded(f"'{path}'"):
            self.file = h5py.File(path, "r")
            data = self.file.get("data")
            if not isinstance(data, h5py.Group):
                raise RecordingError(f"'{path}' has no group 'data' with demos; it has {list(self.file)[:10]}.")
            self.data: h5py.Group = data
            self.version = str(int(self.file.attrs.get("format_version", data.attrs.get("format_version", 0))))
            self.environment = _environment(data, path)

    def ids(self) -> tuple[str, ...]:
        with guarded(f"'{self.path}'"):
            return tuple(sorted((k for k in self.data if k.startswith("demo")), key=natural_key))

    def read(self, episode_id: str, /) -> Episode:
        with guarded(f"demo '{episode_id}' of '{self.path}'"):
            if episode_id not in self.data or not isinstance(self.data[episode_id], h5py.Group):
                raise RecordingError(f"There is no demo '{episode_id}' in '{self.path}'.")
            return self._read(episode_id, self.data[episode_id])

    def info(self) -> RecordingInfo:
        notes: list[Note] = []
        ids = self.ids()
        first: Episode | None = None
        episodes = frames = 0
        successes: list[bool] = []
        tasks: dict[str, None] = {}
        for demo in ids:
            try:
                length = self._length(demo)
                first = first or self.read(demo)
            except RecordingError as error:
                notes.append(Note("episode.broken", f"{demo} cannot be read: {error}", episode=demo))
                continue
            success = success_of(self.data[demo].attrs.get("success"))
            successes += [success] if success is not None else []
            episodes, frames = episodes + 1, frames + length
        tasks |= dict.fromkeys(first.instructions if first else ())
        declared = self.data.attrs.get("total")
        if declared is not None and int(declared) != frames:
            says = f"data.attrs['total'] says {int(declared)} frames, the demos hold {frames}"
            notes.append(Note("count.declared", says))
        numbers = [int(k.rsplit("_", 1)[-1]) for k in ids if k.rsplit("_", 1)[-1].isdigit()]
        if numbers and numbers != list(range(len(numbers))):
            gaps = sorted(set(range(numbers[-1] + 1)) - set(numbers))
            notes.append(Note("count.gaps", f"demo numbering has gaps: {gaps[:10]} are missing"))
        if not ids:
            notes.append(Note("metadata.missing", "the file holds no demos"))
        if first is None:
            return RecordingInfo(NAME, self.version, self._robot(), (), (), {}, 0.0, 0, 0, (), 0.0, None, tuple(notes))
        notes += first.notes
        known = first.clock.has_rate
        return RecordingInfo(
            format=self.format,
            version=self.version,
            robot=self._robot(),
            joint_names=first.joint_names,
            state_names=first.state_names,
            cameras={n: s.size for n, s in first.cameras.items() if isinstance(s, HDF5Frames)},
            fps=first.fps if known else 0.0,
            episodes=episodes,
            frames=frames,
            tasks=tuple(tasks),
            duration=frames / first.fps if known else 0.0,
            successes=sum(successes) if successes else None,
            notes=tuple(notes),
        )

    def _robot(self) -> str:
        return str(self.environment.get("env_name", ""))

    def _length(self, demo: str) -> int:
        with guarded(f"demo '{demo}' of '{self.path}'"):
            actions = self.data[demo].get("actions")
            if not isinstance(actions, h5py.Dataset) or actions.ndim != 2 or not len(actions):
                raise RecordingError(f"Demo '{demo}' of '{self.path}' has no actions [T, D].")
            return len(actions)

    def _read(self, demo: str, group: h5py.Group) -> Episode:
        length = self._length(demo)
        notes: list[Note] = []
        name = _actions_of(group)
        actions = numbers_of(group[name], f"{name} of {demo}")
        if actions.ndim != 2 or len(actions) != length:
            raise RecordingError(f"Demo '{demo}' of '{self.path}': {name} has shape {list(actions.shape)}.")
        states, relative, default = self._states(group, length, notes)
        state_names = self._state_names(states.shape[1])
        named: tuple[str, ...] | None = None
        if self.options.terms is not None:
            known = () if are_placeholders(state_names) else state_names
            done = name == "processed_actions"
            actions, named = self.options.terms.targets(actions, states, known, are_targets=done)
        streams, cameras = self._streams(group, length, notes)
        clock = self._clock(group, length, notes)
        declared = group.attrs.get("num_samples")
        if declared is not None and int(declared) != length:
            holds = f"{demo} declares {int(declared)} samples, it holds {length}"
            notes.append(Note("count.declared", holds, episode=demo))
        if not self.options.joints and named is None:
            width = actions.shape[1]
            unnamed = f"the {width} action columns have no names, in Isaac's own order; {ask_for_names(width)}"
            notes.append(Note("column.unnamed", unnamed))
        if actions.shape[1] != states.shape[1] and states.shape[1] and not self.options.joints and named is None:
            widths = (
                f"{actions.shape[1]} action columns for {states.shape[1]} joints: which joints they drive, if any, "
            )
            notes.append(Note("joint.unmatched", widths + "is not recorded"))
        order = "xyzw" if int(self.version) >= 1 else "wxyz"
        return Episode(
            id=demo,
            clock=clock,
            joint_names=named or self.names("action", actions.shape[1], None),
            actions=actions,
            state_names=state_names,
            states=states,
            cameras=cameras,
            texts=said(self._instructions(group), length),
            marks=Marks(success_of(group.attrs.get("success"))),
            segments=_signals(group, length),
            source=f"{self.format}:{self.path}#{demo}",
            streams={k: Stream(v) for k, v in streams.items()},
            origin=Origin(
                declared_length=None if declared is None else int(declared),
                positions_relative=relative,
                default_pose=None if default is None else tuple(default),
                quaternion_order=order,
            ),
            notes=tuple(notes),
        )

    def _state_names(self, width: int) -> tuple[str, ...]:
        if not self.options.state_joints and len(self.options.joints) == width:
            return self.options.joints
        return self.names("state", width, None)

    def _instructions(self, group: h5py.Group) -> tuple[str, ...]:
        """Words of a demo: of the demo itself where it has any, else those of the whole file."""
        own = [*texts_in(dict(group.attrs)), *_stored_texts(group), *_stored_texts(group.get("obs"))]
        whole = own or [*texts_in(dict(self.data.attrs)), *texts_in(dict(self.file.attrs)), *texts_in(self.environment)]
        return tuple(dict.fromkeys(whole))

    def _states(
        self, group: h5py.Group, length: int, notes: list[Note]
    ) -> tuple[NDArray[Any], bool | None, list[float] | None]:
        """(absolute joint positions before each action, were they recorded relative, the default pose)."""
        articulations = group.get("states/articulation")
        chosen = self._chosen(articulations, notes)
        after = initial = None
        if chosen and isinstance(articulations, h5py.Group):
            after = _beside([numbers_of(articulations[n]["joint_position"], "joint_position") for n in chosen])
            starts = [group.get(f"initial_state/articulation/{n}/joint_position") for n in chosen]
            if all(isinstance(start, h5py.Dataset) for start in starts):
                initial = _beside([numbers_of(start, "initial joint_position") for start in starts])
        observed = None
        obs = group.get("obs")
        if isinstance(obs, h5py.Group):
            name = next((t for t in JOINT_TERMS if isinstance(obs.get(t), h5py.Dataset)), None)
            observed = numbers_of(obs[name], f"obs/{name}") if name else None
        if observed is not None and (observed.ndim != 2 or len(observed) != length):
            observed = None
        if after is not None and (after.ndim != 2 or len(after) != length):
            rows = f"states hold {len(after)} rows for {length} actions and are left out"
            notes.append(Note("state.mismatch", rows))
            after = None
        if after is None:
            if observed is None:
                return np.zeros((length, 0), np.float32), None, None
            unknown = "only obs joint positions are recorded; whether they are relative cannot be told"
            notes.append(Note("state.relative", unknown))
            return observed, None, None
        if observed is not None and observed.shape == after.shape:
            default = (initial[0] if initial is not None else after[0]) - observed[0 if initial is not None else 1]
            error = float(np.abs(observed[1:] + default - after[:-1]).max()) if length > 1 else 0.0
            if error < IDENTITY_TOLERANCE:
                relative = bool(np.abs(default).max() > IDENTITY_TOLERANCE)
                kind = "relative to a default pose, which is added" if relative else "absolute"
                holds = f"obs joint positions are {kind} (identity with the states holds to {error:.1e} rad)"
                notes.append(Note("state.relative", holds))
                # The states themselves are kept: they are bit-exact, and one row later than the observation.
                return _before(after, initial), relative, default.tolist()
            differ = f"obs joint positions do not match the states (up to {error:.3f}); the states are used"
            notes.append(Note("state.mismatch", differ))
        return _before(after, initial), None, None

    def _chosen(self, articulations: Any, notes: list[Note]) -> tuple[str, ...]:
        """Articulations whose joint positions are the robot's; () where there are none, or several and no choice."""
        widths = _articulations(articulations)
        if self.options.articulations:
            for name in self.options.articulations:
                if name not in widths:
                    raise UnknownName(f"articulation with joint positions in '{self.path}'", name, widths)
            return self.options.articulations
        if len(widths) > 1 and "robot" not in widths:
            found = ", ".join(f"{n} ({w})" for n, w in widths.items())
            asks = f"joint positions of {found} are recorded; say which are the robot's with --articulation NAME[,NAME]"
            notes.append(Note("articulation.several", asks, tuple(widths)))
            return ()
        return ("robot",) if "robot" in widths else tuple(widths)

    def _clock(self, group: h5py.Group, length: int, notes: list[Note]) -> Clock:
        if self.options.fps:
            return Clock.at_rate(length, self.options.fps)
        arguments = self.environment.get("sim_args")
        if isinstance(arguments, Mapping):
            step = float(arguments.get("dt", 0)) * float(arguments.get("decimation", 0))
            if step > 0:
                return Clock.at_rate(length, round(1.0 / step, 6))
        declared = rate_in(dict(group.attrs), dict(self.data.attrs), self.environment, dict(self.file.attrs))
        if declared:
            return Clock.at_rate(length, declared)
        estimated = _rate_from_velocities(group)
        hint = f" (joint velocities suggest very roughly {estimated:.0f} Hz)" if estimated is not None else ""
        for prefix, (dt, decimation) in PUBLISHED_STEPS.items():
            if str(self.environment.get("env_name", "")).startswith(prefix):
                taken = (
                    f"no rate is recorded; {1 / (dt * decimation):g} Hz is that of the published {prefix} environment "
                    f"(sim.dt {dt:g} x decimation {decimation}){hint}; --fps HZ says otherwise"
                )
                notes.append(Note("clock.guessed", taken))
                return Clock.at_rate(length, round(1.0 / (dt * decimation), 6), "published environment")
        missing = f"no rate is recorded{hint}; --fps HZ says how fast frames follow each other"
        notes.append(Note("clock.missing", missing))
        return Clock.counted(length)

    def _streams(
        self, group: h5py.Group, length: int, notes: list[Note]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Frames]]:
        """Numbers and colour images of each row; whatever else the demo holds is noted by name."""
        streams: dict[str, NDArray[Any]] = {}
        cameras: dict[str, Frames] = {}
        left: list[str] = []
        taken = self._taken(group)

        def visit(name: str, item: Any) -> None:
            if not isinstance(item, h5py.Dataset) or name in taken or name.startswith(NOT_OF_ROWS):
                return
            leaf = name.rsplit("/", 1)[-1]
            of_rows = item.ndim > 0 and item.shape[0] == length
            if is_depth(leaf, item):
                notes.append(depth_note(name))
            elif of_rows and item.ndim == 4 and item.shape[3] in (3, 4) and item.dtype.kind in "uf":
                if NOT_RGB.search(leaf):
                    left.append(name)
                else:
                    cameras[leaf.removesuffix("_rgb")] = HDF5Frames(item)
            elif of_rows and item.ndim <= 3 and item.dtype.kind in "fbiu" and item.size <= LARGEST_STREAM * length:
                streams[name] = numbers_of(item, name)
            elif text_of(item[()] if item.ndim == 0 else None) is None:
                left.append(name)

        group.visititems(visit)
        notes += unused(left, "arrays, which are neither numbers of each row nor colour images,")
        return streams, cameras

    def _taken(self, group: h5py.Group) -> set[str]:
        """Arrays that are actions and joint positions: no streams of their own."""
        chosen = self._chosen(group.get("states/articulation"), [])
        terms = {f"obs/{t}" for t in JOINT_TERMS if f"obs/{t}" in group}
        return {_actions_of(group), *(f"states/articulation/{n}/joint_position" for n in chosen), *terms}


def _actions_of(group: h5py.Group) -> str:
    return "processed_actions" if isinstance(group.get("processed_actions"), h5py.Dataset) else "actions"


def _environment(data: h5py.Group, path: Path) -> dict[str, Any]:
    raw = data.attrs.get("env_args")
    if raw is None:
        return {}
    with guarded(f"env_args of '{path}'"):
        parsed = json.loads(raw if isinstance(raw, str) else bytes(raw).decode())
    return parsed if isinstance(parsed, dict) else {}


def _articulations(group: Any) -> dict[str, int]:
    """Name -> joints of everything in a scene that has joints."""
    if not isinstance(group, h5py.Group):
        return {}
    found = {str(k): group.get(f"{k}/joint_position") for k in group}
    return {k: int(d.shape[-1]) for k, d in found.items() if isinstance(d, h5py.Dataset) and d.ndim == 2}


def _beside(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """[T, joints of all parts]; one part stays as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _before(after: NDArray[Any], initial: NDArray[Any] | None) -> NDArray[Any]:
    """States are recorded after each step; what the policy sees is the row before, and the initial state first."""
    head = initial[:1] if initial is not None and initial.shape[1:] == after.shape[1:] else after[:1]
    return np.concatenate([head, after[:-1]])


def _rate_from_velocities(group: h5py.Group) -> float | None:
    """[Hz] from positions and velocities of the same states: dq = v dt, by least squares over all joints."""
    articulations = group.get("states/articulation")
    names = _articulations(articulations)
    robot = "robot" if "robot" in names else next(iter(names), "")
    if not robot or not isinstance(articulations, h5py.Group) or "joint_velocity" not in articulations[robot]:
        return None
    positions = numbers_of(articulations[robot]["joint_position"], "joint_position").astype(np.float64)
    velocities = numbers_of(articulations[robot]["joint_velocity"], "joint_velocity").astype(np.float64)
    if positions.shape != velocities.shape or len(positions) < 5:
        return None
    step, speed = np.diff(positions, axis=0), (velocities[1:] + velocities[:-1]) / 2
    power = float((speed * speed).sum())
    dt = float((step * speed).sum()) / power if power > 1e-9 else 0.0
    return 1.0 / dt if 1e-4 < dt < 2.0 else None


def _signals(group: h5py.Group, length: int) -> tuple[Segment, ...]:
    """Segments from Mimic's subtask_term_signals: each ends where its signal first becomes true."""
    signals = group.get("obs/datagen_info/subtask_term_signals")
    if not isinstance(signals, h5py.Group):
        return ()
    ends: list[tuple[int, str]] = []
    for name in signals:
        if not isinstance(signals[name], h5py.Dataset):
            continue
        values = numbers_of(signals[name], name).reshape(-1)
        if len(values) == length and values.any():
            ends.append((int(np.argmax(values > 0)), name))
    segments, start = [], 0
    for stop, name in sorted(ends):
        if stop > start:
            segments.append(Segment(start, stop, "task", name.replace("_", " "), "simulator", 1.0))
            start = stop
    return tuple(segments)


def _stored_texts(group: Any) -> list[str]:
    """Words that are stored as arrays: one text, or the same one for every row."""
    if not isinstance(group, h5py.Group):
        return []
    found = []
    for key in TEXT_KEYS:
        item = group.get(key)
        if isinstance(item, h5py.Dataset) and item.size and h5py.check_string_dtype(item.dtype):
            words = {text_of(v) for v in np.asarray(item[()]).reshape(-1)[:1000].tolist()}
            found += sorted(w for w in words if w) if len(words) == 1 else []
    return found
