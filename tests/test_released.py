"""A released checkpoint as the base of a fine-tuning: the whole way, for all families, and every wrong input."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from athena_vla.bench.benchmarking import BenchConfig, BenchResult, bench
from athena_vla.bundle import Bundle, open_base
from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.errors import AthenaError, BundleError, ModelError
from athena_vla.evaluate.commands import CompareConfig, EvaluateConfig, Loop, compare, evaluate
from athena_vla.export import ExportConfig, GateConfig, check, export
from athena_vla.finetune import FinetuneConfig, checkpoint, finetune
from athena_vla.merge import MergeConfig, merge
from athena_vla.models.released.pretrained import Release
from athena_vla.models.robot_sizes import Sizes
from athena_vla.policy import Policy, require_replay
from athena_vla.quantize import QuantizeConfig, quantize
from athena_vla.serve import open_policy
from recordings import clean, write
from small_bundles import small_run


@pytest.fixture(scope="module")
def world(tmp_path_factory, released_layout) -> Path:
    """A tiny checkpoint in the released layout, and a dataset of another robot than it was made for."""
    root = tmp_path_factory.mktemp("released")
    shutil.copytree(released_layout, root / "openvla")
    write(root / "rec", *(clean(i, length=14) for i in range(5)))
    build(BuildConfig(input=root / "rec", out=root / "set", robot="toy", horizon=2, workers=1, validation=0.2))
    return root


def config(world: Path, out: Path, **changes) -> FinetuneConfig:
    fields = {
        "model": str(world / "openvla"),
        "data": world / "set",
        "out": out,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "max_steps": 6,
        "evaluate_every": 3,
        "augment": False,
        "select": "last",
    }
    return small_run(**{**fields, **changes})


SLOW = pytest.mark.slow
WAYS = [
    pytest.param("openvla", "none", marks=SLOW),
    pytest.param("openvla", "nf4", marks=SLOW),
    pytest.param("openvla_oft", "none", marks=SLOW),
    pytest.param("openvla_oft", "nf4", marks=SLOW),
    ("openvla_chunk", "none"),
    pytest.param("openvla_chunk", "nf4", marks=SLOW),
]


@pytest.mark.parametrize(("family", "quantization"), WAYS)
def test_the_whole_way_from_a_released_checkpoint(world, tmp_path, interrupted_at_step, family, quantization):
    cfg = config(world, tmp_path / "tuned", family=family, quantization=quantization, checkpoint_every=2)
    interrupted_at_step(3, cfg)
    assert checkpoint.steps(cfg.run_folder / "checkpoints") == [2, 3]  # its own, and the evaluation's
    finetune(cfg)  # goes on
    tuned = Bundle.open(cfg.out)
    dataset = Dataset.open(world / "set")
    assert tuned.manifest.family == family
    assert tuned.manifest.checkpoint == str(world / "openvla")
    assert tuned.manifest.parent_hash == Release.open(world / "openvla").hash
    assert tuned.normalizer.to_dict() == dataset.normalizer.to_dict(), "statistics are the robot's, not the release's"
    assert (cfg.out / "weights" / "adapter.safetensors").stat().st_size < (
        world / "openvla" / "tokenizer.json"
    ).stat().st_size * 4
    assert require_replay(Policy.of(tuned), tuned)["max_rad"] < 1e-5
    policy, told = open_policy(cfg.out)
    assert told["family"] == family
    assert policy.act(dataset[0].observation).positions.shape == (2, 3)
    merged = merge(MergeConfig(cfg.out, tmp_path / "merged"))
    assert merged.deviation["max_rad"] < (1e-3 if quantization == "none" else 0.02)
    small = quantize(QuantizeConfig(tmp_path / "merged", tmp_path / "int8", bits=8, data=world / "set", frames=8))
    assert small.error is not None
    assert small.error.mean_rad < 0.05
    export(ExportConfig(tmp_path / "int8", tmp_path / "exported"))
    assert Policy.load(tmp_path / "exported").act(dataset[0].observation).positions.shape == (2, 3)
    report = check(GateConfig(bundle=tmp_path / "exported", data=world / "set", frames=8))
    assert report.gates["golden_replay" if "golden_replay" in report.gates else next(iter(report.gates))]
    if report.passed:  # tokens of random weights, trained for six steps, may not depend on the picture yet
        open_policy(tmp_path / "exported")
    else:
        assert family == "openvla"
        with pytest.raises(BundleError, match="failed by its gates"):
            open_policy(tmp_path / "exported")


def test_the_three_ways_to_name_a_base_and_what_is_none(world, tmp_path):
    assert isinstance(open_base(world / "openvla"), Release)
    assert isinstance(open_base("builtin:base"), Bundle)
    with pytest.raises(BundleError, match="neither a bundle .* nor a released checkpoint"):
        open_base(tmp_path)
    with pytest.raises(BundleError, match="neither a bundle"):
        open_base("openvla-7b")


def test_a_hub_id_without_a_connection_is_one_sentence(world, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=r"'openvla/openvla-7b'.* is not complete in the local cache.*Connect once"):
        finetune(config(world, tmp_path / "tuned", model="openvla/openvla-7b"))
    assert not (tmp_path / "tuned").exists()


def test_a_hub_snapshot_is_pinned_to_its_commit(world, tmp_path, monkeypatch):
    commit = "31f090d05236101ebfc381b61c674dd4746d4ce0"
    snapshot = tmp_path / "models--openvla--openvla-7b" / "snapshots" / commit
    shutil.copytree(world / "openvla", snapshot)
    asked: list[str | None] = []

    def download(name, *, revision, **more):
        asked.append(revision)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    release = Release.open("openvla/openvla-7b@main")
    assert release.source == f"openvla/openvla-7b@{commit}"
    assert Release.open(release.source).hash == release.hash == Release.open(world / "openvla").hash
    assert asked == ["main", commit]


def test_another_checkpoint_under_the_same_name_is_refused(world, tmp_path):
    shutil.copytree(world / "openvla", tmp_path / "openvla")
    finetune(config(world, tmp_path / "tuned", model=str(tmp_path / "openvla"), max_steps=1))
    shard = sorted((tmp_path / "openvla").glob("*.safetensors"))[-1]
    raw = bytearray(shard.read_bytes())
    raw[-100] ^= 1
    shard.write_bytes(bytes(raw))
    with pytest.raises(BundleError, match="an adapter fits only its own base"):
        Bundle.open(tmp_path / "tuned").model()
    shutil.rmtree(tmp_path / "openvla")
    with pytest.raises(AthenaError, match="There is no folder"):
        merge(MergeConfig(tmp_path / "tuned", tmp_path / "merged"))


def test_an_adapter_without_its_base_is_neither_quantised_nor_exported(world, tmp_path):
    finetune(config(world, tmp_path / "tuned", max_steps=1))
    for stage in (
        lambda: quantize(QuantizeConfig(tmp_path / "tuned", tmp_path / "q")),
        lambda: export(ExportConfig(tmp_path / "tuned", tmp_path / "e")),
    ):
        with pytest.raises(BundleError, match="athena merge"):
            stage()
    with pytest.raises(AthenaError, match="itself an adapter. Merge it first"):
        finetune(config(world, tmp_path / "again", model=str(tmp_path / "tuned")))


def test_a_policy_on_a_release_is_evaluated_and_timed_as_any_other(world, tmp_path):
    finetune(config(world, tmp_path / "tuned", max_steps=2))
    result = evaluate(
        EvaluateConfig(
            bundle=tmp_path / "tuned", data=world / "set", out=tmp_path / "out", samples=8, loop=Loop(episodes=0)
        )
    )
    assert result.open is not None
    assert {"policy", "policy.black_image", "policy.other_instruction"} <= {r.name for r in result.rows}
    assert "policy" in str(result)
    timed = bench(BenchConfig(bundle=tmp_path / "tuned", warmup=10, runs=100, rate_hz=1.0))
    assert isinstance(timed, BenchResult)
    assert timed.record["summary"]["kind"] == "measured_here"
    assert len(timed.whole.seconds) == 100


def test_untuned_is_the_release_with_the_robots_statistics_and_heads_that_never_learned(world, tmp_path):
    finetune(config(world, tmp_path / "tuned", max_steps=2))
    result = compare(
        CompareConfig(
            a=world / "openvla",
            b=tmp_path / "tuned",
            data=world / "set",
            out=tmp_path / "compared",
            samples=8,
            ablations=False,
            baselines=("hold",),
            loop=Loop(episodes=0),
        )
    )
    assert "untuned" in str(result)
    bound = Bundle.open(tmp_path / "compared" / "untuned")
    assert bound.manifest.checkpoint == str(world / "openvla")
    assert "never trained" in bound.manifest.stage_info["rebound"]
    assert bound.normalizer.to_dict() == Dataset.open(world / "set").normalizer.to_dict()
    assert not (bound.path / "weights" / "model.safetensors").exists(), "fifteen gigabytes are not copied"
    assert require_replay(Policy.of(bound), bound)["max_rad"] < 1e-6
    with pytest.raises(AthenaError, match="give --data"):
        compare(CompareConfig(a=world / "openvla", b=tmp_path / "tuned", out=tmp_path / "none"))


def test_a_family_may_change_on_a_bundles_body(world, tmp_path):
    cfg = config(world, tmp_path / "oft", model="builtin:base", family="openvla_oft", max_steps=1, proprio=False)
    bundle = Bundle.open(finetune(cfg).bundle)
    assert bundle.manifest.family == "openvla_oft"
    assert bundle.manifest.spec["proprio"] is False
    assert require_replay(Policy.of(bundle), bundle)["max_rad"] == 0.0
    assert not any("state_projector" in n for n, _ in bundle.model().named_parameters())
    with pytest.raises(ModelError, match="has no token output"):
        finetune(dataclasses.replace(cfg, family="openvla", out=tmp_path / "tokens"))


def test_oft_heads_of_the_release_are_taken_over_where_they_fit(world, tmp_path):
    from athena_vla.models.openvla_oft import L1Head

    folder = tmp_path / "oft"
    shutil.copytree(world / "openvla", folder)
    width = Release.open(folder).model(sizes=Sizes.of_dict(SIZES | {"horizon": 1})).body_spec.text.width  # pyright: ignore
    assert isinstance(width, int)
    head = L1Head(2, width, 3)
    torch.save({f"module.{k}": v for k, v in head.state_dict().items()}, folder / "action_head--100_checkpoint.pt")
    same = Release.open(folder).model("openvla_oft", sizes=Sizes.of_dict(SIZES | {"horizon": 2}))
    assert torch.equal(same.get_submodule("head").model.fc2.weight, head.model.fc2.weight)  # pyright: ignore
    other = Release.open(folder).model("openvla_oft", sizes=Sizes.of_dict(SIZES | {"horizon": 2, "action_dim": 5}))
    assert other.get_submodule("head").model.fc2.weight.shape[0] == 5  # pyright: ignore


SIZES = {"action_dim": 3, "state_dim": 3, "cameras": 1}
