"""Robots with channels and recordings of them for the tests."""

import dataclasses

import numpy as np

from athena_vla import embodiment
from athena_vla.embodiment import Channel, Embodiment
from athena_vla.recordings.episode import Episode
from recordings import clean

HEIGHT = Channel(
    "base_height", "m", 0.4, 0.8, 0.25, 1.5, default=0.7, owner="policy", observed=True, when_nothing="hold"
)
YAW_RATE = Channel("yaw_rate", "rad/s", -0.6, 0.8, 1.2, 8.0, when_nothing="zero", resample="hold")
GRIP = Channel("grip", "1", 0.0, 1.0, 4.0, 60.0, default=1.0, when_nothing="default", resample="hold")
FORCE = Channel("wrist_force", "N", -50.0, 50.0, observed=True, resample="mean")
TOKEN = Channel("token", "1", limits="data")


def robot(*channels: Channel) -> Embodiment:
    """The toy robot with channels; without any given, three that are commanded and one that is only measured."""
    return dataclasses.replace(embodiment.load("toy"), channels=channels or (HEIGHT, YAW_RATE, GRIP, FORCE))


def commands(length: int, seed: int = 0) -> np.ndarray:
    """`[T, 3]` smooth height, stepped yaw rate and snapping grip, inside the limits above at 10 Hz."""
    t = np.arange(length) / 10.0
    height = 0.62 + 0.06 * np.sin(1.1 * t + seed)
    yaw = np.where((t > 1.0) & (t < 3.0), 0.1, 0.0)
    grip = np.where(t > 2.0, 0.6, 1.0)
    return np.stack([height, yaw, grip], axis=1)


def recorded(seed: int = 0, length: int = 60) -> Episode:
    """A clean toy episode with the columns of `robot()`, named, in an order of its own, and one column more."""
    base = clean(seed, length)
    ours = commands(length, seed)
    force = 20.0 * np.sin(np.arange(length) / 3.0)
    extra = np.linspace(0.0, 1.0, length)
    actions = np.concatenate([ours[:, [1]], base.actions, ours[:, [0, 2]], extra[:, None]], axis=1)
    seen = np.concatenate([ours[:1, 0], ours[:-1, 0]])
    states = np.concatenate([base.states, force[:, None], seen[:, None]], axis=1)
    return dataclasses.replace(
        base,
        joint_names=("yaw_rate", *base.joint_names, "base_height", "grip", "left_over"),
        actions=actions.astype(np.float32),
        state_names=(*base.state_names, "wrist_force", "base_height"),
        states=states.astype(np.float32),
    )
