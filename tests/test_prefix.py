"""Going on from rows that are decided already: model, training, export, control loop and server, and all of it off."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from athena_vla.bundle import Bundle
from athena_vla.control.action_prefix import prefix_of, prefix_times
from athena_vla.control.runtime import RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation
from athena_vla.errors import InvalidObservation, ModelError
from athena_vla.evaluate.baselines import BlackImage, HoldStill
from athena_vla.evaluate.rollout import Timed
from athena_vla.export import ExportConfig, export
from athena_vla.finetune import FinetuneConfig, finetune
from athena_vla.finetune.batches import Loader, Order
from athena_vla.merge import MergeConfig, merge
from athena_vla.models import contract
from athena_vla.models.architecture import run_torch
from athena_vla.models.contract import ModelInput
from athena_vla.models.openvla_chunk import OpenVLAChunk, tiny_spec
from athena_vla.policy import Policy
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.server import PolicyServer, background
from recordings import Pixels, clean, pictures, write
from small_bundles import observations, small_run, write_base
from test_runtime import Puppet, Wave, check

SIZES: dict = {"image_size": 32, "tower_width": 16, "tower_blocks": 1, "width": 32, "layers": 2, "mlp_width": 64}
PREFIX, HORIZON = 3, 6


def model_of(prefix: int) -> OpenVLAChunk:
    torch.manual_seed(0)
    spec = replace(tiny_spec(action_dim=3, state_dim=5, horizon=HORIZON, **SIZES), prefix=prefix)
    return OpenVLAChunk.from_spec(spec, {}).eval()


def twins() -> tuple[OpenVLAChunk, OpenVLAChunk]:
    """The same weights without the option and with it."""
    off, on = model_of(0), model_of(PREFIX)
    missing, unexpected = on.load_state_dict(off.state_dict(), strict=False)
    assert (missing, unexpected) == (["given.weight"], [])
    return off, on


def item(rows: int = 0, seed: int = 0) -> ModelInput:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    state = random.normal(size=5).astype(np.float32)
    given = random.uniform(-1, 1, (rows, 3)).astype(np.float32) if rows else None
    return ModelInput((image,), state, "wave", given)


def answer(model: OpenVLAChunk, *items: ModelInput) -> torch.Tensor:
    return model.decode(run_torch(model), model.collate(items), {})


# -- the model


def test_nothing_given_is_bit_for_bit_the_model_without_the_option() -> None:
    off, on = twins()
    inputs = [item(seed=1), item(seed=2)]
    assert torch.equal(answer(on, *inputs), answer(off, *inputs))
    torch.nn.init.normal_(on.given.weight)  # trained, too
    assert torch.equal(answer(on, *inputs), answer(off, *inputs))


def test_a_fresh_option_changes_no_answer_and_a_trained_one_reaches_every_later_row() -> None:
    off, on = twins()
    assert torch.equal(answer(on, item(2)), answer(off, item()))
    torch.nn.init.normal_(on.given.weight)
    two, other = item(2), item(2)
    assert other.given is not None
    other.given[1] += 0.5
    changed = (answer(on, two) - answer(on, other)).abs().amax(dim=2)[0]
    assert float(changed[0]) == 0.0  # causal
    assert float(changed[1:].min()) > 0.0


def test_how_many_rows_are_given_is_up_to_each_observation() -> None:
    _, on = twins()
    torch.nn.init.normal_(on.given.weight)
    items = [item(rows, seed=rows) for rows in range(PREFIX + 1)]
    together = answer(on, *items)
    alone = torch.cat([answer(on, i) for i in items])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_off_leaves_no_trace_in_specification_weights_graphs_or_configuration() -> None:
    off, on = twins()
    assert "prefix" not in off.spec.to_dict()
    assert contract.spec_from_dict(off.family, json.loads(json.dumps(off.spec.to_dict()))) == off.spec
    assert contract.spec_from_dict(on.family, json.loads(json.dumps(on.spec.to_dict()))) == on.spec
    assert "given" not in off.head_modules()
    assert "given" in on.head_modules()
    inputs = [set(g.example) for g in off.graphs()]
    assert [set(g.example) - have for g, have in zip(on.graphs(), inputs, strict=True)] == [set(), {"given"}, set()]
    assert "prefix" not in FinetuneConfig().to_dict()
    assert "prefix" not in FinetuneConfig().identity()
    assert FinetuneConfig(prefix=2).identity()["prefix"] == 2
    shipped = Bundle.open("builtin:base")
    assert json.loads(json.dumps(shipped.spec.to_dict())) == shipped.manifest.spec


def test_the_option_can_be_added_to_a_policy_of_the_same_robot_without_losing_its_heads() -> None:
    off, _ = twins()
    on = off.rebind(replace(off.chunk_spec, prefix=2))
    assert on.prefix == 2
    assert torch.equal(answer(on, item()), answer(off, item()))
    assert torch.equal(answer(on.rebind(off.chunk_spec), item()), answer(off, item()))


def test_what_does_not_fit_is_refused(toy: Embodiment, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="at least one row stays free"):
        model_of(HORIZON)
    off, on = twins()
    with pytest.raises(InvalidObservation, match="at most 0 rows"):
        off.collate([item(1)])
    with pytest.raises(InvalidObservation, match="at most 3 rows"):
        on.collate([item(4)])
    policy = Policy.of(write_base(tmp_path / "base", toy))
    seen = observations(toy, 1)[0]
    with pytest.raises(InvalidObservation, match="it was given 1"):
        policy.act(replace(seen, action_prefix=np.zeros((1, 3))))
    for rows in (np.zeros((1, 2)), np.zeros(3), np.full((1, 3), np.nan)):
        with pytest.raises(InvalidObservation, match="action prefix"):
            replace(seen, action_prefix=rows).require(toy)


# -- training


def swinging(index: int):
    """To and fro at a steady pace: where it is says nothing about where it is going."""
    length = 40
    swing = 0.6 * (2 / np.pi) * np.arcsin(np.sin(0.35 * np.arange(length) + 0.9 * index))
    actions = np.stack([swing, 0.5 * swing, 0.3 + 0.4 * swing], axis=1)
    states = np.concatenate([actions[:1], actions[:-1]])
    return clean(
        index,
        length=length,
        actions=actions.astype(np.float32),
        states=states.astype(np.float32),
        cameras={"front": Pixels(pictures(states, 0))},
        instructions=("swing",),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy) -> Path:
    root = tmp_path_factory.mktemp("prefix")
    write(root / "rec", *(swinging(i) for i in range(8)))
    build(BuildConfig(input=root / "rec", out=root / "set", robot="toy", horizon=HORIZON, workers=1, validation=0.25))
    write_base(root / "base", toy)
    return root


def config(world: Path, out: Path, **changes) -> FinetuneConfig:
    fields = {
        "model": str(world / "base"),
        "data": world / "set",
        "out": out,
        "learning_rate": 1e-3,
        "warmup_steps": 5,
        "schedule": "cosine",
        "batch": 16,
        "max_steps": 300,  # the swing is learned after some 200: before, outcomes hang on the rounding of sums
        "augment": False,
        "select": "last",
    }
    return small_run(**{**fields, **changes})


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> dict[int, Path]:
    """Trained without the option and with it, and nothing else different."""
    root = tmp_path_factory.mktemp("trained")
    for rows in (0, PREFIX):
        finetune(config(world, root / str(rows), prefix=rows))
    return {rows: root / str(rows) for rows in (0, PREFIX)}


def loader_of(world: Path, prefix: int, **changes) -> tuple[Loader, Order, Dataset]:
    dataset = Dataset.open(world / "set")
    settings = config(world, world / "none", prefix=prefix, state_noise=0.05, max_steps=4, **changes)
    torch.manual_seed(0)
    model = Bundle.open(world / "base").model()
    bound = model.rebind(replace(model.spec, horizon=HORIZON, prefix=prefix))  # pyright: ignore[reportCallIssue]
    return Loader(dataset, bound, settings, None), Order(dataset, dataset.train, settings, 1), dataset


def test_batches_give_rows_that_are_the_targets_and_do_not_count_them(world) -> None:
    loader, order, _ = loader_of(world, PREFIX)
    plain, _, _ = loader_of(world, 0)
    drawn: list[int] = []
    for step in range(6):
        indices = order.micro_batch(step, 0, 0)
        batch, without = loader.training(indices, step), plain.training(indices, step)
        assert torch.equal(batch.target, without.target)
        assert torch.equal(batch.inputs["state"], without.inputs["state"])  # its own stream of random numbers
        rows = batch.inputs["given"][..., -1].sum(dim=1).long()
        drawn += rows.tolist()
        for i, count in enumerate(rows.tolist()):
            assert torch.equal(batch.inputs["given"][i, :count, :-1], batch.target[i, :count])
            assert not batch.inputs["given"][i, count:].any()
            expected = without.valid[i].clone()
            expected[:count] = False
            assert torch.equal(batch.valid[i], expected)
            assert batch.valid[i].any()
    assert set(drawn) == set(range(PREFIX + 1))
    assert not loader.plain(order.micro_batch(0, 0, 0)).inputs["given"].any()


def test_batches_are_a_function_of_seed_and_step_alone(world) -> None:
    loader, order, _ = loader_of(world, PREFIX)
    wanted = list(loader.ahead(order, 0, 4, 0))
    again, order, _ = loader_of(world, PREFIX, workers=2)
    for one, other in zip(wanted[2:], again.ahead(order, 2, 4, 0), strict=True):
        assert all(torch.equal(v, other.inputs[k]) for k, v in one.inputs.items())
        assert torch.equal(one.valid, other.valid)
    other_seed, order, _ = loader_of(world, PREFIX, seed=1)
    indices = list(wanted[0].samples)
    assert not torch.equal(other_seed.training(indices, 0).inputs["given"], wanted[0].inputs["given"])


def seams(policy: Policy, world: Path, rows: int, *, give: bool) -> tuple[float, float]:
    """[rad] from the last row of the action prefix to the first free one, and of that one from the truth; means."""
    dataset = Dataset.open(world / "set")
    jumps, misses = [], []
    for index in dataset.validation.tolist():
        sample = dataset[index]
        if not sample.valid.all():
            continue
        chunk = sample.chunk.astype(np.float64)
        seen = replace(sample.observation, action_prefix=chunk[:rows]) if give else sample.observation
        positions = policy.act(seen).positions
        jumps.append(np.abs(positions[rows] - chunk[rows - 1]).mean())
        misses.append(np.abs(positions[rows] - chunk[rows]).mean())
    assert len(jumps) > 20
    return float(np.mean(jumps)), float(np.mean(misses))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_policy_that_is_given_rows_goes_on_from_them(world, trained, rows) -> None:
    with_rows = Policy.load(trained[PREFIX])
    given = seams(with_rows, world, rows, give=True)
    not_given = seams(with_rows, world, rows, give=False)
    never = seams(Policy.load(trained[0]), world, rows, give=False)
    # Few rows still lie near the measured pose, where a policy that knows nothing does not jump far either.
    if rows > 1:
        assert given[0] < (0.95, 0.7)[rows - 2] * min(not_given[0], never[0])
    assert given[1] < (0.9, 0.75, 0.5)[rows - 1] * min(not_given[1], never[1])


def test_the_answer_begins_with_the_rows_as_they_were_decided(world, trained) -> None:
    policy = Policy.load(trained[PREFIX])
    seen = Dataset.open(world / "set")[0].observation
    rows = np.array([[0.1, 0.2, 0.3], [0.123456789, -0.2, 0.25]])
    np.testing.assert_array_equal(policy.act(replace(seen, action_prefix=rows)).positions[:2], rows)


def test_a_family_without_the_option_is_refused(world, toy, tmp_path) -> None:
    write_base(tmp_path / "tokens", toy, tokens=True)
    with pytest.raises(ModelError, match="family openvla cannot be given a prefix"):
        finetune(config(world, tmp_path / "out", model=str(tmp_path / "tokens"), prefix=2))


# -- deployment


def test_merged_and_exported_policies_go_on_alike(world, trained, tmp_path) -> None:
    merge(MergeConfig(input=trained[PREFIX], out=tmp_path / "merged"))
    export(ExportConfig(input=tmp_path / "merged", out=tmp_path / "exported"))
    ports = [
        i.name for i in onnx.load(tmp_path / "exported/weights/language.onnx", load_external_data=False).graph.input
    ]
    assert ports == ["patches", "input_ids", "prompt_mask", "state", "given"]
    adapter, merged, exported = (Policy.load(p) for p in (trained[PREFIX], tmp_path / "merged", tmp_path / "exported"))
    assert (adapter.prefix, merged.prefix, exported.prefix) == (PREFIX, PREFIX, PREFIX)
    dataset = Dataset.open(world / "set")
    for rows in range(PREFIX + 1):
        sample = dataset[7 + rows]
        seen = replace(sample.observation, action_prefix=sample.chunk[:rows].astype(np.float64) if rows else None)
        wanted = adapter.act(seen).positions
        np.testing.assert_allclose(merged.act(seen).positions, wanted, atol=1e-4)
        np.testing.assert_allclose(exported.act(seen).positions, wanted, atol=1e-4)
        if rows:
            free = exported.act(sample.observation).positions
            assert np.abs(free[rows:] - exported.act(seen).positions[rows:]).max() > 0.02


# -- the control loop


class Shy(Wave):
    """Remembers what it was asked; its chunks never agree with one another."""

    def __init__(self, body: Embodiment) -> None:
        super().__init__(body)
        self.asked: list[Observation] = []

    def act(self, observation: Observation) -> ActionChunk:
        self.asked.append(observation)
        chunk = super().act(observation)
        return replace(chunk, positions=chunk.positions + 0.02 * (-1) ** self.calls)


class Eager(Shy):
    def __init__(self, body: Embodiment, prefix: int) -> None:
        super().__init__(body)
        self.prefix = prefix


@pytest.mark.parametrize(
    ("latency", "rows"),
    # Rows are 0.1 s apart and the next chunk is joined half a row after it arrives, or later.
    [(0.0, 0), (0.04, 0), (0.06, 1), (0.12, 1), (0.25, 2), (0.31, 3), (0.5, 4)],
)
def test_the_loop_gives_the_rows_that_it_then_plays(toy: Embodiment, latency: float, rows: int) -> None:
    actor = Eager(toy, prefix=4)
    config = RuntimeConfig(replan_every=6, latency=latency)
    trace = run_episode(Puppet(toy), actor, SafetyFilter(toy), duration=3.0, config=config)
    check(trace, toy, toy.default)
    assert actor.asked[0].action_prefix is None  # nothing is being played yet
    assert len(actor.asked) == 5
    for asked in actor.asked[1:]:
        if not rows:
            assert asked.action_prefix is None
            continue
        assert asked.action_prefix is not None
        assert asked.action_prefix.shape == (rows, toy.action_dim)
        for i, row in enumerate(asked.action_prefix):
            if (i + 1) / toy.control_hz <= latency:
                tick = round((asked.time + (i + 1) / toy.control_hz) * toy.command_hz) - 1
                np.testing.assert_allclose(trace.targets[tick, toy.action_index], row, rtol=0, atol=1e-12)


def test_a_policy_without_the_option_never_receives_rows(toy: Embodiment) -> None:
    for actor in (Shy(toy), Eager(toy, prefix=0)):
        config = RuntimeConfig(replan_every=4, latency=0.25)
        run_episode(Puppet(toy), actor, SafetyFilter(toy), duration=3.0, config=config)
        assert len(actor.asked) > 5
        assert all(o.action_prefix is None for o in actor.asked)


def test_an_answer_is_expected_to_take_as_long_as_the_slowest_of_the_last_ones() -> None:
    def count(delays: list[float]) -> int:
        return len(prefix_times(5.0, 0.1, 6, delays, 0.05))

    assert count([]) == 0
    assert count([0.1, 0.36, 0.1]) == 4
    assert count([0.36, *[0.1] * 8]) == 1
    assert count([9.0]) == 6
    np.testing.assert_allclose(prefix_times(5.0, 0.1, 6, [0.2], 0.05), [5.1, 5.2])


def test_rows_past_the_end_of_the_present_chunk_are_not_given(toy: Embodiment) -> None:
    actor = Eager(toy, prefix=8)
    actor.horizon = 8
    config = RuntimeConfig(replan_every=6, latency=0.5)
    run_episode(Puppet(toy), actor, SafetyFilter(toy), duration=3.0, config=config)
    # The robot stood still for the first 0.5 s. The second chunk was asked for 0.1 s into the first one, so its last
    # row is at 0.9 s of the plan; the third is asked for at 0.7 s of it.
    assert actor.asked[2].action_prefix is not None
    assert len(actor.asked[2].action_prefix) == 2


def test_in_real_time_the_measured_delay_decides(toy: Embodiment) -> None:
    import time

    from athena_vla.control.runtime import Runtime

    class Slow(Eager):
        def act(self, observation: Observation) -> ActionChunk:
            time.sleep(0.15)
            return super().act(observation)

    actor = Slow(toy, prefix=6)
    robot = Puppet(toy, wall=True)
    runtime = Runtime(robot, actor, SafetyFilter(toy), RuntimeConfig(replan_every=4))
    trace = runtime.run(1.5, real_time=True)
    assert len(actor.asked) >= 3
    for number, asked in enumerate(actor.asked[1 : len(trace.delays)], 1):
        expected = len(prefix_times(0.0, 0.1, 6, list(trace.delays[:number]), 0.05))
        assert expected >= 1
        assert asked.action_prefix is not None
        assert len(asked.action_prefix) == expected


def test_wrappers_pass_the_option_on(toy: Embodiment) -> None:
    assert prefix_of(Timed(BlackImage(Eager(toy, 3)))) == 3
    assert prefix_of(Timed(BlackImage(Shy(toy)))) == 0
    assert prefix_of(HoldStill(toy)) == 0


# -- the server


def test_rows_travel_to_a_server_that_takes_them(toy: Embodiment) -> None:
    behind = Eager(toy, prefix=2)
    with (
        background(PolicyServer(behind, toy, metadata={"prefix": 2})) as server,
        RemotePolicy(server.address, toy) as remote,
    ):
        assert prefix_of(remote) == 0
        config = RuntimeConfig(replan_every=4, latency=0.25)
        run_episode(Puppet(toy), remote, SafetyFilter(toy), duration=2.0, config=config)
        assert prefix_of(remote) == 2
    given = [o.action_prefix for o in behind.asked]
    assert given[0] is None
    assert len(given) == 5
    for rows in given[1:]:
        assert rows is not None
        assert rows.shape == (2, 3)
    twin = Eager(toy, prefix=2)
    run_episode(Puppet(toy), twin, SafetyFilter(toy), duration=2.0, config=config)
    for there, here in zip(given[1:], twin.asked[1:], strict=True):
        np.testing.assert_array_equal(there, here.action_prefix)


def test_a_server_refuses_rows_of_the_wrong_kind(toy: Embodiment) -> None:
    seen = observations(toy, 1)[0]
    bad: tuple[Array, ...] = (np.zeros((2, 5)), np.full((2, 3), np.inf))
    with (
        background(PolicyServer(Eager(toy, 2), toy, metadata={"prefix": 2})) as server,
        RemotePolicy(server.address, toy) as remote,
    ):
        for rows in bad:
            with pytest.raises(InvalidObservation, match="action prefix"):
                remote.act(dataclasses.replace(seen, action_prefix=rows))
        assert remote.act(seen).positions.shape == (16, 3)
