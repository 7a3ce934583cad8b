"""Robots without channels are what they were: hashes and outputs recorded before robots could have channels.

The numbers come from commit b829dd2, the set's from 4052d8f, by the same calls as here. The set is built without
segments: their texts may be worded better.
"""

import hashlib
import json

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.control.safety import SafetyFilter
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from recordings import write
from small_bundles import normalizer, write_base

ROBOTS = {"athena": "9108bac8c2ef6ed9", "toy": "6b150496e4fcc400", "unitree_g1_23dof": "c94cb9fd293b2c39"}
DATASET = "b73a0901ae99fee70ff8f2673f0473dfebc094ca881fe809c044bac74b4deb02"
NORMALIZER = "8ff4e110580f1956"
FILTER = {
    ("athena", ""): "94ee7bd66ae8a7fa",
    ("athena", "jerk"): "9254691ad540217c",
    ("athena", "margin"): "d508bd8d1abc18dc",
    ("toy", ""): "635d3d8c822738e9",
    ("toy", "jerk"): "329073b2a9a31304",
    ("toy", "margin"): "8ab863c9baa6beea",
}
BUNDLES = {  # family -> fingerprint of all that a bundle says of robot, sizes and statistics
    "openvla_chunk": "a1593871f8a86476",
    "openvla": "4feee2299be51428",
    "openvla_oft": "14a098c76c802a8d",
}


@pytest.mark.parametrize("name", ROBOTS)
def test_robots_that_ship_keep_their_hash_and_vectors(name: str) -> None:
    robot = embodiment.load(name)
    assert robot.hash == ROBOTS[name]
    assert "channels" not in robot.to_dict()
    assert robot.state_names == robot.command_names == robot.joint_names
    assert robot.action_names == robot.action_joints
    state = np.random.default_rng(0).normal(size=(3, robot.state_dim))
    assert np.array_equal(robot.action_of(state), state[:, robot.index(robot.action_joints)])
    assert np.array_equal(robot.command_of(state), state)
    assert np.array_equal(robot.action_state_index, robot.index(robot.action_joints))


def test_a_set_keeps_its_hash(tmp_path) -> None:
    config = BuildConfig(input=write(tmp_path / "rec"), out=tmp_path / "set", robot="toy", horizon=4, annotate=False)
    assert build(config).hash == DATASET
    assert Dataset.open(tmp_path / "set").robot.hash == ROBOTS["toy"]


@pytest.mark.parametrize(("name", "option"), FILTER)
def test_the_filter_gives_the_same_commands(name: str, option: str) -> None:
    """Hostile targets, a second without any, then the resting pose: every bit of 400 commands."""
    robot = embodiment.load(name)
    guard = SafetyFilter(robot, jerk=option == "jerk", margin=0.01 if option == "margin" else 0.0)
    random = np.random.default_rng(5)
    commands, t = [], 0.0
    for k in range(400):
        t += 1 / robot.command_hz
        hostile = robot.default + random.normal(0, 0.4, len(robot.joints)) if k < 250 else None
        commands.append(guard.step(hostile if k < 350 else robot.default, t))
    assert hashlib.sha256(np.array(commands).tobytes()).hexdigest()[:16] == FILTER[name, option]


def test_statistics_are_the_same() -> None:
    raw = normalizer(embodiment.load("toy"), 4).to_dict()
    assert hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:16] == NORMALIZER


@pytest.mark.parametrize("family", BUNDLES)
def test_bundles_keep_their_fingerprint(tmp_path, family: str) -> None:
    """Without the weights, whose last bits depend on the processor, and without the number of the manifest's format."""
    tokens, oft = family == "openvla", family == "openvla_oft"
    bundle = write_base(tmp_path / "b", embodiment.load("toy"), tokens=tokens, oft=oft)
    raw = json.loads((bundle.path / "manifest.json").read_text())
    said = json.dumps({k: raw[k] for k in ("family", "spec", "robot", "normalizer")}, sort_keys=True)
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == BUNDLES[family]
