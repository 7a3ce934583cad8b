"""The command that drives a robot, and the one that says what happened: adapters, stops from outside, a page."""

import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from athena_vla.control.black_box import BlackBox
from athena_vla.control.runtime import Runtime, RuntimeConfig
from athena_vla.control.safety import SafetyFilter
from athena_vla.control.shadow import ShadowReport
from athena_vla.control.trace import Trace
from athena_vla.drive.adapters import known_adapters, open_robot
from athena_vla.drive.driving import DriveConfig, drive, only_owner
from athena_vla.drive.hands import remote
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import RecordingError, SafetyError, UnknownName
from athena_vla.incident import IncidentConfig, incident
from athena_vla.recordings.formats import open_recording
from test_runtime import Puppet, Wave

ADAPTER = """
import numpy as np
from athena_vla.embodiment import Observation, load

class Arm:
    def __init__(self, port="none"):
        self.embodiment, self.port, self.ticks = load("toy"), port, 0
        self.q = self.embodiment.default.copy()
    @property
    def time(self):
        return self.ticks / self.embodiment.command_hz
    def observe(self):
        return Observation({"front": np.zeros((48, 64, 3), np.uint8)}, self.q.copy(), "wave", self.time)
    def command(self, positions):
        self.q, self.ticks = positions.copy(), self.ticks + 1

def half():
    return object()
"""


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_arm_adapter.py").write_text(ADAPTER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_arm_adapter:Arm"


def test_a_class_in_a_file_is_a_robot(adapter: str, tmp_path: Path) -> None:
    config = DriveConfig(
        robot=adapter, option=("port=/dev/x",), duration=1.0, real_time=False, black_box=tmp_path / "b", black_box_mb=2
    )
    result = drive(config)
    assert result.commands == 100
    assert result.ended_by == "duration"
    assert not result.errors
    assert result.policies == ("hold",)
    assert open_robot(adapter, {"port": "/dev/y"}).__dict__["port"] == "/dev/y"


def test_what_is_no_adapter_is_refused_with_what_there_is(adapter: str) -> None:
    assert "sim" in known_adapters()
    with pytest.raises(UnknownName, match="sim"):
        open_robot("real_arm", {})
    with pytest.raises(SafetyError, match="no_such"):
        open_robot("no_such:thing", {})
    with pytest.raises(SafetyError, match="does not take.*speed"):
        open_robot(adapter, {"speed": "3"})
    with pytest.raises(SafetyError, match="lacks embodiment, time, observe, command"):
        open_robot("my_arm_adapter:half", {})


@pytest.mark.parametrize("wrong", [{"speed": 0.05}, {"speed": 1.5}, {"speed": float("nan")}, {"option": ("seed",)}])
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(SafetyError):
        DriveConfig(**wrong)


def test_one_program_drives_a_robot_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with only_owner("arm"), pytest.raises(SafetyError, match="process"), only_owner("arm"):
        pass
    with only_owner("arm"):
        pass


def ask(address: str, path: str, token: str, *, post: bool = True) -> dict:
    request = urllib.request.Request(address + path, data=b"" if post else None)
    request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=5) as reply:
        return json.load(reply)


def test_a_stop_over_the_network_needs_the_token(toy: Embodiment) -> None:
    robot, token = Puppet(toy, wall=True), "a token of many letters"
    runtime = Runtime(robot, Wave(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2))
    calls = {"stop": lambda: runtime.stop("network"), "acknowledge": runtime.acknowledge, "beat": runtime.beat}
    with pytest.raises(SafetyError, match="ATHENA_TOKEN"), remote(calls, "127.0.0.1", 0, "", lambda: ""):
        pass
    state = runtime.operator
    with remote(calls, "127.0.0.1", 0, token, lambda: state.waiting_for or "running") as address:
        thread = threading.Thread(target=runtime.run, args=(3.0,), kwargs={"real_time": True})
        thread.start()
        time.sleep(0.5)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address, "/stop", "another token of letters")
        assert refused.value.code == 401
        assert state.waiting_for == ""
        assert ask(address, "/stop", token) == {"done": True, "state": "network"}
        time.sleep(0.8)
        held = robot.q.copy()
        time.sleep(0.2)
        np.testing.assert_array_equal(robot.q, held)
        assert ask(address, "/state", token, post=False) == {"state": "network"}
        ask(address, "/acknowledge", token)
        thread.join()
    assert runtime.trace is not None
    assert [e.kind for e in runtime.trace.events] == ["acknowledged", "reseated", "end"]


