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
from athena_vla.models.weights import packed, packed_linear, row_kernel
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.packed_linear import PackedLinear, Scratch, packed_model
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig, quantize
from small_bundles import observations, write_base


def layer(weight: Packed, bias: torch.Tensor | None = None) -> PackedLinear:
    stored = packed.store("w", weight)
    return PackedLinear(stored["w" + packed.CODES[weight.bits]], stored["w.scales"], weight.bits, bias, Scratch())


def random_weight(rows: int, columns: int, group: int, bits: int, seed: int = 0) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    low, high = (-8, 8) if bits == 4 else (-127, 128)
    codes = torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8)
    scales = (torch.rand(rows, columns // group, generator=generator) * 0.02 + 1e-4).half()
    return Packed(codes, scales, bits)  # pyright: ignore[reportArgumentType]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9), groups=st.integers(1, 4), group=st.sampled_from([8, 32, 64, 128]), seed=st.integers(0, 99)
)
def test_unpacked_codes_are_the_weight_rounded_once(rows: int, groups: int, group: int, seed: int) -> None:
    weight = random_weight(rows, groups * group, group, 4, seed)
    mine = layer(weight).unpack().clone()
    # Undo the order of a group: codes 0, 4, 8, .. come first, then 1, 5, 9, ..
    natural = mine.view(rows, -1, 4, group // 4).transpose(2, 3).reshape(rows, -1)
    assert torch.equal(natural, weight.dequantize().to(torch.bfloat16))


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (4, 32), (8, 128), (8, 384)])
@pytest.mark.parametrize("block", [1 << 20, 1000])  # all rows at once; two rows at a time, the last block cut short
def test_product_is_that_of_the_dequantised_weight(bits: int, group: int, block: int, monkeypatch) -> None:
    monkeypatch.setattr(packed_linear, "BLOCK", block)
    weight, bias = random_weight(37, 384, group, bits), torch.randn(37).bfloat16()
    x = torch.randn(2, 5, 384, generator=torch.Generator().manual_seed(1)).bfloat16()
    y = layer(weight, bias)(x)
    assert y.shape == (2, 5, 37)
    expected = F.linear(x.double(), weight.dequantize().double(), bias.double())
    error = (y.double() - expected).norm() / expected.norm()
    assert error < 5e-3, error


needs_compiler = pytest.mark.skipif(row_kernel.kernel() is None, reason="no C compiler that takes row_kernel.c")


@needs_compiler
@pytest.mark.parametrize("flags", [("-fopenmp",), ("-fopenmp", "-DPORTABLE"), ()], ids=["wide", "portable", "alone"])
@pytest.mark.parametrize(
    ("bits", "columns", "group"),
    [(4, 512, 128), (4, 384, 128), (4, 2304, 128), (4, 512, 256), (8, 640, 640), (8, 384, 128)],
)
def test_the_row_kernel_multiplies_what_the_file_holds(tmp_path, flags, bits, columns, group) -> None:
    """16-bit activations: two orders nearer to the stored numbers than bfloat16, on every machine's path."""
    library = row_kernel.build(tmp_path, row_kernel.compilers()[0], flags)
    assert library is not None
    kernel = row_kernel.bind(library)
    assert kernel is not None
    weight = random_weight(137, columns, group, bits)
    codes = packed.store("w", weight)["w" + packed.CODES[bits]]
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[1] *= 1e-6
    x[2, :128] = 0
    y, expected = kernel(x, codes, weight.scales, bits), x.double() @ weight.dequantize().double().T
    assert float(((y - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-4
    extreme = torch.zeros(5, columns).bfloat16()
    extreme[0, 0], extreme[1, 5], extreme[2, columns - 1] = torch.nan, torch.inf, 1e-38
    extreme[3, 7] = 1e37
    answers, largest = (
        kernel(extreme, codes, weight.scales, bits),
        weight.dequantize()[:, 7].double() * float(extreme[3, 7]),
    )
    assert bool(answers[:2].isnan().all()), "a number that is none is not hidden"
    assert float(answers[2].abs().max()) < 1e-36
    assert torch.allclose(answers[3].double(), largest, rtol=1e-4)
    assert float(answers[4].abs().max()) == 0


@needs_compiler
def test_a_row_alone_is_the_row_among_many() -> None:
    weight, bias = random_weight(40, 512, 128, 4), torch.randn(40).bfloat16()
    mine = layer(weight, bias)
    x = torch.randn(packed_linear.FEW + 4, 512, generator=torch.Generator().manual_seed(2)).bfloat16()
    many, few = mine(x), torch.cat([mine(row[None]) for row in x])
    assert few.dtype == torch.bfloat16
    assert float((many - few).float().norm() / many.float().norm()) < 6e-3
    expected = F.linear(x.double(), weight.dequantize().double(), bias.double())
    assert float((few.double() - expected).norm()) < float((many.double() - expected).norm())


def test_without_a_compiler_weights_are_unpacked(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert row_kernel.compilers() == []
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    (tmp_path / "cache").mkdir()
    assert row_kernel.build(tmp_path / "cache", str(broken)) is None
    assert not list((tmp_path / "cache").glob("*")), "nothing half-written is left"
    row_kernel.kernel.cache_clear()
    try:
        assert row_kernel.kernel() is None
        weight, x = random_weight(9, 256, 128, 4), torch.randn(1, 256)
        expected = F.linear(x.double(), weight.dequantize().double())
        assert float((layer(weight)(x) - expected).norm() / expected.norm()) < 5e-3
    finally:
        row_kernel.kernel.cache_clear()


@needs_compiler
def test_a_spoiled_cache_costs_a_compilation(tmp_path, monkeypatch) -> None:
    """A library that was cut off is made anew; without a cache of one's own it is built in a private place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        row_kernel.kernel.cache_clear()
        assert row_kernel.kernel() is not None
        (library,) = (tmp_path / "athena_vla").glob("*.so")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
        spoiled = tmp_path / "second" / "athena_vla" / library.name
        spoiled.parent.mkdir(parents=True)
        spoiled.write_bytes(b"")
        row_kernel.kernel.cache_clear()
        assert row_kernel.kernel() is not None
        assert spoiled.stat().st_size == library.stat().st_size
        spoiled.parent.chmod(0o777)
        assert row_kernel.cache_folder() is None, "others could put a library there"
        row_kernel.kernel.cache_clear()
        assert row_kernel.kernel() is not None
        monkeypatch.delenv("XDG_CACHE_HOME")

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
        assert row_kernel.cache_folder() is None
    finally:
        row_kernel.kernel.cache_clear()


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
    model, _ = open_backend(bundle, "packed")
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
    model, _ = open_backend(Bundle.open(quantized["chunk"]))
    assert any(isinstance(m, PackedLinear) for m in model.modules())


def test_refusals(quantized) -> None:
    with pytest.raises(BundleError, match="only a quantised bundle runs on its codes"):
        Policy.load(quantized["chunk-base"], "packed")
    chunk, tokens = Bundle.open(quantized["chunk"]), Bundle.open(quantized["tokens"])
    with pytest.raises(ModelError, match=r"do not fit: missing .*head"):
        packed_model(chunk.skeleton(), tokens.store())
    with pytest.raises(ModelError, match="Groups of 2 inputs"):
        layer(random_weight(4, 8, 2, 4))
