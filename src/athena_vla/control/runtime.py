"""The control loop: observes, asks for the next chunk while the present one plays, blends, filters, commands.

The same loop runs in simulated and in real time. Knows robots and actors by their protocols only; nothing of models,
networks or simulators. Joints the policy does not own come from the balance source, or hold. However a run ends, the
robot is brought to rest by the safety filter first.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import get_args

import numpy as np

from athena_vla.control.clock import Clockwork, SimulatedClock, WallClock
from athena_vla.control.fallback import Level
from athena_vla.control.run.interrupts import Interrupts
from athena_vla.control.run.one_run import Loop
from athena_vla.control.run.operator import Operator
from athena_vla.control.run.runtime_config import RuntimeConfig, resolve_owners
from athena_vla.control.run.sides import Actor, Balance, Identified, Robot
from athena_vla.control.safety import SafetyFilter
from athena_vla.control.teleoperator import Teleoperator
from athena_vla.control.trace import Recorder, Trace, TraceLog
from athena_vla.errors import SafetyError

__all__ = [
    "LEVELS",
    "Actor",
    "Balance",
    "Identified",
    "Robot",
    "Runtime",
    "RuntimeConfig",
    "resolve_owners",
    "run_episode",
]
LEVELS: tuple[Level, ...] = get_args(Level)
_driven: set[int] = set()  # robots with a run in progress in this process
_driving = threading.Lock()


class Runtime:
    """One robot, one actor, one safety filter. Raises at construction for whatever does not fit together.

    `stop`, `acknowledge` and `beat` may be called from any thread while `run` is at work.
    """

    def __init__(
        self,
        robot: Robot,
        actor: Actor,
        safety_filter: SafetyFilter,
        config: RuntimeConfig | None = None,
        *,
        balance: Balance | None = None,
        recorder: Recorder | None = None,
        teleoperator: Teleoperator | None = None,
    ) -> None:
        self.config = config or RuntimeConfig()
        body = robot.embodiment
        if safety_filter.embodiment.hash != body.hash:
            raise SafetyError(
                f"The safety filter was made for '{safety_filter.embodiment.name}', the robot is '{body.name}' "
                "(or another version of it). Build the filter from the robot's own embodiment."
            )
        if safety_filter.rate_hz != body.command_hz:
            raise SafetyError(
                f"The safety filter runs at {safety_filter.rate_hz:g} Hz, '{body.name}' is commanded at "
                f"{body.command_hz:g} Hz; limits on velocity hold only at the rate they were computed for."
            )
        if teleoperator is not None and self.config.shadow:
            raise SafetyError(
                "A shadow run commands nothing, so nobody can take over in it; leave the teleoperator out."
            )
        self._owners = self.config.owners_on(body)
        self._robot, self._actor, self._filter = robot, actor, safety_filter
        self._balance, self._recorder, self._teleoperator = balance, recorder, teleoperator
        self.operator = Operator(latch=self.config.latch and not self.config.shadow, heartbeat=self.config.heartbeat)
        self.trace: Trace | None = None  # of the last run, also where it ended in an exception

    def stop(self, why: str = "stop() was called") -> None:
        """Emergency stop: brake inside the limits, and stay at rest until `acknowledge`."""
        self.operator.stop(why)

    def acknowledge(self) -> bool:
        """Let a stopped robot move again, from where it is measured to be; False where it was not stopped."""
        return self.operator.acknowledge()

    def beat(self) -> None:
        """The operator's heartbeat, for `RuntimeConfig.heartbeat`."""
        self.operator.beat()

    def run(self, duration: float, *, until: Callable[[], bool] | None = None, real_time: bool = False) -> Trace:
        """Drive the robot for `duration` [s] of its clock, or until `until()` at a control step; starts from rest.

        `real_time` paces the loop by the wall clock and lets the actor think in a thread of its own; Ctrl-C and SIGTERM
        then end the run at rest before they take effect. Without it the robot's clock is simulated: `command` advances
        it. Raises what the first observation, the robot's driver or (in simulated time) the actor raise.
        """
        if np.isnan(duration) or duration <= 0:
            raise SafetyError(f"A run lasts a positive time, not {duration} s.")
        if self.config.shadow and not real_time:
            raise SafetyError("A shadow run commands nothing, so it needs a robot whose clock runs: real_time=True.")
        body, config = self._robot.embodiment, self.config
        log = TraceLog(body, config.keep, self._recorder)
        before, touched = self._filter.interventions, self._filter.touched_steps
        with _only_driver(self._robot), Interrupts(real_time) as interrupts:
            clock = self._clock(real_time)
            loop = Loop(
                self._robot,
                self._actor,
                self._filter,
                config,
                self._owners,
                self._balance,
                self.operator,
                clock,
                log,
                self._teleoperator,
            )
            ended_by = "duration"
            try:
                ended_by = loop.run(duration, until, interrupts)
            except BaseException as problem:
                ended_by = f"{type(problem).__name__}: {problem}".removesuffix(": ")
                raise
            finally:
                try:
                    loop.come_to_rest(ended_by)
                finally:
                    clock.close()
                    counted = self._filter.interventions - before
                    more = self._filter.touched_steps - touched
                    self.trace = log.trace(counted, more, clock.overruns, ended_by, config.shadow)
        interrupts.pass_on()
        return self.trace

    def _clock(self, real_time: bool) -> Clockwork:
        if real_time:
            return WallClock(self._actor.act, 1.0 / self._robot.embodiment.command_hz, self.config.timeout)
        return SimulatedClock(self._actor.act, self.config.latency, self.config.raise_errors)


@contextmanager
def _only_driver(robot: Robot) -> Iterator[None]:
    """One owner of a robot at a time."""
    with _driving:
        if id(robot) in _driven:
            raise SafetyError(f"This '{robot.embodiment.name}' is being driven by another run of this process.")
        _driven.add(id(robot))
    try:
        yield
    finally:
        with _driving:
            _driven.discard(id(robot))


def run_episode(
    robot: Robot,
    actor: Actor,
    safety_filter: SafetyFilter,
    *,
    duration: float,
    config: RuntimeConfig | None = None,
    until: Callable[[], bool] | None = None,
    balance: Balance | None = None,
) -> Trace:
    """One episode in simulated time, with the loop that drives the real robot."""
    return Runtime(robot, actor, safety_filter, config, balance=balance).run(duration, until=until)
