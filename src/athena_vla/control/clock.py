"""The two ways time passes for the control loop: simulated, and by the wall clock with an actor in its own thread.

Both answer the same questions (is a question open, is there an answer, wait for the next tick), so the loop is one.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from athena_vla.embodiment import ActionChunk, Observation
from athena_vla.errors import AthenaError

Act = Callable[[Observation], ActionChunk]
MAX_ABANDONED = 4  # questions that may hang in their threads before no new one is asked


@dataclass(frozen=True)
class Answer:
    """What came back for the observation that was asked with at robot time `asked` [s]."""

    asked: float
    chunk: ActionChunk | None
    error: str
    latency: float  # [s] wall clock


class Clockwork(ABC):
    """Carries questions to an actor and paces the loop; at most one question is open."""

    simulated: bool
    overruns: int = 0

    @abstractmethod
    def idle(self, now: float) -> bool:
        """Whether a new question may be asked."""

    @abstractmethod
    def ask(self, observation: Observation, now: float) -> None: ...

    @abstractmethod
    def poll(self, now: float) -> Answer | None:
        """The answer, once, as soon as it is there."""

    @abstractmethod
    def ready_in(self, now: float) -> float:
        """Robot time until the open question is answered, as far as that is known; infinite otherwise. [s]"""

    @abstractmethod
    def wait(self) -> None:
        """Until the next command period begins."""

    @abstractmethod
    def close(self) -> None: ...


class SimulatedClock(Clockwork):
    """The actor answers while the world stands still; its answer is handed over `latency` [s] of robot time later."""

    simulated = True

    def __init__(self, act: Act, latency: float, raise_errors: bool) -> None:
        self._act, self._latency, self._raise = act, latency, raise_errors
        self._open: tuple[float, Answer] | None = None

    def idle(self, now: float) -> bool:
        return self._open is None

    def ask(self, observation: Observation, now: float) -> None:
        started = time.perf_counter()
        chunk, error = None, ""
        try:
            chunk = self._act(observation)
        except Exception as problem:
            if self._raise:
                raise
            error = _words(problem)
        answer = Answer(now, chunk, error, time.perf_counter() - started)
        self._open = (now + self._latency, answer)

    def poll(self, now: float) -> Answer | None:
        if self._open is None or now < self._open[0] - 1e-9:
            return None
        answer = self._open[1]
        self._open = None
        return answer

    def ready_in(self, now: float) -> float:
        return float("inf") if self._open is None else self._open[0] - now

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass


class WallClock(Clockwork):
    """The actor thinks in a thread of its own while the loop keeps its period.

    A question older than `timeout` [s] is abandoned; its late answer is dropped, never played. Threads are daemons: an
    actor that hangs for ever cannot keep the process alive.
    """

    simulated = False

    def __init__(self, act: Act, period: float, timeout: float) -> None:
        self._act, self._period, self._timeout = act, period, timeout
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._question = 0  # number of the open question, 0 when none is open
        self._asked = 0
        self._started = 0.0
        self._robot_time = 0.0
        self._running = 0
        self._next = time.perf_counter() + period

    def idle(self, now: float) -> bool:
        with self._lock:
            return self._question == 0 and self._answer is None and self._running <= MAX_ABANDONED

    def ask(self, observation: Observation, now: float) -> None:
        with self._lock:
            self._asked += 1
            self._question = self._asked
            self._running += 1
            self._started, self._robot_time = time.perf_counter(), now
        name = f"actor-{self._asked}"
        threading.Thread(target=self._work, args=(self._asked, observation, now), name=name, daemon=True).start()

    def _work(self, question: int, observation: Observation, asked: float) -> None:
        started = time.perf_counter()
        chunk, error = None, ""
        try:
            chunk = self._act(observation)
        except Exception as problem:  # reported in the trace; the loop goes to the ladder
            error = _words(problem)
        with self._lock:
            self._running -= 1
            if question == self._question:
                self._answer = Answer(asked, chunk, error, time.perf_counter() - started)
                self._question = 0

    def poll(self, now: float) -> Answer | None:
        with self._lock:
            if self._answer is not None:
                answer, self._answer = self._answer, None
                return answer
            waited = time.perf_counter() - self._started
            if self._question and waited > self._timeout:
                self._question = 0
                return Answer(self._robot_time, None, f"actor: no answer within {self._timeout:g} s", waited)
            return None

    def ready_in(self, now: float) -> float:
        return float("inf")

    def wait(self) -> None:
        remaining = self._next - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)
            self._next += self._period
        else:
            # Late: count it and go on from here. Commands that were missed are not sent in a burst.
            self.overruns += 1
            self._next = time.perf_counter() + self._period

    def close(self) -> None:
        with self._lock:
            self._question = 0


def _words(problem: Exception) -> str:
    return f"actor: {problem}" if isinstance(problem, AthenaError) else f"actor: {problem!r}"
