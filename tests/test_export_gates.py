"""Gates: a good bundle passes, each kind of damage fails its own gate, and a failed bundle is marked and not served."""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

import dataclasses
import json

import numpy as np
import pytest
import torch

from athena_vla import bundle as bundles
from athena_vla.bundle import Bundle
from athena_vla.errors import BundleError
from athena_vla.export import ExportConfig, GateConfig, GateLimits, check, export
from athena_vla.merge import MergeConfig, merge
from athena_vla.models import openvla_chunk
from athena_vla.models.contract import Tapped
from athena_vla.models.lora import LoraSettings
from athena_vla.models.weights.store import StoreWriter
from athena_vla.policy import Policy, asked, require_replay
from athena_vla.quantize import QuantizeConfig, quantize
from athena_vla.recordings.episode import Sample
from athena_vla.serve import open_policy
from small_bundles import BODY, observations, write_base, write_finetuned, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy):
    where = tmp_path_factory.mktemp("gates")
    write_base(where / "base", toy)
    quantize(QuantizeConfig(input=where / "base", out=where / "int8", bits=8))
    quantize(QuantizeConfig(input=where / "base", out=where / "int4", sensitivity=False, method="nearest"))
    write_base(where / "tokens", toy, tokens=True)
    quantize(QuantizeConfig(input=where / "tokens", out=where / "tokens8", bits=8, keep=("lm_head",)))
    return where


def test_int8_passes_and_is_marked(folder) -> None:
    report = check(GateConfig(bundle=folder / "int8"))
    assert report.passed, str(report)
    assert report.exit_status == 0
    gates = Bundle.open(folder / "int8").manifest.gates
    assert {"bin_agreement", "error_p95_rad", "error_max_rad", "roughness_ratio"} <= set(gates)
    assert {"sensitivity_black_white", "sensitivity_language"} <= set(gates)
    assert set(report.error.per_joint_rad) == set(Bundle.open(folder / "int8").robot.action_joints)


def test_strict_limits_fail_and_the_server_refuses(folder) -> None:
    limits = GateLimits(p95_rad=1e-6, bin_agreement=1.0)
    report = check(GateConfig(bundle=folder / "int4", limits=limits))
    assert not report.passed
    assert report.exit_status == 4
    assert not report.gates["error_p95_rad"].passed
    from athena_vla.serve import ServeBundleConfig, serve

    with pytest.raises(BundleError, match="marked as failed by its gates"):
        serve(ServeBundleConfig(bundle=folder / "int4"))


def test_tokens_are_compared_teacher_forced(folder) -> None:
    gates = check(GateConfig(bundle=folder / "tokens8")).gates
    assert 0 <= gates["kl_nats"].value < 0.05
    assert gates["greedy_agreement_teacher_forced"].value > 0.5
    assert 0.5 < gates["greedy_agreement_free_running"].value <= 1
    assert "greedy_agreement_free_running" not in check(GateConfig(bundle=folder / "int8")).gates, "no tokens there"


def test_every_stage_asks_whether_the_policy_still_sees(folder, tmp_path, toy) -> None:
    """merge, quantize and export ask it of what they wrote; a bundle that is blind is marked, and not served."""
    for path in (folder / "int8", folder / "int4"):
        assert "sensitivity_black_white" in Bundle.open(path).manifest.gates
    base = Bundle.open(write_base(tmp_path / "base", toy).path)
    tuned = write_finetuned(tmp_path / "tuned", base, LoraSettings(rank=4))
    merge(MergeConfig(tuned.path, tmp_path / "merged"))
    export(ExportConfig(tmp_path / "merged", tmp_path / "float"))
    for name in ("merged", "float"):
        gates = Bundle.open(tmp_path / name).manifest.gates
        assert {"sensitivity_language", "sensitivity_proprio"} <= set(gates)
        assert all(g.passed for g in gates.values())
    store = base.store()
    with bundles.writing(tmp_path / "blind", base.manifest, base.golden, base.tokenizer_files()) as written:
        writer = StoreWriter(written / "weights")
        for name in store.names:
            weight = store.read(name)
            assert isinstance(weight, torch.Tensor)
            writer.add(name, weight * 0 if name == "head.fc2.weight" else weight)
        writer.close()
    quantize(QuantizeConfig(tmp_path / "blind", tmp_path / "q", bits=8))
    assert not Bundle.open(tmp_path / "q").manifest.gates["sensitivity_black_white"].passed
    with pytest.raises(BundleError, match="marked as failed by its gates.*sensitivity_black_white"):
        open_policy(tmp_path / "q")


