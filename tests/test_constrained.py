"""Constrained generation: chunks of a token policy that the robot can follow, and the actor that evaluation builds."""

import numpy as np
import pytest
import torch

from athena_vla.constrained import WithinReach
from athena_vla.control.reachable import reach
from athena_vla.embodiment import Embodiment
from athena_vla.errors import ModelError
from athena_vla.evaluate.actors import ActorFactory, ActorSpec
from athena_vla.models import openvla
from athena_vla.policy import Policy
from athena_vla.wire.server import PolicyServer
from small_bundles import BODY, normalizer, observations, small_model, write_base


def token_policy(robot: Embodiment, horizon: int) -> Policy:
    torch.manual_seed(3)
    sizes = {"action_dim": robot.action_dim, "state_dim": robot.state_dim, "cameras": len(robot.cameras)}
    model = openvla.OpenVLA.from_spec(openvla.tiny_spec(**sizes, horizon=horizon, **BODY), {}).eval()
    return Policy.of_model(model, robot, normalizer(robot, horizon))


def test_every_row_is_within_reach_of_the_one_before(toy: Embodiment) -> None:
    """An untrained policy answers anything; held, it moves no faster than the robot can, row after row."""
    policy = token_policy(toy, 4)
    held, step, joints = WithinReach(policy), 1 / toy.control_hz, toy.action_index
    width = policy.normalizer.bin_width()
    bottom, top = policy.normalizer.action_low, policy.normalizer.action_high
    free_breaks = 0
    for seen, chunk in zip(observations(toy, 6), held.act_batch(observations(toy, 6)), strict=True):
        assert chunk.joint_names == toy.action_joints
        np.testing.assert_allclose(held.act(seen).positions, chunk.positions, atol=1e-12)
        before, velocity = seen.state.astype(np.float64), None
        for row in chunk.positions:
            low, high = reach(toy, before, velocity, step)
            # Where no bin lies within reach the nearest is taken: half a bin away, or where the statistics end.
            assert (row >= np.minimum(low[joints], top) - 0.51 * width).all()
            assert (row <= np.maximum(high[joints], bottom) + 0.51 * width).all()
            pose = before.copy()
            pose[joints] = row
            before, velocity = pose, (pose - before) / step
        moves = np.diff(np.concatenate([seen.state[joints][None], policy.act(seen).positions]), axis=0)
        free_breaks += int((np.abs(moves) > toy.max_velocity[joints] * step + width).sum())
    assert free_breaks > 0


def test_nothing_changes_where_everything_is_within_reach(toy: Embodiment, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = token_policy(toy, 2)
    everything = np.ones((toy.action_dim, 256), dtype=bool)
    monkeypatch.setattr("athena_vla.constrained.reachable_bins", lambda *_, **__: everything)
    for seen in observations(toy, 3):
        np.testing.assert_array_equal(WithinReach(policy).act(seen).positions, policy.act(seen).positions)


def test_a_policy_without_bins_is_refused(toy: Embodiment) -> None:
    policy = Policy.of_model(small_model(toy), toy, normalizer(toy, 4))
    with pytest.raises(ModelError, match="does not choose its actions from bins"):
        WithinReach(policy)


def test_evaluation_builds_it_and_keeps_its_results_apart(toy: Embodiment, tmp_path) -> None:
    source = str(write_base(tmp_path / "tokens", toy, tokens=True).path)
    free, held = (ActorSpec(n, source=source, within_reach=n == "held") for n in ("free", "held"))
    assert isinstance(ActorFactory(toy).actor(held), WithinReach)
    assert isinstance(ActorFactory(toy).actor(free), Policy)
    assert free.fingerprint() != held.fingerprint()


def test_the_stages_offer_it(toy: Embodiment, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from athena_vla import serve as serving
    from athena_vla.evaluate import commands

    bundle = write_base(tmp_path / "tokens", toy, tokens=True).path
    served: dict = {}

    class Told(PolicyServer):
        def __init__(self, actor, *rest, **named) -> None:
            served.update(named, actor=actor)
            super().__init__(actor, *rest, **named)

    monkeypatch.setattr(serving, "PolicyServer", Told)
    monkeypatch.setattr(serving, "serve_until_interrupted", lambda server, ready: None)
    serving.serve(serving.ServeBundleConfig(bundle=str(bundle), within_reach=True))
    assert isinstance(served["actor"], WithinReach)
    assert served["metadata"]["within_reach"] is True
    rows: list[ActorSpec] = []
    monkeypatch.setattr(commands, "_run", lambda policies, *_: rows.extend(policies))
    commands.evaluate(commands.EvaluateConfig(bundle=bundle, within_reach=True))
    assert [(r.name, r.within_reach) for r in rows] == [("policy", False), ("within reach", True)]
