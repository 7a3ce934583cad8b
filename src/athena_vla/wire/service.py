"""What a connection may ask of the server: answers, health, numbers; and how faults are named on the wire.

Knows the request queue, the robot's vocabulary and the limits; nothing of sockets.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from athena_vla.embodiment import Observation
from athena_vla.errors import AthenaError, Busy, InvalidObservation, Superseded, WireError
from athena_vla.wire.effort import Allowance, Effort
from athena_vla.wire.metrics import Metrics
from athena_vla.wire.protocols import Request, RequestParser, answer
from athena_vla.wire.queue import Actor, Done, RequestQueue, Ticket
from athena_vla.wire.serve_config import ServeConfig

LOG = logging.getLogger("athena_vla.serve")


class Service:
    """Shared by all connections of one server."""

    def __init__(self, actor: Actor, parser: RequestParser, metadata: Mapping[str, Any], config: ServeConfig) -> None:
        self.config = config
        self.metadata = dict(metadata)
        self.stopping = False
        self.effort = Effort()
        self.metrics = Metrics()
        self.parser = parser
        self.queue = RequestQueue(actor, waiting=config.max_waiting, batch=config.batch)
        self._buckets: OrderedDict[str, float] = OrderedDict()  # address -> time at which it has caught up

    async def answer(self, message: Any, form: Literal["openpi", "rest"], allowance: Allowance) -> Any:
        """The reply in the client's form. Raises what `classify` knows how to name."""
        began = time.perf_counter()
        request = self.parser.parse(message, form)
        return self.reply(request, await self.ask(request.observation, allowance), began, form)

    async def ask(self, observation: Observation, allowance: Allowance) -> Done:
        """The policy's chunk for an observation that has been checked."""
        return await self.wait_for(self.queue.enter(observation), allowance)

    async def wait_for(self, ticket: Ticket, allowance: Allowance) -> Done:
        """The answer to a question in line; whoever goes away while the model is at it has wasted its time."""
        try:
            return await self.queue.answer(ticket, self.config.answer_timeout)
        except asyncio.CancelledError:
            if ticket.begun:
                allowance.wasted()
            raise

    def reply(self, request: Request, done: Done, began: float, form: str) -> Any:
        """The reply in the client's form, counted and timed; `began` by `time.perf_counter`."""
        total = self.answered(form, began, done.took)
        timing = {"infer_ms": done.took * 1e3, "queue_ms": done.waited * 1e3, "total_ms": total * 1e3}
        return answer(request, done.chunk, timing)

    def answered(self, form: str, began: float, took: float) -> float:
        """Count and time an answer; returns the seconds from question to answer."""
        total = time.perf_counter() - began
        self.metrics.answer_seconds.observe(total)
        self.metrics.model_seconds.observe(took)
        self.count(form, "ok")
        return total

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
        self.metrics.count(protocol, outcome)

    def counted(self, protocol: str, outcome: str) -> int:
        return self.metrics.counted(protocol, outcome)

    def health(self) -> tuple[bool, str]:
        if self.stopping:
            return False, "stopping\n"
        busy = self.queue.busy_for
        if busy > self.config.answer_timeout:
            return False, f"the model has been busy with one question for {busy:.0f} s\n"
        return True, "OK\n"

    def metrics_text(self) -> str:
        self.metrics.waiting.set(self.queue.waiting)
        return self.metrics.text()

    def close(self) -> bool:
        """False where the model did not return in time."""
        return self.queue.close(self.config.grace)


def classify(problem: Exception) -> tuple[HTTPStatus, str, str]:
    """Status, name and sentence of a fault; programming errors are logged in full and named without their insides."""
    match problem:
        case InvalidObservation():
            return HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidObservation", str(problem)
        case WireError():
            return HTTPStatus.BAD_REQUEST, "WireError", str(problem)
        case Busy():
            return HTTPStatus.SERVICE_UNAVAILABLE, "Busy", str(problem)
        case Superseded():
            return HTTPStatus.CONFLICT, "Superseded", str(problem)
        case TimeoutError():
            return HTTPStatus.GATEWAY_TIMEOUT, "Timeout", "The policy did not answer in time."
        case AthenaError():
            LOG.error("policy: %s", problem)
            return HTTPStatus.INTERNAL_SERVER_ERROR, type(problem).__name__, str(problem)
        case ConnectionError():
            raise problem
    LOG.error("policy failed", exc_info=problem)
    return HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", f"The policy failed with a {type(problem).__name__}."
