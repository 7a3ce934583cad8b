"""Merging: equal to the adapter in radians, equal to the in-memory merge bit by bit, and every misfit named."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import small_bundles
from athena_vla.bundle import ADAPTER_FILE, Bundle
from athena_vla.errors import BundleError, ModelError
from athena_vla.finetune import PRESETS
from athena_vla.merge import Adapter, MergeConfig, merge
from athena_vla.models.lora import LoraSettings
from athena_vla.models.lora_merge import Factors, merge_
from athena_vla.models.weights.store import StoreWriter, TensorStore
from small_bundles import peft_merge, write_base, write_finetuned


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy) -> Bundle:
    return write_base(tmp_path_factory.mktemp("base") / "base", toy)


ADAPTERS = {
    "lora": LoraSettings(rank=4, alpha=6),
    "dora": LoraSettings(rank=4, alpha=6, dora=True),
    "qlora": LoraSettings(rank=4, alpha=6, quantization="nf4"),
    "qdora": LoraSettings(rank=4, alpha=6, quantization="nf4", dora=True),
}
LINEAR = "language_model.model.layers.1.mlp.down_proj.weight"
TABLE = "language_model.model.embed_tokens.weight"
LOGITS = "language_model.lm_head.weight"
PLACES = {"linear": ("down_proj", LINEAR), "embedding": ("embed_tokens", TABLE), "lm_head": ("lm_head", LOGITS)}
BASES = {"openvla": {"tokens": True}, "openvla_chunk": {}, "openvla_oft": {"oft": True}}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def stored(request) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module", params=list(BASES))
def any_base(request, tmp_path_factory, toy, stored) -> Bundle:
    return write_base(tmp_path_factory.mktemp("bases") / "base", toy, dtype=stored, **BASES[request.param])


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_a_merge_is_that_of_peft_in_memory(any_base, stored, tmp_path, kind, place) -> None:
    """In float32 to 1e-6 of the largest weight; as stored, that merge rounded, bit for bit."""
    target, name = PLACES[place]
    if place == "lm_head" and any_base.manifest.family != "openvla":
        pytest.skip("the family has no token output")
    settings = dataclasses.replace(ADAPTERS[kind], targets=(target,))
    source = write_finetuned(tmp_path / "ft", any_base, settings)
    # Rounding 8 of 24 bits away moves chunks: what is compared here is weights.
    merge(MergeConfig(input=source.path, out=tmp_path / "merged", tolerance=1.0))
    expected = peft_merge(source.model())
    own = merge_(source.model(), wide=True).state_dict()
    assert set(own) == set(expected)
    for key, weight in expected.items():
        largest = float(weight.abs().max())
        assert float((own[key] - weight).abs().max()) <= 1e-6 * largest, key
    before = peft_merge(any_base.model())
    changed = {k for k, w in expected.items() if before[k].shape == w.shape and not torch.equal(before[k], w)}
    assert any(k.endswith(name) for k in changed), "the adapter changed nothing: the test would be empty"
    with Bundle.open(tmp_path / "merged").store() as store:
        heads = {n for n in store.names if n in load_file(source.path / ADAPTER_FILE)}
        assert set(store.names) == set(expected)
        for key in store.names:
            weight = store.read(key)
            assert isinstance(weight, torch.Tensor)
            assert weight.dtype == (torch.float32 if key in heads else stored)
            assert torch.equal(weight, expected[key].to(weight.dtype)), key


@pytest.mark.parametrize("tokens", [False, True])
def test_the_preset_with_adapted_tables_merges(tmp_path, toy, tokens) -> None:
    """DoRA on all linear layers, the embeddings and the output, as humanoid_high_performance has it."""
    start = write_base(tmp_path / "base", toy, tokens=tokens)
    preset = PRESETS["humanoid_high_performance"]
    targets = preset.targets if tokens else tuple(t for t in preset.targets if t != "lm_head")
    source = write_finetuned(
        tmp_path / "ft", start, LoraSettings(rank=8, alpha=preset.alpha, dora=True, targets=targets)
    )
    result = merge(MergeConfig(input=source.path, out=tmp_path / "merged"))
    assert result.deviation["max_rad"] < 1e-5
    assert set(result.deviation["outputs_max"]) == {g.name for g in source.model().graphs()}
    assert max(result.deviation["outputs_max"].values()) < 1e-5


@pytest.mark.parametrize("tokens", [False, True])
def test_a_wrong_merge_is_refused_by_its_graphs(tmp_path, toy, monkeypatch, tokens) -> None:
    """A magnitude that is dropped from one table: actions rounded to tokens do not show it, the graphs do."""
    start = write_base(tmp_path / "base", toy, tokens=tokens)
    settings = LoraSettings(rank=4, dora=True, targets=("embed_tokens",))
    source = write_finetuned(tmp_path / "ft", start, settings)
    right = Factors.fold

    def forgets(self: Factors, name: str, weight: torch.Tensor, scale: float) -> torch.Tensor:
        return right(dataclasses.replace(self, magnitude=None), name, weight, scale)

    monkeypatch.setattr(Factors, "fold", forgets)
    with pytest.raises(BundleError, match=r"before any rounding: graph '(words|language)'.*no option mends it"):
        merge(MergeConfig(input=source.path, out=tmp_path / "out", tolerance=10.0))
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_written_otherwise_is_refused(base, tmp_path, monkeypatch) -> None:
    source = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4))
    right = StoreWriter.add

    def spoils(self: StoreWriter, name: str, weight: torch.Tensor) -> None:
        right(self, name, weight + 1e-6 if name.endswith("up_proj.weight") else weight)

    monkeypatch.setattr(StoreWriter, "add", spoils)
    with pytest.raises(BundleError, match=r"up_proj.weight' was not written as it was merged"):
        merge(MergeConfig(input=source.path, out=tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ft"]


def test_the_advice_fits_the_reason(tmp_path, toy) -> None:
    start = write_base(tmp_path / "base", toy, dtype=torch.bfloat16)
    plain = write_finetuned(tmp_path / "plain", start, LoraSettings(rank=4))
    with pytest.raises(BundleError, match=r"stored in bfloat16.*--tolerance"):
        merge(MergeConfig(input=plain.path, out=tmp_path / "out", tolerance=1e-7))
    small = write_finetuned(tmp_path / "small", start, LoraSettings(rank=4, quantization="nf4"))
    with pytest.raises(BundleError, match=r"trained on the base's 4-bit weights: take them with --base nf4"):
        merge(MergeConfig(input=small.path, out=tmp_path / "out", base="original", tolerance=1e-7))


def test_an_adapter_without_its_magnitude_is_no_dora(base, tmp_path) -> None:
    source = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4, dora=True))
    tensors = load_file(source.path / ADAPTER_FILE)
    lost = next(k for k in tensors if "magnitude" in k)
    with pytest.raises(ModelError, match="no complete DoRA adapter"):
        Adapter.of({k: t for k, t in tensors.items() if k != lost}, LoraSettings(rank=4, dora=True))
    with pytest.raises(ModelError, match="no complete LoRA adapter"):
        Adapter.of(tensors, LoraSettings(rank=4))


def test_qlora_merges_into_the_weights_it_was_trained_on(base, tmp_path) -> None:
    source = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4, quantization="nf4"))
    own = merge(MergeConfig(input=source.path, out=tmp_path / "nf4"))
    assert own.base == "nf4"
    other = merge(MergeConfig(input=source.path, out=tmp_path / "original", base="original", tolerance=10.0))
    assert own.deviation["max_rad"] < 0.02
    assert other.deviation["max_rad"] > 2 * own.deviation["max_rad"]
    expected = merge_(source.model()).state_dict()  # de-quantised by the layers themselves
    for name, tensor in Bundle.open(tmp_path / "nf4").model().state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert Bundle.open(tmp_path / "original").manifest.stage_info["base"] == "original"


def test_a_merge_that_moves_the_policy_is_refused_and_leaves_nothing(base, tmp_path) -> None:
    source = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4, quantization="nf4"))
    with pytest.raises(BundleError, match="moves its chunks"):
        merge(MergeConfig(input=source.path, out=tmp_path / "out", base="original", tolerance=1e-9))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ft"]


def test_adapter_of_another_base(base, tmp_path, toy) -> None:
    source = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4))
    other = write_base(tmp_path / "other", toy, seed=5)
    manifest = json.loads((source.path / "manifest.json").read_text())
    manifest["parent_path"] = str(other.path)
    (source.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="fits only its own base"):
        merge(MergeConfig(input=source.path, out=tmp_path / "out"))


def test_a_base_bundle_has_no_adapter(base, tmp_path) -> None:
    with pytest.raises(BundleError, match="no adapter to merge"):
        merge(MergeConfig(input=base.path, out=tmp_path / "out"))


def test_edited_adapter(base, tmp_path) -> None:
    source = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4))
    file = source.path / ADAPTER_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(BundleError, match="differ from their recorded hashes"):
        merge(MergeConfig(input=source.path, out=tmp_path / "out"))


def test_disk_full_leaves_nothing_that_looks_whole(base, tmp_path, monkeypatch) -> None:
    source = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("athena_vla.models.weights.store.save_file", full)
    with pytest.raises(BundleError, match="No space left on device"):
        merge(MergeConfig(input=source.path, out=tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ft"]


def test_sharded_store_round_trip_and_missing_shard(tmp_path) -> None:
    tensors = {f"layer.{i}.weight": torch.randn(8, 16) for i in range(6)}
    writer = StoreWriter(tmp_path, shard_bytes=1200)  # two tensors each
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) == 3
    store = TensorStore(tmp_path)
    assert set(store.names) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(store.read(name), tensor)  # pyright: ignore[reportArgumentType]
        assert store.shape(name) == (8, 16)
    with pytest.raises(ModelError, match="holds no weight 'nothing'"):
        store.read("nothing")
    shards[1].unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of 3 weight files: model-00002-of-00003"):
        TensorStore(tmp_path)


def test_cut_shard(tmp_path, base) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(base.path / "weights", folder)
    file: Path = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        TensorStore(folder)


MEASURED_MERGE = """
import sys, threading, time
from pathlib import Path

