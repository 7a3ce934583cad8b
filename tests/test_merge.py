"""Merging: equal to the adapter in radians, equal to the in-memory merge bit by bit, and every misfit named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import small_bundles
from athena_vla.bundle import ADAPTER_FILE, Bundle
from athena_vla.errors import BundleError, ModelError
from athena_vla.merge import MergeConfig, merge
from athena_vla.models import lora
from athena_vla.models.lora import LoraSettings
from athena_vla.models.store import StoreWriter, TensorStore
from small_bundles import write_base, write_finetuned


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy) -> Bundle:
    return write_base(tmp_path_factory.mktemp("base") / "base", toy)


def in_memory(source: Bundle) -> dict[str, torch.Tensor]:
    return lora.merge_(source.model()).state_dict()


@pytest.mark.parametrize("dora", [False, True])
def test_streamed_merge_equals_the_adapter_and_the_merge_in_memory(base, tmp_path, dora) -> None:
    source = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4, dora=dora))
    result = merge(MergeConfig(input=source.path, out=tmp_path / "merged"))
    assert result.deviation["max_rad"] < 1e-5
    assert result.merged == len(source.model().lora_modules(("all-linear",), vision=False, projector=False))
    merged = Bundle.open(tmp_path / "merged")
    assert merged.manifest.parent_hash == source.hash
    expected = in_memory(source)
    for name, tensor in merged.model().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    changed = [n for n, t in base.model().state_dict().items() if not torch.equal(t, expected[n])]
    assert any("q_proj" in n for n in changed), "the adapter changed nothing: the test would be empty"


def test_qlora_merges_into_the_weights_it_was_trained_on(base, tmp_path) -> None:
    source = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4, quantization="nf4"))
    own = merge(MergeConfig(input=source.path, out=tmp_path / "nf4"))
    assert own.base == "nf4"
    other = merge(MergeConfig(input=source.path, out=tmp_path / "original", base="original", tolerance=10.0))
    assert own.deviation["max_rad"] < 0.02
    assert other.deviation["max_rad"] > 2 * own.deviation["max_rad"]
    expected = in_memory(source)  # de-quantised by the layers themselves
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

    monkeypatch.setattr("athena_vla.models.store.save_file", full)
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
from athena_vla.models.store import StoreWriter

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