def test_closed_loop_result_is_a_gate(folder, tmp_path) -> None:
    for p, passed in ((0.4, True), (0.001, False)):
        (tmp_path / "paired.json").write_text(json.dumps({"first_worse_p": p}))
        report = check(GateConfig(bundle=folder / "int8", closed_loop=tmp_path / "paired.json"))
        assert report.gates["closed_loop_worse_p"].passed is passed
    (tmp_path / "paired.json").write_text("{}")
    with pytest.raises(BundleError, match="not a paired comparison"):
        check(GateConfig(bundle=folder / "int8", closed_loop=tmp_path / "paired.json"))


def test_the_comparison_that_compare_writes_is_read(folder, tmp_path) -> None:
    """`athena compare FLOAT BUNDLE` writes all rows; the pair is found in it, and another bundle's is refused."""

    def row(name: str, source: str, kind: str = "policy", ablation: str = "none") -> dict[str, str]:
        return {"name": name, "source": source, "kind": kind, "ablation": ablation}

    record = {
        "reference": "int8",
        "rows": [
            row("int8", str(folder / "int8")),
            row("base", str(folder / "base")),
            row("hold", "", "hold"),
            row("int8.black_image", str(folder / "int8"), ablation="black_image"),
        ],
        "paired": {n: {"first_worse_p": p} for n, p in (("base", 0.3), ("hold", 1.0), ("int8.black_image", 1.0))},
    }
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps(record))
    assert check(GateConfig(folder / "int8", closed_loop=file)).gates["closed_loop_worse_p"].value == 0.3
    with pytest.raises(BundleError, match="not '.*int4' with its float model"):
        check(GateConfig(folder / "int4", closed_loop=file))
    file.write_text(json.dumps(record | {"paired": {}}))
    with pytest.raises(BundleError, match="not a paired comparison"):
        check(GateConfig(folder / "int8", closed_loop=file))


def test_examining_a_bundle_keeps_it_the_parent_of_what_was_made_from_it(folder, tmp_path) -> None:
    """Gates are written into a bundle after others were made from it: the chain of hashes must hold."""
    quantize(QuantizeConfig(folder / "base", tmp_path / "q", bits=8))
    export(ExportConfig(tmp_path / "q", tmp_path / "x"))
    before = Bundle.open(tmp_path / "q").hash
    check(GateConfig(tmp_path / "q"))
    assert Bundle.open(tmp_path / "q").hash == before
    assert "bin_agreement" in Bundle.open(tmp_path / "q").manifest.gates
    assert check(GateConfig(tmp_path / "x", out=tmp_path / "report.json")).passed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert {"mean", "p95", "max"} == set(next(iter(report["error"]["per_joint_rad"].values())))


def test_what_failed_before_the_export_is_not_served_after_it(folder, tmp_path) -> None:
    quantize(QuantizeConfig(folder / "base", tmp_path / "q", bits=8))
    assert not check(GateConfig(tmp_path / "q", limits=GateLimits(p95_rad=0.0))).passed
    export(ExportConfig(tmp_path / "q", tmp_path / "x"))
    with pytest.raises(BundleError, match="marked as failed by its gates.*error_p95_rad"):
        open_policy(tmp_path / "x")


