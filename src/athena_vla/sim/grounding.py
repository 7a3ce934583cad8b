"""Many still images of which it is known where every object is: the material of "where is the red cube".

Knows nothing of tasks or physics: the robot is put into random poses, nothing moves.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.errors import SimulationError
from athena_vla.jobs import calling, ordered, run_jobs
from athena_vla.sim.render import RayRenderer
from athena_vla.sim.scene import COLOURS, OBJECTS_ON_TABLE, SHAPES, Scene
from athena_vla.sim.tasks import sample_scene
from athena_vla.sim.world import World

_SEED_OFFSET = 10_000_000  # grounding scenes come from seeds that no recording uses


@dataclass(frozen=True)
class GroundingBatch:
    """Images and what is in them; `n` scenes with three objects each."""

    images: NDArray[np.uint8]  # [n, size, size, 3]
    states: NDArray[np.float32]  # [n, 23] [rad]
    colours: NDArray[np.int64]  # [n, 3] index into `COLOURS`
    shapes: NDArray[np.int64]  # [n, 3] index into `SHAPES`
    pixels: NDArray[np.float32]  # [n, 3, 2] centre of the object in the image: right, down; 0..1 inside the image
    positions: NDArray[np.float32]  # [n, 3, 3] [m] centre of the object in the pelvis frame
    distances: NDArray[np.float32]  # [n, 3] [m] from the camera
    visible: NDArray[np.int64]  # [n, 3] pixels of the object that are seen
    segments: NDArray[np.int8]  # [n, size, size] which object a pixel shows: 1, 2, 3, or 0 for none

    def __len__(self) -> int:
        return len(self.images)

    def names(self, scene: int) -> tuple[str, ...]:
        """ "red cube", ... in the order of the columns."""
        colours, shapes = tuple(COLOURS), SHAPES
        pairs = zip(self.colours[scene], self.shapes[scene], strict=True)
        return tuple(f"{colours[int(c)]} {shapes[int(s)]}" for c, s in pairs)


@dataclass(frozen=True)
class _Job:
    seed: int
    first: int
    count: int
    size: int


def _describe(job: _Job) -> str:
    return f"scenes {job.first} to {job.first + job.count - 1}"


def render_grounding(
    count: int, *, seed: int = 0, workers: int = 2, size: int = 96, batch: int = 256
) -> Iterator[GroundingBatch]:
    """`count` scenes in batches, in order, the same for any number of workers.

    Raises `SimulationError` where a worker died.
    """
    if count < 1 or batch < 1 or size < 8:
        raise SimulationError(f"Cannot render {count} scenes of {size} px in batches of {batch}.")
    jobs = (_Job(seed, first, min(batch, count - first), size) for first in range(0, count, batch))
    rendered = run_jobs(calling, _render_batch, jobs, workers=workers, describe=_describe, error=SimulationError)
    with contextlib.closing(rendered):
        yield from ordered(rendered)


def random_pose(robot: Embodiment, rng: np.random.Generator) -> NDArray[np.float64]:
    """A pose like those met while acting: the waist anywhere near the table, arms at rest or over it, legs bent or not.

    [23] [rad], within the limits.
    """
    pose = robot.default + rng.uniform(-0.03, 0.03, robot.state_dim)
    turn, roll, bend = rng.uniform((-0.6, -0.12, -0.15), (0.6, 0.12, 0.35))
    moved = float(rng.random())  # most frames are near the rest pose, as in recordings
    pose[robot.index(["waist_yaw", "waist_roll", "waist_pitch"])] += np.array([turn, roll, bend]) * moved
    for side, sign in (("left", 1.0), ("right", -1.0)):
        if rng.random() < 0.5:
            arm = robot.index(f"{side}_{j}" for j in ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow"))
            pitch, out, yaw, elbow = rng.uniform((-1.3, -0.3, -0.6, -0.6), (0.5, 0.9, 0.6, 1.2))
            pose[arm] = (pitch, sign * out, sign * yaw, elbow)
    if rng.random() < 0.2:
        depth = float(rng.uniform(0.0, 0.45))
        for side in ("left", "right"):
            legs = robot.index(f"{side}_{j}" for j in ("hip_pitch", "knee", "ankle_pitch"))
            pose[legs] += (-depth, 2 * depth, -depth)
    return np.clip(pose, robot.lower, robot.upper)


def locate(world: World, renderer: RayRenderer, scene: Scene, size: int) -> GroundingBatch:
    """The image of the world as it stands, with every object's place; a batch of one."""
    data, model = world.data, world.model
    cast = renderer.cast(data, "head", size, size)
    image = renderer.shade(data, cast, scene.appearance)
    centres = data.geom_xpos[world.object_geoms]  # [3, 3], world frame
    seen = (centres - cast.origin) @ cast.rotation  # camera frame: x right, y up, z backwards
    half = float(np.tan(np.radians(model.cam_fovy[world.head_camera]) / 2))
    pixels = np.stack([seen[:, 0] / -seen[:, 2] / half, -seen[:, 1] / -seen[:, 2] / half], axis=1)
    pelvis = model.body("pelvis").id
    positions = (centres - data.xpos[pelvis]) @ data.xmat[pelvis].reshape(3, 3)
    return GroundingBatch(
        images=image[None],
        states=world.joint_positions[None].astype(np.float32),
        colours=np.array([[tuple(COLOURS).index(o.colour) for o in scene.objects]]),
        shapes=np.array([[SHAPES.index(o.shape) for o in scene.objects]]),
        pixels=(0.5 + 0.5 * pixels)[None].astype(np.float32),
        positions=positions[None].astype(np.float32),
        distances=np.linalg.norm(seen, axis=1)[None].astype(np.float32),
        visible=np.array([[int((cast.geoms == g).sum()) for g in world.object_geoms]]),
        segments=sum((cast.geoms == g) * np.int8(i + 1) for i, g in enumerate(world.object_geoms))[None],  # pyright: ignore
    )


def _render_batch(job: _Job) -> GroundingBatch:
    world, renderer = _studio()
    parts = []
    for number in range(job.first, job.first + job.count):
        rng = np.random.default_rng([job.seed, 3, number])
        scene = sample_scene(_SEED_OFFSET * (job.seed + 1) + number, "base")
        assert len(scene.objects) == OBJECTS_ON_TABLE
        world.reset(scene)
        world.set_pose(random_pose(world.embodiment, rng))
        parts.append(locate(world, renderer, scene, job.size))
    return GroundingBatch(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in (
                "images",
                "states",
                "colours",
                "shapes",
                "pixels",
                "positions",
                "distances",
                "visible",
                "segments",
            )
        )
    )


@lru_cache(maxsize=1)
def _studio() -> tuple[World, RayRenderer]:
    world = World()
    return world, RayRenderer(world.model)
