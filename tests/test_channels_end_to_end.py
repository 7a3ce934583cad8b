"""Channels from a set to an answer over the wire: three families, the 47 values of the example, and the names."""

import dataclasses

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.bundle import Bundle
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import InvalidObservation
from athena_vla.evaluate.baselines import HoldStill
from athena_vla.evaluate.openloop import open_loop
from athena_vla.evaluate.tables import joint_table
from athena_vla.finetune import finetune
from athena_vla.policy import Policy, require_replay
from athena_vla.recordings.episode import Episode
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.protocols import RequestParser, metadata_of
from athena_vla.wire.server import PolicyServer, background
from channels import HEIGHT, TOKEN, recorded, robot
from recordings import clean, write
from small_bundles import observations, small_run, write_base
from test_channels_data import toml

NAMES = ("base", "shoulder", "finger", "base_height", "yaw_rate", "grip")


def state47(index: int) -> Episode:
    """The layout of the user: 23 targets, 47 state values without names."""
    body = embodiment.load("athena_state47")
    base = clean(index, length=14, camera="head")
    t = np.arange(14) / 10
    q = np.clip(body.default + 0.1 * np.sin(t[:, None] + np.arange(23) + index), body.lower + 0.01, body.upper - 0.01)
    states = np.c_[q, np.gradient(q, 0.1, axis=0), np.full(14, 0.8) + 0.01 * t]
    return dataclasses.replace(
        base,
        joint_names=body.joint_names,
        actions=q.astype(np.float32),
        state_names=tuple(f"state_{i:02d}" for i in range(47)),
        states=states.astype(np.float32),
    )


def test_the_example_of_47_values_trains_evaluates_and_serves(tmp_path) -> None:
    body = embodiment.load("athena_state47")
    assert (body.state_dim, body.action_dim, body.command_dim) == (47, 23, 23)
    assert body.state_names[23] == f"{body.joint_names[0]}_velocity"
    assert body.state_names[46] == "base_height"
    write(tmp_path / "rec", *(state47(i) for i in range(4)))
    built = build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="athena_state47", horizon=4))
    assert not [n for n in built.notes if n.code == "column.unused"]
    dataset = Dataset.open(tmp_path / "set")
    assert dataset[0].observation.state.shape == (47,)
    write_base(tmp_path / "base", body)
    fields = {"model": str(tmp_path / "base"), "data": tmp_path / "set", "out": tmp_path / "run", "max_steps": 2}
    result = finetune(small_run(**fields, evaluate_every=2, warmup_steps=1, augment_variants=1, log_every=1))
    policy = Policy.load(result.bundle)
    require_replay(policy, Bundle.open(result.bundle))
    samples = [dataset[int(i)] for i in dataset.validation[:4]]
    found = open_loop({"tuned": policy, "still": HoldStill(body, 4, remember=False)}, samples, body)
    assert len(found.actors["tuned"].per_joint) == 23
    seen = samples[0].observation
    with (
        background(PolicyServer(policy, body, metadata={"bundle_hash": "x"})) as server,
        RemotePolicy(f"ws://127.0.0.1:{server.port}", body) as remote,
    ):
        assert np.allclose(remote.act(seen).positions, policy.act(seen).positions, atol=1e-6)
        with pytest.raises(InvalidObservation, match=r"23 values lack .*_velocity, .*base_height"):
            remote.act(dataclasses.replace(seen, state=seen.state[:23]))


@pytest.mark.parametrize("family", ["chunk", "tokens", "oft"])
def test_every_family_answers_for_joints_and_channels(tmp_path, family: str) -> None:
    body = robot()
    bundle = write_base(tmp_path / "b", body, tokens=family == "tokens", oft=family == "oft")
    policy = Policy.of(bundle)
    seen = observations(body, 1)[0]
    chunk = policy.act(seen)
    assert chunk.joint_names == NAMES
    assert chunk.positions.shape[1] == 6
    columns = body.action_columns
    room = 1e-6 + columns.span  # statistics are of the limits, so answers lie near them
    assert ((chunk.positions > columns.lower - room) & (chunk.positions < columns.upper + room)).all()
    require_replay(policy, bundle)


def test_open_loop_counts_joints_in_radians_and_each_channel_for_itself(tmp_path) -> None:
    body = robot()
    file = toml(body, tmp_path / "r.toml")
    write(tmp_path / "rec", *(recorded(i) for i in range(3)))
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot=str(file), horizon=4))
    dataset = Dataset.open(tmp_path / "set")
    samples = [dataset[int(i)] for i in dataset.validation]
    found = open_loop({"still": HoldStill(body, 4, remember=False)}, samples, body)
    truth = np.stack([s.chunk for s in samples]).astype(np.float64)
    valid = np.stack([s.valid for s in samples])
    state = np.stack([s.observation.state for s in samples]).astype(np.float64)
    stays = np.c_[state[:, :4], np.zeros(len(state)), np.ones(len(state))]  # unobserved: yaw rate 0, grip open
    miss = np.abs(truth - stays[:, None])[valid]
    result = found.actors["still"]
    assert result.mae.value == pytest.approx(miss[:, :3].mean())
    assert list(result.per_joint) == list(NAMES)
    assert result.per_joint["yaw_rate"] == pytest.approx(miss[:, 4].mean())
    assert "base_height [m]" in joint_table(found, ["still"])


def test_a_client_that_sends_joints_alone_gets_a_sentence_with_the_names() -> None:
    parser = RequestParser(robot())
    message = {"observation/front": np.zeros((48, 64, 3), np.uint8), "observation/state": np.zeros(3), "prompt": "go"}
    with pytest.raises(InvalidObservation, match=r"3 values lack base_height, wrist_force"):
        parser.parse(message, "openpi")
    told = metadata_of(robot(), {})
    assert told["action_names"] == list(NAMES)
    assert told["state_names"] == ["base", "shoulder", "finger", "base_height", "wrist_force"]
    assert told["units"] == ["rad", "rad", "rad", "m", "rad/s", "1"]


def test_latent_tokens_are_nowhere_called_safe(tmp_path, capsys) -> None:
    """Card, deployment record, server and drive all say it; a robot without such channels says nothing."""
    from athena_vla.drive.driving import DriveConfig, _say
    from athena_vla.engines.deployment_config import deployment_config

    latent = dataclasses.replace(TOKEN, lower=-1.0, upper=1.0, max_rate=5.0, max_rate_derivative=50.0)
    body = robot(HEIGHT, latent)
    assert body.learned_limits == ("token",)
    words = "token: limits from the training data. Such values are bounded and not called safe"
    assert words in body.not_called_safe
    assert robot(HEIGHT).not_called_safe == ""
    _say(DriveConfig(), body, at_terminal=False)
    assert words in capsys.readouterr().out
    write_base(tmp_path / "base", body)
    told = deployment_config(Bundle.open(tmp_path / "base"), "cpu", tmp_path / "base", {})
    assert words in told["robot"]["not_called_safe"]
    write_base(tmp_path / "plain", robot(HEIGHT))
    assert (
        "not_called_safe"
        not in deployment_config(Bundle.open(tmp_path / "plain"), "cpu", tmp_path / "plain", {})["robot"]
    )
