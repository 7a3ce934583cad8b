"""Layers on codes as they are stored: bit by bit what the de-quantised weight is, and the same policy around them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from athena_vla.bundle import Bundle
from athena_vla.engines.backends import open_backend
from athena_vla.errors import BundleError, ModelError
from athena_vla.models.architecture import TorchEngine
from athena_vla.models.weights import packed, packed_linear
from athena_vla.models.weights.packed_linear import PackedLinear, Scratch, packed_model
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig, quantize
from packed_layers import layer, random_weight
from small_bundles import observations, write_base

KINDS = st.sampled_from([torch.bfloat16, torch.float32])  # native, and where bfloat16 is emulated


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 4),
    group=st.sampled_from([8, 32, 64, 128]),
    seed=st.integers(0, 99),
    kind=KINDS,
)
def test_unpacked_codes_are_the_weight_rounded_once(
    rows: int, groups: int, group: int, seed: int, kind: torch.dtype
) -> None:
    weight = random_weight(rows, groups * group, group, 4, seed)
    mine = layer(weight, kind=kind).unpack().clone()
    # Undo the order of a group: codes 0, 4, 8, .. come first, then 1, 5, 9, ..
    natural = mine.view(rows, -1, 4, group // 4).transpose(2, 3).reshape(rows, -1)
    assert torch.equal(natural, weight.dequantize().to(kind))


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (4, 32), (8, 128), (8, 384)])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [1 << 20, 1000])  # all rows at once; two rows at a time, the last block cut short
def test_product_is_that_of_the_dequantised_weight(bits: int, group: int, block: int, kind, monkeypatch) -> None:
    monkeypatch.setattr(packed_linear, "BLOCK", block)
    weight, bias = random_weight(37, 384, group, bits), torch.randn(37).bfloat16()
    x = torch.randn(2, 5, 384, generator=torch.Generator().manual_seed(1)).bfloat16()
    y = layer(weight, bias, kind)(x)
    assert y.shape == (2, 5, 37)
    assert y.dtype == torch.bfloat16
    expected = F.linear(x.double(), weight.dequantize().double(), bias.double())
    error = (y.double() - expected).norm() / expected.norm()
    assert error < 5e-3, error


def test_codes_at_an_odd_place_of_a_file_are_still_read() -> None:
    weight = random_weight(4, 64, 32, 4)
    codes = packed.store("w", weight)["w.codes4"]
    shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), codes.reshape(-1)])[1:].view(codes.shape)
    odd = PackedLinear(shifted, weight.scales, 4, None, Scratch())
    x = torch.randn(3, 64)
    assert torch.equal(odd(x), layer(weight)(x))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, toy) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packed")
    for name, tokens in (("chunk", False), ("tokens", True)):
        write_base(folder / f"{name}-base", toy, tokens=tokens)
        config = QuantizeConfig(folder / f"{name}-base", folder / name, sensitivity=False, vision_bits=8)
        quantize(config)
    return {n: folder / n for n in ("chunk", "tokens", "chunk-base")}


def test_the_policy_answers_as_with_dequantised_weights(quantized, toy) -> None:
    frames = observations(toy, 3, seed=4)
    expected = Policy.load(quantized["chunk"], "torch").chunks(frames)
    chunks = Policy.load(quantized["chunk"], "packed").chunks(frames)
    assert np.abs(chunks - expected).max() < 0.03  # [rad] bfloat16 under a head that multiplies by 20
    assert np.abs(chunks - expected).mean() < 0.003
    tokens = [Policy.load(quantized["tokens"], b).chunks(frames) for b in ("torch", "packed")]
    assert (np.abs(tokens[1] - tokens[0]) < 1e-9).mean() > 0.8, "most tokens are the same"


def lies_in(tensor: torch.Tensor, folder: Path) -> bool:
    """Whether the tensor's memory is a mapping of a file of the folder."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, *_, file = line.split(maxsplit=5)
        first, last = (int(b, 16) for b in bounds.split("-"))
        if first <= tensor.data_ptr() < last:
            return file.startswith(str(folder))
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux's list of mappings")
def test_weights_stay_where_they_are(quantized) -> None:
    """Codes are views of the mapped file; no quantised layer is left in another form; heads are in float32."""
    bundle = Bundle.open(quantized["chunk"])
    _, engine = open_backend(bundle, "packed")
    assert isinstance(engine, TorchEngine)
    model = engine.model
    layers = {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    assert {f"{n}.weight" for n in layers} == bundle.store().packed
    assert all(lies_in(m.codes, bundle.path / "weights") for m in layers.values())
    kinds = {p.dtype for n, p in model.named_parameters() if n.startswith("head.")}
    assert kinds == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if n.startswith("body.")} == {torch.bfloat16}


def test_mapped_tensors_are_those_of_the_file(quantized) -> None:
    store = Bundle.open(quantized["tokens"]).store()
    assert len(store.places) > 20
    for key in store.places:
        stored, mapped = store.stored(key), store.mapped(key)
        assert stored.dtype == mapped.dtype
        assert torch.equal(stored, mapped)


def test_a_large_quantised_bundle_is_run_as_it_is_stored(quantized, monkeypatch) -> None:
    monkeypatch.setattr("athena_vla.engines.backends.LARGE", 1000)
    _, engine = open_backend(Bundle.open(quantized["chunk"]))
    assert isinstance(engine, TorchEngine)
    assert engine.taken.engine == "packed"
    assert any(isinstance(m, PackedLinear) for m in engine.model.modules())


def test_refusals(quantized) -> None:
    with pytest.raises(BundleError, match="only a quantised bundle runs on its codes"):
        Policy.load(quantized["chunk-base"], "packed")
    chunk, tokens = Bundle.open(quantized["chunk"]), Bundle.open(quantized["tokens"])
    with pytest.raises(ModelError, match=r"do not fit: missing .*head"):
        packed_model(chunk.meta_model(), tokens.store())
    with pytest.raises(ModelError, match="Groups of 2 inputs"):
        layer(random_weight(4, 8, 2, 4))
