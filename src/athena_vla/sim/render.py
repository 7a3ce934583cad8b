"""Pictures of a simulated world: a ray caster that needs nothing but MuJoCo and numpy, and OpenGL where it works.

Knows nothing of tasks. The ray caster is the default because it runs wherever `pip install mujoco` ran and gives the
same pixels on every machine; `egl` and `osmesa` are used only when asked for by name and proven in a subprocess.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import SimulationError, UnknownName
from athena_vla.sim.scene import Appearance
from athena_vla.sim.world import HIDDEN_GROUP

RendererName = Literal["auto", "rays", "egl", "osmesa"]
RENDERERS: tuple[str, ...] = ("auto", "rays", "egl", "osmesa")
FAR = 12.0  # [m], rays end here

_NOTHING = -1
_CHECKER = 0.4  # [m], edge of a floor tile
_PROBE = "import mujoco, mujoco.{0} as gl; c = gl.GLContext(16, 16); c.make_current(); mujoco.MjrContext"


class Renderer(Protocol):
    """Draws one camera of a world."""

    name: str

    def render(
        self, data: mujoco.MjData, camera: str, height: int, width: int, look: Appearance, /
    ) -> NDArray[np.uint8]:
        """RGB image [height, width, 3]."""
        ...


@dataclass(frozen=True)
class Cast:
    """What every pixel's ray met."""

    geoms: NDArray[np.int32]  # [height, width] geom id, -1 where nothing is
    distance: NDArray[np.float64]  # [height, width] [m] along the ray, `FAR` where nothing is
    normals: NDArray[np.float64]  # [height, width, 3] world frame
    rays: NDArray[np.float64]  # [height, width, 3] unit directions, world frame
    origin: NDArray[np.float64]  # [3] world frame

    @property
    def points(self) -> NDArray[np.float64]:
        return self.origin + self.rays * self.distance[..., None]  # [height, width, 3] [m]


