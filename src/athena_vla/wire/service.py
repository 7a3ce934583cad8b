"""What a connection may ask of the server: answers, health, numbers; and how faults are named on the wire.

Knows the desk, the robot's vocabulary and the limits; nothing of sockets.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from athena_vla.errors import AthenaError, Busy, InvalidObservation, ServerError, WireError
from athena_vla.wire.metrics import Metrics
from athena_vla.wire.protocols import Listener, answer
from athena_vla.wire.queue import Actor, Desk

LOG = logging.getLogger("athena_vla.serve")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where the server listens and how much a client may ask of it."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs a token."""
    port: int = 8000
    """0 takes a free one."""
    token: str = field(default="", repr=False)
    """What clients send as `Authorization: Bearer` or `Api-Key`; empty asks for none."""
    certificate: str = ""
    """PEM file of the TLS certificate chain; empty serves without TLS."""
    key: str = ""
    """PEM file of the certificate's private key."""
    max_message: int = 16 * 1024 * 1024
    """Largest message or body. [bytes]"""
    max_connections: int = 64
    """Clients at one time."""
    max_waiting: int = 16
    """Questions in line before new ones are refused as busy."""
    batch: int = 1
    """Most observations answered in one pass, where the actor can."""
    rate_limit: float = 500.0
    """Questions a second from one address; faster ones wait. [Hz]"""
    answer_timeout: float = 30.0
    """A question that takes longer is answered with an error. [s]"""
    head_timeout: float = 10.0
    """For a request's head, and between requests. [s]"""
    message_timeout: float = 30.0
    """From a message's first byte to its last, and for a client to read its answer. [s]"""
    idle_timeout: float = 600.0
    """A websocket without a message is closed after this. [s]"""
    grace: float = 10.0
    """For answers in progress at shutdown. [s]"""

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.token:
            raise ServerError(
                f"Listening on '{self.host}' lets others move the robot: give a token (and better a certificate), "
                f"or listen on {LOOPBACK[0]}."
            )
        if bool(self.certificate) != bool(self.key):
            raise ServerError("TLS needs both a certificate and its key.")
        if self.token and (len(self.token) < 16 or not self.token.isascii() or self.token != self.token.strip()):
            raise ServerError("A token has at least 16 ASCII characters and no space around it.")
        if not 0 <= self.port <= 65535:
            raise ServerError(f"Port {self.port} does not exist; ports go from 0 (any free one) to 65535.")
        counts = (self.max_message, self.max_connections, self.max_waiting, self.batch)
        times = (self.rate_limit, self.answer_timeout, self.head_timeout, self.message_timeout, self.idle_timeout)
        if min(counts) < 1 or min(times) <= 0 or self.grace < 0:
            raise ServerError("The server's limits must be positive.")


class Service:
    """Shared by all connections of one server."""

    def __init__(self, actor: Actor, listener: Listener, metadata: Mapping[str, Any], config: ServeConfig) -> None:
        self.config = config
        self.metadata = dict(metadata)
        self.stopping = False
        self._listener = listener
        self._desk = Desk(actor, waiting=config.max_waiting, batch=config.batch)
        self._buckets: OrderedDict[str, float] = OrderedDict()  # address -> time at which it has caught up
        self._metrics = Metrics("athena")
        self._metrics.declare("requests_total", "counter", "Questions by protocol and outcome.")
        self._metrics.declare("connections", "gauge", "Open connections.")
        self._metrics.declare("waiting", "gauge", "Questions in line.")
        self._metrics.declare("answer_seconds", "histogram", "From question to answer, without the network.")
        self._metrics.declare("model_seconds", "histogram", "In the model.")
        self._metrics.declare("start_time_seconds", "gauge", "Unix time of the start.")
        self._metrics.set("start_time_seconds", time.time())

    async def answer(self, message: Any, form: Literal["openpi", "rest"]) -> Any:
        """Raises what `classify` knows how to name."""
        began = time.perf_counter()
        request = self._listener.understand(message, form)
        done = await self._desk.ask(request.observation, self.config.answer_timeout)
        total = time.perf_counter() - began
        self._metrics.observe("answer_seconds", total)
        self._metrics.observe("model_seconds", done.took)
        self.count(form, "ok")
        timing = {"infer_ms": done.took * 1e3, "queue_ms": done.waited * 1e3, "total_ms": total * 1e3}
        return answer(request, done.chunk, timing)

    async def slow_down(self, peer: str) -> None:
        """Hold a client back to its rate."""
        now = time.monotonic()
        ready = max(self._buckets.pop(peer, 0.0), now - 1.0)  # at most one second's worth at once
        self._buckets[peer] = ready + 1.0 / self.config.rate_limit
        while len(self._buckets) > 4096:
            self._buckets.popitem(last=False)
        if ready > now:
            await asyncio.sleep(ready - now)

    def count(self, protocol: str, outcome: str) -> None:
        self._metrics.add("requests_total", protocol=protocol, outcome=outcome)

    def counted(self, protocol: str, outcome: str) -> int:
        return int(self._metrics.value("requests_total", protocol=protocol, outcome=outcome))

    def connections(self, count: int) -> None:
        self._metrics.set("connections", count)

    def health(self) -> tuple[bool, str]:
        if self.stopping:
            return False, "stopping\n"
        busy = self._desk.busy_for
        if busy > self.config.answer_timeout:
            return False, f"the model has been busy with one question for {busy:.0f} s\n"
        return True, "OK\n"

    def metrics_text(self) -> str:
        self._metrics.set("waiting", self._desk.waiting)
        return self._metrics.text()

    def close(self) -> bool:
        """False where the model did not return in time."""
        return self._desk.close(self.config.grace)


def classify(problem: Exception) -> tuple[HTTPStatus, str, str]:
    """Status, name and sentence of a fault; programming errors are logged in full and named without their insides."""
    match problem:
        case InvalidObservation():
            return HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidObservation", str(problem)
        case WireError():
            return HTTPStatus.BAD_REQUEST, "WireError", str(problem)
        case Busy():
            return HTTPStatus.SERVICE_UNAVAILABLE, "Busy", str(problem)
        case TimeoutError():
            return HTTPStatus.GATEWAY_TIMEOUT, "Timeout", "The policy did not answer in time."
        case AthenaError():
            LOG.error("policy: %s", problem)
            return HTTPStatus.INTERNAL_SERVER_ERROR, type(problem).__name__, str(problem)
        case ConnectionError():
            raise problem
    LOG.error("policy failed", exc_info=problem)
    return HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", f"The policy failed with a {type(problem).__name__}."
