"""One model, one thread, a short line: questions from many clients are answered one after the other, or a few at once.

Knows actors and observations; nothing of sockets. The line is bounded: who comes when it is full is told so at once. A
question that nobody waits for any more leaves the line, and its place is free.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from athena_vla.embodiment import ActionChunk, Observation
from athena_vla.errors import Busy, ServerError, Superseded


class Actor(Protocol):
    def act(self, observation: Observation, /) -> ActionChunk: ...


@runtime_checkable
class BatchActor(Protocol):
    """An actor that answers independent observations in one pass."""

    def act_batch(self, observations: Sequence[Observation], /) -> Sequence[ActionChunk]: ...


@dataclass(frozen=True)
class Done:
    chunk: ActionChunk
    waited: float  # [s] in line
    took: float  # [s] in the model


@dataclass(frozen=True, eq=False)
class Ticket:
    """A question's place in the line."""

    observation: Observation
    entered: float  # [s] of `time.perf_counter`
    future: Future[Done] = field(default_factory=Future)

    @property
    def begun(self) -> bool:
        """Whether the model has begun with it."""
        return self.future.running() or (self.future.done() and not self.future.cancelled())


class RequestQueue:
    """Owns the only thread that touches the model."""

    def __init__(self, actor: Actor, *, waiting: int, batch: int) -> None:
        if batch > 1 and not isinstance(actor, BatchActor):
            raise ServerError(
                f"{type(actor).__name__} answers one observation at a time; batch must be 1, not {batch}."
            )
        self._actor, self._batch, self._most = actor, batch, waiting
        self._line: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._busy_since: float | None = None
        self._closing = False
        self._idle = True
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def busy_for(self) -> float:
        """[s] since the model began with the question it works on."""
        since = self._busy_since
        return 0.0 if since is None else time.perf_counter() - since

    def enter(self, observation: Observation) -> Ticket:
        """A place at the end of the line. Raises `Busy` where it is full or the server shuts down."""
        ticket = Ticket(observation, time.perf_counter())
        with self._changed:
            if self._closing:
                raise Busy("The server is shutting down.")
            # Those that an idle worker is about to take do not wait.
            if len(self._line) >= self._most + (self._batch if self._idle else 0):
                raise Busy(f"{self._most} questions are waiting already; ask again shortly.")
            self._line.append(ticket)
            self._changed.notify()
        return ticket

    async def answer(self, ticket: Ticket, timeout: float) -> Done:
        """Raises `TimeoutError`, `Superseded`, or what the actor raised; who stops waiting leaves the line."""
        future = asyncio.wrap_future(ticket.future)
        try:
            await asyncio.wait({future}, timeout=timeout)
            if not future.done():
                raise TimeoutError
            return future.result()
        finally:
            self._remove(ticket)
            future.cancel()  # and with it the ticket's, which the worker then passes over

    def withdraw(self, ticket: Ticket) -> bool:
        """Drop a question for a newer one of the same client; False where the model has begun with it."""
        if not self._remove(ticket):
            return False
        ticket.future.set_exception(Superseded("A newer question of this connection took its place."))
        return True

    def close(self, grace: float) -> bool:
        """Answer what is in line, then stop; False where the model did not return within `grace` [s]."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace)
        return not self._thread.is_alive()

    def _remove(self, ticket: Ticket) -> bool:
        with self._changed:
            try:
                self._line.remove(ticket)
            except ValueError:
                return False
            return True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                while not self._line:
                    if self._closing:
                        return
                    self._changed.wait()
                self._idle = False
                tickets = [self._line.popleft() for _ in range(min(self._batch, len(self._line)))]
            self._answer([t for t in tickets if t.future.set_running_or_notify_cancel()])

    def _answer(self, tickets: list[Ticket]) -> None:
        if not tickets:
            return
        began = self._busy_since = time.perf_counter()
        try:
            if len(tickets) > 1:
                assert isinstance(self._actor, BatchActor)
                chunks = list(self._actor.act_batch([t.observation for t in tickets]))
            else:
                chunks = [self._actor.act(tickets[0].observation)]
            took = time.perf_counter() - began
            for ticket, chunk in zip(tickets, chunks, strict=True):
                ticket.future.set_result(Done(chunk, began - ticket.entered, took))
        except Exception as error:  # belongs to whoever asked; the next question is none the worse for it
            for ticket in tickets:
                if not ticket.future.done():
                    ticket.future.set_exception(error)
        finally:
            self._busy_since = None
