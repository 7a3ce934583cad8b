"""Images of a simulated world: a ray caster that needs nothing but MuJoCo and numpy, and OpenGL where it works.

Knows nothing of tasks. The ray caster is the default because it runs wherever `pip install mujoco` ran and gives the
same pixels on every machine; `egl` and `osmesa` are used only when asked for by name and proven in a subprocess.
"""

import os
import subprocess
import sys
from functools import lru_cache
from typing import Any, Literal, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import SimulationError, UnknownName
from athena_vla.sim.raycast import NOTHING, PRIMITIVES, Cast, cast_camera, meet
from athena_vla.sim.scene import Appearance
from athena_vla.sim.world import FLOOR_GROUP

RENDERERS: tuple[str, ...] = ("auto", "rays", "egl", "osmesa")

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


class RayRenderer:
    """Lambert-shaded ray casting on one core, deterministic; also depth and segmentation (`cast`)."""

    name = "rays"

    def __init__(self, model: mujoco.MjModel, *, shadows: bool = False) -> None:
        self.model = model
        self.shadows = shadows
        self._floor = int(model.geom("floor").id)

    def cast(self, data: mujoco.MjData, camera: str, height: int, width: int) -> Cast:
        """Meet the world with one ray per pixel."""
        return cast_camera(
            self.model, data, int(self.model.camera(camera).id), height, width, self._solid(), self._floor
        )

    def render(
        self, data: mujoco.MjData, camera: str, height: int, width: int, look: Appearance, /
    ) -> NDArray[np.uint8]:
        return self.shade(data, self.cast(data, camera, height, width), look)

    def shade(self, data: mujoco.MjData, cast: Cast, look: Appearance) -> NDArray[np.uint8]:
        """Colours of what the rays met."""
        height, width = cast.geoms.shape
        geoms = cast.geoms.ravel()
        light = np.asarray(look.light_direction)
        palette = np.vstack([self.model.geom_rgba[:, :3], look.background]) * 255.0
        facing = np.maximum((light @ cast.rotation) @ cast.normals.reshape(3, -1), 0.0)
        if self.shadows:
            facing *= self._lit(data, cast, light)
        shade = look.ambient + look.diffuse * facing
        shade[geoms == NOTHING] = 1.0
        on_floor = np.flatnonzero(geoms == self._floor)
        if len(on_floor):
            rays = cast.rays.reshape(3, -1)[:, on_floor] * cast.distance.ravel()[on_floor]
            x, y = np.floor((cast.origin[:2, None] + cast.rotation[:2] @ rays) / _CHECKER)
            shade[on_floor] *= 1.0 - 0.18 * ((x + y) % 2)
        image = np.empty((height * width, 3), dtype=np.uint8)
        for i in range(3):  # index -1 is the background, the last row
            image[:, i] = np.minimum(palette[:, i][geoms] * shade, 255.0) + 0.5
        return image.reshape(height, width, 3)

    def _solid(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.model.geom_group < FLOOR_GROUP)

    def _lit(self, data: mujoco.MjData, cast: Cast, light: NDArray[np.float64]) -> NDArray[np.float64]:
        """1 where the light reaches the point, 0.4 in shadow. The light is far away: rays start there and look back."""
        points = cast.points.reshape(-1, 3)
        source = np.array([0.4, 0.0, 0.8]) + 6.0 * light
        reach = np.linalg.norm(points - source, axis=1)
        rays = np.ascontiguousarray(((points - source) / reach[:, None]).T)
        first = np.full(len(points), np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            for geom in self._solid():
                turn = data.geom_xmat[geom].reshape(3, 3)
                start = (source - data.geom_xpos[geom]) @ turn
                kind, size = int(self.model.geom_type[geom]), self.model.geom_size[geom]
                first = np.minimum(first, meet(kind, size, start, turn.T @ rays))
        return np.where(first < reach - 0.01, 0.4, 1.0)


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
    """The renderer of that name; `auto` is the ray caster, or OpenGL for models it cannot draw.

    Raises `UnknownName`, `SimulationError` where it does not work here.
    """
    if name not in RENDERERS:
        raise UnknownName("renderer", name, RENDERERS)
    if name == "auto":
        name = best_renderer(model)
    if name == "egl":
        return GLRenderer(model, "egl")
    if name == "osmesa":
        return GLRenderer(model, "osmesa")
    return RayRenderer(model)


def best_renderer(model: mujoco.MjModel) -> str:
    """The ray caster for models of primitives, else the first OpenGL that works here.

    Raises `SimulationError` where none does.
    """
    shown = model.geom_type[model.geom_group < FLOOR_GROUP]
    if np.isin(shown, PRIMITIVES).all():
        return "rays"
    for backend in ("egl", "osmesa"):
        if probe(backend):
            return backend
    raise SimulationError(
        "No renderer works here: the model has geoms that are not spheres, capsules, cylinders or boxes, which the ray "
        "caster cannot draw, and neither EGL nor OSMesa gives a context. Install libegl1 or libosmesa6."
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
