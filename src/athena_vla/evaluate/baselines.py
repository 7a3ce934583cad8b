"""Actors that know no model: hold still, mean action, nearest neighbour, replay; and ablations of any actor.

What a learned policy must beat before its number means something. Each is built from the training split alone and
answers like a policy: an observation in, a chunk of joint targets out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from athena_vla import files
from athena_vla.control.action_prefix import prefix_of
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import EvaluationError
from athena_vla.recordings.episode import Sample

THUMBNAIL = (12, 16)  # rows, columns: what the nearest neighbour compares, about 40 px per pixel of a 640x480 image
IMAGE_WEIGHT, STATE_WEIGHT, WORDS_WEIGHT = 1.0, 1.0, 4.0  # an instruction that differs counts more than any image


class Actor(Protocol):
    """Whatever answers an observation with a chunk."""

    def act(self, observation: Observation, /) -> ActionChunk: ...


@dataclass(frozen=True)
class Library:
    """The training split as the baselines need it: small images, states, words, chunks. No torch, no model."""

    robot_hash: str
    frames: NDArray[np.int64]  # [N] control step within the episode
    episodes: NDArray[np.int64]  # [N] number of the episode
    images: NDArray[np.float32]  # [N, cameras * rows * columns * 3] in [0, 1]
    states: NDArray[np.float32]  # [N, S] [rad]
    texts: tuple[str, ...]  # the instructions that occur
    text_of: NDArray[np.int64]  # [N] index into `texts`
    chunks: NDArray[np.float32]  # [N, H, D] [rad]
    valid: NDArray[np.bool_]  # [N, H]

    @property
    def horizon(self) -> int:
        return int(self.chunks.shape[1])

    @classmethod
    def fit(cls, samples: Iterable[Sample], robot: Embodiment) -> "Library":
        """Collect the training samples. Raises `EvaluationError` when there are none, or one is not for training."""
        texts: dict[str, int] = {}
        names: dict[str, int] = {}
        rows: list[tuple[int, int, NDArray[Any], NDArray[Any], int, NDArray[Any], NDArray[Any]]] = []
        for s in samples:
            if s.kind != "train":
                raise EvaluationError(f"Episode {s.episode} belongs to the {s.kind} split: baselines learn from train.")
            rows.append(
                (
                    s.frame,
                    names.setdefault(s.episode, len(names)),
                    thumbnails(s.observation, robot),
                    np.asarray(s.observation.state, np.float32),
                    texts.setdefault(s.observation.instruction, len(texts)),
                    np.asarray(s.chunk, np.float32),
                    np.asarray(s.valid, bool),
                )
            )
        if not rows:
            raise EvaluationError("The training split holds no sample: there is nothing to build baselines from.")
        frames, episodes, images, states, text_of, chunks, valid = (list(c) for c in zip(*rows, strict=True))
        return cls(
            robot.hash,
            np.array(frames),
            np.array(episodes),
            np.stack(images),
            np.stack(states),
            tuple(texts),
            np.array(text_of),
            np.stack(chunks),
            np.stack(valid),
        )

    def save(self, path: Path) -> None:
        """One .npz; text as unicode arrays, never pickled."""
        arrays: dict[str, Any] = {k: np.asarray(v) for k, v in self.__dict__.items()}
        with files.whole_file(path, EvaluationError) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: Path, robot: Embodiment) -> "Library":
        """Raises `EvaluationError` when the file is missing or holds another robot's motions."""
        if not path.is_file():
            raise EvaluationError(f"There is no baseline library '{path}'; it is written by the evaluation stage.")
        with np.load(path, allow_pickle=False) as z:
            raw: dict[str, Any] = {k: z[k] for k in z.files}
        raw["robot_hash"] = str(raw["robot_hash"])
        raw["texts"] = tuple(str(t) for t in raw["texts"])
        if raw["robot_hash"] != robot.hash:
            raise EvaluationError(f"The library '{path}' was recorded on another robot than '{robot.name}'.")
        return cls(**raw)

    def mean_trajectory(self) -> NDArray[np.float64]:
        """[T, D]: the mean target at each control step over the episodes that are still running then."""
        length = int(self.frames.max()) + self.horizon
        total = np.zeros((length, self.chunks.shape[2]))
        count = np.zeros(length)
        for row in range(self.horizon):
            use = self.valid[:, row]
            np.add.at(total, self.frames[use] + row, self.chunks[use, row])
            np.add.at(count, self.frames[use] + row, 1.0)
        seen = count > 0
        return total[seen] / count[seen, None]

    def closest_text(self, instruction: str) -> int:
        """Index of the training instruction that shares the most words; the first of equals."""
        return int(np.argmin([word_distance(instruction, t) for t in self.texts]))

    def episode_actions(self, episode: int) -> NDArray[np.float64]:
        """[T, D]: the recorded targets of one training episode."""
        mine = self.episodes == episode
        frames, chunks, valid = self.frames[mine], self.chunks[mine], self.valid[mine]
        actions: dict[int, NDArray[Any]] = {}
        for f, c, v in zip(frames, chunks, valid, strict=True):
            actions.update({int(f) + i: c[i] for i in range(self.horizon) if v[i] and int(f) + i not in actions})
        return np.stack([actions[k] for k in sorted(actions)]).astype(np.float64)


