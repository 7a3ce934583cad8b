"""Isaac Lab's raw actions become joint targets by what its env.yaml says. Oracle: the same arithmetic by hand."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import RecordingError
from athena_vla.recordings.action_terms import read_terms
from athena_vla.recordings.info import InfoConfig, info
from athena_vla.recordings.reading import Reading

pytest.importorskip("yaml")

STEPS = 40
JOINTS = ("base", "shoulder", "finger")  # in the simulator's order
TERM = """    class_type: isaaclab.envs.mdp.actions.joint_actions:JointPositionAction
    asset_name: robot
    joint_names:
    - .*
    scale: 0.5
    offset: 0.0
    preserve_order: false
    use_default_offset: true
    clip: null
"""


def config(path: Path, actions: str = "  joint_pos:\n" + TERM) -> Path:
    """As Isaac Lab dumps a configuration: tuples, slices and classes as tagged Python objects."""
    path.write_text(
        "viewer:\n  eye: !!python/tuple\n  - 7.5\n  - 7.5\n"
        "sim:\n  dt: 0.005\n  device: cuda:0\n  render: !!python/object:isaaclab.sim.RenderCfg {}\n"
        "decimation: 10\n"
        "scene:\n  num_envs: 1\n  robot:\n    init_state:\n      pos: !!python/tuple [0.0, 0.0, 0.74]\n"
        "      joint_pos:\n        base: 0.3\n        sh.*: -0.2\n    ids: !!python/object/apply:builtins.slice\n"
        "    - null\n    - null\n    - null\n"
        f"actions:\n{actions}"
    )
    return path


def recording(path: Path, raw: np.ndarray, **more: np.ndarray) -> np.ndarray:
    """States of a slow swing; returns them as seen before each action."""
    t = np.arange(STEPS + 1)[:, None] / 20
    walk = (0.2 * np.sin(2 * np.pi * np.array([0.2, 0.3, 0.4]) * t) + np.array([0.3, -0.2, 0.1])).astype(np.float32)
    with h5py.File(path, "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = raw.astype(np.float32)
        demo["states/articulation/robot/joint_position"] = walk[1:]
        demo["initial_state/articulation/robot/joint_position"] = walk[:1]
        for key, value in more.items():
            demo[key] = value
    return walk


def read(folder: Path, actions: str = "  joint_pos:\n" + TERM, *, named: bool = True, **options: object):
    names = folder / "names.txt"
    names.write_text("\n".join(JOINTS))
    reading = Reading(
        env_config=config(folder / "env.yaml", actions),
        state_joints=names if named else None,
        **options,  # pyright: ignore[reportArgumentType]
    )
    return reading.open(folder / "a.hdf5").read("demo_0")


@pytest.fixture
def raw() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(STEPS, 3))


def test_scale_and_default_pose_make_targets(tmp_path: Path, raw: np.ndarray) -> None:
    recording(tmp_path / "a.hdf5", raw)
    episode = read(tmp_path)
    assert episode.joint_names == JOINTS
    expected = np.float32(raw).astype(float) * 0.5 + np.array([0.3, -0.2, 0.0])
    np.testing.assert_allclose(episode.actions, expected, atol=1e-12)
    assert episode.fps == 20.0
    assert not [n for n in episode.notes if n.code in ("column.unnamed", "joint.unmatched")]


def test_scales_by_pattern_an_offset_and_an_order_of_their_own(tmp_path: Path, raw: np.ndarray) -> None:
    recording(tmp_path / "a.hdf5", raw)
    term = TERM.replace("    - .*\n", "    - finger\n    - shoulder\n    - base\n")
    term = term.replace("scale: 0.5", "scale:\n      finger: 2.0\n      .*o.*: 0.1").replace(
        "offset: 0.0", "offset: 0.05"
    )
    term = term.replace("preserve_order: false", "preserve_order: true").replace(
        "use_default_offset: true", "use_default_offset: false"
    )
    episode = read(tmp_path, "  joint_pos:\n" + term)
    assert episode.joint_names == ("finger", "shoulder", "base")
    expected = np.float32(raw).astype(float) * np.array([2.0, 0.1, 1.0]) + 0.05
    np.testing.assert_allclose(episode.actions, expected, atol=1e-12)


def test_two_terms_and_a_gripper_of_two_positions(tmp_path: Path) -> None:
    raw = np.random.default_rng(1).normal(size=(STEPS, 3))
    recording(tmp_path / "a.hdf5", raw)
    arm = TERM.replace("    - .*\n", "    - base\n    - shoulder\n")
    gripper = (
        "    class_type: isaaclab.envs.mdp.actions.binary_joint_actions:BinaryJointPositionAction\n"
        "    asset_name: robot\n    joint_names:\n    - finger\n"
        "    open_command_expr:\n      finger: 0.7\n    close_command_expr:\n      finger: 0.1\n"
    )
    episode = read(tmp_path, "  arm:\n" + arm + "  gripper:\n" + gripper)
    assert episode.joint_names == ("base", "shoulder", "finger")
    np.testing.assert_allclose(episode.actions[:, 2], np.where(raw[:, 2] < 0, 0.1, 0.7))
    np.testing.assert_allclose(episode.actions[:, 1], np.float32(raw[:, 1]).astype(float) * 0.5 - 0.2)


def test_relative_actions_start_from_the_joints(tmp_path: Path, raw: np.ndarray) -> None:
    walk = recording(tmp_path / "a.hdf5", raw)
    episode = read(tmp_path, "  joint_pos:\n" + TERM.replace("JointPositionAction", "RelativeJointPositionAction"))
    np.testing.assert_allclose(episode.actions, walk[:-1] + np.float32(raw) * np.float32(0.5), atol=1e-6)


def test_processed_actions_are_targets_already(tmp_path: Path, raw: np.ndarray) -> None:
    done = raw * 0.1
    recording(tmp_path / "a.hdf5", raw, processed_actions=done)
    episode = read(tmp_path)
    assert episode.joint_names == JOINTS
    np.testing.assert_array_equal(episode.actions, done)


def test_actions_of_another_kind_take_the_next_joint_positions(tmp_path: Path) -> None:
    """A relative pose of the hand: six numbers and a gripper, from which no joint target follows."""
    walk = recording(tmp_path / "a.hdf5", np.zeros((STEPS, 7)))
    ik = "  arm:\n    class_type: isaaclab.envs.mdp.actions.task_space_actions:DifferentialInverseKinematicsAction\n"
    with pytest.raises(RecordingError, match=r"arm \(DifferentialInverseKinematicsAction\).*--targets next-state"):
        read(tmp_path, ik + "    joint_names:\n    - .*\n")
    episode = read(tmp_path, ik + "    joint_names:\n    - .*\n", targets="next-state")
    assert episode.joint_names == JOINTS
    np.testing.assert_array_equal(episode.actions[:-1], walk[1:-1])
    assert episode.streams["actions"].values.shape == (STEPS, 7)
    assert episode.fps == 20.0


def test_a_set_is_built_from_raw_actions(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).normal(0, 0.2, (STEPS, 3))
    images = np.random.default_rng(2).integers(0, 255, (STEPS, 32, 32, 3)).astype(np.uint8)
    recording(tmp_path / "a.hdf5", raw, **{"obs/front": images})
    (tmp_path / "names.txt").write_text("\n".join(JOINTS))
    build(
        BuildConfig(
            input=tmp_path / "a.hdf5", out=tmp_path / "set", robot="toy", workers=1, horizon=4, validation=0.0,
            env_config=config(tmp_path / "env.yaml"), state_joints=tmp_path / "names.txt", instruction="swing",
            allow=("action.unrelated",), normalization="minmax",
        )
    )  # fmt: skip
    dataset = Dataset.open(tmp_path / "set")
    expected = raw * 0.5 + np.array([0.3, -0.2, 0.0])
    assert np.abs(dataset[3].chunk[0] - expected[7]).max() < 1e-6  # 20 Hz recorded, 10 Hz driven


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("- .*", "- .*"), "columns"),
        (("- .*", "- wrist"), "wrist"),
        (("- .*", '- "("'), "no pattern"),
        (("scale: 0.5", "scale: large"), "neither a number"),
        (("asset_name: robot", "asset_name: arm"), "no default pose of 'arm'"),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    width = 4 if said == "columns" else 3
    recording(tmp_path / "a.hdf5", np.zeros((STEPS, width)))
    with pytest.raises(RecordingError, match=said):
        read(tmp_path, "  joint_pos:\n" + TERM.replace(*change))


def test_patterns_without_the_robots_joints_are_asked_for(tmp_path: Path, raw: np.ndarray) -> None:
    recording(tmp_path / "a.hdf5", raw)
    with pytest.raises(RecordingError, match="--state-joints"):
        read(tmp_path, named=False)


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    path = config(tmp_path / "env.yaml")
    path.write_text(path.read_text() + f"evil: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    read_terms(path)
    assert not (tmp_path / "made").exists()
    for text, said in (("a: [", "no YAML"), ("- 1", "no configuration"), ("a: 1", "no actions and scene")):
        path.write_text(text)
        with pytest.raises(RecordingError, match=said):
            read_terms(path)
    with pytest.raises(RecordingError, match="no file"):
        read_terms(tmp_path / "nowhere.yaml")


def test_info_shows_the_names(tmp_path: Path, raw: np.ndarray) -> None:
    recording(tmp_path / "a.hdf5", raw)
    (tmp_path / "names.txt").write_text("\n".join(JOINTS))
    found = info(
        InfoConfig(
            input=tmp_path / "a.hdf5", env_config=config(tmp_path / "env.yaml"), state_joints=tmp_path / "names.txt"
        )
    ).info
    assert (found.joint_names, found.fps) == (JOINTS, 20.0)
