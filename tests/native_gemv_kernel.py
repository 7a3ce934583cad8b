"""The compiled GEMV kernel against the stored numbers: run by test_native.py in a process of its own."""

import platform
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from athena_vla.models.weights import gemv_kernel, packed, packed_linear
from packed_layers import layer, random_weight

needs_compiler = pytest.mark.skipif(gemv_kernel.kernel() is None, reason="no C compiler that takes gemv_kernel.c")

WAYS = {"wide": ("-fopenmp",), "portable": ("-fopenmp", "-DPORTABLE"), "alone": ()}
if platform.machine() in ("x86_64", "AMD64"):
    WAYS |= {"avx2": ("-march=haswell",), "oldest": ("-march=x86-64",)}


@needs_compiler
@pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("bits", "columns", "group"),
    [(4, 512, 128), (4, 384, 128), (4, 2304, 128), (4, 512, 256), (8, 640, 640), (8, 384, 128)],
)
def test_the_gemv_kernel_multiplies_what_the_file_holds(tmp_path, flags, bits, columns, group) -> None:
    """16-bit activations: two orders nearer to the stored numbers than bfloat16, on every machine's path."""
    library = gemv_kernel.build(tmp_path, gemv_kernel.compilers()[0], flags)
    assert library is not None
    kernel = gemv_kernel.bind(library)
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
    mine = layer(weight, bias, torch.bfloat16)
    x = torch.randn(packed_linear.FEW + 4, 512, generator=torch.Generator().manual_seed(2)).bfloat16()
    many, few = mine(x), torch.cat([mine(row[None]) for row in x])
    assert few.dtype == torch.bfloat16
    assert float((many - few).float().norm() / many.float().norm()) < 6e-3
    expected = F.linear(x.double(), weight.dequantize().double(), bias.double())
    assert float((few.double() - expected).norm()) < float((many.double() - expected).norm())


def test_without_a_compiler_weights_are_unpacked(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gemv_kernel.compilers() == []
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    (tmp_path / "cache").mkdir()
    assert gemv_kernel.build(tmp_path / "cache", str(broken)) is None
    assert not list((tmp_path / "cache").glob("*")), "nothing half-written is left"
    gemv_kernel.kernel.cache_clear()
    try:
        assert gemv_kernel.kernel() is None
        weight, x = random_weight(9, 256, 128, 4), torch.randn(1, 256).bfloat16()
        dense = weight.dequantize().double()
        expected = F.linear(x.double(), dense)
        rounded_once = 2.0**-8 * (F.linear(x.double().abs(), dense.abs()) + expected.abs())  # each weight, the answer
        assert bool(((layer(weight)(x) - expected).abs() <= rounded_once).all())
    finally:
        gemv_kernel.kernel.cache_clear()


@needs_compiler
def test_a_spoiled_cache_costs_a_compilation(tmp_path, monkeypatch) -> None:
    """A library that was cut off is made anew; without a cache of one's own it is built in a private place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        gemv_kernel.kernel.cache_clear()
        assert gemv_kernel.kernel() is not None
        (library,) = (tmp_path / "athena_vla").glob("*.so")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
        spoiled = tmp_path / "second" / "athena_vla" / library.name
        spoiled.parent.mkdir(parents=True)
        spoiled.write_bytes(b"")
        gemv_kernel.kernel.cache_clear()
        assert gemv_kernel.kernel() is not None
        assert spoiled.stat().st_size == library.stat().st_size
        spoiled.parent.chmod(0o777)
        assert gemv_kernel.cache_folder() is None, "others could put a library there"
        gemv_kernel.kernel.cache_clear()
        assert gemv_kernel.kernel() is not None
        monkeypatch.delenv("XDG_CACHE_HOME")

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
        assert gemv_kernel.cache_folder() is None
    finally:
        gemv_kernel.kernel.cache_clear()
