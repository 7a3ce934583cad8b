"""The bandwidth probe's compiled loop: run by test_native.py in a process of its own."""

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def read_bandwidth(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import read_bandwidth

    return read_bandwidth


def test_bandwidth_is_that_of_memory_and_the_best_kernel_wins(monkeypatch, read_bandwidth) -> None:
    monkeypatch.setattr(read_bandwidth, "BYTES", 1 << 26)
    monkeypatch.setattr(read_bandwidth, "REPEATS", 2)
    result = read_bandwidth.measure(1)
    rates = [k["best_gbs"] for k in result["kernels"].values()]
    assert result["best_gbs"] == max(rates) > 0.1
    (arithmetic,) = [v for k, v in result.items() if k.endswith("_tflops")]
    assert arithmetic > 0
    assert result["kernel"] in result["kernels"]
    assert len(rates) >= 2


@pytest.mark.parametrize("instructions", ["native", "haswell", "x86-64", "skylake-avx512"])
@pytest.mark.parametrize("offset", [0, 1, 4, 8, 16, 32])
def test_every_word_is_read_wherever_the_array_begins(monkeypatch, read_bandwidth, instructions, offset) -> None:
    """The loop gives the bitwise or of all words; a compiler may take no alignment for granted."""
    monkeypatch.setenv("ATHENA_MARCH", instructions)
    if not runs_here(instructions):
        pytest.skip(f"this processor does not run {instructions}")
    touch = read_bandwidth.compiled()
    if touch is None:
        pytest.skip("no C compiler")
    lines = 64
    block = np.zeros(lines * 64 + 64, dtype=np.uint8)
    start = -block.ctypes.data % 64 + offset  # so many bytes behind a boundary of 64
    words = block[start : start + (lines - 1) * 64]
    words = words[: len(words) // 256 * 256]
    words[:] = np.random.default_rng(0).integers(0, 2, len(words)) << np.random.default_rng(1).integers(0, 8)
    expected = int(np.bitwise_or.reduce(np.frombuffer(words.tobytes(), dtype=np.uint64)))
    assert touch(words.ctypes.data, len(words) // 64) == expected


def runs_here(instructions: str) -> bool:
    needs = {
        "haswell": {"avx2", "fma", "bmi2"},
        "skylake-avx512": {"avx512f", "avx512bw", "avx512vl"},
        "x86-64": {"sse2"},
    }
    if instructions not in needs:
        return True
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return needs[instructions] <= set(flags)
