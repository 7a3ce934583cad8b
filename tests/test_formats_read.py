"""Readers on real recordings: what they are, their oddities, and that wrong metadata never wins over the files."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from athena_vla.errors import RecordingError
from athena_vla.recordings.formats import FORMATS, info_json, open_recording
from athena_vla.recordings.formats.common import natural_key
from athena_vla.recordings.info import InfoConfig, info
from recordings import clean, pictures, write

# path -> (format, version, action columns, fps, episodes, frames, cameras, tasks, successes)
KNOWN = {
    "gr1_pnp_v20": ("lerobot", "v2.0", 44, 20.0, 5, 2096, {"ego_view": (256, 256)}, 5, None),
    "gr1_native_v30": ("lerobot", "v3.0", 44, 20.0, 2, 886, {"ego_view": (256, 256)}, 2, None),
    "g1_inspire_v21": ("lerobot", "v2.1", 26, 30.0, 6, 1617, {"cam_high": (480, 640)}, 1, None),
    "g1_inspire_v30": ("lerobot", "v3.0", 26, 30.0, 6, 1617, {"cam_high": (480, 640)}, 1, None),
    "g1_locomanip_arena_v21_novideo": ("lerobot", "v2.1", 43, 50.0, 1, 852, {}, 1, None),
    "isaaclab_hdf5/franka_stack_mimic_annotated.hdf5": ("isaaclab_hdf5", "0", 7, 20.0, 10, 2163, {}, 0, 10),
    "isaaclab_hdf5/franka_stack_mimic_generated.hdf5": ("isaaclab_hdf5", "0", 7, 20.0, 10, 2328, {}, 0, 10),
    "isaaclab_hdf5/indy7_reach_recorded.hdf5": ("isaaclab_hdf5", "0", 6, 0.0, 50, 2325, {}, 0, 50),
    "isaaclab_arena_layout_camera/derived_gr1_camera.hdf5": (
        "isaaclab_hdf5", "0", 44, 20.0, 2, 60, {"robot_pov_cam": (160, 256)}, 0, 2),
    "rlds_bridge_octo_debug": (
        "rlds", "1.0.0", 7, 0.0, 25, 250, {f"image_{i}": (64, 64) for i in (1, 0, 2, 3)}, 4, None),
    "humanoid_amp_npz": ("motion_npz", "amp", 28, 60.0, 3, 1138, {}, 0, None),
    "athena_isaac_folder_gr1": ("isaac_folder", "trajectory", 23, 20.0, 2, 744, {"head": (256, 256)}, 2, 2),
    "athena_isaac_folder_g1_noimages": ("isaac_folder", "episode_data", 23, 50.0, 1, 852, {}, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("path", KNOWN)
def test_info_of_real_recordings(shared, path):
    info = open_recording(shared / "data" / path).info()
    found = (info.format, info.version, len(info.joint_names), info.fps, info.episodes, info.frames,
             dict(info.cameras), len(info.tasks), info.successes)  # fmt: skip
    assert found == KNOWN[path]
    raw = json.loads(json.dumps(info_json(info)))
    assert (raw["format"], raw["episodes"], raw["frames"]) == (info.format, info.episodes, info.frames)


@pytest.mark.parametrize("path", KNOWN)
def test_every_episode_reads_and_adds_up_to_the_info(shared, path):
    recording = open_recording(shared / "data" / path)
    episodes = [recording.read(i) for i in recording.ids()]
    assert sum(len(e) for e in episodes) == recording.info().frames
    assert all(np.isfinite(e.actions).all() and len(e.joint_names) == e.actions.shape[1] for e in episodes)


def test_the_golden_pair_v21_and_v30_is_number_and_pixel_identical(shared):
    old, new = (open_recording(shared / "data" / f"g1_inspire_{v}") for v in ("v21", "v30"))
    for index in old.ids():
        a, b = old.read(index), new.read(index)
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.states, b.states)
        assert a.instructions == b.instructions
        assert a.joint_names == b.joint_names
        for frame in (0, len(a) // 2, len(a) - 1):
            assert np.array_equal(a.cameras["cam_high"][frame], b.cameras["cam_high"][frame])


def test_random_access_to_video_equals_reading_in_order(shared):
    stream = open_recording(shared / "data/gr1_native_v30").read("1").cameras["ego_view"]
    ordered = [stream[i].copy() for i in range(40)]
    for i in (39, 3, 17, 16, 38, 0):
        assert np.array_equal(stream[i], ordered[i])


def test_gr00t_oddities_are_followed_and_named(shared):
    recording = open_recording(shared / "data/gr1_pnp_v20")
    episode = recording.read("1")
    assert episode.joint_names[0] == "left_arm_0"
    assert episode.instructions == ("pick the sweet potato from the counter and place it in the plate",)
    # Time stamps start at one frame period, so the last row has no image by time: as many images as rows, in order.
    assert [(n.code, n.items) for n in episode.notes] == [
        ("camera.missing", ("observation.images.egoview",)),
        ("camera.joined_by_rank", ("observation.images.ego_view",)),
    ]
    assert any("egoview" in n.text for n in recording.info().notes)


def test_isaac_positions_are_recognised_as_relative_or_absolute_and_the_default_pose_recovered(shared):
    path = shared / "data/isaaclab_hdf5/franka_stack_mimic_annotated.hdf5"
    episode = open_recording(path).read("demo_3")
    assert episode.origin.positions_relative is True
    with h5py.File(path) as file:
        demo = file["data/demo_3"]
        recovered = demo["obs/joint_pos"][:] + np.array(episode.origin.default_pose)
        assert np.allclose(recovered, episode.states, atol=1e-5)
    arena = open_recording(shared / "data/isaaclab_arena_layout_camera/derived_gr1_camera.hdf5").read("demo_0")
    assert arena.origin.positions_relative is False
    assert arena.origin.quaternion_order == "wxyz"


def isaac_file(path, demos=("demo_0", "demo_2", "demo_10"), version=None, **options):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        if version is not None:
            file.attrs["format_version"] = version
        data = file.create_group("data")
        data.attrs["total"] = options.get("total", 20 * len(demos))
        data.attrs["env_args"] = json.dumps({"env_name": "X", "sim_args": {"dt": 0.005, "decimation": 10}})
        for name in demos:
            demo = data.create_group(name)
            demo.attrs["num_samples"], demo.attrs["success"] = 20, name != "demo_2"
            demo["actions"] = rng.normal(size=(20, 3)).astype(np.float32)
            if options.get("concatenated"):
                demo["obs"] = rng.normal(size=(20, 9)).astype(np.float32)
            else:
                demo["obs/joint_pos"] = rng.normal(size=(20, 3)).astype(np.float32)
                demo["obs/table_cam"] = pictures(rng.normal(size=(20, 3)), 0)
                demo["obs/table_cam_segmentation"] = np.zeros((20, 48, 64, 4), np.uint8)
                demo["obs/wrist_cam"] = pictures(rng.normal(size=(20, 3)), 0).astype(np.float32) / 255 - 0.3
    return path


def test_isaac_files_with_gaps_wrong_total_failures_cameras_and_version_1(tmp_path):
    recording = open_recording(isaac_file(tmp_path / "a_failed.hdf5", version=1, total=999))
    info = recording.info()
    assert recording.ids() == ("demo_0", "demo_2", "demo_10")
    assert (info.version, info.episodes, info.frames, info.fps, info.successes) == ("1", 3, 60, 20.0, 2)
    assert set(info.cameras) == {"table_cam", "wrist_cam"}
    assert any("999" in n.text for n in info.notes)
    assert any("gaps" in n.text for n in info.notes)
    episode = recording.read("demo_2")
    assert episode.success is False
    assert episode.origin.quaternion_order == "xyzw"
    assert episode.cameras["wrist_cam"][0].dtype == np.uint8


def test_isaac_concatenated_observations_and_zero_demos(tmp_path):
    episode = open_recording(isaac_file(tmp_path / "a.hdf5", concatenated=True)).read("demo_0")
    assert episode.states.shape == (20, 0)
    info = open_recording(isaac_file(tmp_path / "b.hdf5", demos=())).info()
    assert (info.episodes, info.frames) == (0, 0)


def test_robomimic_states_masks_and_joint_positions(tmp_path):
    with h5py.File(tmp_path / "r.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((9, 7))
        file["data/demo_0/states"] = np.zeros((9, 32))
        file["data/demo_0/dones"] = np.zeros(9)
        file["data/demo_0/obs/robot0_joint_pos"] = np.ones((9, 7))
        file["mask/train"] = np.array([b"demo_0", b"demo_7"])
    recording = open_recording(tmp_path / "r.hdf5")
    info = recording.info()
    assert (info.format, info.episodes, info.frames, len(info.state_names)) == ("robomimic_hdf5", 1, 9, 7)
    assert any("'demo_7'" in n.text for n in info.notes)
    for number, mask in enumerate((h5py.Empty("S8"), np.zeros((2, 2)), 3)):
        copy = tmp_path / f"{number}.hdf5"
        copy.write_bytes((tmp_path / "r.hdf5").read_bytes())
        with h5py.File(copy, "a") as file:
            file["mask/valid"] = mask
        with pytest.raises(RecordingError, match="'valid'.*no list of demos"):
            open_recording(copy).info()


def test_replicator_trees_numeric_order_alpha_sequences_and_several_products(tmp_path):
    from PIL import Image

    def picture(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10, 4), value, np.uint8)).save(path)

    for frame in (0, 9999, 10000):
        picture(tmp_path / f"a/cam1/rgb/rgb_{frame:04d}.png", frame % 250)
    picture(tmp_path / "a/cam1/rgb/semantic_segmentation_0000.png", 9)
    recording = open_recording(tmp_path / "a")
    assert (recording.info().frames, recording.info().cameras) == (3, {"cam1": (8, 10)})
    stream = recording.read("sequence_0").cameras["cam1"]
    assert stream[10000].shape == (8, 10, 3)
    assert stream[10000][0, 0, 0] == 0
    with pytest.raises(RecordingError, match="missing"):
        stream[1]
    for sequence in (1, 2):
        for frame in range(3):
            picture(tmp_path / f"b/rgb_{sequence}_{frame:04d}.png", 1)
    assert open_recording(tmp_path / "b").ids() == ("sequence_1", "sequence_2")


def test_xr_teleoperate_episodes_steps_and_lost_pictures(tmp_path):
    from PIL import Image

    folder = tmp_path / "task/episode_0001"
    (folder / "colors").mkdir(parents=True)
    rows = []
    for i in range(10):
        name = f"colors/{i:06d}_color_0.jpg"
        if i != 4:
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
        arms = {side: {"qpos": [0.1 * i] * 2, "qvel": [], "torque": []} for side in ("left_arm", "right_arm")}
        rows.append({"idx": i, "colors": {"color_0": name}, "states": arms, "actions": arms})
    raw = {"info": {"version": "1.0", "image": {"fps": 30}, "joint_names": {"left_arm": ["kLeftA", "kLeftWristyaw"]}},
           "text": {"goal": "stack the cups", "steps": "step1: reach; step2: grasp"}, "data": rows}  # fmt: skip
    (folder / "data.json").write_text(json.dumps(raw))
    recording = open_recording(tmp_path / "task")
    info = recording.info()
    assert (info.format, info.fps, info.frames, info.tasks) == ("xr_teleoperate", 30.0, 10, ("stack the cups",))
    assert any("lacks 1 of 10" in n.text for n in info.notes)
    episode = recording.read("episode_0001")
    assert episode.joint_names == ("kLeftA", "kLeftWristyaw", "right_arm_0", "right_arm_1")
    assert [s.text for s in episode.segments] == ["reach", "grasp"]
    assert episode.segments[0].confidence < 0.5
    episode.cameras["color_0"][5]
    with pytest.raises(RecordingError, match="Frame 4 is missing"):
        episode.cameras["color_0"][4]


def test_pickled_mobilitygen_is_refused_with_the_reason_and_its_npz_form_is_read(tmp_path):
    common = tmp_path / "m/state/common"
    common.mkdir(parents=True)
    (common / "00000000.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(RecordingError, match="pickled"):
        open_recording(tmp_path / "m")
    (common / "00000000.npy").unlink()
    for i in range(4):
        np.savez(common / f"{i:08d}.npz", joint_positions=np.full(5, float(i)))
    assert open_recording(tmp_path / "m").info().frames == 4


def test_wrong_counts_lost_files_and_extra_files_in_a_lerobot_set(shared, tmp_path):
    shutil.copytree(shared / "data/g1_inspire_v21", tmp_path / "set")
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    info["total_frames"], info["unknown"] = 5, {"a": 1}
    (tmp_path / "set/meta/info.json").write_text(json.dumps(info))
    (tmp_path / "set/data/chunk-000/episode_000002.parquet").unlink()
    found = open_recording(tmp_path / "set").info()
    assert (found.episodes, found.frames) == (5, 1617 - 221)
    assert sum("declares" in n.text or "no data file" in n.text for n in found.notes) >= 3


@pytest.mark.parametrize(
    "template", ["../../{episode_index}", "data/{episode_index.__class__}", "data/{nothing:03d}", 7]
)
def test_path_templates_cannot_leave_the_set_or_reach_into_objects(shared, tmp_path, template):
    shutil.copytree(shared / "data/g1_locomanip_arena_v21_novideo", tmp_path / "set")
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    info["data_path"] = template
    (tmp_path / "set/meta/info.json").write_text(json.dumps(info))
    recording = open_recording(tmp_path / "set")
    if template in ("data/{episode_index.__class__}", "data/{nothing:03d}"):  # the file is found by its number
        assert len(recording.read("0")) > 0
        return
    with pytest.raises(RecordingError):
        recording.read("0")


def test_what_is_no_recording_is_a_sentence(shared, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path / "empty", "empty folder"),
        (tmp_path / "nowhere", "nothing at"),
        (shared / "data/robot_g1_23dof", "none of the formats"),
        (shared / "data/isaaclab_hdf5", "name one of them"),
    ):
        with pytest.raises(RecordingError, match=said):
            open_recording(path)


def test_the_users_folder_round_trips_with_names_rate_and_pictures(tmp_path):
    episode = clean(3)
    recording = open_recording(write(tmp_path / "in", episode))
    again = recording.read(episode.id)
    for name in ("actions", "states", "timestamps"):
        assert getattr(again, name).tobytes() == getattr(episode, name).tobytes()
    assert (again.fps, again.joint_names, again.success) == (episode.fps, episode.joint_names, episode.success)
    assert again.origin.kind == "touch"
    assert all(np.array_equal(again.cameras["front"][i], episode.cameras["front"][i]) for i in (0, 31, 59))
    with pytest.raises(RecordingError, match="never overwritten"):
        write(tmp_path / "in", episode)


def test_numbers_in_names_sort_as_numbers():
    names = ["demo_10", "demo_2", "rgb_10000.png", "rgb_9999.png", "demo_1"]
    assert sorted(names, key=natural_key) == ["demo_1", "demo_2", "demo_10", "rgb_9999.png", "rgb_10000.png"]


def test_every_format_of_the_table_can_be_imported():
    from athena_vla.recordings.formats import format_module

    assert all(hasattr(format_module(n), "detect") and hasattr(format_module(n), "open_path") for n in FORMATS)


def test_a_folder_with_one_hdf5_file_is_that_file_and_several_are_asked_about(shared, tmp_path):
    import shutil

    source = shared / "data/isaaclab_hdf5/indy7_reach_recorded.hdf5"
    shutil.copy(source, tmp_path / "dataset.hdf5")
    (tmp_path / "README.md").write_text("a download")
    assert open_recording(tmp_path).info() == open_recording(source).info()
    shutil.copy(source, tmp_path / "more.hdf5")
    with pytest.raises(RecordingError, match="name one of them"):
        open_recording(tmp_path)


def test_unnamed_joints_are_asked_for_and_the_known_robots_offered(tmp_path, athena):
    with h5py.File(isaac_file(tmp_path / "a.hdf5"), "a") as file:
        for demo in file["data"].values():
            del demo["actions"]
            demo["actions"] = np.zeros((20, 23), np.float32)
    notes = " ".join(n.text for n in open_recording(tmp_path / "a.hdf5").info().notes)
    assert "--joints FILE, or a known robot with 23 joints: --joints athena, --joints unitree_g1_23dof" in notes
    found = info(InfoConfig(input=tmp_path / "a.hdf5", joints=Path("athena"))).info
    assert found.joint_names == athena.joint_names
    assert "no names" not in " ".join(n.text for n in found.notes)
    with pytest.raises(RecordingError, match="There is no joint list 'atena'.*athena, .*toy"):
        info(InfoConfig(input=tmp_path / "a.hdf5", joints=Path("atena")))
    with pytest.raises(RecordingError, match="23 action columns, but --joints names 3"):
        open_recording(tmp_path / "a.hdf5", joints=("a", "b", "c")).read("demo_0")
