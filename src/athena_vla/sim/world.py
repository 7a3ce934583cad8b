"""The world of athena as a MuJoCo model: robot, table and three objects, compiled once and rearranged for each scene.

Knows nothing of tasks, language or pixels. Recompiling a model costs tens of milliseconds; moving and recolouring one
costs microseconds, so every shape is compiled into every slot and the unused ones are hidden.
"""

from importlib import resources

import mujoco
import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment, load
from athena_vla.errors import SimulationError
from athena_vla.sim.rail import Rail, on_rail
from athena_vla.sim.scene import (
    COLOURS,
    HEIGHTS,
    OBJECTS_ON_TABLE,
    SHAPES,
    TABLE_FRONT,
    TABLE_HEIGHT,
    Scene,
)

HIDDEN_GROUP = 5  # geoms of this group are neither drawn nor touched
FLOOR_GROUP = 4  # the ray caster meets the floor itself
THIRD_PERSON = "third_person"
SETTLED_HEIGHT = 0.70  # [m], first guess of the pelvis height; `reset` replaces it by the height of the legs

_TABLE_SIZE = (0.30, 0.45, 0.02)  # [m] half sizes of the table top
_OBJECT_MASS = 0.25  # [kg]
_OBJECT_FRICTION = 0.8  # [N], what the table top opposes to a sliding object


def _half_sizes(shape: str, size: float) -> tuple[float, float, float]:
    half = HEIGHTS[shape] / 2 * size
    return {
        "cube": (half, half, half),
        "ball": (half, 0.0, 0.0),
        "cylinder": (0.030 * size, half, 0.0),
    }[shape]


