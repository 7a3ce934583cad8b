"""The robot's body at each frame, from its MJCF or URDF by MuJoCo's kinematics; meshes are not needed and not drawn.

Only joints that were recorded move: the base stands where the description puts it.
"""
# MuJoCo's members are Any: see typings.

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.errors import MissingDependency, ViewError
from athena_vla.recordings.column_names import plain_name
from athena_vla.view.timeline import Link, Posed, Shape, ShapeKind, Timeline

try:
    import mujoco
except ModuleNotFoundError as error:  # the caller says what is missing, or does without
    raise MissingDependency("mujoco", "sim", "to draw the robot's body") from error

LEAST_MASS, LEAST_INERTIA = 1e-3, 1e-6  # of links whose meshes were left out; kinematics needs neither


class Body:
    """A robot's links, and where they are in any pose."""

    def __init__(self, model: "mujoco.MjModel", robot: Embodiment | None) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        named = [model.joint(i).name for i in range(model.njnt)]
        simple = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
        self.joints = {
            plain_name(n): int(model.jnt_qposadr[i]) for i, n in enumerate(named) if int(model.jnt_type[i]) in simple
        }
        self.rest: NDArray[np.float64] = np.array(model.qpos0, np.float64)
        for joint in robot.joints if robot else ():
            if plain_name(joint.name) in self.joints:
                self.rest[self.joints[plain_name(joint.name)]] = joint.default
        self.links = tuple(_link(model, i) for i in range(1, model.nbody))

    def posed(self, timeline: Timeline, /) -> Timeline:
        """The timeline with the links at each frame; with a note where no joint of the body was recorded."""
        recorded = _positions(timeline)
        moved = {name: values for name, values in recorded.items() if name in self.joints}
        if not moved:
            names = ", ".join(sorted(self.joints)[:6])
            told = f"the robot's body is not drawn: not one of its joints is recorded ({names} …)"
            return replace(timeline, notes=(*timeline.notes, told))
        count = len(timeline)
        positions, rotations = np.zeros((count, len(self.links), 3)), np.zeros((count, len(self.links), 4))
        for frame in range(count):
            self.data.qpos[:] = self.rest
            for name, values in moved.items():
                if np.isfinite(values[frame]):
                    self.data.qpos[self.joints[name]] = values[frame]
            mujoco.mj_kinematics(self.model, self.data)
            positions[frame], rotations[frame] = self.data.xpos[1:], self.data.xquat[1:]
        posed = Posed(self.links, positions, rotations, tuple(sorted(set(self.joints) - set(moved))))
        return replace(timeline, posed=posed)


def body_of(robot: Embodiment | None, model: Path | None) -> Body | None:
    """The body in a file, or the one that ships with the robot; None where there is neither. Raises `ViewError`."""
    if model is not None:
        if not model.is_file():
            raise ViewError(f"There is no MJCF or URDF at '{model}' (--model).")
        return Body(_compiled(lambda: mujoco.MjSpec.from_file(str(model)), str(model)), robot)
    if robot is None or not robot.mjcf:
        return None
    shipped = resources.files("athena_vla") / "robots" / robot.mjcf
    if not shipped.is_file():
        return None
    return Body(_compiled(lambda: mujoco.MjSpec.from_string(shipped.read_text()), robot.mjcf), robot)


def _compiled(read: Any, name: str) -> "mujoco.MjModel":
    """The model without its meshes, and with every link of a URDF kept apart."""
    try:
        spec = read()
        for geom in list(spec.geoms):
            if geom.type in (mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_HFIELD):
                spec.delete(geom)
        for mesh in list(spec.meshes):
            spec.delete(mesh)
        spec.compiler.fusestatic = False
        spec.compiler.boundmass, spec.compiler.boundinertia = LEAST_MASS, LEAST_INERTIA
        return spec.compile()
    except (ValueError, RuntimeError) as error:  # what MuJoCo raises for a file that it cannot take
        raise ViewError(f"MuJoCo cannot read the robot's body in '{name}': {error}.") from error


def _link(model: "mujoco.MjModel", body: int) -> Link:
    geoms = range(int(model.body_geomadr[body]), int(model.body_geomadr[body]) + int(model.body_geomnum[body]))
    shapes = [s for g in geoms if (s := _shape(model, g)) is not None]
    return Link(model.body(body).name or f"body_{body}", int(model.body_parentid[body]) - 1, tuple(shapes))


def _shape(model: "mujoco.MjModel", geom: int) -> Shape | None:
    kind = mujoco.mjtGeom(int(model.geom_type[geom])).name.removeprefix("mjGEOM_").lower()
    x, y, z = (float(v) for v in model.geom_size[geom])
    if kind == "sphere":
        kind, y, z = "ellipsoid", x, x
    known: dict[str, ShapeKind] = {"box": "box", "capsule": "capsule", "cylinder": "cylinder", "ellipsoid": "ellipsoid"}
    if kind not in known:
        return None
    px, py, pz = (float(v) for v in model.geom_pos[geom])
    qw, qx, qy, qz = (float(v) for v in model.geom_quat[geom])
    r, g, b, a = (float(v) for v in model.geom_rgba[geom])
    return Shape(known[kind], (x, y, z), (px, py, pz), (qw, qx, qy, qz), (r, g, b, a))


def _positions(timeline: Timeline) -> Mapping[str, NDArray[np.floating[Any]]]:
    """Plain name -> position at each frame: what was measured, or the target where nothing was."""
    found: dict[str, NDArray[np.floating[Any]]] = {}
    for column in timeline.columns:
        curve = column.state or column.target
        if curve is not None and len(curve.values) == len(timeline):
            found.setdefault(plain_name(column.name), curve.values)
    return found
