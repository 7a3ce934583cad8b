"""The embedded simulator as a robot that `athena drive` can open: the same interface, and a clock that can be real.

In real time every command takes one period, because the loop that sends them is paced; its own clock counts commands.
"""

from typing import cast, get_args

from athena_vla.embodiment import load
from athena_vla.errors import UnknownName
from athena_vla.sim.rail import scene_of
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.scene import Split


def simulated(
    seed: str = "0", split: str = "train", renderer: str = "auto", size: str = "96", robot: str = "athena"
) -> SimRobot:
    """Athena in one simulated scene; `size` is the height and width of a camera image [px]."""
    if split not in get_args(Split):
        raise UnknownName("split", split, get_args(Split))
    pixels = int(size)
    body = load(robot)
    scene = scene_of(body, int(seed), cast(Split, split))
    return SimRobot(scene, body, renderer=renderer, image_size=(pixels, pixels))