class World:
    """MuJoCo model and data of one scene at a time; `reset` rearranges them for the next one."""

    def __init__(self, embodiment: Embodiment | None = None) -> None:
        self.embodiment = load("athena") if embodiment is None else embodiment
        if not self.embodiment.mjcf:
            raise SimulationError(
                f"Robot '{self.embodiment.name}' has no MJCF model and cannot be simulated; athena and athena_rail do."
            )
        self.model = _compile(self.embodiment)
        self.data = mujoco.MjData(self.model)
        model = self.model
        joints = [model.joint(name) for name in self.embodiment.joint_names]
        self.qpos_index = np.array([j.qposadr[0] for j in joints], dtype=np.intp)
        self.qvel_index = np.array([j.dofadr[0] for j in joints], dtype=np.intp)
        self.ctrl_index = np.array([model.actuator(n).id for n in self.embodiment.joint_names], dtype=np.intp)
        self.gantry_qpos = int(model.joint("gantry").qposadr[0])
        self.gantry_ctrl = int(model.actuator("gantry").id)
        self.soles = np.array([model.site(f"{s}_sole").id for s in ("left", "right")])
        self.hands = {s: int(model.geom(f"{s}_hand").id) for s in ("left", "right")}
        self.hand_sites = {s: int(model.site(f"{s}_hand").id) for s in ("left", "right")}
        self.elbow_sites = {s: int(model.site(f"{s}_elbow").id) for s in ("left", "right")}
        self.head_camera = int(model.camera("head").id)
        self.head_top = int(model.site("head_top").id)
        self.torso = int(model.body("torso").id)
        self.slots = np.array([model.body(f"object_{i}").id for i in range(OBJECTS_ON_TABLE)])
        self.slot_geoms = [
            {shape: int(model.geom(f"object_{i}_{shape}").id) for shape in SHAPES} for i in range(OBJECTS_ON_TABLE)
        ]
        self.object_geoms = np.array([g["cube"] for g in self.slot_geoms])
        self._camera_pos = model.cam_pos[self.head_camera].copy()
        self._camera_quat = model.cam_quat[self.head_camera].copy()
        self.set_pose(self.embodiment.default.copy())
        self.standing_height = float(self.data.qpos[self.gantry_qpos])  # [m], pelvis in the default pose
        self.rail = Rail(self.embodiment) if on_rail(self.embodiment) else None
        self.base_qpos, self.base_ctrl = (
            (int(model.joint("base_yaw").qposadr[0]), int(model.actuator("base_yaw").id)) if self.rail else (-1, -1)
        )
        self.scene: Scene | None = None

    def reset(self, scene: Scene) -> None:
        """Arrange the world for `scene`: objects, colours, camera, the robot standing still in its start pose."""
        self._dress(scene)
        mujoco.mj_resetData(self.model, self.data)
        start = self.embodiment.default + (np.asarray(scene.start) if scene.start else 0.0)
        self.set_pose(np.clip(start, self.embodiment.lower, self.embodiment.upper))
        for i, item in enumerate(scene.objects):
            address = int(self.model.joint(f"object_{i}_x").qposadr[0])
            self.data.qpos[address : address + 3] = (item.x, item.y, item.yaw)
        if self.rail is not None:
            self.rail.reset()
            height = self.rail.start
            self.data.qpos[self.gantry_qpos] = self.data.ctrl[self.gantry_ctrl] = height
        mujoco.mj_forward(self.model, self.data)
        self.scene = scene

    def set_pose(self, joints: NDArray[np.float64]) -> None:
        """Put the robot into a pose without physics, servos at rest there, its lower foot on the ground."""
        data = self.data
        data.qpos[self.qpos_index] = joints
        data.qpos[self.gantry_qpos] = SETTLED_HEIGHT
        data.qvel[:] = 0.0
        data.ctrl[self.ctrl_index] = joints
        mujoco.mj_kinematics(self.model, data)
        height = SETTLED_HEIGHT - float(data.site_xpos[self.soles, 2].min())
        data.qpos[self.gantry_qpos] = height
        data.ctrl[self.gantry_ctrl] = height
        mujoco.mj_forward(self.model, data)

    def step(self, command: NDArray[np.float64]) -> None:
        """Advance the physics by one time step towards a command [C]; without a rail the support follows the legs."""
        data = self.data
        data.ctrl[self.ctrl_index] = command[: len(self.ctrl_index)]
        if self.rail is None:
            # The support keeps the lower sole on the ground: it stands for the balance controller of a real robot.
            height = data.qpos[self.gantry_qpos] - float(data.site_xpos[self.soles, 2].min())
        else:
            height, data.ctrl[self.base_ctrl] = self.rail.step(command)
        data.ctrl[self.gantry_ctrl] = height
        mujoco.mj_step(self.model, data)

    @property
    def state(self) -> NDArray[np.float64]:
        """[S] what the robot measures: its joints [rad], and the height of its base on a rail [m]."""
        joints = self.joint_positions
        return joints if self.rail is None else np.append(joints, self.data.qpos[self.gantry_qpos])

    @property
    def heading(self) -> float:
        """Of the base, to the left of where it started. [rad]"""
        return float(self.data.qpos[self.base_qpos]) if self.rail is not None else 0.0

    @property
    def joint_positions(self) -> NDArray[np.float64]:
        return self.data.qpos[self.qpos_index].copy()  # [23] [rad]

    @property
    def joint_velocities(self) -> NDArray[np.float64]:
        return self.data.qvel[self.qvel_index].copy()  # [23] [rad/s]

    def _dress(self, scene: Scene) -> None:
        model, look = self.model, scene.appearance
        for i, item in enumerate(scene.objects):
            for shape, geom in self.slot_geoms[i].items():
                shown = shape == item.shape
                model.geom_group[geom] = 1 if shown else HIDDEN_GROUP
                model.geom_conaffinity[geom] = 1 if shown else 0
            geom = self.slot_geoms[i][item.shape]
            self.object_geoms[i] = geom
            half = np.array(_half_sizes(item.shape, item.size))
            model.geom_size[geom] = half
            # The bounds that culling and collision use must follow the size.
            box = np.array([half[0], half[0], half[1] if item.shape == "cylinder" else half[0]])
            model.geom_aabb[geom] = (0.0, 0.0, 0.0, *box)
            model.geom_rbound[geom] = half[0] if item.shape == "ball" else float(np.linalg.norm(box))
            model.geom_pos[geom, 2] = item.height / 2
            colour = np.array(COLOURS[item.colour]) + np.array(look.object_tints[i])
            model.geom_rgba[geom, :3] = np.clip(colour, 0.0, 1.0)
        model.geom_rgba[model.geom("table").id, :3] = look.table
        model.geom_rgba[model.geom("table_foot").id, :3] = np.array(look.table) * 0.6
        model.geom_rgba[model.geom("floor").id, :3] = look.floor
        model.cam_pos[self.head_camera] = self._camera_pos + np.array(look.camera_offset)
        tilt, quat = np.zeros(4), np.zeros(4)
        angle = float(np.linalg.norm(look.camera_tilt))
        axis = np.array(look.camera_tilt) / angle if angle > 0 else np.array([1.0, 0.0, 0.0])
        mujoco.mju_axisAngle2Quat(tilt, axis, angle)
        mujoco.mju_mulQuat(quat, tilt, self._camera_quat)
        model.cam_quat[self.head_camera] = quat


