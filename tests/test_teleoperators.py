"""Who can take over in `athena drive`: keys, a script, topics, devices; and what such a run becomes as data."""

import os
import pty
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from athena_vla.control.teleoperator import Source, Wish
from athena_vla.drive.driving import DriveConfig, DriveResult, drive
from athena_vla.drive.keeping import require_room, verdict
from athena_vla.drive.keyboard import Keyboard
from athena_vla.drive.polled import Polled
from athena_vla.drive.teleoperators import known_teleoperators, open_teleoperator
from athena_vla.embodiment import Array, Embodiment
from athena_vla.errors import AthenaError, InvalidObservation, SafetyError, UnknownName
from athena_vla.incident import IncidentConfig, incident
from athena_vla.recordings.formats import open_recording
from test_drive import ADAPTER
from test_ros2 import Fields, graph  # noqa: F401
from test_runtime import Puppet

LEADER = """
import numpy as np
from athena_vla.control.teleoperator import Wish

class Leader:
    source = "human"
    def __init__(self, robot, begin="1", end="2", wish="0.1"):
        self.robot, self.begin, self.end, self.wish = robot, float(begin), float(end), float(wish)
    def read(self, command, time):
        return Wish(self.begin <= time < self.end, self.robot.embodiment.default + self.wish)

def half(robot):
    return object()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_teleop_arm.py").write_text(ADAPTER)
    (tmp_path / "my_leader_arm.py").write_text(LEADER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def pose_of(wish: Wish) -> Array:
    assert wish.positions is not None
    return wish.positions


def driven(folder: Path, **changes: Any) -> DriveResult:
    settings: dict[str, Any] = {
        "robot": "my_teleop_arm:Arm",
        "duration": 4.0,
        "real_time": False,
        "black_box": folder / "box",
        "black_box_mb": 4,
    }
    return drive(DriveConfig(**settings | changes))


def test_a_leader_arm_in_a_file_takes_over_and_the_run_becomes_an_episode(here: Path) -> None:
    result = driven(here, teleop="my_leader_arm:Leader", record=here / "recording", success="yes")
    assert set(result.commanded_by) == {"policy", "human"}
    assert result.success is True
    episode = open_recording(here / "recording").read("episode_0000")
    sources = episode.marks.source_of_frames(len(episode))
    assert sources[:10] == ["policy"] * 10  # 1 s at 10 Hz
    assert sources[10:20] == ["human"] * 10
    assert sources[-1] == "policy"
    np.testing.assert_array_equal(episode.marks.has("correction", len(episode)), [s == "human" for s in sources])
    assert episode.success is True
    np.testing.assert_allclose(episode.actions[19], 0.1, atol=0.01)
    again = driven(here, teleop="my_leader_arm:Leader", record=here / "recording", success="no")
    assert again.episode.endswith("episode_0001")
    assert open_recording(here / "recording").read("episode_0001").success is False
    said = str(again)
    assert "by the human" in said
    assert "(failure)" in said
    incident(IncidentConfig(box=here / "box" / "toy", out=here / "incident"))
    name = next((here / "incident" / "episode").iterdir()).name
    kept = open_recording(here / "incident" / "episode").read(name)
    assert kept.success is False
    assert "human" in kept.marks.source_of_frames(len(kept))


def test_the_script_corrects_a_policy_that_stands_still_and_the_set_knows_it(tmp_path: Path) -> None:
    """From drive to a built dataset, and to the weights that training gives its steps."""
    from athena_vla.dataset.build import BuildConfig, build
    from athena_vla.dataset.dataset import Dataset
    from athena_vla.finetune.mark_weights import MarkWeights

    for seed in (0, 3):  # point, touch: with legs held, tasks of the legs cannot succeed
        result = driven(
            tmp_path,
            robot="sim",
            option=(f"seed={seed}", "size=48", "renderer=rays"),
            duration=6.0,
            teleop="script",
            teleop_option=("after=0.5",),
            record=tmp_path / "recording",
        )
        assert set(result.commanded_by) == {"policy", "script"}
        assert result.success is True  # the policy alone never moves: the simulator judged the script's motion
    build(BuildConfig(input=tmp_path / "recording", out=tmp_path / "set", robot="athena", image_size=(48, 48)))
    dataset = Dataset.open(tmp_path / "set")
    weights = MarkWeights.parse(["correction=3"]).frames(dataset)
    for episode, marks in zip(dataset.episodes, dataset.marks, strict=True):
        sources = marks.source_of_frames(int(episode["length"]))
        assert marks.success is True
        assert sources[0] == "policy"
        assert "script" in sources
    expected = [3.0 if s == "script" else 1.0 for e, m in zip(dataset.episodes, dataset.marks, strict=True)
                for s in m.source_of_frames(int(e["length"]))]  # fmt: skip
    np.testing.assert_array_equal(weights, expected)


def test_without_a_take_over_the_same_run_fails(tmp_path: Path) -> None:
    """The counterpart: what succeeded above did so because of the script."""
    option = ("seed=3", "size=48", "renderer=rays")
    result = driven(tmp_path, robot="sim", option=option, duration=6.0, record=tmp_path / "recording")
    assert result.success is False
    assert set(result.commanded_by) == {"policy"}


def test_what_cannot_be_is_a_sentence_before_anything_moves(here: Path, toy: Embodiment) -> None:
    assert {"keyboard", "ros2", "script"} <= set(known_teleoperators())
    with pytest.raises(UnknownName, match="keyboard"):
        driven(here, teleop="joystick")
    with pytest.raises(SafetyError, match="does not take --teleop-option port=1"):
        driven(here, teleop="my_leader_arm:Leader", teleop_option=("port=1",))
    with pytest.raises(SafetyError, match="lacks source, read"):
        driven(here, teleop="my_leader_arm:half")
    with pytest.raises(SafetyError, match="there is none"):
        driven(here, teleop="keyboard")
    with pytest.raises(SafetyError, match="--robot sim"):
        driven(here, teleop="script")
    with pytest.raises(AthenaError, match="rclpy"):
        driven(here, teleop="ros2")
    with pytest.raises(SafetyError, match="nobody can take over"):
        DriveConfig(shadow=True, teleop="keyboard")
    with pytest.raises(SafetyError, match="--teleop-option takes NAME=VALUE"):
        DriveConfig(teleop="keyboard", teleop_option=("step",))
    with pytest.raises(SafetyError, match="name who"):
        DriveConfig(teleop_option=("step=1",))
    with pytest.raises(SafetyError, match="GB"):
        require_room(toy, 1e6, here)
    (here / "file").write_text("")
    with pytest.raises(SafetyError, match="is a file"):
        require_room(toy, 1.0, here / "file")


def test_a_leader_that_dies_is_a_sentence_and_the_run_is_kept(here: Path) -> None:
    result = driven(here, teleop="my_leader_arm:Leader", teleop_option=("wish=nan",), record=here / "recording")
    assert any("wishes no number for base" in e for e in result.events)
    assert result.success is None  # nobody to ask
    assert len(open_recording(here / "recording").read("episode_0000")) == 40


def test_a_run_that_ends_in_an_exception_is_kept_too(here: Path) -> None:
    (here / "my_broken_arm.py").write_text(
        ADAPTER + "\n    def __init_subclass__(cls): pass\n"
        "class Breaks(Arm):\n"
        "    def command(self, positions):\n"
        "        if self.ticks > 150: raise OSError('bus off')\n"
        "        super().command(positions)\n"
    )
    with pytest.raises(SafetyError, match="bus off"):
        driven(here, robot="my_broken_arm:Breaks", record=here / "recording")
    assert len(open_recording(here / "recording").read("episode_0000")) >= 14


def test_keys_jog_one_joint_at_a_time(toy: Embodiment) -> None:
    keyboard = Keyboard(Puppet(toy), step="0.1")
    here = toy.default.copy()
    assert not keyboard.read(here, 0.0).engaged
    assert keyboard.press("+") == ""  # nobody has taken over
    assert "take over" in keyboard.press("t")
    np.testing.assert_array_equal(pose_of(keyboard.read(here, 0.0)), here)
    for key in ("+", "+", "]", "-", "x"):
        keyboard.press(key)
    wished = pose_of(keyboard.read(here + 9.0, 0.1))  # goes on from its own pose, not from where the robot lags
    np.testing.assert_allclose(wished, here + np.array([0.2, -0.1, 0.0]))
    for _ in range(100):
        keyboard.press("-")
    assert pose_of(keyboard.read(here, 0.2))[1] == toy.lower[1]
    assert keyboard.press("t") == "hand back"
    assert not keyboard.read(here, 0.3).engaged
    with pytest.raises(SafetyError, match="at most 0.5"):
        Keyboard(Puppet(toy), step="7")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_in_a_terminal_the_keys_take_over_and_the_verdict_is_asked(here: Path) -> None:
    """The whole command as a person uses it: t, jog, t, q, y."""
    master, slave = pty.openpty()
    command = [
        sys.executable, "-m", "athena_vla.cli", "drive", "--robot", "my_teleop_arm:Wall", "--teleop", "keyboard",
        "--teleop-option", "step=0.2", "--record", "recording", "--black-box", "box", "--black-box-mb", "4",
        "--duration", "60",
    ]  # fmt: skip
    (here / "my_teleop_arm.py").write_text(
        ADAPTER + "\nimport time\nclass Wall(Arm):\n    @property\n    def time(self):\n"
        "        return time.monotonic()\n"
    )
    process = subprocess.Popen(
        command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=here, text=True
    )
    os.close(slave)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "take over" in line:
                break
        for key in ("", "t", "+", "t", "q"):
            time.sleep(1.0)
            os.write(master, key.encode())
        time.sleep(2.0)
        os.write(master, b"y\n")
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        os.close(master)
    assert process.returncode == 0, said
    assert "human: took over" in said
    assert "(success)" in said
    episode = open_recording(here / "recording").read("episode_0000")
    assert episode.success is True
    human = [s == "human" for s in episode.marks.source_of_frames(len(episode))]
    assert episode.actions[human].max() == pytest.approx(0.2, abs=0.02)


class Device:
    source: Source = "human"

    def __init__(self) -> None:
        self.hangs, self.problem = 0.0, ""

    def read(self, command: Array, time_: float, /) -> Wish:
        if self.problem:
            raise OSError(self.problem)
        time.sleep(self.hangs)
        return Wish(True, command + 0.1)


def test_a_device_that_hangs_grows_old_and_holds_nobody_up() -> None:
    device = Device()
    with Polled(device, 0.01) as polled:
        polled.read(np.zeros(3), 0.0)
        time.sleep(0.1)
        wish = polled.read(np.zeros(3), 0.1)
        assert wish.engaged
        assert wish.age < 0.1
        np.testing.assert_array_equal(pose_of(wish), np.full(3, 0.1))
        device.hangs = 1.0
        time.sleep(0.05)
        polled.read(np.zeros(3), 0.2)
        time.sleep(0.5)
        began = time.perf_counter()
        assert polled.read(np.zeros(3), 0.3).age > 0.35
        assert time.perf_counter() - began < 0.05
        device.hangs, device.problem = 0.0, "unplugged"
        time.sleep(1.0)  # until the call that hung is over, and the next one failed
        with pytest.raises(OSError, match="unplugged"):
            polled.read(np.zeros(3), 0.5)


def test_in_real_time_a_device_is_read_in_a_thread(here: Path, toy: Embodiment) -> None:
    with ExitStack() as stack:
        made = open_teleoperator("my_leader_arm:Leader", {}, Puppet(toy), stack, real_time=True)
        assert isinstance(made, Polled)


@pytest.mark.parametrize(
    ("answers", "expected"), [(["y"], True), (["perhaps", "n"], False), ([""], None), ([EOFError], None)]
)
def test_a_person_is_asked_at_the_terminal(answers: list[Any], expected: bool | None, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    given = iter(answers)

    def ask(question: str) -> str:
        answer = next(given)
        if answer is EOFError:
            raise EOFError
        return answer

    assert verdict(object(), "ask", ask)[0] is expected
    assert verdict(object(), "no", ask)[0] is False
    assert verdict(object(), "unmarked", ask)[0] is None


@pytest.mark.parametrize("kind", ["JointTrajectory", "JointState"])
def test_topics_say_what_is_wished(toy: Embodiment, graph: SimpleNamespace, kind: str, monkeypatch) -> None:  # noqa: F811
    """The adapter's own code against stand-ins; a live ROS graph was never there."""
    from athena_vla.ros2.messages import JointMap
    from athena_vla.ros2.rclpy_graph import RclpyGraph
    from athena_vla.ros2.topic_teleoperator import TopicTeleoperator

    monkeypatch.setitem(sys.modules, "std_msgs.msg", Fields(Bool=Fields))
    made = TopicTeleoperator(RclpyGraph(graph.node), JointMap(toy, {"base": "j0"}), "/wish", "/switch", kind)
    on_pose, on_switch = graph.subscribed["/wish"][0], graph.subscribed["/switch"][0]

    def pose(names: list[str], positions: list[float]) -> Any:
        if kind == "JointState":
            return Fields(name=names, position=positions)
        return Fields(joint_names=names, points=[Fields(positions=[9.0] * len(names)), Fields(positions=positions)])

    command = np.array([0.1, 0.2, 0.3])
    on_pose(pose(["j0", "elsewhere"], [0.5, 7.0]))
    assert not made.read(command, 0.0).engaged
    on_switch(Fields(data=True))
    wish = made.read(command, 0.0)
    np.testing.assert_array_equal(pose_of(wish), [0.5, 0.2, 0.3])
    assert wish.age < 1.0
    on_pose(pose(["finger"], [float("nan")]))
    with pytest.raises(InvalidObservation, match="not numbers"):
        made.read(command, 0.1)
    on_pose(pose(["thumb"], [0.0]))
    with pytest.raises(InvalidObservation, match="no joint of 'toy'"):
        made.read(command, 0.1)
    on_pose(pose(["finger"], [0.0, 1.0]))
    with pytest.raises(InvalidObservation, match="cannot be read"):
        made.read(command, 0.1)
    on_pose(pose(["finger"], [0.4]))
    np.testing.assert_array_equal(pose_of(made.read(command, 0.2)), [0.5, 0.2, 0.4])
    on_switch(Fields(data=False))
    assert not made.read(command, 0.3).engaged
    with pytest.raises(UnknownName, match="JointState"):
        TopicTeleoperator(RclpyGraph(graph.node), JointMap(toy), "/wish", "/switch", "Twist")
