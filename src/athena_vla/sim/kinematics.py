"""Inverse kinematics of the simulated robot: damped least squares on a scratch copy, towards one smooth answer.

Knows nothing of tasks. Started from the same nominal pose every time, with a pull towards it, the solution is a smooth
function of the target: what a policy can learn, unlike the many postures that reach the same point.
"""

from collections.abc import Callable, Iterable

import mujoco
import numpy as np
from numpy.typing import NDArray

from athena_vla.sim.world import World

Array = NDArray[np.float64]
Residual = Callable[[], tuple[Array, Array]]  # error [m] and its Jacobian [m, nv] at the scratch data's pose

_ITERATIONS = 40
_DAMPING = 1e-4


class Kinematics:
    """Solves poses for a world whose scene is set; the world itself is never moved."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.data = mujoco.MjData(world.model)
        self._position, self._rotation = np.zeros((3, world.model.nv)), np.zeros((3, world.model.nv))

    def solve(self, joints: Iterable[str], residuals: Iterable[tuple[float, Residual]], rest: Array) -> Array:
        """The pose [23] [rad] that minimises the weighted residuals by moving only `joints`, starting from `rest`."""
        world, robot = self.world, self.world.embodiment
        active = robot.index(joints)
        columns = world.qvel_index[active]
        # The waist is heavy and turns the camera: let the arm do what it can, and leaning before turning.
        stiff = {"waist_yaw": 0.3, "waist_pitch": 0.08}
        pull = np.array([stiff.get(robot.joint_names[i], 0.02) for i in active])
        pose = rest.copy()
        self._place(pose)
        terms = list(residuals)
        for _ in range(_ITERATIONS):
            errors, jacobians = [pull * (pose[active] - rest[active])], [np.diag(pull)]
            for weight, residual in terms:
                error, jacobian = residual()
                errors.append(weight * error)
                jacobians.append(weight * jacobian[:, columns])
            error, jacobian = np.concatenate(errors), np.vstack(jacobians)
            normal = jacobian.T @ jacobian + _DAMPING * np.eye(len(active))
            step = np.clip(np.linalg.solve(normal, -jacobian.T @ error), -0.3, 0.3)
            before = pose[active]
            pose[active] = np.clip(before + step, robot.lower[active] + 0.02, robot.upper[active] - 0.02)
            self._place(pose)
            if np.abs(pose[active] - before).max() < 1e-5:
                break
        return pose

    def hand_at(self, side: str, target: Array) -> Residual:
        """Hand centre at a world point."""
        site = self.world.hand_sites[side]

        def residual() -> tuple[Array, Array]:
            mujoco.mj_jacSite(self.world.model, self.data, self._position, None, site)
            return self.data.site_xpos[site] - target, self._position.copy()

        return residual

    def forearm_towards(self, side: str, target: Array) -> Residual:
        """Forearm axis through a world point."""
        elbow, hand = self.world.elbow_sites[side], self.world.hand_sites[side]

        def residual() -> tuple[Array, Array]:
            axis = self.data.site_xpos[hand] - self.data.site_xpos[elbow]
            mujoco.mj_jacSite(self.world.model, self.data, self._position, self._rotation, elbow)
            return self._aim(axis, self.data.site_xpos[elbow], target)

        return residual

    def camera_towards(self, target: Array) -> Residual:
        """Optical axis of the head camera through a world point."""
        camera = self.world.head_camera

        def residual() -> tuple[Array, Array]:
            axis = -self.data.cam_xmat[camera].reshape(3, 3)[:, 2]
            where = self.data.cam_xpos[camera]
            mujoco.mj_jac(self.world.model, self.data, self._position, self._rotation, where, self.world.torso)
            return self._aim(axis, where, target)

        return residual

    def _aim(self, axis: Array, origin: Array, target: Array) -> tuple[Array, Array]:
        """Difference of an axis fixed to a body and the direction to a point; Jacobians are in the buffers."""
        axis = axis / np.linalg.norm(axis)
        offset = target - origin
        distance = float(np.linalg.norm(offset))
        direction = offset / distance
        turning = np.cross(self._rotation.T, axis).T  # d axis = w x axis
        moving = -(np.eye(3) - np.outer(direction, direction)) / distance @ self._position
        return axis - direction, turning - moving

    def _place(self, pose: Array) -> None:
        data, world = self.data, self.world
        data.qpos[:] = world.data.qpos
        data.qpos[world.gantry_qpos] = world.standing_height
        data.qpos[world.qpos_index] = pose
        mujoco.mj_kinematics(world.model, data)
        mujoco.mj_camlight(world.model, data)
        mujoco.mj_comPos(world.model, data)