@pytest.fixture(scope="module")
def going_on(tmp_path_factory, toy):
    """A policy that goes on from rows of the action prefix, in a bundle whose golden observations carry some."""
    where = tmp_path_factory.mktemp("prefix")
    torch.manual_seed(0)
    sizes = {"action_dim": toy.action_dim, "state_dim": toy.state_dim, "cameras": len(toy.cameras), "horizon": 4}
    spec = dataclasses.replace(openvla_chunk.tiny_spec(**sizes, **BODY), prefix=2)
    model = openvla_chunk.OpenVLAChunk.from_spec(spec, {}).eval()
    with torch.no_grad():  # a fresh option changes nothing yet
        model.head.fc2.weight.mul_(20)
        for name, weight in model.named_parameters():
            if "given" in name or "prefix" in name:
                weight.normal_(std=0.5)
    frames = observations(toy, 3)
    target = np.stack([o.state[toy.action_index] for o in frames])[:, None].repeat(4, axis=1)
    samples = [Sample(o, t, np.ones(4, bool), "e", 0) for o, t in zip(frames, target, strict=True)]
    return write_model(where / "base", toy, model, asked(samples, 2))


def test_golden_observations_keep_their_action_prefix_rows(going_on, tmp_path) -> None:
    """Replay, parity and gates exercise the option with rows, not with zeros."""
    golden = Bundle.open(going_on.path).golden
    assert [0 if o.action_prefix is None else len(o.action_prefix) for o in golden.observations] == [2, 1, 0]
    without = [dataclasses.replace(o, action_prefix=None) for o in golden.observations]
    policy = Policy.of(going_on, "torch")
    moved = np.abs(policy.chunks(without) - golden.chunks)[:, 2:]
    assert moved[:2].max() > 1e-3, "given rows change the rows after them"
    assert moved[2].max() == 0
    quantize(QuantizeConfig(going_on.path, tmp_path / "q", bits=8))
    export(ExportConfig(tmp_path / "q", tmp_path / "x"))
    assert Bundle.open(tmp_path / "x").golden.observations[0].action_prefix is not None
    open_policy(tmp_path / "x")
    # A graph that forgets the rows it was given no longer replays.
    deaf = Policy.load(tmp_path / "x")

    def forgetful(name, inputs):
        zeroed = {k: v * 0 if "given" in k else v for k, v in inputs.items()}
        return deaf.engine.run(name, zeroed)

    with pytest.raises(BundleError, match="deviates"):
        require_replay(dataclasses.replace(deaf, engine=Tapped(deaf.engine, forgetful)), Bundle.open(tmp_path / "x"))


def test_action_prefix_rows_are_nobodys_merit(going_on, tmp_path) -> None:
    quantize(QuantizeConfig(going_on.path, tmp_path / "q", bits=8))
    report = check(GateConfig(tmp_path / "q"))
    a, b = (Policy.load(p, "torch").chunks(going_on.golden.observations) for p in (tmp_path / "q", going_on.path))
    answered = [np.abs(x - y)[rows:] for x, y, rows in zip(a, b, (2, 1, 0), strict=True)]
    assert report.error.mean_rad == pytest.approx(np.concatenate(answered).mean())
    assert report.error.mean_rad > np.abs(a - b).mean()


def test_a_model_that_does_not_fit_is_merged_quantised_gated_and_served_alike(tmp_path, toy, monkeypatch) -> None:
    """With weights read while they run: the deviation is recorded all the same, without which nothing is served."""
    base = write_base(tmp_path / "base", toy)
    write_finetuned(tmp_path / "tuned", base, LoraSettings(rank=4))
    monkeypatch.setattr("athena_vla.offload.IN_MEMORY", 0)
    monkeypatch.setattr("athena_vla.offload.RESIDENT", 10_000)
    monkeypatch.setattr("athena_vla.engines.backends.LARGE", 0)
    merged = merge(MergeConfig(tmp_path / "tuned", tmp_path / "merged"))
    assert merged.deviation["max_rad"] < 1e-5
    made = quantize(QuantizeConfig(tmp_path / "merged", tmp_path / "q", bits=8))
    assert made.error is not None
    assert made.error.frames == 2
    deviation = Bundle.open(tmp_path / "q").manifest.deviation
    assert 0 < deviation["max_rad"] < 0.05
    assert check(GateConfig(tmp_path / "q")).passed
    policy, told = open_policy(tmp_path / "q")
    assert told["replay_max_rad"] <= deviation["max_rad"] + 1e-3
    assert policy.engine.taken.engine == "packed"
    with pytest.raises(BundleError, match="moves its chunks"):
        merge(MergeConfig(tmp_path / "tuned", tmp_path / "m2", tolerance=1e-12))