from athena_vla.merge import MergeConfig, merge
from athena_vla.models.weights.store import StoreWriter

SHARD = 24_000_000
StoreWriter.__init__.__defaults__ = (SHARD,)


def anonymous():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("RssAnon"))


def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)


merge(MergeConfig(Path(sys.argv[1]), Path(sys.argv[2]) / "warm", verify=False))  # imports and allocators
peak = start = anonymous()
running = True
thread = threading.Thread(target=watch)
thread.start()
merge(MergeConfig(Path(sys.argv[1]), Path(sys.argv[2]) / "merged", verify=False))
running = False
thread.join()
shards = [f.stat().st_size for f in (Path(sys.argv[2]) / "merged" / "weights").glob("*.safetensors")]
print(len(shards), max(shards), peak - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account of memory")
def test_merging_needs_less_than_two_of_the_largest_shard(tmp_path, toy, monkeypatch) -> None:
    """Measured in a process of its own, on a model that is five times as large as what may be in memory."""
    monkeypatch.setattr(small_bundles, "BODY", small_bundles.BODY | {"width": 768, "mlp_width": 2048, "layers": 5})
    base = write_base(tmp_path / "base", toy)
    write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4))
    words = [sys.executable, "-c", MEASURED_MERGE, str(tmp_path / "ft"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shards, largest, peak = (int(w) for w in done.stdout.split())
    assert shards >= 5
    assert peak < 2 * largest, f"{peak / 1e6:.0f} MB for shards of {largest / 1e6:.0f} MB"
