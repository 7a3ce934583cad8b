"""Latency, measured here: stage by stage, and as a whole from camera frame to joint command."""

from athena_vla.bench.benchmarking import BenchConfig, BenchResult, bench
from athena_vla.bench.compare import Comparison, compare

__all__ = ["BenchConfig", "BenchResult", "Comparison", "bench", "compare"]