def thumbnails(observation: Observation, robot: Embodiment) -> NDArray[np.float32]:
    """All cameras as small images in one vector, by averaging blocks of pixels."""
    parts = []
    for camera in robot.camera_names:
        image = observation.images[camera].astype(np.float32) / 255
        rows = np.array_split(np.arange(image.shape[0]), min(THUMBNAIL[0], image.shape[0]))
        columns = np.array_split(np.arange(image.shape[1]), min(THUMBNAIL[1], image.shape[1]))
        by_row = np.stack([image[r].mean(axis=0) for r in rows])
        parts.append(np.stack([by_row[:, c].mean(axis=1) for c in columns], axis=1).ravel())
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def word_distance(one: str, two: str) -> float:
    """1 minus the share of common words (Jaccard), in [0, 1]."""
    a, b = set(one.lower().split()), set(two.lower().split())
    return 1.0 - len(a & b) / len(a | b) if a | b else 0.0


@dataclass
class HoldStill:
    """Stays in the pose it first saw (`remember`), or in the pose of each observation (open loop)."""

    robot: Embodiment
    horizon: int = 8
    remember: bool = True
    pose: NDArray[np.float64] | None = None

    def act(self, observation: Observation, /) -> ActionChunk:
        pose = self.robot.action_of(np.asarray(observation.state, np.float64))
        if self.remember:
            self.pose = pose if self.pose is None else self.pose
            pose = self.pose
        return _chunk(self.robot, np.tile(pose, (self.horizon, 1)), observation)


@dataclass
class Trajectory:
    """Plays one trajectory by the clock, whatever it sees; the last row is held at the end."""

    robot: Embodiment
    rows: NDArray[np.float64]  # [T, D] [rad]
    horizon: int

    def act(self, observation: Observation, /) -> ActionChunk:
        start = round(observation.time * self.robot.control_hz)
        index = np.clip(np.arange(start, start + self.horizon), 0, len(self.rows) - 1)
        return _chunk(self.robot, self.rows[index], observation)


@dataclass
class Replay:
    """Plays the training episode whose instruction is closest to the one it is first given."""

    robot: Embodiment
    library: Library
    playing: dict[str, Trajectory] = field(default_factory=dict)

    def act(self, observation: Observation, /) -> ActionChunk:
        text = observation.instruction
        if text not in self.playing:
            owner = self.library.episodes[self.library.text_of == self.library.closest_text(text)][0]
            rows = self.library.episode_actions(int(owner))
            self.playing[text] = Trajectory(self.robot, rows, self.library.horizon)
        return self.playing[text].act(observation)


@dataclass
class Hostile:
    """Jumps at random to targets far beyond the limits: not a baseline, but what a safety filter is there for."""

    robot: Embodiment
    horizon: int = 8

    def act(self, observation: Observation, /) -> ActionChunk:
        generator = np.random.default_rng([11, round(observation.time * self.robot.command_hz)])
        columns = self.robot.command_columns
        middle, half = (columns.upper + columns.lower) / 2, (columns.upper - columns.lower) / 2
        shape = (self.horizon, len(columns))
        rows = middle + 3 * half * generator.uniform(-1, 1, size=shape)
        return _chunk(self.robot, rows[:, self.robot.action_index], observation)


@dataclass
class NearestNeighbour:
    """Answers with the chunk of the most similar training sample in image, state and words."""

    robot: Embodiment
    library: Library

    def __post_init__(self) -> None:
        lib = self.library
        # Every part is scaled by its own spread, so that the weights compare like with like.
        self.image_scale = max(float(np.sqrt(lib.images.var(axis=0).sum())), 1e-6)
        self.state_scale = max(float(np.sqrt(lib.states.var(axis=0).sum())), 1e-6)

    def act(self, observation: Observation, /) -> ActionChunk:
        lib = self.library
        image = ((lib.images - thumbnails(observation, self.robot)) ** 2).sum(axis=1) / self.image_scale**2
        state = ((lib.states - observation.state) ** 2).sum(axis=1) / self.state_scale**2
        words = np.array([word_distance(observation.instruction, t) for t in lib.texts])[lib.text_of]
        best = int(np.argmin(IMAGE_WEIGHT * image + STATE_WEIGHT * state + WORDS_WEIGHT * words))
        return _chunk(self.robot, lib.chunks[best].astype(np.float64), observation)


@dataclass(frozen=True)
class BlackImage:
    """The same actor with the lights off: every camera is black."""

    inner: Actor

    @property
    def prefix(self) -> int:
        return prefix_of(self.inner)

    def act(self, observation: Observation, /) -> ActionChunk:
        black = {name: np.zeros_like(image) for name, image in observation.images.items()}
        return self.inner.act(replace(observation, images=black))


@dataclass(frozen=True)
class OtherInstruction:
    """The same actor told to do something else, while the original goal is what counts."""

    inner: Actor
    instead: Mapping[str, str]  # instruction -> what the actor is told; others are passed on

    @property
    def prefix(self) -> int:
        return prefix_of(self.inner)

    def act(self, observation: Observation, /) -> ActionChunk:
        told = self.instead.get(observation.instruction, observation.instruction)
        return self.inner.act(replace(observation, instruction=told))


def _chunk(robot: Embodiment, positions: NDArray[np.float64], observation: Observation) -> ActionChunk:
    return ActionChunk(positions, robot.action_names, 1.0 / robot.control_hz, observation.time)
