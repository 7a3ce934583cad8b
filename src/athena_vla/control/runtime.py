"""The control loop: observes, asks for the next chunk while the present one plays, blends, filters, commands.

The same loop runs in simulated and in real time. Knows robots and actors by their protocols only; nothing of models,
networks or simulators. Joints the policy does not own come from the balance source, or hold.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, get_args

import numpy as np

from athena_vla.control.action_prefix import committed_times, prefix_of
from athena_vla.control.clock import Answer, Clockwork, SimulatedClock, WallClock
from athena_vla.control.fallback import Level
from athena_vla.control.safety import SafetyFilter
from athena_vla.control.trace import Trace
from athena_vla.control.trajectory import Trajectory, through
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation, Owner
from athena_vla.errors import AthenaError, SafetyError, UnknownName

LEVELS: tuple[Level, ...] = get_args(Level)
Balance = Callable[[Array, Array], Array]  # (times [n] [s], last measured state [J]) -> positions [n, J] [rad]


class Robot(Protocol):
    """A body with a clock. `observe` returns the latest of everything and does not wait for a camera."""

    @property
    def embodiment(self) -> Embodiment: ...

    @property
    def time(self) -> float:
        """[s]"""
        ...

    def observe(self) -> Observation: ...

    def command(self, positions: Array, /) -> None:
        """Position targets [J] rad; a simulated robot advances by one command period."""
        ...


class Actor(Protocol):
    """Whatever turns an observation into a chunk: a policy, a remote policy, an expert, a baseline."""

    def act(self, observation: Observation, /) -> ActionChunk: ...


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How chunks become commands."""

    replan_every: int = 8
    """Ask for a new chunk every this many control steps."""
    latency: float = 0.0
    """Simulated time between question and answer; real time has its own. [s]"""
    blend: float | None = None
    """The curve joins a new chunk at its first row at least this far ahead; None: half a control step. [s]"""
    max_age: float | None = None
    """A chunk older than this (since its observation) is not followed any further; None: to its last row. [s]"""
    owners: Mapping[str, Owner] = field(default_factory=dict)
    """Who drives a joint or a whole group, where it differs from the embodiment."""
    timeout: float = 5.0
    """A question without an answer is given up after this long, and asked anew; real time only. [s]"""
    raise_errors: bool = True
    """In simulated time let an actor's error end the episode; in real time it always leads to the ladder."""
    record_images: bool = False
    """Keep the observations in the trace."""


