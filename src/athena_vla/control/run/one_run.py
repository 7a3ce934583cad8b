"""One run of the control loop, from the first observation to the last command at rest.

Knows the parts (playback, observations, operator, pacing, filter) and the order in which they take their turns.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np

from athena_vla.control.action_prefix import prefix_of
from athena_vla.control.clock import Answer, Clockwork
from athena_vla.control.fallback import Level
from athena_vla.control.run.interrupts import Interrupts
from athena_vla.control.run.observing import Watcher
from athena_vla.control.run.operator import Operator
from athena_vla.control.run.playback import Playback
from athena_vla.control.run.runtime_config import RuntimeConfig
from athena_vla.control.run.sides import Actor, Balance, Robot, policy_of
from athena_vla.control.run.starting import outside, ramp_filter, refuse_outside
from athena_vla.control.run.takeover import Takeover
from athena_vla.control.safety import SafetyFilter
from athena_vla.control.teleoperator import CONTROL, Teleoperator
from athena_vla.control.trace import TraceLog
from athena_vla.embodiment import ActionChunk, Array, Observation, Owner
from athena_vla.errors import InvalidObservation, SafetyError

LEVEL = {name: number for number, name in enumerate(get_args(Level))}
PATIENCE = 1.0  # [s] that a driver may refuse commands before the run ends
BRAKING = 10.0  # [s] the most that the braking phase may take
LONGEST = 1e9  # [s] of a run


class Loop:
    """Made for one run; see `Runtime`."""

    def __init__(
        self,
        robot: Robot,
        actor: Actor,
        guard: SafetyFilter,
        config: RuntimeConfig,
        owners: tuple[Owner, ...],
        balance: Balance | None,
        operator: Operator,
        clock: Clockwork,
        log: TraceLog,
        teleoperator: Teleoperator | None = None,
    ) -> None:
        body = robot.embodiment
        self._robot, self._actor, self._config, self._balance = robot, actor, config, balance
        self._guard = self._active = guard
        self._operator, self._clock, self._log = operator, clock, log
        self._pacer = clock.pacer
        self._policy_owns = np.array([o == "policy" for o in owners])
        self._balance_owns = np.array([o == "balance" for o in owners]) if balance else np.zeros(len(owners), bool)
        self._period = 1.0 / body.command_hz
        self._ticks_per_step = round(body.command_hz / body.control_hz)
        self._place = {name: i for i, name in enumerate(body.command_names)}
        self._unseen = body.state_columns.places(body.command_names) < 0
        self._takeover = None if teleoperator is None else Takeover(teleoperator, guard.columns, body.control_hz)
        self._watcher = Watcher(body, robot.observe, config.max_observation_age)
        self._state = np.zeros(len(owners))  # [C] measured last, as a command
        self._velocity = np.zeros(len(owners))  # [rad/s] between the last two measurements
        self._measured: Array | None = None  # new since the last command
        self._now = 0.0  # [s] robot clock
        self._asked_in = 0  # number of the clock's setting in which the open question was asked
        self._ignore = False  # the open question belongs to a plan that was dropped
        self._rests = False  # it stands still because of a fault
        self._policy = ""
        self._failing = 0.0  # [s] that the driver has refused commands
        self._pause = 0.0  # [s] without a command before the next one

    def run(self, duration: float, until: Callable[[], bool] | None, interrupts: Interrupts) -> str:
        """Returns what ended it; the robot may still be moving then."""
        body, config = self._robot.embodiment, self._config
        observation: Observation | None = self._begin()
        blend = 0.5 / body.control_hz if config.blend is None else config.blend
        paced = self._pacer is not None
        self._playback = Playback(
            body, self._active.position, self._now, speed=self._guard.speed, blend=blend, paced=paced
        )
        self._operator.restart()
        ticks = max(1, round(min(duration, LONGEST) / self._period))
        every = config.replan_every * self._ticks_per_step
        asked_at, tick = -every, 0
        while tick < ticks:
            if interrupts.word:
                return interrupts.word
            now = self._now = self._robot.time
            on_step = tick % self._ticks_per_step == 0
            if on_step:
                if tick > 0 and until is not None and until():
                    return "until"
                human = self._hand_over(now) if self._takeover is not None else False
                due = tick - asked_at >= every and self._clock.idle(now) and not human and not self._operator.fault()
                if tick > 0 and (due or human or config.record_images or paced or self._operator.waiting_for):
                    observation = self._look()
                if observation is not None and (tick == 0 or observation.time > self._log.last_seen):
                    self._saw(observation)
                if self._operator.acknowledged():
                    self._resume(observation)
                elif observation is not None and due:
                    self._ask(observation, now)
                    asked_at = tick
            answer = self._clock.poll(now)
            if answer is not None:
                self._receive(answer, now)
            if on_step and self._playback.over:
                self._log.deadline_misses += 1
            count = 1 if paced else self._batch(tick, ticks, self._clock.ready_in(now))
            self._play(now, count)
            tick += count
        return "duration"

    def come_to_rest(self, ended_by: str) -> None:
        """Brake inside the limits until the robot stands still; the driver may fail meanwhile."""
        self._log.braking()
        for _ in range(round(BRAKING / self._period)):
            if self._active.stopped:
                break
            try:
                self._now = self._robot.time
            except Exception:
                self._now += self._period
            try:
                self._command(None, "end")
            except SafetyError:
                break  # a driver that has refused commands for so long will not take another one
        self._log.note(self._now, "end", ended_by)

    def _begin(self) -> Observation:
        """The first observation, which must be right: nothing moves yet."""
        robot, guard = self._robot, self._guard
        observation = robot.observe().require(robot.embodiment)
        self._now = robot.time
        problem = self._watcher.first(observation, self._now)
        if problem:
            raise InvalidObservation(f"The first observation cannot be used: {problem}")
        state = self._command_at(observation)
        by_time = self._pacer is not None
        if not self._config.ramp_in:
            refuse_outside(guard, state)
        elif outside(guard, state).any():
            self._active = ramp_filter(guard, state)
            self._active.reset(state, self._now, by_time=by_time)
            goal = guard.columns.clipped(state)
            while not self._active.at_rest or not np.array_equal(self._active.position, goal):
                if self._operator.fault():
                    raise SafetyError(f"Stopped on the way into the limits: {self._operator.waiting_for}.")
                self._now = robot.time
                self._command(goal, "")
            state, self._active = self._active.position, guard
            observation = robot.observe().require(robot.embodiment)
            self._now = robot.time
        guard.reset(state, self._now, by_time=by_time)
        return observation

    def _command_at(self, observation: Observation) -> Array:
        """[C] the command that stays where the robot is measured; channels that are not, where they were commanded."""
        state = self._robot.embodiment.command_of(observation.state.astype(np.float64))
        return np.where(self._unseen, self._guard.position, state) if self._unseen.any() else state

    def _batch(self, tick: int, ticks: int, ready_in: float) -> int:
        """Commands until the next thing can happen: a control step, an answer, or the end."""
        until_step = self._ticks_per_step - tick % self._ticks_per_step
        until_answer = max(1, int(np.ceil(min(ready_in, 1e6) / self._period - 1e-9)))
        return min(until_step, until_answer, ticks - tick)

    def _look(self) -> Observation | None:
        observation = self._watcher.look(lambda: self._robot.time)
        if observation is None:
            self._log.error(f"observation: {self._watcher.problem}")
        return observation

    def _saw(self, observation: Observation) -> None:
        state = self._command_at(observation)
        since = observation.time - self._log.last_seen
        self._velocity = (state - self._state) / since if np.isfinite(since) and since > 0 else np.zeros(len(state))
        self._state = state
        self._measured = None if self._config.shadow else state[: len(self._robot.embodiment.joints)]
        self._log.saw(observation, self._config.record_images)

    def _ask(self, observation: Observation, now: float) -> None:
        prefix = self._playback.prefix(now, prefix_of(self._actor), tuple(self._log.delays))
        self._asked_in, self._ignore = self._playback.clock_steps, False
        self._clock.ask(replace(observation, action_prefix=prefix), now)

    def _fault(self, now: float) -> str:
        """Why there is nothing to follow, whatever the plan says; "" where there is."""
        box = self._log.recorder_problem
        if box:
            self._log.error(f"black box: {box}")
        driver = "driver" if self._failing else ""
        return self._operator.fault() or self._watcher.fault(now) or driver or ("recorder" if box else "")

    def _play(self, now: float, count: int) -> None:
        if self._pacer is not None:
            passed = self._pacer.next(self._pause)
            reach = np.array([now + self._pacer.ahead + self._period])
        else:
            passed, reach = self._period, now + self._period * np.arange(1, count + 1, dtype=np.float64)
        fault = self._fault(now)
        steps = self._playback.clock_steps
        targets, past = self._playback.targets(reach, passed, not fault)
        if self._playback.clock_steps != steps:
            self._watcher.clock_stepped(now)
            self._log.note(now, "clock", "the robot's clock was set")
        if self._balance is not None:
            try:
                targets[:, self._balance_owns] = self._balance(reach, self._state)[:, self._balance_owns]
            except Exception as error:  # a failing balance source must end in the fallback levels
                self._log.error(f"balance source: {error!r}")
                fault = fault or "no_target"
        # A robot whose balance source still works keeps balancing with its arms held; any other comes to a stop.
        late = past if self._balance is None else np.zeros(count, dtype=bool)
        if self._pacer is not None or fault or late.any():
            for i in range(count):
                self._now = now + i * self._period
                self._command(None if fault or late[i] else targets[i], fault or "no_target", targets[i])
        else:
            commands = self._guard.chunk(targets, now, self._measured)
            for i in range(count):
                self._send(now + i * self._period, targets[i], commands[i])
        self._measured = None
        self._settle(fault)

    def _command(self, target: Array | None, fault: str, asked: Array | None = None) -> None:
        """One command: filtered, made anew while it is late, and given."""
        guard, pacer, now = self._active, self._pacer, self._now
        asked = guard.position if asked is None else asked
        if pacer is None:
            command = guard.step(target, now, self._measured, fault=fault)
            self._measured = None
            self._send(now, asked, command)
            return
        # After a pause the filter has started anew: what it is told is one period, which is less than has passed.
        pause, self._pause = self._pause, 0.0
        interval = pacer.next(pause)
        told = self._period if pause else interval
        command = guard.step(target, now, self._measured, elapsed=told, fault=fault)
        self._measured = None
        while (longer := pacer.arrive()) is not None:
            if not pause:
                command = guard.retime(longer)
        self._send(now, asked, command)
        if not pause:
            guard.left(pacer.since)

    def _send(self, now: float, target: Array, command: Array) -> None:
        if self._pacer is not None:
            self._pacer.stamp()
        if not self._config.shadow:
            try:
                self._robot.command(command)
                self._failing = 0.0
            except Exception as error:
                self._failing += self._period
                self._log.error(f"command: {type(error).__name__}: {error}")
                if self._failing > PATIENCE:
                    raise SafetyError(
                        f"The driver of '{self._robot.embodiment.name}' refuses commands: {type(error).__name__}: "
                        f"{error}. The robot may be moving: use the emergency stop."
                    ) from error
        stamp = np.nan if self._pacer is None else self._pacer.given()
        if self._pacer is not None and self._pacer.interrupted:
            self._log.interrupted()
        self._log.commanded(now, stamp, target, command, LEVEL[self._active.level])

    def _settle(self, fault: str) -> None:
        """What follows from a robot that has come to rest because of a fault."""
        guard = self._guard
        if guard.level not in ("stop", "safe_pose") or not guard.stopped:
            self._rests = False
            return
        if self._rests:
            return
        self._rests = True
        self._playback.drop(guard.position, over=True)
        why = self._log.last_error or fault or "nothing to follow"
        if self._operator.came_to_rest(why):
            self._log.note(self._now, "latched", why)

    def _resume(self, observation: Observation | None) -> None:
        """An acknowledged robot goes on from where it is measured to be."""
        guard = self._guard
        why = self._operator.waiting_for
        if observation is None or not guard.stopped or (self._watcher.fault(self._now) or self._log.recorder_problem):
            self._log.error(f"acknowledge: waiting for a usable observation and for standstill, after: {why}")
            return
        state = self._command_at(observation)
        try:
            refuse_outside(guard, state)
        except SafetyError as error:
            self._log.error(f"acknowledge: {error}")
            return
        away = float(np.abs(state - guard.position).max())
        self._pause = guard.time_to(state)
        guard.reset(state, self._now, by_time=self._pacer is not None)
        self._playback.drop(state, over=False)
        self._ignore, self._rests = True, False
        self._policy = ""
        self._log.note(self._now, "acknowledged", self._operator.clear())
        self._log.note(self._now, "reseated", f"on the measurement, {away:.3g} rad from the last command")

    def _receive(self, answer: Answer, now: float) -> None:
        log = self._log
        log.latencies.append(answer.latency)
        chunk = answer.chunk
        problem = answer.error if chunk is None else self._refusal(chunk)
        if chunk is None or problem or self._ignore:
            if problem:
                log.error(problem)
            return
        if self._config.shadow:  # somebody else drives the robot: what it would do begins where it is
            self._guard.reset(self._state, now, by_time=True, velocity=self._velocity)
        problem = self._follow(chunk, answer.made_at, now)
        if problem:
            log.error(problem)
            return
        if log.source != "policy":
            log.note(now, CONTROL, "policy: its first chunk since the hand-back")
            log.source = "policy"
        log.received(now, chunk, self._policy, now - answer.asked)

    def _follow(self, chunk: ActionChunk, made_at: float, now: float, *, last_row_holds: bool = False) -> str:
        """Go on with a chunk, whoever made it; why it cannot be, "" where it can."""
        driven = np.array([self._policy_owns[self._place[n]] for n in chunk.joint_names], dtype=bool)
        joints = np.array([self._place[n] for n in chunk.joint_names], dtype=np.intp)[driven]
        guard = self._guard
        state, most = (guard.position, guard.velocity), None if last_row_holds else self._config.max_age
        problem = self._playback.receive(
            chunk, made_at, now, driven, joints, state, most, last_row_holds=last_row_holds
        )
        if not problem:
            hold = guard.stopping_pose
            hold[joints] = state[0][joints]
            self._playback.hold(hold, ~self._balance_owns)
        return problem

    def _hand_over(self, now: float) -> bool:
        """Let the teleoperator take over, command, or hand back; whether it has control."""
        takeover, guard, body = self._takeover, self._guard, self._robot.embodiment
        assert takeover is not None
        change = takeover.look(guard.position, guard.velocity, now, self._blocked(now))
        if change.event:
            self._log.note(now, change.event, change.words)
        if change.event == CONTROL:
            self._ignore = True  # an answer that is still open belongs to the motion before
            self._log.source = takeover.source
        if change.failed:
            self._operator.hold(change.words)
        if change.rows is not None:
            # A plan is executed at the filter's share of the speed; what a person wishes is meant at its own time.
            dt = self._guard.speed / body.control_hz
            chunk = ActionChunk(change.rows, body.command_names, dt, now)
            problem = self._follow(chunk, now, now, last_row_holds=True)
            if problem:
                self._log.error(problem)
        return takeover.driving

    def _blocked(self, now: float) -> str:
        """Why nobody can take over, or keep control; "" where somebody can."""
        if self._operator.waiting_for:
            return f"the robot waits for an acknowledgement after: {self._operator.waiting_for}"
        fault = self._fault(now)
        if fault:
            return f"there is a fault, '{fault}'"
        return "" if self._guard.level == "follow" else f"the filter brakes at level '{self._guard.level}'"

    def _refusal(self, chunk: ActionChunk) -> str:
        """Why a chunk cannot be followed, "" where it can."""
        unknown = [n for n in chunk.joint_names if n not in self._place]
        if unknown or len(set(chunk.joint_names)) != len(chunk.joint_names):
            return f"chunk: joints {unknown or 'named twice'} do not fit '{self._robot.embodiment.name}'"
        if not (np.isfinite(chunk.dt) and chunk.dt > 0 and len(chunk.positions)):
            return f"chunk: {len(chunk.positions)} rows with dt {chunk.dt} s"
        if not np.isfinite(chunk.positions).all():
            return "chunk: positions that are not numbers"
        if self._playback.clock_steps != self._asked_in:
            return "chunk: the robot's clock was set while the question was open"
        policy = policy_of(self._actor)
        if self._policy and policy != self._policy:
            words = f"the policy changed from {self._policy} to {policy or 'one without a name'}"
            self._operator.hold(words)
            return f"chunk: {words}"
        self._policy = policy
        return ""
