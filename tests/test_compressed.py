"""The compressed checkpoint: codes survive bit by bit, the layout is as documented, what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from athena_vla.bundle import Bundle
from athena_vla.errors import BundleError, ExportError, ModelError
from athena_vla.export import ExportConfig, export
from athena_vla.export.compressed import PREFIX, pack, unpack, write_compressed
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import TensorStore
from athena_vla.quantize import QuantizeConfig, quantize
from small_bundles import write_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy):
    where = tmp_path_factory.mktemp("compressed")
    write_base(where / "tokens", toy, tokens=True)
    quantize(QuantizeConfig(where / "tokens", where / "int4", method="nearest", sensitivity=False))
    return where


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([32, 64, 128]), st.integers(0, 2**31))
def test_packing_is_lossless(rows: int, groups: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (8 * rows, groups * group), generator=generator, dtype=torch.int8)
    weight = Packed(codes, torch.rand(8 * rows, groups, generator=generator).half(), 4)
    again = unpack(pack(weight))
    assert torch.equal(again.codes, codes)
    assert torch.equal(again.scales, weight.scales)


def read_compressed(folder: Path) -> dict[str, Tensor | Packed]:
    """The weights of such a folder under their plain names; what the round trip is tested with."""
    places = TensorStore(folder)
    tensors = {n: places.read(n) for n in places.names}
    layers = [n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")]
    parts = ("qweight", "qzeros", "scales", "g_idx")
    for n in layers:
        tensors[f"{n}.weight"] = unpack({p: places.stored(f"{n}.{p}") for p in parts})
        for p in parts:
            del tensors[f"{n}.{p}"]
    return tensors


def test_words_by_hand() -> None:
    """Input i of output j: bits 4 (i mod 8) of word [i / 8, j], code plus eight; zero points one less than eight."""
    codes = torch.zeros(8, 32, dtype=torch.int8)
    codes[3, 9] = -3
    parts = pack(Packed(codes, torch.ones(8, 1).half(), 4))
    assert parts["qweight"].shape == (4, 8)
    assert (int(parts["qweight"][1, 3]) >> 4) & 15 == 8 - 3
    assert int(parts["qweight"][0, 0]) & 0xFFFFFFFF == 0x88888888
    assert int(parts["qzeros"][0, 0]) == 0x77777777
    assert parts["g_idx"].tolist() == [0] * 32


def test_a_decoder_survives_the_round_trip(folder) -> None:
    result = export(ExportConfig(folder / "int4", folder / "edge", target="edge-llm"))
    assert "tensorrt-edgellm-export" in result.note
    store, back = Bundle.open(folder / "int4").store(), read_compressed(folder / "edge")
    names = [n for n in store.names if n.startswith(PREFIX)]
    assert {PREFIX + n for n in back} == set(names)
    for name in names:
        mine, theirs = store.read(name), back[name.removeprefix(PREFIX)]
        if isinstance(mine, Packed):
            assert isinstance(theirs, Packed)
            assert torch.equal(mine.dequantize(), theirs.dequantize())
        else:
            assert isinstance(theirs, torch.Tensor)
            torch.testing.assert_close(theirs.float(), mine.float(), rtol=1e-3, atol=1e-6)
    config = json.loads((folder / "edge" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gptq"
    assert config["quantization_config"]["group_size"] == 128
    assert config["vocab_size"] == back["model.embed_tokens.weight"].shape[0]
    rows = load_file(folder / "edge" / "reduced_vocab" / "vocab_map.safetensors")["vocab_map"]
    assert len(rows) == 257
    assert rows.dtype == torch.int32
    assert json.loads((folder / "edge" / "tokenizer_config.json").read_text())["chat_template"]


def test_transformers_reads_the_configuration(folder, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    write_compressed(Bundle.open(folder / "int4"), tmp_path / "edge")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "edge")
    text = Bundle.open(folder / "int4").spec.body.text  # pyright: ignore[reportAttributeAccessIssue]
    assert (config.hidden_size, config.num_hidden_layers) == (text.width, text.layers)


def test_what_does_not_fit_is_refused(folder, toy, tmp_path, monkeypatch) -> None:
    source = Bundle.open(folder / "int4")
    with pytest.raises(BundleError, match="is base; a compressed checkpoint is made of a quantised one"):
        write_compressed(Bundle.open(folder / "tokens"), tmp_path / "x")
    write_base(tmp_path / "chunk", toy)
    quantize(QuantizeConfig(tmp_path / "chunk", tmp_path / "q", bits=8))
    with pytest.raises(BundleError, match="no token output"):
        write_compressed(Bundle.open(tmp_path / "q"), tmp_path / "x")
    quantize(QuantizeConfig(folder / "tokens", tmp_path / "int8", bits=8))
    with pytest.raises(ExportError, match="has 8 bits; the layout has one number of bits"):
        write_compressed(Bundle.open(tmp_path / "int8"), tmp_path / "x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    with pytest.raises(BundleError, match="is not a compressed checkpoint"):
        write_compressed(source, tmp_path / "taken")
    parts = pack(Packed(torch.zeros(8, 32, dtype=torch.int8), torch.ones(8, 1).half(), 4))
    with pytest.raises(ModelError, match="not symmetric"):
        unpack({**parts, "qzeros": parts["qzeros"] * 0})
    with pytest.raises(ModelError, match="another order"):
        unpack({**parts, "g_idx": parts["g_idx"] + 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("athena_vla.models.weights.store.StoreWriter.close", full)
    with pytest.raises(BundleError, match="No space left on device"):
        write_compressed(source, tmp_path / "x")
    assert not list(tmp_path.glob("*x*")), "nothing half-written is left"
