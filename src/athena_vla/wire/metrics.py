"""What the server counts, in Prometheus' words (prometheus_client, with a registry of the server's own).

Knows names and numbers; nothing of sockets or policies.
"""

import time

from athena_vla.errors import MissingDependency

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
except ImportError as error:
    raise MissingDependency("prometheus_client", "serve", "to serve a policy") from error

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # [s]


class Metrics:
    """Thread-safe; one registry for each server, so that two in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = {"registry": self._registry, "namespace": "athena"}
        self._requests = Counter("requests", "Questions by protocol and outcome.", ("protocol", "outcome"), **own)
        self.connections = Gauge("connections", "Open connections.", **own)
        self.waiting = Gauge("waiting", "Questions in line.", **own)
        self.answer_seconds = Histogram(
            "answer_seconds", "From question to answer, without the network.", buckets=BUCKETS, **own
        )
        self.model_seconds = Histogram("model_seconds", "In the model.", buckets=BUCKETS, **own)
        Gauge("start_time_seconds", "Unix time of the start.", **own).set(time.time())

    def count(self, protocol: str, outcome: str) -> None:
        self._requests.labels(protocol=protocol, outcome=outcome).inc()

    def counted(self, protocol: str, outcome: str) -> int:
        labels = {"protocol": protocol, "outcome": outcome}
        return int(self._registry.get_sample_value("athena_requests_total", labels) or 0)

    def text(self) -> str:
        """Everything, as a scraper reads it."""
        return generate_latest(self._registry).decode()
