"""Taking over from the policy and handing back: a wished pose becomes rows of a chunk, joined like any other chunk.

Knows a teleoperator, limits and one state of the robot; nothing of policies, clocks or the filter. The wish is averaged
over `SMOOTH` [s]. The average is seeded with the motion at the take-over, so the robot's velocity goes over into the
wished one evenly, and no average moves faster than what it averages. A joint that is far from its wish, at the
take-over or because the wish jumped, goes there at `APPROACH` of its greatest speed.
"""

from dataclasses import dataclass

import numpy as np

from athena_vla.control.columns import Columns
from athena_vla.control.teleoperator import CONTROL, Source, Teleoperator, Wish
from athena_vla.embodiment import Array
from athena_vla.errors import SafetyError

SMOOTH = 0.15  # [s]
LEAST = 3  # wishes in an average
APPROACH = 0.2  # of the greatest speed
MET = 0.02  # [rad] a joint this near to its wish follows it freely
SOFT = 0.25  # of the greatest acceleration, between averages; the curve between them needs up to four times as much
SILENT = 0.3  # [s] a device that was not heard for so long has vanished


@dataclass(frozen=True)
class Change:
    """What follows from one look at the teleoperator."""

    rows: Array | None = None  # [n, C] to be followed from now on, one a control step; the last ones stand still
    event: str = ""  # kind of the event to note; "" where nothing happened
    words: str = ""
    failed: bool = False  # the robot must come to rest: who had control cannot command any more


class Takeover:
    """Who has control. Raises `SafetyError` for a teleoperator that calls itself a policy."""

    def __init__(self, teleoperator: Teleoperator, columns: Columns, control_hz: float) -> None:
        if teleoperator.source not in ("human", "script"):
            raise SafetyError(f"A teleoperator's source is 'human' or 'script', not '{teleoperator.source}'.")
        self._teleoperator, self._columns = teleoperator, columns
        self._dt = 1.0 / control_hz
        self._count = max(LEAST, round(SMOOTH * control_hz))
        # [C] way of one step: within the greatest speed, and reached from rest and left within the acceleration.
        reached = SOFT * columns.max_acceleration * self._count * self._dt**2
        self._most = np.minimum(columns.max_velocity * self._dt, reached)
        self._slow = np.minimum(APPROACH * columns.max_velocity * self._dt, reached)
        self._goals = np.zeros((self._count, len(columns.names)))  # what is averaged, the newest last
        self._wished = np.zeros(len(columns.names))  # [C] the last wish
        self._met = np.zeros(len(columns.names), dtype=bool)
        self.driving = False  # the teleoperator has control, or the robot still comes to rest after it
        self._resting = 0  # control steps until it has, after control was given back
        self._said = ""  # why control was not given, said once

    @property
    def source(self) -> Source:
        """Who commands while `driving`."""
        return self._teleoperator.source

    def look(self, command: Array, velocity: Array, now: float, blocked: str) -> Change:
        """One control step; `command` [C] and its `velocity` are the last ones given.

        `blocked` says why nobody can have control, "" where one can.
        """
        wish, problem = self._read(command, now)
        if self.driving:
            return self._kept(wish, problem, blocked)
        if problem:
            return self._once(problem, f"{problem} The policy keeps control.")
        if wish is None or not wish.engaged:
            self._said = ""
            return Change()
        if blocked:
            return self._once(blocked, f"The take-over waits: {blocked}.")
        return self._taken(wish, command, velocity)

    def _kept(self, wish: Wish | None, problem: str, blocked: str) -> Change:
        if blocked:
            self.driving, self._said = False, blocked
            return Change(None, "refused", f"Control was taken from the {self.source}: {blocked}.")
        if self._resting and problem:
            return self._released()  # nobody asked for it any more
        if problem or wish is None:
            self.driving, self._said = False, problem
            return Change(self._rows(resting=True), "refused", f"{problem} The robot comes to rest.", failed=True)
        if not wish.engaged or wish.positions is None:
            return self._released()
        self._resting = 0
        self._follow(self._columns.clipped(wish.positions))
        return Change(self._rows(resting=False))

    def _released(self) -> Change:
        """The motion ends as evenly as it began; the policy is asked when the robot is at rest."""
        if not self._resting:
            self._resting = self._count + 1
            return Change(
                self._rows(resting=True), "handed back", f"by the {self.source}; the policy goes on from rest"
            )
        self._resting -= 1
        self.driving, self._said = self._resting > 0, ""
        return Change()

    def _taken(self, wish: Wish, command: Array, velocity: Array) -> Change:
        assert wish.positions is not None
        self.driving, self._said, self._resting = True, "", 0
        steps = np.arange(self._count) - 0.5 * (self._count - 1)
        self._goals = self._columns.clipped(command + velocity * self._dt * steps[:, None])
        self._wished = self._columns.clipped(wish.positions)
        self._met[:] = False
        away = float(np.abs(self._wished - command).max())
        self._follow(self._wished)
        return Change(self._rows(resting=False), CONTROL, f"{self.source}: took over, {away:.3g} from the wished pose")

    def _follow(self, wished: Array) -> None:
        """The next goal: the wish, as near to it as this step may go."""
        self._met &= np.abs(wished - self._wished) <= self._most  # else it did not move, it jumped
        most = np.where(self._met, self._most, self._slow)
        goal = self._goals[-1] + np.clip(wished - self._goals[-1], -most, most)
        self._met |= np.abs(wished - goal) <= MET
        self._goals = np.concatenate([self._goals[1:], goal[None]])
        self._wished = wished

    def _rows(self, *, resting: bool) -> Array:
        """The average at this step and at those to come: the goal goes on for one step as it did, or rests at once.

        At rest a column that is a speed is at its stop: a base that nobody commands does not drive on.
        """
        last, step, columns = self._goals[-1], self._goals[-1] - self._goals[-2], self._columns
        beyond = last.copy() if resting else columns.clipped(last + step)
        if resting:
            beyond[columns.stopping] = columns.stop
        goals = np.concatenate([self._goals, np.repeat(beyond[None], self._count, axis=0)])
        if resting:
            goals = goals[1:]
        sums = np.cumsum(np.concatenate([np.zeros((1, goals.shape[1])), goals]), axis=0)
        return (sums[self._count :] - sums[: -self._count]) / self._count

    def _read(self, command: Array, now: float) -> tuple[Wish | None, str]:
        """The wish, or in a sentence why there is none that could be followed."""
        try:
            wish = self._teleoperator.read(command.copy(), now)
            if not wish.engaged:
                return wish, ""
            if not wish.age <= SILENT:  # NaN is silent
                return None, f"The teleoperator was not heard for {wish.age:.3g} s."
            if wish.positions is None:
                return None, "The teleoperator wants control and wishes no pose."
            positions = self._columns.vector(wish.positions, "A wished pose")
            if not np.isfinite(positions).all():
                wrong = [n for n, x in zip(self._columns.names, positions, strict=True) if not np.isfinite(x)]
                return None, f"The teleoperator wishes no number for {', '.join(wrong[:3])}."
            return Wish(True, positions, wish.age), ""
        except SafetyError as error:
            return None, str(error)
        except Exception as error:  # whatever a device raises must end in a sentence, not in a dead loop
            return None, f"The teleoperator raised {type(error).__name__}: {error}."

    def _once(self, why: str, words: str) -> Change:
        if why == self._said:
            return Change()
        self._said = why
        return Change(None, "refused", words)