class Runtime:
    """One robot, one actor, one safety filter. Raises at construction for whatever does not fit together."""

    def __init__(
        self,
        robot: Robot,
        actor: Actor,
        safety_filter: SafetyFilter,
        config: RuntimeConfig | None = None,
        *,
        balance: Balance | None = None,
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
        if self.config.replan_every < 1 or (self.config.blend or 1.0) <= 0 or self.config.latency < 0:
            raise SafetyError("The runtime needs replan_every >= 1, blend > 0 and latency >= 0.")
        self._robot, self._actor, self._filter, self._balance = robot, actor, safety_filter, balance
        owners = resolve_owners(body, self.config.owners)
        self._policy_owns = np.array([o == "policy" for o in owners])
        self._balance_owns = np.array([o == "balance" for o in owners]) if balance else np.zeros(len(owners), bool)
        self._period = 1.0 / body.command_hz
        self._ticks_per_step = round(body.command_hz / body.control_hz)
        self._blend = 0.5 / body.control_hz if self.config.blend is None else self.config.blend
        self._place = {name: i for i, name in enumerate(body.joint_names)}

    def run(self, duration: float, *, until: Callable[[], bool] | None = None, real_time: bool = False) -> Trace:
        """Drive the robot for `duration` [s] of its clock, or until `until()` at a control step; starts from rest."""
        act, config = self._actor.act, self.config
        if real_time:
            return self._run(duration, until, WallClock(act, self._period, config.timeout))
        return self._run(duration, until, SimulatedClock(act, config.latency, config.raise_errors))

    def _run(self, duration: float, until: Callable[[], bool] | None, clock: Clockwork) -> Trace:
        robot, config = self._robot, self.config
        log = _Log()
        before = self._filter.interventions
        touched_before = self._filter.touched_steps
        observation = robot.observe().require(robot.embodiment)  # the first one must be right: nothing moves yet
        start = robot.time
        self._filter.reset(observation.state, start)
        self._hold = self._filter.position
        self._state = observation.state.astype(np.float64)
        self._curve: Trajectory | None = None
        self._curve_joints = np.empty(0, dtype=np.intp)
        self._valid_until = np.inf  # until the first chunk arrives, the start pose is what to follow
        ticks = max(1, round(duration / self._period))
        ended_by = "duration"
        every = config.replan_every * self._ticks_per_step
        asked_at, tick = -every, 0
        measured: Array | None = None
        try:
            while tick < ticks:
                now = robot.time
                on_step = tick % self._ticks_per_step == 0
                if on_step:
                    if tick > 0 and until is not None and until():
                        ended_by = "until"
                        break
                    due = tick - asked_at >= every and clock.idle(now)
                    if tick > 0 and (due or config.record_images or not clock.simulated):
                        observation = self._observe(log)
                    if observation is not None and (tick == 0 or observation.time > log.seen[-1].time):
                        self._state = measured = observation.state.astype(np.float64)
                        log.saw(observation, config.record_images)
                    if observation is not None and due:
                        clock.ask(replace(observation, committed=self._committed(now, log.delays)), now)
                        asked_at = tick
                answer = clock.poll(now)
                if answer is not None:
                    self._receive(answer, now, log)
                if on_step and now > self._valid_until + 1e-9:
                    log.deadline_misses += 1
                count = self._batch(tick, ticks, clock.ready_in(now)) if clock.simulated else 1
                self._play(now, count, measured, log)
                measured = None
                tick += count
                clock.wait()
        finally:
            clock.close()
        return log.trace(
            robot.embodiment,
            self._filter.interventions - before,
            self._filter.touched_steps - touched_before,
            clock.overruns,
            ended_by,
        )

    def _batch(self, tick: int, ticks: int, ready_in: float) -> int:
        """Commands until the next thing can happen: a control step, an answer, or the end."""
        until_step = self._ticks_per_step - tick % self._ticks_per_step
        until_answer = max(1, int(np.ceil(min(ready_in, 1e6) / self._period - 1e-9)))
        return min(until_step, until_answer, ticks - tick)

    def _play(self, now: float, count: int, measured: Array | None, log: "_Log") -> None:
        times = now + self._period * np.arange(1, count + 1, dtype=np.float64)
        targets = self._planned(times)
        fault = False
        if self._balance is not None:
            try:
                targets[:, self._balance_owns] = self._balance(times, self._state)[:, self._balance_owns]
            except Exception as error:  # a failing balance source must end in the ladder, never in a dead loop
                log.errors.append(f"balance source: {error!r}")
                fault = True
        # A robot whose balance source still works keeps balancing with its arms held; any other comes to a stop.
        late = times > self._valid_until + 1e-9
        if fault or (self._balance is None and late.any()):
            commands = np.empty_like(targets)
            for i in range(count):
                target = None if fault or late[i] else targets[i]
                commands[i] = self._filter.step(target, now + i * self._period, measured if i == 0 else None)
                log.levels.append(LEVELS.index(self._filter.level))
                self._robot.command(commands[i])
        else:
            commands = self._filter.chunk(targets, now, measured)
            log.levels.extend([LEVELS.index(self._filter.level)] * count)
            for row in commands:
                self._robot.command(row)
        log.commanded(times - self._period, targets, commands)

    def _planned(self, times: Array) -> Array:
        """What the present chunk asks of all joints at the times."""
        targets = np.repeat(self._hold[None], len(times), axis=0)
        if self._curve is not None:
            alive = np.minimum(times, self._valid_until)  # past its time the curve is not followed any further
            targets[:, self._curve_joints] = self._curve.sample(alive)
        return targets

    def _committed(self, now: float, delays: list[float]) -> Array | None:
        """Rows that will be played before the answer to a question asked now is; None for an actor that takes none."""
        body, most = self._robot.embodiment, prefix_of(self._actor)
        if not most or self._curve is None:
            return None
        times = committed_times(now, 1.0 / body.control_hz, most, delays, self._blend)
        times = times[times <= self._valid_until + 1e-9]
        return self._planned(times)[:, body.action_index] if len(times) else None

    def _observe(self, log: "_Log") -> Observation | None:
        try:
            return self._robot.observe().require(self._robot.embodiment)
        except AthenaError as error:
            log.errors.append(f"observation: {error}")
            return None

    def _receive(self, answer: Answer, now: float, log: "_Log") -> None:
        log.latencies.append(answer.latency)
        chunk = answer.chunk
        problem = answer.error if chunk is None else self._refusal(chunk)
        if chunk is None or problem:
            log.errors.append(problem)
            return
        log.chunks.append(chunk)
        log.delays.append(now - answer.asked)
        driven = np.array([self._policy_owns[self._place[n]] for n in chunk.joint_names], dtype=bool)
        joints = np.array([self._place[n] for n in chunk.joint_names], dtype=np.intp)[driven]
        # The chunk belongs to the observation it was asked with; an actor's own clock is not trusted.
        times = answer.asked + chunk.dt * np.arange(1, len(chunk.positions) + 1, dtype=np.float64)
        q, v = self._filter.position, self._filter.velocity
        self._hold = np.where(self._balance_owns, self._hold, self._filter.stopping_pose)
        self._hold[joints] = q[joints]
        self._curve = through(times, chunk.positions[:, driven], now, q[joints], v[joints], self._blend)
        self._curve_joints = joints
        self._valid_until = self._curve.end
        if self.config.max_age is not None:
            self._valid_until = min(self._valid_until, answer.asked + self.config.max_age)

    def _refusal(self, chunk: ActionChunk) -> str:
        """Why a chunk cannot be followed, "" where it can."""
        unknown = [n for n in chunk.joint_names if n not in self._place]
        if unknown or len(set(chunk.joint_names)) != len(chunk.joint_names):
            return f"chunk: joints {unknown or 'named twice'} do not fit '{self._robot.embodiment.name}'"
        if not (np.isfinite(chunk.dt) and chunk.dt > 0 and len(chunk.positions)):
            return f"chunk: {len(chunk.positions)} rows with dt {chunk.dt} s"
        if not np.isfinite(chunk.positions).all():
            return "chunk: positions that are not numbers"
        return ""


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


def resolve_owners(body: Embodiment, changes: Mapping[str, Owner]) -> tuple[Owner, ...]:
    """Owner of every joint after changes by group or joint name; a joint's own entry wins over its group's."""
    for name, owner in changes.items():
        if name not in body.groups and name not in body.joint_names:
            raise UnknownName(f"group or joint of '{body.name}'", name, (*body.groups, *body.joint_names))
        if owner not in get_args(Owner):
            raise UnknownName("owner", owner, get_args(Owner))
    return tuple(changes.get(j.name, changes.get(j.group, j.owner)) for j in body.joints)


class _Log:
    """Collects a trace."""

    def __init__(self) -> None:
        self.times: list[Array] = []
        self.targets: list[Array] = []
        self.commands: list[Array] = []
        self.levels: list[int] = []
        self.seen: list[Observation] = []
        self.frames: list[Observation] = []
        self.chunks: list[ActionChunk] = []
        self.latencies: list[float] = []
        self.delays: list[float] = []
        self.errors: list[str] = []
        self.deadline_misses = 0
        self.instruction = ""

    def saw(self, observation: Observation, keep: bool) -> None:
        self.instruction = observation.instruction
        self.seen.append(Observation({}, observation.state, observation.instruction, observation.time))
        if keep:
            self.frames.append(observation)

    def commanded(self, times: Array, targets: Array, commands: Array) -> None:
        self.times.append(times)
        self.targets.append(targets)
        self.commands.append(commands)

    def trace(
        self, body: Embodiment, interventions: Counter[str], touched_steps: int, overruns: int, ended_by: str
    ) -> Trace:
        joints = (0, len(body.joints))
        return Trace(
            robot=body.name,
            joint_names=body.joint_names,
            instruction=self.instruction,
            times=np.concatenate([np.empty(0), *self.times]),
            targets=np.concatenate([np.empty(joints), *self.targets]),
            commands=np.concatenate([np.empty(joints), *self.commands]),
            levels=np.array(self.levels, dtype=np.int8),
            state_times=np.array([o.time for o in self.seen]),
            states=np.array([o.state for o in self.seen], dtype=np.float64).reshape(-1, len(body.joints)),
            chunks=tuple(self.chunks),
            latencies=np.array(self.latencies),
            delays=np.array(self.delays),
            interventions=dict(interventions),
            touched_steps=touched_steps,
            deadline_misses=self.deadline_misses,
            overruns=overruns,
            errors=tuple(self.errors),
            ended_by=ended_by,
            frames=tuple(self.frames),
        )
