"""Optional guards on the robot's MuJoCo model: no self-collision, and the centre of mass above the feet.

Knows a kinematic model and a pose; nothing of targets or time. MuJoCo is imported when a guard is made, not before.
The filter asks about the pose in which the robot would come to rest, so that what it approves can be kept.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Array, Embodiment
from athena_vla.errors import MissingDependency, SafetyError


class Model:
    """The robot's MJCF with every joint of the embodiment found by name; everything else stays as the file says."""

    def __init__(self, robot: Embodiment, path: str | Path | None = None) -> None:
        try:
            import mujoco
        except ImportError as error:
            raise MissingDependency("mujoco", "sim", "to check distances on the robot's model") from error
        self.mujoco: Any = mujoco
        self.robot = robot
        where = Path(path) if path is not None else Path(str(resources.files("athena_vla") / "robots" / robot.mjcf))
        if not where.is_file():
            raise SafetyError(f"'{robot.name}' has no model at '{where}'; guards need one.")
        try:
            self.model = mujoco.MjModel.from_xml_path(str(where))
        except ValueError as error:
            raise SafetyError(f"The model '{where}' of '{robot.name}' cannot be read: {error}.") from error
        self.data = mujoco.MjData(self.model)
        addresses = []
        for name in robot.joint_names:
            joint = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_JOINT, name)
            if joint < 0:
                raise SafetyError(f"The model '{where}' has no joint '{name}' of '{robot.name}'.")
            addresses.append(int(self.model.jnt_qposadr[joint]))
        self._addresses = np.array(addresses)

    def pose(self, q: Array) -> None:
        """Put the model into a pose [J] rad."""
        self.data.qpos[self._addresses] = q
        self.mujoco.mj_kinematics(self.model, self.data)


class SelfCollision:
    """A guard that keeps all parts of the robot at least `distance` [m] apart; reports `collision`.

    Pairs that touch anyway are left out: geoms of one body, of neighbours in the tree up to `skip` joints apart, and
    pairs that are closer than `distance` in the default pose.
    """

    def __init__(
        self, robot: Embodiment, *, distance: float = 0.01, path: str | Path | None = None, skip: int = 2
    ) -> None:
        if not distance >= 0:
            raise SafetyError(f"The distance between parts must be at least 0 m, not {distance}.")
        self._model, self._distance = Model(robot, path), distance
        self._model.pose(robot.default)
        candidates = _far_apart_in_the_tree(self._model, skip)
        self.pairs = tuple(p for p in candidates if self._apart(p) > distance)
        radius = self._model.model.geom_rbound
        self._first = np.array([a for a, _ in self.pairs], dtype=np.intp)
        self._second = np.array([b for _, b in self.pairs], dtype=np.intp)
        self._reach = radius[self._first] + radius[self._second] + distance

    def __call__(self, q: Array) -> str:
        self._model.pose(q)
        return "collision" if any(self._apart(p) < self._distance for p in self._near()) else ""

    def clearance(self, q: Array) -> float:
        """Smallest distance [m] between any two checked parts; negative where they overlap."""
        self._model.pose(q)
        return min((self._apart(p, 10.0) for p in self.pairs), default=10.0)

    def _near(self) -> list[tuple[int, int]]:
        """Pairs whose bounding spheres come near enough for an exact answer to matter."""
        place = self._model.data.geom_xpos
        gap = np.linalg.norm(place[self._first] - place[self._second], axis=1)
        return [self.pairs[k] for k in np.flatnonzero(gap < self._reach)]

    def _apart(self, pair: tuple[int, int], beyond: float | None = None) -> float:
        limit = self._distance + 1e-3 if beyond is None else beyond
        model = self._model
        return float(model.mujoco.mj_geomDistance(model.model, model.data, *pair, limit, None))


