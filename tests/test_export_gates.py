"""Gates: a good bundle passes, each kind of damage fails its own gate, and a failed bundle is marked and not served."""

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
from athena_vla.models.lora import LoraSettings
from athena_vla.models.store import StoreWriter
from athena_vla.quantize import QuantizeConfig, quantize
from athena_vla.serving import open_policy
from small_bundles import write_base, write_finetuned


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
    assert set(report.error["per_joint_rad"]) == set(Bundle.open(folder / "int8").robot.action_joints)


def test_strict_limits_fail_and_the_server_refuses(folder) -> None:
    limits = GateLimits(p95_rad=1e-6, bin_agreement=1.0)
    report = check(GateConfig(bundle=folder / "int4", limits=limits))
    assert not report.passed
    assert report.exit_status == 4
    assert not report.gates["error_p95_rad"]["passed"]
    from athena_vla.serving import ServeBundleConfig, serve

    with pytest.raises(BundleError, match="marked as failed by its gates"):
        serve(ServeBundleConfig(bundle=folder / "int4"))


def test_tokens_are_compared_teacher_forced(folder) -> None:
    gates = check(GateConfig(bundle=folder / "tokens8")).gates
    assert 0 <= gates["kl_nats"]["value"] < 0.05
    assert gates["greedy_agreement_teacher_forced"]["value"] > 0.5
    assert 0.5 < gates["greedy_agreement_free_running"]["value"] <= 1
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
        assert all(g["passed"] for g in gates.values())
    store = base.store()
    with bundles.writing(tmp_path / "blind", base.manifest, base.golden, base.tokenizer_files()) as written:
        writer = StoreWriter(written / "weights")
        for name in store.names:
            weight = store.read(name)
            assert isinstance(weight, torch.Tensor)
            writer.add(name, weight * 0 if name == "head.fc2.weight" else weight)
        writer.close()
    quantize(QuantizeConfig(tmp_path / "blind", tmp_path / "q", bits=8))
    assert not Bundle.open(tmp_path / "q").manifest.gates["sensitivity_black_white"]["passed"]
    with pytest.raises(BundleError, match="marked as failed by its gates.*sensitivity_black_white"):
        open_policy(tmp_path / "q")


def test_closed_loop_result_is_a_gate(folder, tmp_path) -> None:
    for p, passed in ((0.4, True), (0.001, False)):
        (tmp_path / "paired.json").write_text(json.dumps({"first_worse_p": p}))
        report = check(GateConfig(bundle=folder / "int8", closed_loop=tmp_path / "paired.json"))
        assert report.gates["closed_loop_worse_p"]["passed"] is passed
    (tmp_path / "paired.json").write_text("{}")
    with pytest.raises(BundleError, match="not a paired comparison"):
        check(GateConfig(bundle=folder / "int8", closed_loop=tmp_path / "paired.json"))


def test_a_gate_that_is_not_a_number_fails() -> None:
    from athena_vla.export.gates import _at_least, _at_most

    assert not _at_most(np.nan, 1.0)["passed"]
    assert not _at_least(np.nan, 0.0)["passed"]
    assert dataclasses.is_dataclass(GateLimits())
