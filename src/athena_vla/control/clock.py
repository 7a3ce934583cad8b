"""The two ways time passes for the control loop: simulated, and by the wall clock with an actor in its own thread.

Both answer the same questions (is a question open, is there an answer, wait for the next tick), so the loop is one.
"""

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from athena_vla.control.run.pacing import Pacer
from athena_vla.embodiment import ActionChunk, Observation
from athena_vla.errors import AthenaError

Act = Callable[[Observation], ActionChunk]
SWITCH = (
    5e-4  # [s] how long an actor's Python code may keep the loop waiting; the interpreter's default is ten times more
)
MAX_ABANDONED = 4  # questions that may hang in their threads before no new one is asked


@dataclass(frozen=True)
class Answer:
    """What came back for the observation that was asked with at robot time `asked` [s]."""

    asked: float
    made_at: float  # [s] the observation's own stamp
    chunk: ActionChunk | None
    error: str
    latency: float  # [s] wall clock


class Clockwork(ABC):
    """Carries questions to an actor and paces the loop; at most one question is open."""

    @property
    def pacer(self) -> Pacer | None:
        """Paces the commands, in real time."""
        return None

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
    def close(self) -> None: ...

    @property
    def overruns(self) -> int:
        """Commands that could not be given in their slot."""
        return 0 if self.pacer is None else self.pacer.overruns


class SimulatedClock(Clockwork):
    """The actor answers while the world stands still; its answer is handed over `latency` [s] of robot time later."""

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
        answer = Answer(now, observation.time, chunk, error, time.perf_counter() - started)
        self._open = (now + self._latency, answer)

    def poll(self, now: float) -> Answer | None:
        if self._open is None or now < self._open[0] - 1e-9:
            return None
        answer = self._open[1]
        self._open = None
        return answer

    def ready_in(self, now: float) -> float:
        return float("inf") if self._open is None else self._open[0] - now

    def close(self) -> None:
        pass


class WallClock(Clockwork):
    """The actor thinks in a thread of its own while the loop keeps its period.

    A question older than `timeout` [s] is abandoned; its late answer is dropped, never played. Threads are daemons: an
    actor that hangs for ever cannot keep the process alive.
    """

    def __init__(self, act: Act, period: float, timeout: float) -> None:
        self._act, self._timeout = act, timeout
        self._pacer = Pacer(period)
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH, self._interval))
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._question = 0  # number of the open question, 0 when none is open
        self._asked = 0
        self._started = 0.0
        self._robot_time = self._made_at = 0.0
        self._running = 0

    @property
    def pacer(self) -> Pacer:
        return self._pacer

    def idle(self, now: float) -> bool:
        with self._lock:
            return self._question == 0 and self._answer is None and self._running <= MAX_ABANDONED

    def ask(self, observation: Observation, now: float) -> None:
        with self._lock:
            self._asked += 1
            self._question = self._asked
            self._running += 1
            self._started, self._robot_time, self._made_at = time.perf_counter(), now, observation.time
        name = f"actor-{self._asked}"
        threading.Thread(target=self._work, args=(self._asked, observation, now), name=name, daemon=True).start()

    def _work(self, question: int, observation: Observation, asked: float) -> None:
        started = time.perf_counter()
        chunk, error = None, ""
        try:
            chunk = self._act(observation)
        except Exception as problem:  # reported in the trace; the loop goes to the fallback policy
            error = _words(problem)
        with self._lock:
            self._running -= 1
            if question == self._question:
                self._answer = Answer(asked, observation.time, chunk, error, time.perf_counter() - started)
                self._question = 0

    def poll(self, now: float) -> Answer | None:
        with self._lock:
            if self._answer is not None:
                answer, self._answer = self._answer, None
                return answer
            waited = time.perf_counter() - self._started
            if self._question and waited > self._timeout:
                self._question = 0
                words = f"actor: no answer within {self._timeout:g} s"
                return Answer(self._robot_time, self._made_at, None, words, waited)
            return None

    def ready_in(self, now: float) -> float:
        return float("inf")

    def wait(self) -> None:
        """Until the next command is due, for a caller who gives one just before."""
        self._pacer.wait()

    def close(self) -> None:
        sys.setswitchinterval(self._interval)
        with self._lock:
            self._question = 0


def _words(problem: Exception) -> str:
    return f"actor: {problem}" if isinstance(problem, AthenaError) else f"actor: {problem!r}"
