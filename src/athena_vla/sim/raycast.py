"""Rays against MuJoCo's primitives in numpy: sphere, capsule, cylinder, box and the floor.

Knows nothing of colours or cameras' names. Every geom is met only by the pixels its bounding box covers, which makes
a 96 x 96 image of the world a matter of one or two milliseconds; `mj_multiRay` meets every body with every ray, and
cuts pieces off large near boxes when it culls. `mj_ray`, its slow and exact sibling, is the oracle of the tests.
"""

from dataclasses import dataclass
from functools import lru_cache

import mujoco
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import SimulationError

Array = NDArray[np.float64]
FAR = 12.0  # [m], rays end here
NEAR = 1e-3  # [m], nothing nearer to the camera's plane has a place in the image
NOTHING = -1

_SPHERE, _CAPSULE = int(mujoco.mjtGeom.mjGEOM_SPHERE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)
_CYLINDER, _BOX = int(mujoco.mjtGeom.mjGEOM_CYLINDER), int(mujoco.mjtGeom.mjGEOM_BOX)
_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
PRIMITIVES = (_SPHERE, _CAPSULE, _CYLINDER, _BOX)


@dataclass(frozen=True)
class Cast:
    """What every pixel's ray met, in the camera's frame (x right, y up, z backwards).

    Vectors are stored by component, [3, height, width]: numpy is several times faster that way.
    """

    geoms: NDArray[np.int32]  # [height, width] geom id, -1 where nothing is
    distance: Array  # [height, width] [m] along the ray, `FAR` where nothing is
    normals: Array  # [3, height, width] unit length, zero where nothing is
    rays: Array  # [3, height, width] unit directions
    origin: Array  # [3] world frame
    rotation: Array  # [3, 3] camera frame to world frame

    @property
    def depth(self) -> Array:
        """[height, width] [m] along the optical axis."""
        return self.distance * -self.rays[2]

    @property
    def points(self) -> Array:
        """[height, width, 3] [m], world frame."""
        return self.origin + np.einsum("ij,jhw->hwi", self.rotation, self.rays * self.distance)


def cast_camera(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera: int,
    height: int,
    width: int,
    geoms: NDArray[np.intp],
    floor: int,
) -> Cast:
    """Meet `geoms` and the floor plane z = 0 with one ray per pixel of a camera."""
    rays, half_width, half_height = pixel_rays(height, width, float(model.cam_fovy[camera]))
    origin = data.cam_xpos[camera].copy()
    rotation = data.cam_xmat[camera].reshape(3, 3).copy()
    found = np.full((height, width), NOTHING, dtype=np.int32)
    distance = np.full((height, width), FAR)
    normals = np.zeros((3, height, width))

    with np.errstate(divide="ignore", invalid="ignore"):
        fall = np.tensordot(rotation[2], rays, 1)  # [h, w], how fast a ray sinks
        down = np.where(fall < 0.0, -origin[2] / fall, np.inf)
        on_floor = down < distance
        np.copyto(distance, down, where=on_floor)
        np.copyto(found, floor, where=on_floor)
        for i in range(3):
            np.copyto(normals[i], rotation[2, i], where=on_floor)

        centres = (data.geom_xpos[geoms] - origin) @ rotation  # [g, 3], camera frame
        turns = rotation.T @ data.geom_xmat[geoms].reshape(-1, 3, 3)  # [g, 3, 3], geom frame to camera frame
        boxes = model.geom_aabb[geoms]  # middle and half sizes in the geom's frame
        corners = boxes[:, None, :3] + boxes[:, None, 3:] * _CORNERS  # [g, 8, 3]
        corners = centres[:, None, :] + corners @ turns.transpose(0, 2, 1)
        windows = _windows(corners, half_width, half_height, height, width)
        order = np.argsort(np.einsum("gi,gi->g", centres, centres))  # near ones first: fewer pixels are won twice
        closest = np.sqrt(np.einsum("gi,gi->g", centres, centres)) - model.geom_rbound[geoms]
        for i in order:
            top, bottom, left, right = windows[i].tolist()
            if top >= bottom or left >= right or closest[i] > distance[top:bottom, left:right].max():
                continue
            geom, turn = int(geoms[i]), turns[i]
            window = (slice(top, bottom), slice(left, right))
            start = -centres[i] @ turn
            directions = turn.T @ rays[(slice(None), *window)].reshape(3, -1)
            kind, size = int(model.geom_type[geom]), model.geom_size[geom]
            reach = meet(kind, size, start, directions)
            nearer = np.flatnonzero(reach < distance[window].ravel())
            if not len(nearer):
                continue
            reach = reach[nearer]
            hits = start[:, None] + directions[:, nearer] * reach
            row, column = np.divmod(nearer, right - left)
            row, column = row + top, column + left
            distance[row, column] = reach
            found[row, column] = geom
            normals[:, row, column] = turn @ _normals(kind, size, hits)
    return Cast(found, distance, normals, rays, origin, rotation)