class Support:
    """A guard that keeps the centre of mass above the feet, `margin` [m] inside their outline; reports `support`.

    A quasi-static check for a standing robot, blind to steps and momentum: it belongs in front of a robot without a
    balance controller, never in place of one.
    """

    def __init__(
        self, robot: Embodiment, feet: Sequence[str], *, margin: float = 0.01, path: str | Path | None = None
    ) -> None:
        self._model, self._margin = Model(robot, path), margin
        mujoco = self._model.mujoco
        self._feet: list[int] = []
        for name in feet:
            body = mujoco.mj_name2id(self._model.model, mujoco.mjtObj.mjOBJ_BODY, name)
            if body < 0:
                raise SafetyError(f"The model of '{robot.name}' has no body '{name}' to stand on.")
            self._feet += np.flatnonzero(self._model.model.geom_bodyid == body).tolist()
        if not self._feet:
            raise SafetyError(f"The feet {list(feet)} of '{robot.name}' have no geoms to stand on.")

    def __call__(self, q: Array) -> str:
        return "" if self.margin(q) >= self._margin else "support"

    def margin(self, q: Array) -> float:
        """How far [m] the centre of mass is inside the outline of the feet on the ground; negative outside."""
        model = self._model
        model.pose(q)
        model.mujoco.mj_comPos(model.model, model.data)
        centre = model.data.subtree_com[0][:2]
        outline = _convex_outline(np.concatenate([self._corners(g) for g in self._feet]))
        edge = np.roll(outline, -1, axis=0) - outline
        inward = np.stack([-edge[:, 1], edge[:, 0]], axis=1) / np.linalg.norm(edge, axis=1, keepdims=True)
        return float(((centre - outline) * inward).sum(axis=1).min())

    def _corners(self, geom: int) -> NDArray[np.float64]:
        """Corners [8, 2] of the geom's bounding box on the ground."""
        model, data = self._model.model, self._model.data
        centre, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        corners = data.geom_xpos[geom] + (centre + signs * half) @ data.geom_xmat[geom].reshape(3, 3).T
        return corners[:, :2]


def _far_apart_in_the_tree(model: Model, skip: int) -> list[tuple[int, int]]:
    """Pairs of solid geoms whose bodies are more than `skip` joints apart; the world is not part of the robot."""
    m = model.model

    def to_root(body: int) -> list[int]:
        path = [body]
        while path[-1] != 0:
            path.append(int(m.body_parentid[path[-1]]))
        return path

    moving = {int(m.jnt_bodyid[j]) for j in range(m.njnt)}
    roots = {to_root(int(m.jnt_bodyid[_joint(model, n)]))[-2] for n in model.robot.joint_names}
    # What collides in the file's own physics, and every primitive (a file may leave contacts of the robot with itself
    # out, as ours does, to be fast); a mesh that collides with nothing is decoration.
    mesh = model.mujoco.mjtGeom.mjGEOM_MESH
    solid = [g for g in range(m.ngeom) if m.geom_contype[g] or m.geom_conaffinity[g] or m.geom_type[g] != mesh]
    ours = [g for g in solid if m.geom_bodyid[g] != 0 and to_root(int(m.geom_bodyid[g]))[-2] in roots]
    pairs = []
    for i, a in enumerate(ours):
        path = to_root(int(m.geom_bodyid[a]))
        for b in ours[i + 1 :]:
            other = to_root(int(m.geom_bodyid[b]))
            shared = set(path) & set(other)
            between = [x for x in (*path, *other) if x not in shared and x in moving]
            if len(between) > skip:
                pairs.append((a, b))
    return pairs


def _joint(model: Model, name: str) -> int:
    return int(model.mujoco.mj_name2id(model.model, model.mujoco.mjtObj.mjOBJ_JOINT, name))


def _convex_outline(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners of the convex hull [n, 2], counter-clockwise (Andrew's monotone chain)."""
    ordered = sorted(map(tuple, points))

    def half(sequence: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        chain: list[tuple[float, ...]] = []
        for p in sequence:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return np.array(half(ordered) + half(ordered[::-1]))
