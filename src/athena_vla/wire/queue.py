"""One model, one thread, a short line: questions from many clients are answered one after the other, or a few at once.

Knows actors and observations; nothing of sockets. The line is bounded: who comes when it is full is told so at once.
"""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Protocol, runtime_checkable

from athena_vla.embodiment import ActionChunk, Observation
from athena_vla.errors import Busy, ServerError


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


@dataclass(frozen=True)
class _Job:
    observation: Observation
    entered: float
    future: Future[Done]


class Desk:
    """Owns the only thread that touches the model."""

    def __init__(self, actor: Actor, *, waiting: int, batch: int) -> None:
        if batch > 1 and not isinstance(actor, BatchActor):
            raise ServerError(
                f"{type(actor).__name__} answers one observation at a time; batch must be 1, not {batch}."
            )
        self._actor, self._batch = actor, batch
        self._line: Queue[_Job | None] = Queue(maxsize=waiting)
        self._busy_since: float | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._line.qsize()

    @property
    def busy_for(self) -> float:
        """[s] since the model began with the question it works on."""
        since = self._busy_since
        return 0.0 if since is None else time.perf_counter() - since

    async def ask(self, observation: Observation, timeout: float) -> Done:
        """Raises `Busy` when the line is full, `TimeoutError`, or what the actor raised."""
        if self._closing:
            raise Busy("The server is shutting down.")
        job = _Job(observation, time.perf_counter(), Future())
        try:
            self._line.put_nowait(job)
        except Full:
            raise Busy(f"{self._line.maxsize} questions are waiting already; ask again shortly.") from None
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job.future), timeout)
        finally:
            job.future.cancel()  # nobody waits any more: the worker passes over it

    def close(self, grace: float) -> bool:
        """Answer what is in line, then stop; False where the model did not return within `grace` [s]."""
        self._closing = True
        deadline = time.perf_counter() + grace
        while time.perf_counter() < deadline:
            try:
                self._line.put_nowait(None)
                break
            except Full:
                time.sleep(0.01)
        self._thread.join(max(0.0, deadline - time.perf_counter()))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            job = self._line.get()
            if job is None:
                return
            jobs = [job]
            last = False
            while len(jobs) < self._batch:
                try:
                    following = self._line.get_nowait()
                except Empty:
                    break
                if following is None:
                    last = True
                    break
                jobs.append(following)
            self._answer([j for j in jobs if j.future.set_running_or_notify_cancel()])
            if last:
                return

    def _answer(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        began = self._busy_since = time.perf_counter()
        try:
            if len(jobs) > 1:
                assert isinstance(self._actor, BatchActor)
                chunks = list(self._actor.act_batch([j.observation for j in jobs]))
            else:
                chunks = [self._actor.act(jobs[0].observation)]
            took = time.perf_counter() - began
            for job, chunk in zip(jobs, chunks, strict=True):
                job.future.set_result(Done(chunk, began - job.entered, took))
        except Exception as error:  # belongs to whoever asked; the next question is none the worse for it
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)
        finally:
            self._busy_since = None
