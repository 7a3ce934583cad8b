"""Synthetic recordings for the data tests: a clean toy episode whose camera sees the joints move."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.recordings.episode import Episode, Origin
from athena_vla.recordings.formats.isaac_folder import write_episode
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.streams import Clock
from athena_vla.recordings.texts import said

JOINTS = ("base", "shoulder", "finger")


@dataclass(frozen=True)
class Pixels:
    """Frames held in memory."""

    images: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        return self.images[index]


def clean(index: int = 0, length: int = 60, fps: float = 10.0, camera: str = "front", **changes: Any) -> Episode:
    """A smooth motion of the toy robot; states follow the targets with one frame of lag and a little noise."""
    rng = np.random.default_rng(index)
    t = np.arange(length) / fps
    phase, speed = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.8, 1.6, 3)
    actions = np.array([0.1, 0.1, 0.3]) + np.array([0.8, 0.6, 0.4]) * np.sin(speed * t[:, None] + phase)
    states = np.concatenate([actions[:1], actions[:-1]]) + rng.normal(0, 1e-3, actions.shape)
    episode = Episode(
        id=f"episode_{index:04d}",
        clock=Clock(t, fps),
        joint_names=JOINTS,
        actions=actions.astype(np.float32),
        state_names=JOINTS,
        states=states.astype(np.float32),
        cameras={camera: Pixels(pictures(states, index))},
        texts=said((f"touch the {('red', 'blue', 'green')[index % 3]} box",), length),
        marks=Marks(True),
        origin=Origin(kind="touch"),
    )
    return edited(episode, **changes)


def edited(episode: Episode, **changes: Any) -> Episode:
    """The episode with other fields; `timestamps`, `fps`, `instructions`, `success` and `kind` reach into its nouns."""
    clock = changes.pop("clock", episode.clock)
    clock = replace(clock, stamps=changes.pop("timestamps", clock.stamps), fps=changes.pop("fps", clock.fps))
    made: dict[str, Any] = {"clock": clock}
    if len(clock) != len(episode):
        made["texts"] = said(episode.instructions, len(clock))
    if "instructions" in changes:
        made["texts"] = said(changes.pop("instructions"), len(clock))
    if "success" in changes:
        made["marks"] = replace(episode.marks, success=changes.pop("success"))
    if "kind" in changes:
        made["origin"] = replace(episode.origin, kind=changes.pop("kind"))
    return replace(episode, **made, **changes)


def pictures(states: NDArray[np.float64], seed: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A textured background with a bright square where the first two joints are."""
    background = np.random.default_rng(1000 + seed).integers(40, 120, (height, width, 3), dtype=np.uint8)
    images = np.repeat(background[None], len(states), axis=0)
    for image, q in zip(images, states, strict=True):
        x = int((q[0] + 1.2) / 2.6 * (width - 16))
        y = int((q[1] + 0.8) / 2.0 * (height - 16))
        image[max(y, 0) : y + 16, max(x, 0) : x + 16] = (250, 200, 60)
    return images


def write(root: Path, *episodes: Episode) -> Path:
    for episode in episodes or tuple(clean(i) for i in range(3)):
        write_episode(root, episode)
    return root
