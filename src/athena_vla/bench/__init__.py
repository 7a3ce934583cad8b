"""Latency, measured here: stage by stage, and as a whole from camera frame to joint command."""

from athena_vla.bench.compare import Comparison, compare
from athena_vla.bench.stage import BenchConfig, BenchResult, bench

__all__ = ["BenchConfig", "BenchResult", "Comparison", "bench", "compare"]
