"""Every preset as a user runs it: trained, merged, quantised, exported and served, by the command line.

Targets, rank, alpha, dropout, adapter kind and quantisation are the preset's. Sizes are tiny and the steps are few. The
oracle at each step is the policy before it, asked on the same frames; serving answers what the exported file answers.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from athena_vla import cli, embodiment
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.finetune import PRESETS
from athena_vla.policy import Policy
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.server import PolicyServer, background
from recordings import clean, write
from small_bundles import observations, write_base

pytestmark = pytest.mark.slow
FEW = [
    *("--max-steps", "4", "--batch", "2", "--accumulation", "1", "--warmup-steps", "1", "--learning-rate", "1e-3"),
    *("--evaluate-every", "2", "--augment-variants", "1", "--precision", "fp32", "--no-tensorboard", "--workers", "0"),
]
# [rad] the largest of what a step may move any joint target of any frame by
MERGED, EXPORTED, CODED = 1e-4, 1e-3, 0.3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("presets")
    write(root / "rec", *(clean(i, length=14) for i in range(6)))
    build(BuildConfig(input=root / "rec", out=root / "set", robot="toy", horizon=4, workers=1, validation=0.2))
    for name, tokens in (("chunk", False), ("tokens", True)):
        write_base(root / name, embodiment.load("toy"), tokens=tokens)
    return root


def run(*words: object, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, words), "--json"])
    said = capsys.readouterr()
    assert end.value.code in (0, None), said.err
    json.loads(said.out)


def actions(bundle: Path) -> np.ndarray:
    policy = Policy.load(bundle)
    return np.stack([policy.act(o).positions for o in observations(embodiment.load("toy"), 3)])


@pytest.mark.parametrize("family", ["chunk", "tokens"])
@pytest.mark.parametrize("name", [n for n in PRESETS if n != "demo"])
def test_a_preset_reaches_the_robot(
    world: Path, tmp_path: Path, name: str, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="an exported bundle needs ONNX Runtime (extra export)")
    preset = PRESETS[name]
    if preset.quantization != "none" or "8bit" in preset.optimizer:
        pytest.importorskip("bitsandbytes", reason="this preset needs bitsandbytes (extra gpu)")
    words: list[object] = ["train", "--preset", name, "--model", world / family, "--data", world / "set"]
    paged = ["--optimizer", "adamw8bit"] if preset.optimizer.startswith("paged") else []  # paging needs a card
    heads = [t for t in preset.targets if family == "tokens" or t != "lm_head"]  # a chunk policy has no output table
    targets = ["--targets", *heads] if tuple(heads) != preset.targets else []
    run(*words, "--out", tmp_path / "tuned", *FEW, *paged, *targets, capsys=capsys)
    said = json.loads((tmp_path / "tuned" / "manifest.json").read_text())["adapter"]
    assert (said["rank"], said["alpha"], said["dora"]) == (preset.rank, preset.alpha, preset.dora)
    tuned = actions(tmp_path / "tuned")
    assert np.abs(tuned - actions(world / family)).max() > 1e-4  # it learned something

    run("merge", tmp_path / "tuned", tmp_path / "merged", capsys=capsys)
    merged = actions(tmp_path / "merged")
    # A decoded number lies in one of 256 bins: where two are as likely, rounding decides.
    near = np.abs(merged - tuned) <= MERGED
    assert near.all() if family == "chunk" else near.mean() >= 0.95

    run("quantize", tmp_path / "merged", tmp_path / "int8", "--bits", "8", "--method", "nearest", capsys=capsys)
    coded = actions(tmp_path / "int8")
    assert np.abs(coded - merged).max() <= CODED

    run("export", tmp_path / "int8", tmp_path / "served", capsys=capsys)
    exported = Policy.load(tmp_path / "served")
    robot = embodiment.load("toy")
    frames = observations(robot, 3)
    answers = np.stack([exported.act(o).positions for o in frames])
    assert np.abs(answers - coded).max() <= (EXPORTED if family == "chunk" else CODED)

    with background(PolicyServer(exported, robot)) as server, RemotePolicy(server.address, robot) as remote:
        served = np.stack([remote.act(o).positions for o in frames])
    np.testing.assert_allclose(served, answers, atol=1e-6)
