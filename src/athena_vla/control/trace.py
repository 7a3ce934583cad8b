"""What happened in one episode on a robot: everything a report, a replay or the next dataset needs, as plain arrays.

Knows no file format: turning a trace into a recording is the business of whoever may write recordings.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from athena_vla.control.teleoperator import SOURCES, Source
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation

MOST_ERRORS = 10_000  # kept in words; the same one in a row is kept once


@dataclass(frozen=True)
class Event:
    """Something that a person or a clock did, or that the loop did because of it."""

    time: float  # [s] robot clock
    kind: str  # stop | latched | acknowledged | reseated | policy | clock | control | handed back | refused | end
    words: str


@dataclass(frozen=True)
class Trace:
    """The executed episode. Commands run at `command_hz`, observations at the steps at which the robot was observed."""

    robot: str
    joint_names: tuple[str, ...]  # C names of the command columns: joints, then channels
    units: tuple[str, ...]  # C, of the command columns
    state_names: tuple[str, ...]  # S names of the state columns: joints, then observed channels
    instruction: str
    times: Array  # [n] [s] robot clock at which each command was given
    targets: Array  # [n, C] what was asked for, before the safety filter
    commands: Array  # [n, C] what the motors got, or would have got in shadow
    levels: NDArray[np.int8]  # [n] level of the fallback policy, index into `runtime.LEVELS`
    state_times: Array  # [m] [s]
    states: Array  # [m, S] measured: joints, then observed channels
    chunks: tuple[ActionChunk, ...]  # accepted ones, in the order of use
    latencies: Array  # [k] [s] wall clock from question to answer
    delays: Array  # [k] [s] robot clock from observation to use
    interventions: Mapping[str, int]  # of the safety filter in this episode
    touched_steps: int  # commands with at least one intervention
    deadline_misses: int  # control steps for which no current chunk was there
    overruns: int  # command periods that started late, in real time
    errors: tuple[str, ...]  # faults of the actor, the camera or a chunk, in words
    ended_by: str  # "duration" | "until" | name of a signal | the exception in words
    frames: tuple[Observation, ...] = field(default=())  # only where asked for
    stamps: Array = field(default_factory=lambda: np.empty(0))  # [n] [s] monotonic clock, at the driver; real time only
    interrupted: tuple[int, ...] = ()  # commands at which the system took the processor away: their stamps are bounds
    policies: tuple[str, ...] = ()  # bundle hashes of the policies that answered, in the order of use
    events: tuple[Event, ...] = ()
    braking_from: int = -1  # index of the first command of the braking phase at the end; n where there was none
    shadow: bool = False  # nothing was commanded
    # [n] who commanded each step, index into `teleoperator.SOURCES`; empty where nobody but the policy could
    sources: NDArray[np.int8] = field(default_factory=lambda: np.empty(0, dtype=np.int8))


class Recorder(Protocol):
    """Keeps what happens while it happens; `problem` says why it cannot, "" where it can."""

    @property
    def problem(self) -> str: ...

    def observed(self, observation: Observation, /) -> None: ...

    def commanded(self, time: float, stamp: float, target: Array, command: Array, level: int, /) -> None: ...

    def received(self, time: float, chunk: ActionChunk, policy: str, /) -> None: ...

    def noted(self, time: float, kind: str, words: str, /) -> None: ...


class TraceLog:
    """Collects a trace; of the commands only the last `keep` [s], where that is given."""

    def __init__(self, body: Embodiment, keep: float | None, recorder: Recorder | None) -> None:
        self._body, self._recorder = body, recorder
        most = None if keep is None else max(1, round(keep * body.command_hz))
        steps = None if keep is None else max(1, round(keep * body.control_hz))
        self._rows: deque[tuple[float, float, Array, Array, int, int]] = deque(maxlen=most)
        self._seen: deque[tuple[float, Array]] = deque(maxlen=steps)
        self._frames: deque[Observation] = deque(maxlen=steps)
        self._chunks: deque[ActionChunk] = deque(maxlen=steps)
        self.latencies: deque[float] = deque(maxlen=steps)
        self.delays: deque[float] = deque(maxlen=steps)
        self._errors: list[str] = []
        self._policies: list[str] = []
        self._events: deque[Event] = deque(maxlen=MOST_ERRORS)
        self._interrupted: deque[int] = deque(maxlen=most)
        self._commands = 0
        self.source: Source = "policy"  # who commands from here on
        self.deadline_misses = 0
        self._instruction = ""
        self._braking_at = -1

    def saw(self, observation: Observation, keep: bool) -> None:
        self._instruction = observation.instruction
        self._seen.append((observation.time, np.asarray(observation.state, dtype=np.float64)))
        if keep:
            self._frames.append(observation)
        if self._recorder is not None:
            self._recorder.observed(observation)

    @property
    def recorder_problem(self) -> str:
        return "" if self._recorder is None else self._recorder.problem

    @property
    def last_error(self) -> str:
        return self._errors[-1] if self._errors else ""

    @property
    def last_seen(self) -> float:
        """[s] stamp of the observation noted last."""
        return self._seen[-1][0] if self._seen else -np.inf

    def commanded(self, time: float, stamp: float, target: Array, command: Array, level: int) -> None:
        self._rows.append((time, stamp, target, command, level, SOURCES.index(self.source)))
        self._commands += 1
        if self._recorder is not None:
            self._recorder.commanded(time, stamp, target, command, level)

    def interrupted(self) -> None:
        """The next command is given at an instant that is not known exactly."""
        self._interrupted.append(self._commands)

    def received(self, time: float, chunk: ActionChunk, policy: str, delay: float) -> None:
        self._chunks.append(chunk)
        self.delays.append(delay)
        if policy and policy not in self._policies:
            self._policies.append(policy)
        if self._recorder is not None:
            self._recorder.received(time, chunk, policy)

    def error(self, words: str) -> None:
        if (not self._errors or self._errors[-1] != words) and len(self._errors) < MOST_ERRORS:
            self._errors.append(words)
            if self._recorder is not None:
                self._recorder.noted(self._rows[-1][0] if self._rows else self.last_seen, "error", words)

    def note(self, time: float, kind: str, words: str) -> None:
        self._events.append(Event(time, kind, words))
        if self._recorder is not None:
            self._recorder.noted(time, kind, words)

    def braking(self) -> None:
        """The commands from here on only bring the robot to rest."""
        self._braking_at = self._commands

    def trace(self, interventions: Counter[str], touched: int, overruns: int, ended_by: str, shadow: bool) -> Trace:
        rows, joints = list(self._rows), (-1, self._body.command_dim)
        columns: dict[str, Any] = {
            "times": np.array([r[0] for r in rows], dtype=np.float64),
            "stamps": np.array([r[1] for r in rows], dtype=np.float64),
            "targets": np.array([r[2] for r in rows], dtype=np.float64).reshape(joints),
            "commands": np.array([r[3] for r in rows], dtype=np.float64).reshape(joints),
            "levels": np.array([r[4] for r in rows], dtype=np.int8),
            "sources": np.array([r[5] for r in rows], dtype=np.int8),
        }
        dropped = self._commands - len(rows)
        return Trace(
            robot=self._body.name,
            joint_names=self._body.command_names,
            units=self._body.command_columns.units,
            state_names=self._body.state_names,
            instruction=self._instruction,
            state_times=np.array([t for t, _ in self._seen]),
            states=np.array([q for _, q in self._seen], dtype=np.float64).reshape(-1, self._body.state_dim),
            chunks=tuple(self._chunks),
            latencies=np.array(self.latencies),
            delays=np.array(self.delays),
            interventions=dict(interventions),
            touched_steps=touched,
            deadline_misses=self.deadline_misses,
            overruns=overruns,
            errors=tuple(self._errors),
            ended_by=ended_by,
            frames=tuple(self._frames),
            interrupted=tuple(i - dropped for i in self._interrupted if i >= dropped),
            policies=tuple(self._policies),
            events=tuple(self._events),
            braking_from=max((self._commands if self._braking_at < 0 else self._braking_at) - dropped, 0),
            shadow=shadow,
            **columns,
        )