def _compile(embodiment: Embodiment) -> mujoco.MjModel:
    text = (resources.files("athena_vla") / "robots" / embodiment.mjcf).read_text()
    spec = mujoco.MjSpec.from_string(text)
    spec.option.timestep = 1.0 / embodiment.command_hz
    if on_rail(embodiment):
        hinge = mujoco.mjtJoint.mjJNT_HINGE
        spec.body("pelvis").add_joint(name="base_yaw", type=hinge, axis=[0, 0, 1], limited=0, armature=0.5)
        servo = spec.add_actuator(name="base_yaw", target="base_yaw", trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=8000.0, dampratio=1.0)
    world = spec.worldbody
    world.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[6, 6, 0.1],
        contype=0,
        conaffinity=0,
        group=FLOOR_GROUP,
    )
    middle = (TABLE_FRONT + _TABLE_SIZE[0], 0.0, TABLE_HEIGHT - _TABLE_SIZE[2])
    # A body for each: MuJoCo's ray culling works by body, and cuts pieces off a body of two distant boxes.
    world.add_body(name="table").add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_BOX, pos=middle, size=_TABLE_SIZE, contype=0, conaffinity=1
    )
    foot = (middle[2] - _TABLE_SIZE[2]) / 2
    world.add_body(name="table_foot").add_geom(
        name="table_foot",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[middle[0] + 0.1, 0.0, foot],
        size=[0.06, 0.30, foot],
        contype=0,
        conaffinity=0,
    )
    kinds = {
        "cube": mujoco.mjtGeom.mjGEOM_BOX,
        "ball": mujoco.mjtGeom.mjGEOM_SPHERE,
        "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    }
    for i in range(OBJECTS_ON_TABLE):
        body = world.add_body(name=f"object_{i}", pos=[0.0, 0.0, TABLE_HEIGHT])
        # An object slides and turns on the table top but never tips: three joints instead of six.
        slide, hinge = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE
        friction = _OBJECT_FRICTION
        for name, kind, axis, loss in (
            ("x", slide, [1, 0, 0], friction),
            ("y", slide, [0, 1, 0], friction),
            ("yaw", hinge, [0, 0, 1], friction * 0.02),
        ):
            body.add_joint(
                name=f"object_{i}_{name}",
                type=kind,
                axis=axis,
                frictionloss=loss,
                damping=[0.5 * loss, 0, 0],
                limited=0,
            )
        for shape, kind in kinds.items():
            body.add_geom(
                name=f"object_{i}_{shape}",
                type=kind,
                size=_half_sizes(shape, 1.0),
                pos=[0.0, 0.0, HEIGHTS[shape] / 2],
                mass=_OBJECT_MASS / len(kinds),
                contype=0,
                conaffinity=1,
                friction=[0.4, 0.005, 0.0001],
                group=1,
            )
    world.add_camera(
        name=THIRD_PERSON, pos=[1.95, -1.55, 1.55], xyaxes=[0.667, 0.745, 0.0, -0.201, 0.180, 0.963], fovy=41
    )
    return spec.compile()