def meet(kind: int, size: Array, origin: Array, directions: Array) -> Array:
    """Distance [n] [m] at which rays [3, n] from `origin` enter a primitive at rest in its own frame, or infinity.

    A ray that starts inside a primitive does not meet it. Raises `SimulationError` for any other geom type.
    """
    if kind == _SPHERE:
        return _meet_sphere(float(size[0]), origin, directions)
    if kind == _BOX:
        return _meet_box(size, origin, directions)
    if kind == _CYLINDER:
        side = _meet_tube(float(size[0]), float(size[1]), origin, directions)
        return np.minimum(side, _meet_lids(float(size[0]), float(size[1]), origin, directions))
    if kind == _CAPSULE:
        reach = _meet_tube(float(size[0]), float(size[1]), origin, directions)
        for end in (-size[1], size[1]):
            reach = np.minimum(reach, _meet_sphere(float(size[0]), origin - np.array([0.0, 0.0, end]), directions))
        return reach
    raise SimulationError(
        f"The ray caster cannot draw geom type {kind}: use spheres, capsules, cylinders and boxes, or renderer 'egl'."
    )


@lru_cache(maxsize=16)
def pixel_rays(height: int, width: int, fov_deg: float) -> tuple[Array, float, float]:
    """Unit directions through the pixel centres [3, h, w], and the half sizes of the image plane at distance 1."""
    half_height = float(np.tan(np.radians(fov_deg) / 2))
    half_width = half_height * width / height
    rows = half_height * (1.0 - (2.0 * np.arange(height) + 1.0) / height)
    columns = half_width * ((2.0 * np.arange(width) + 1.0) / width - 1.0)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    rays = np.stack([x, y, -np.ones_like(x)])
    rays /= np.linalg.norm(rays, axis=0)
    rays.setflags(write=False)
    return rays, half_width, half_height


def _windows(corners: Array, half_width: float, half_height: float, height: int, width: int) -> NDArray[np.intp]:
    """Pixel windows [g, 4] (top, bottom, left, right; exclusive ends) that cover boxes of corners [g, 8, 3].

    A box is the hull of its corners, and so is its image, as long as all of them are in front of the camera.
    """
    x, y, ahead = corners[..., 0], corners[..., 1], -corners[..., 2]
    outside = (ahead < NEAR).all(axis=1)
    for beyond in (x - half_width * ahead, -x - half_width * ahead, y - half_height * ahead, -y - half_height * ahead):
        outside |= (beyond > 0.0).all(axis=1)  # all corners on the far side of one face of the view
    unbounded = (ahead < NEAR).any(axis=1)
    depth = np.maximum(ahead, NEAR)
    row = (1.0 - y / depth / half_height) * height / 2
    column = (1.0 + x / depth / half_width) * width / 2
    bounds = np.stack(
        [row.min(axis=1) - 1, row.max(axis=1) + 2, column.min(axis=1) - 1, column.max(axis=1) + 2], axis=1
    )
    bounds[unbounded] = (0, height, 0, width)
    bounds[outside] = 0
    limits = np.array([height, height, width, width])
    return np.clip(np.floor(bounds), 0, limits).astype(np.intp)


def _enter(near: Array, valid: NDArray[np.bool_]) -> Array:
    return np.where(valid & (near > 0.0), near, np.inf)


def _meet_sphere(radius: float, origin: Array, directions: Array) -> Array:
    along = origin @ directions
    square = along * along - (origin @ origin - radius * radius)
    return _enter(-along - np.sqrt(np.maximum(square, 0.0)), square >= 0.0)


def _meet_box(size: Array, origin: Array, directions: Array) -> Array:
    near, far = np.full(directions.shape[1], -np.inf), np.full(directions.shape[1], np.inf)
    for axis in range(3):
        inverse = 1.0 / directions[axis]
        middle = -origin[axis] * inverse
        spread = np.abs(size[axis] * inverse)
        # fmax and fmin: a ray that runs in a face has no bound along that axis (nan), the others decide.
        near, far = np.fmax(near, middle - spread), np.fmin(far, middle + spread)
    return _enter(near, near <= far)


def _meet_tube(radius: float, half: float, origin: Array, directions: Array) -> Array:
    """The wall of a cylinder along z, without lids."""
    x, y, z = directions
    a = x * x + y * y
    b = origin[0] * x + origin[1] * y
    square = b * b - a * (origin[:2] @ origin[:2] - radius * radius)
    near = (-b - np.sqrt(np.maximum(square, 0.0))) / a
    return _enter(near, (square >= 0.0) & (np.abs(origin[2] + near * z) <= half))


def _meet_lids(radius: float, half: float, origin: Array, directions: Array) -> Array:
    lid = np.where(directions[2] > 0.0, -half, half)  # the lid that faces the ray
    near = (lid - origin[2]) / directions[2]
    x = origin[0] + near * directions[0]
    y = origin[1] + near * directions[1]
    return _enter(near, x * x + y * y <= radius * radius)


def _normals(kind: int, size: Array, hits: Array) -> Array:
    """Outward unit normals [3, n] at points on a primitive's surface, in its own frame."""
    if kind == _BOX:
        share = np.abs(hits) / size[:, None]
        face = np.where(share[0] >= np.maximum(share[1], share[2]), 0, np.where(share[1] >= share[2], 1, 2))
        columns = np.arange(hits.shape[1])
        normals = np.zeros_like(hits)
        normals[face, columns] = np.sign(hits[face, columns])
        return normals
    normals = hits.copy()
    if kind == _CYLINDER:
        on_lid = np.abs(hits[2]) >= size[1] * (1.0 - 1e-9)
        normals[:, on_lid] = 0.0
        normals[2] = np.where(on_lid, np.sign(hits[2]), 0.0)
    elif kind == _CAPSULE:
        normals[2] -= np.clip(hits[2], -size[1], size[1])
    return normals / np.maximum(np.sqrt((normals * normals).sum(axis=0)), 1e-12)