class RayRenderer:
    """Lambert-shaded ray casting on one core, deterministic; also depth and segmentation."""

    name = "rays"

    def __init__(self, model: mujoco.MjModel, *, shadows: bool = False) -> None:
        if not hasattr(mujoco, "mj_multiRay"):
            raise SimulationError(
                f"mujoco {mujoco.__version__} is too old for the ray caster: install 'mujoco>=3.5,<5'."
            )
        self.model = model
        self.shadows = shadows
        self._groups = np.array([1, 1, 1, 1, 0, 0], dtype=np.uint8)  # 4: the floor, 5: hidden or out of view
        self._floor = int(model.geom("floor").id)

    def cast(self, data: mujoco.MjData, camera: str, height: int, width: int) -> Cast:
        """Meet the world with one ray per pixel."""
        index = self.model.camera(camera).id
        directions = _pixel_rays(height, width, float(self.model.cam_fovy[index]))
        rays = directions @ data.cam_xmat[index].reshape(3, 3).T
        origin = data.cam_xpos[index].copy()
        forward = -data.cam_xmat[index].reshape(3, 3)[:, 2]
        reach = float(np.arccos(np.clip((rays @ forward).min(), -1.0, 1.0)))  # [rad], from the axis to the corners
        geoms, distance, normals = self._meet(data, origin, rays, self._in_view(data, origin, forward, reach))
        shape = (height, width)
        return Cast(
            geoms.reshape(shape),
            distance.reshape(shape),
            normals.reshape(*shape, 3),
            rays.reshape(*shape, 3),
            origin,
        )

    def render(
        self, data: mujoco.MjData, camera: str, height: int, width: int, look: Appearance, /
    ) -> NDArray[np.uint8]:
        cast = self.cast(data, camera, height, width)
        geoms = cast.geoms.ravel()
        light = np.asarray(look.light_direction)
        palette = np.vstack([self.model.geom_rgba[:, :3], look.background]).astype(np.float32)
        facing = np.clip(cast.normals.reshape(-1, 3) @ light, 0.0, None).astype(np.float32)
        if self.shadows:
            facing *= self._lit(data, cast, light)
        shade = look.ambient + look.diffuse * facing
        shade[geoms == _NOTHING] = 1.0
        on_floor = np.flatnonzero(geoms == self._floor)
        if len(on_floor):
            flat = cast.points.reshape(-1, 3)[on_floor, :2]
            tile = np.floor(flat / _CHECKER).astype(np.int64).sum(axis=1) % 2
            shade[on_floor] *= 1.0 - 0.18 * tile.astype(np.float32)
        colour = palette[geoms] * shade[:, None]  # index -1 is the background, the last row
        return (np.clip(colour, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).reshape(height, width, 3)

    def _in_view(
        self, data: mujoco.MjData, origin: NDArray[np.float64], axis: NDArray[np.float64], reach: float
    ) -> NDArray[np.bool_]:
        """Geoms whose bounding sphere touches the cone of half angle `reach` around `axis`."""
        offset = data.geom_xpos - origin
        distance = np.linalg.norm(offset, axis=1)
        radius = self.model.geom_rbound
        angle = np.arccos(np.clip(offset @ axis / np.maximum(distance, 1e-9), -1.0, 1.0))
        spread = np.arcsin(np.clip(radius / np.maximum(distance, 1e-9), 0.0, 1.0))
        return (distance <= radius) | (angle <= reach + spread)

    def _meet(
        self,
        data: mujoco.MjData,
        origin: NDArray[np.float64],
        rays: NDArray[np.float64],
        in_view: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        model, count = self.model, len(rays)
        geoms = np.empty(count, dtype=np.int32)
        distance = np.empty(count)
        normals = np.zeros(3 * count)
        groups = model.geom_group.copy()
        model.geom_group[~in_view] = HIDDEN_GROUP  # a geom that no ray can meet costs time for every ray
        mujoco.mj_multiRay(
            model, data, origin, rays.ravel(), self._groups, True, -1, geoms, distance, normals, count, FAR
        )
        model.geom_group[:] = groups
        normals = normals.reshape(count, 3)
        distance[geoms < 0] = FAR
        # The floor is met here: MuJoCo culls whole bodies by their bounds, and a plane has none.
        with np.errstate(divide="ignore"):
            down = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
        floor = down < distance
        geoms[floor] = self._floor
        distance[floor] = down[floor]
        normals[geoms < 0] = 0.0
        normals[floor] = (0.0, 0.0, 1.0)
        return geoms, distance, normals

    def _lit(self, data: mujoco.MjData, cast: Cast, light: NDArray[np.float64]) -> NDArray[np.float32]:
        """1 where the light reaches the point, 0.4 in shadow. The light is far away: rays start there and look back."""
        points = cast.points.reshape(-1, 3)
        source = np.array([0.4, 0.0, 0.8]) + 6.0 * light
        reach = np.linalg.norm(points - source, axis=1)
        rays = (points - source) / reach[:, None]
        _, distance, _ = self._meet(data, source, rays, np.ones(self.model.ngeom, dtype=bool))
        return np.where(distance < reach - 0.01, 0.4, 1.0).astype(np.float32)


class GLRenderer:
    """MuJoCo's own OpenGL renderer without window, at the quality a software driver can afford."""

    def __init__(self, model: mujoco.MjModel, backend: Literal["egl", "osmesa"]) -> None:
        if not probe(backend):
            raise SimulationError(
                f"Renderer '{backend}' does not work on this machine: no context could be made in a test process. "
                "Use renderer 'rays' (needs no OpenGL), or install "
                f"{'libegl1 and libegl-mesa0' if backend == 'egl' else 'libosmesa6'} (Debian packages)."
            )
        os.environ["PYOPENGL_PLATFORM"] = backend
        os.environ.setdefault("MUJOCO_GL", backend)
        self.name = backend
        self.model = model
        self._size = (0, 0)
        self._backend = backend
        self._gl: Any = None
        self._context: Any = None
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = (1, 1, 1, 1, 1, 0)

    def render(
        self, data: mujoco.MjData, camera: str, height: int, width: int, look: Appearance, /
    ) -> NDArray[np.uint8]:
        self._prepare(height, width)
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self.model.camera(camera).id
        headlight = self.model.vis.headlight
        headlight.ambient[:] = look.ambient
        headlight.diffuse[:] = look.diffuse
        mujoco.mjv_updateScene(self.model, data, self._option, None, view, int(mujoco.mjtCatBit.mjCAT_ALL), self._scene)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        area = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(area, self._scene, self._context)
        image = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, area, self._context)
        return image[::-1].copy()

    def _prepare(self, height: int, width: int) -> None:
        if self._size == (height, width):
            self._gl.make_current()
            return
        if self._backend == "egl":
            from mujoco.egl import GLContext
        else:
            from mujoco.osmesa import GLContext
        self._gl = GLContext(width, height)
        self._gl.make_current()
        quality = self.model.vis.quality
        quality.offsamples, quality.shadowsize = 0, 1024  # the defaults are 4-20 times slower in software
        self.model.vis.global_.offwidth, self.model.vis.global_.offheight = width, height
        self._context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._size = (height, width)


def make_renderer(name: str, model: mujoco.MjModel) -> Renderer:
    """The renderer of that name; `auto` is the ray caster, or OpenGL where MuJoCo is too old to cast rays.

    Raises `UnknownName`, `SimulationError` where it does not work here.
    """
    if name not in RENDERERS:
        raise UnknownName("renderer", name, RENDERERS)
    if name == "auto":
        name = best_renderer()
    if name == "egl":
        return GLRenderer(model, "egl")
    if name == "osmesa":
        return GLRenderer(model, "osmesa")
    return RayRenderer(model)


def best_renderer() -> str:
    """The first renderer that works here. Raises `SimulationError` where none does."""
    if hasattr(mujoco, "mj_multiRay"):
        return "rays"
    for backend in ("egl", "osmesa"):
        if probe(backend):
            return backend
    raise SimulationError(
        f"No renderer works here: mujoco {mujoco.__version__} cannot cast rays, and neither EGL nor OSMesa gives a "
        "context. Install 'mujoco>=3.5,<5'."
    )


@lru_cache(maxsize=4)
def probe(backend: str) -> bool:
    """Whether an OpenGL context can be made; tried in a subprocess, because a missing driver aborts the process."""
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE.format(backend)],
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0


@lru_cache(maxsize=16)
def _pixel_rays(height: int, width: int, fov_deg: float) -> NDArray[np.float64]:
    """Unit directions through the pixel centres in the camera's frame (x right, y up, -z forward), [h * w, 3]."""
    half = np.tan(np.radians(fov_deg) / 2)
    rows = half * (1.0 - (2.0 * np.arange(height) + 1.0) / height)
    columns = half * ((2.0 * np.arange(width) + 1.0) / width - 1.0) * (width / height)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1).reshape(-1, 3)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    rays.setflags(write=False)
    return rays
