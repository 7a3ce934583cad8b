"""Counters and latency histograms in Prometheus' text format.

Knows names and numbers; nothing of what they count.
"""

import threading
from bisect import bisect_left
from collections import Counter

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # [s]
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Thread-safe; every name is declared with its help text before use."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}  # name -> (type, help)
        self._values: Counter[tuple[str, Labels]] = Counter()
        self._histograms: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def declare(self, name: str, kind: str, text: str) -> None:
        self._help[name] = (kind, text)
        if kind == "histogram":
            self._histograms[name] = [0] * (len(BUCKETS) + 1)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        assert name in self._help, name
        with self._lock:
            self._values[name, tuple(sorted(labels.items()))] += amount  # pyright: ignore[reportArgumentType]

    def set(self, name: str, value: float) -> None:
        assert name in self._help, name
        with self._lock:
            self._values[name, ()] = value  # pyright: ignore[reportArgumentType]

    def observe(self, name: str, seconds: float) -> None:
        with self._lock:
            self._histograms[name][bisect_left(BUCKETS, seconds)] += 1
            self._sums[name] += seconds  # pyright: ignore[reportArgumentType]

    def value(self, name: str, **labels: str) -> float:
        with self._lock:
            return self._values[name, tuple(sorted(labels.items()))]

    def text(self) -> str:
        """Everything, as a scraper reads it."""
        lines: list[str] = []
        with self._lock:
            for name, (kind, text) in self._help.items():
                full = f"{self._prefix}_{name}"
                lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
                if kind == "histogram":
                    total = 0
                    for edge, count in zip((*map(str, BUCKETS), "+Inf"), self._histograms[name], strict=True):
                        total += count
                        lines.append(f'{full}_bucket{{le="{edge}"}} {total}')
                    lines += [f"{full}_sum {self._sums[name]}", f"{full}_count {total}"]
                    continue
                rows = sorted((labels, v) for (n, labels), v in self._values.items() if n == name)
                for labels, value in rows or [((), 0)]:
                    inside = ",".join(f'{k}="{_escape(v)}"' for k, v in labels)
                    lines.append(f"{full}{{{inside}}} {value:g}" if inside else f"{full} {value:g}")
        return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