def test_the_shadow_report_compares_with_what_the_robot_did(toy: Embodiment) -> None:
    class Moved(Puppet):
        def observe(self) -> Observation:
            self.q = toy.default + np.array([0.3 * self.time, 0.0, 0.0])
            return super().observe()

    class Predicts(Wave):
        """Right about the first joint, 0.05 rad off at the second."""

        def act(self, observation: Observation) -> ActionChunk:
            t = np.arange(1, 9) / toy.control_hz
            rows = np.repeat(observation.state[None], 8, axis=0)
            rows[:, 0] += 0.3 * t
            rows[:, 1] += 0.05
            return ActionChunk(np.asarray(rows, np.float64), toy.action_joints, 1 / toy.control_hz, observation.time)

    config = RuntimeConfig(replan_every=2, shadow=True)
    trace = Runtime(Moved(toy, wall=True), Predicts(toy), SafetyFilter(toy), config).run(2.0, real_time=True)
    report = ShadowReport.of(trace)
    assert report.commands == len(trace.commands)
    assert report.chunks >= 5
    assert report.compared > 20
    # Measured times carry the jitter of this machine: at 0.3 rad/s a hundredth of a second is 0.003 rad.
    assert report.worst_joints[0][0] == "shoulder"
    assert abs(report.worst_joints[0][1] - 0.05) < 1e-9
    assert dict(report.worst_joints)["base"] < 0.01
    assert "Planned against done" in str(report)
    with pytest.raises(SafetyError, match="commanded the robot"):
        ShadowReport.of(Runtime(Puppet(toy), Wave(toy), SafetyFilter(toy)).run(0.5))


def boxed(toy: Embodiment, folder: Path) -> Trace:
    class Telling(Puppet):
        def observe(self) -> Observation:
            seen = super().observe()
            return Observation(seen.images, seen.state, "wave <script>alert(1)</script>", seen.time)

    with BlackBox(folder, toy, most_bytes=5_000_000) as box:
        config = RuntimeConfig(replan_every=2, record_images=True)
        return Runtime(Telling(toy), Wave(toy), SafetyFilter(toy), config, recorder=box).run(2.0)


def test_an_incident_becomes_a_page_an_episode_and_a_bag(toy: Embodiment, tmp_path: Path) -> None:
    trace = boxed(toy, tmp_path / "box")
    result = incident(IncidentConfig(box=tmp_path / "box", out=tmp_path / "out"))
    assert result.commands == len(trace.commands)
    page = Path(result.page).read_text()
    assert "<script>" not in page
    assert page.count("<svg") == 3
    recording = open_recording(tmp_path / "out" / "episode")
    (name,) = recording.ids()
    episode = recording.read(name)
    np.testing.assert_array_equal(episode.actions, trace.commands[: trace.braking_from][9::10])
    assert Path(result.bag).is_file() or result.bag.startswith("none")
    with pytest.raises(RecordingError, match="exists already"):
        incident(IncidentConfig(box=tmp_path / "box", out=tmp_path / "out"))


def test_an_incident_around_a_time_of_day(toy: Embodiment, tmp_path: Path) -> None:
    boxed(toy, tmp_path / "box")
    now = time.strftime("%H:%M:%S")
    result = incident(IncidentConfig(box=tmp_path / "box", out=tmp_path / "a", at=now, around=3600))
    assert result.commands > 100
    other = time.strftime("%H:%M", time.localtime(time.time() - 7200))
    with pytest.raises(RecordingError, match="nothing within"):
        incident(IncidentConfig(box=tmp_path / "box", out=tmp_path / "b", at=other))
    with pytest.raises(RecordingError, match="HH:MM"):
        incident(IncidentConfig(box=tmp_path / "box", out=tmp_path / "b", at="two o'clock"))
