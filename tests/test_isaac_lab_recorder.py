"""The script that users copy into Isaac Lab, with a stand-in of the attributes that it uses."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from athena_vla.recordings.formats import open_recording

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "isaac_lab_recorder.py"
NAMES = ["base", "shoulder", "finger"]


class OnDevice:
    """A tensor on a card: only detached copies on the host are numpy's."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def detach(self) -> "OnDevice":
        return self

    def cpu(self) -> "OnDevice":
        return self

    def numpy(self) -> np.ndarray:
        return self.values


class StandIn:
    """Two environments; the joints move half-way to their targets, and an episode ends at its fifth step."""

    def __init__(self) -> None:
        self.position, self.target, self.count = np.zeros((2, 3)), np.zeros((2, 3)), 0
        limits = np.tile(np.array([[-1.0, 1.0]]), (2, 3, 1))
        self.data = SimpleNamespace(soft_joint_pos_limits=OnDevice(limits))
        self.camera = SimpleNamespace(data=SimpleNamespace(output={}))
        self.scene = {"robot": SimpleNamespace(joint_names=NAMES, data=self.data), "front": self.camera}
        self.unwrapped = SimpleNamespace(scene=self.scene, step_dt=0.05)
        self._show()

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        self.count += 1
        self.target = 0.5 * action
        self.position = self.position + 0.5 * (self.target - self.position)
        ended = self.count == 5
        if ended:
            self.position, self.target = np.zeros((2, 3)), np.zeros((2, 3))  # reset inside of step, as Isaac Lab does
        self._show()
        return {}, np.zeros(2), OnDevice(np.array([ended, False])), OnDevice(np.array([False, False])), {}

    def _show(self) -> None:
        self.data.joint_pos, self.data.joint_pos_target = OnDevice(self.position), OnDevice(self.target)
        pixels = np.zeros((2, 24, 32, 4), np.uint8)
        pixels[0, ..., 0], pixels[1] = 10 * self.count, 255
        self.camera.data.output["rgb"] = OnDevice(pixels)


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("isaac_lab_recorder", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_the_robot_was_told_and_did_is_what_is_read(script: Any, tmp_path: Path) -> None:
    recorder = script.Recorder(StandIn(), tmp_path / "out", instruction="wave", cameras=("front",))
    recorder.start()
    actions = np.random.default_rng(0).normal(0, 0.3, (4, 2, 3))
    position, states = np.zeros(3), []
    for action in actions:
        states.append(position)
        recorder.step(action)
        position = position + 0.5 * (0.5 * action[0] - position)
    recorder.step(np.ones((2, 3)))  # ends the episode
    recorder.save(success=True)
    episode = open_recording(tmp_path / "out").read("episode_0000")
    np.testing.assert_allclose(episode.actions, 0.5 * actions[:, 0])
    np.testing.assert_allclose(episode.states, states)
    assert episode.joint_names == tuple(NAMES)
    assert (episode.fps, episode.success, episode.instructions) == (20.0, True, ("wave",))
    assert [int(episode.cameras["front"][i][0, 0, 0]) for i in range(4)] == [0, 10, 20, 30]
    assert episode.origin.metadata["limits"]["base"] == [-1.0, 1.0]


def test_episodes_are_numbered_on_and_mistakes_are_said(script: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no 'wrist'; it has robot, front"):
        script.Recorder(StandIn(), tmp_path, instruction="wave", cameras=("wrist",))
    recorder = script.Recorder(StandIn(), tmp_path / "out", instruction="wave")
    for _ in range(2):
        recorder.start()
        recorder.step(np.zeros((2, 3)))
        recorder.save()
    assert open_recording(tmp_path / "out").ids() == ("episode_0000", "episode_0001")
    with pytest.raises(ValueError, match="no row"):
        recorder.save()
