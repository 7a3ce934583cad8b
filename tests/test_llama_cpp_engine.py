"""The engine over llama.cpp: hidden states and logits beside torch's, options, damaged files, memory, no torch."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from athena_vla.bundle import Bundle
from athena_vla.embodiment import Embodiment
from athena_vla.engines.backends import open_backend
from athena_vla.engines.llama_cpp_engine import FILE, LlamaCpp
from athena_vla.errors import ExportError
from athena_vla.export import ExportConfig, export
from athena_vla.models.contract import Engine, Tapped, Values
from athena_vla.policy import Policy, encode
from small_bundles import observations, small_model, write_model

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (extra llama)")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy: Embodiment) -> Path:
    root = tmp_path_factory.mktemp("engine")
    for name, tokens in (("chunk", False), ("tokens", True)):
        model = small_model(toy, tokens=tokens)
        with torch.no_grad():  # a fresh decoder hardly mixes its rows
            for key, weight in model.named_parameters():
                if key.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_(30)
        write_model(root / name, toy, model)
        export(ExportConfig(root / name, root / f"{name}-llama", target="llama.cpp", compare=False, cache="f32"))
    return root


def opened(path: Path, **options: Any) -> LlamaCpp:
    """The engine of an exported bundle, with other options than it was exported with."""
    info = dict(Bundle.open(path).manifest.stage_info)
    return LlamaCpp(path / "weights", {**info, "llama": {**info["llama"], **options}}, 1, "cpu")


def asked(folder: Path, frame: int = 1) -> tuple[Values, np.ndarray]:
    """One call of `language` of the chunk family, and torch's hidden states."""
    source = Bundle.open(folder / "chunk")
    loop, engine = open_backend(source, "torch")
    seen = observations(source.robot, 3)[frame]
    inputs = loop.collate([encode(seen, source.robot, source.normalizer)])
    patches = engine.memory.read(engine.run("vision", {"pixel_values": inputs["pixel_values"]})["patches"])
    values = {"patches": patches, **{k: inputs[k] for k in ("input_ids", "prompt_mask", "state")}}
    return values, engine.memory.read(engine.run("language", values)["hidden"])


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_hidden_states_of_float_weights_are_torchs(folder: Path) -> None:
    values, expected = asked(folder)
    assert apart(opened(folder / "chunk-llama").run("language", values)["hidden"], expected) <= 1e-5
    half = apart(opened(folder / "chunk-llama", cache="f16").run("language", values)["hidden"], expected)
    assert 1e-6 < half <= 1e-3  # the option reaches the library: 16 bits cost something
    flash = opened(folder / "chunk-llama", flash_attention="on").run("language", values)["hidden"]
    assert 1e-6 < apart(flash, expected) <= 1e-2


def test_small_batches_give_the_same_states(folder: Path) -> None:
    values, expected = asked(folder)
    for rows in (1, 7, 32):
        hidden = opened(folder / "chunk-llama", micro_batch=rows).run("language", values)["hidden"]
        assert apart(hidden, expected) <= 1e-5, rows


def test_logits_of_every_step_are_torchs(folder: Path) -> None:
    """Both read what torch has written, token after token."""
    source = Bundle.open(folder / "tokens")
    loop, engine = open_backend(source, "torch")
    other = opened(folder / "tokens-llama")
    worst: list[float] = []

    def run(name: str, values: Values) -> Values:
        found = engine.run(name, values)
        if name == "language":
            copied = {k: engine.memory.read(v) for k, v in values.items() if k in ("rows", "valid", "position")}
            logits = engine.memory.read(found["logits"])
            mine = other.run(name, copied)["logits"]
            again = other.run(name, copied)["logits"]  # the same step asked twice is the same step
            np.testing.assert_array_equal(mine, again)
            worst.append(apart(mine, logits))
        return found

    frames = [encode(o, source.robot, source.normalizer) for o in observations(source.robot, 2)]
    for frame in frames:
        loop.decode(Tapped(engine, run), loop.collate([frame]), {})
    assert len(worst) == 2 * source.robot.action_dim
    assert max(worst) <= 1e-5


def test_files_that_were_cut_are_refused_wherever_they_end(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "chunk-llama" / "weights" / FILE).read_bytes()
    info = Bundle.open(folder / "chunk-llama").manifest.stage_info
    for size in (0, 3, 40, 2000, len(whole) // 2, len(whole) - 64):
        place = tmp_path / str(size)
        place.mkdir()
        (place / FILE).write_bytes(whole[:size])
        with pytest.raises(ExportError, match="cannot load .*cut off"):
            LlamaCpp(place, info)


_STARVED = """
import json, resource, sys
from pathlib import Path
from athena_vla.engines.llama_cpp_engine import LlamaCpp
from athena_vla.errors import ExportError
info = json.loads(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
try:
    LlamaCpp(Path(sys.argv[1]), info, 1, "cpu")
except ExportError as error:
    print(error)
"""


def child(*words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_a_cache_that_does_not_fit_is_a_sentence(folder: Path) -> None:
    bundle = Bundle.open(folder / "chunk-llama")
    own = {**bundle.manifest.stage_info["llama"], "context": 1 << 24, "micro_batch": 32}  # 2 KB a row: 32 GB
    done = child("-c", _STARVED, str(bundle.path / "weights"), json.dumps({**bundle.manifest.stage_info, "llama": own}))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "not enough memory for a cache of 16777216 rows" in done.stdout


@pytest.mark.parametrize("family", ["chunk", "tokens"])
def test_it_acts_serves_and_benches_without_torch(folder: Path, tmp_path: Path, family: str) -> None:
    path, out = folder / f"{family}-llama", tmp_path / "answers.npz"
    done = child(str(ROOT / "tests" / "without_torch.py"), str(path), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    record: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert record["imported"] == []
    assert record["taken"]["engine"] == "llama.cpp"
    assert record["replay_max_rad"] < 1e-4, "the golden chunks are torch's"
    expected = Policy.load(folder / family, "torch").chunks(Bundle.open(path).golden.observations)
    with np.load(out) as answers:
        np.testing.assert_allclose(answers["served"], expected, atol=1e-4)


def test_the_options_are_recorded_and_held_to_sense(folder: Path, tmp_path: Path) -> None:
    made = Bundle.open(folder / "chunk-llama").manifest.stage_info["llama"]
    assert (made["cache"], made["flash_attention"], made["gpu_layers"], made["micro_batch"]) == ("f32", "auto", -1, 0)
    with pytest.raises(ExportError, match="--micro-batch is a number of rows"):
        export(ExportConfig(folder / "chunk", tmp_path / "out", target="llama.cpp", micro_batch=-1))


def test_a_pass_leaves_nothing_behind(folder: Path) -> None:
    """Long prompt, short prompt, long prompt: the third answer is the first."""
    engine: Engine = opened(folder / "chunk-llama")
    long, short = asked(folder, 1)[0], asked(folder, 2)[0]
    first = engine.run("language", long)["hidden"]
    engine.run("language", short)
    np.testing.assert_array_equal(engine.run("language", long)["hidden"], first)
