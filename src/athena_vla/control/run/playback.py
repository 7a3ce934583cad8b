"""The chunk being played: what it asks of every joint, and how much of it was executed.

Knows curves, owners and times; nothing of limits, actors or robots. Plan time passes only while a plan is executed: it
stands still before the first chunk, after the end of one, through a fault and through a pause. A chunk is laid out in
plan time from the moment of its observation, so it goes on from what the robot did and not from what the clock says.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from athena_vla.control.action_prefix import prefix_times
from athena_vla.control.trajectory import Trajectory, rows_passed, through
from athena_vla.embodiment import ActionChunk, Array, Embodiment

# Of a period: the most that a plan goes on between two commands. After a longer gap the robot is slower than its plan
# instead of making one large step.
GAP = 1.05
REMEMBERED = 8192  # changes of the lag: more than any question stays open
SAME = 1e-6  # [s] a simulated clock that differs by less is exact
APPROACH = 0.2  # of the greatest speed, on the way to the first rows after somebody else commanded
STEP = 0.25  # [s] a clock that differs by more was set: stamps of before say nothing


class Playback:
    """`speed` is the rate at which a plan is executed; `blend` [s] the nearest row that a new chunk is joined at."""

    def __init__(self, body: Embodiment, hold: Array, start: float, *, speed: float, blend: float, paced: bool) -> None:
        self._body, self._speed, self._blend, self._paced = body, speed, blend, paced
        self._period = 1.0 / body.command_hz
        self._hold = hold.copy()
        self._curve: Trajectory | None = None
        self._approaches = False  # the rows of the next chunk may be far away
        self._joints = np.empty(0, dtype=np.intp)
        self._end = np.inf  # [s] plan time; until the first chunk arrives, the start pose is what to follow
        self._expires = np.inf  # [s] robot time
        self._lag = 0.0  # [s] robot time minus plan time
        self.over = False  # there was a chunk, and the last command was past it
        self.clock_steps = 0  # times that the robot's clock was set
        self._reached = start  # [s] robot time that the last command was for
        self._times: list[float] = [start]  # [s] robot times at which the lag changed, and what to
        self._lags: list[float] = [0.0]

    def targets(self, reach: Array, passed: float, follow: bool) -> tuple[Array, NDArray[np.bool_]]:
        """What commands that take effect at robot times `reach` [n] ask for [n, J], and which are past the plan.

        Every command comes `passed` [s] after the one before it. Without `follow` nothing is executed.
        """
        slip = float(reach[0]) - self._reached - passed
        if self._paced or abs(slip) > SAME:
            self._lag += slip  # the robot's clock, where it does not show what passed
        if abs(slip) > STEP:
            self.clock_steps += 1
            self._times, self._lags = [self._reached], [self._lag]
        self._lag += max(0.0, passed - GAP * self._period)
        slower = (1.0 - self._speed) * passed
        plan = reach - self._lag
        if slower:
            plan = plan - slower * np.arange(1, len(reach) + 1)
        past = (plan > self._end + 1e-9) | (reach > self._expires + 1e-9)
        targets = np.repeat(self._hold[None], len(reach), axis=0)
        if self._curve is not None:
            targets[:, self._joints] = self._curve.sample(np.minimum(plan, self._expires - self._lag))
        executed = 0 if self._curve is None or not follow else int((~past).sum())
        idle = len(reach) - executed
        self._lag += executed * slower
        self._note(float(reach[-1]) - idle * passed)
        if idle:
            self._lag += idle * passed
            self._note(float(reach[-1]))
        self._reached, self.over = float(reach[-1]), bool(past[-1])
        return targets, past

    def receive(
        self,
        chunk: ActionChunk,
        made_at: float,
        now: float,
        driven: NDArray[np.bool_],
        joints: NDArray[np.intp],
        state: tuple[Array, Array],
        max_age: float | None,
        *,
        last_row_holds: bool = False,
    ) -> str:
        """Go on with a chunk for the observation of robot time `made_at`; why it cannot be, "" where it can.

        `last_row_holds`: a chunk of somebody beside the policy. There is something to follow after its end, its last
        row; the policy's next rows, wherever they are, are approached slowly. `driven` are the chunk's columns that the
        policy owns, `joints` their places in the robot; `state` is the present command and its velocity [J].
        """
        plan_now, begun = now - self._lag, self._at(made_at)
        times = begun + chunk.dt * np.arange(1, len(chunk.positions) + 1, dtype=np.float64)
        if times[-1] <= plan_now + 1e-9:
            return (
                f"chunk: all its {len(times)} rows were past when it came, {now - made_at:.3g} s after its "
                "observation; the policy is slower than its chunks are long"
            )
        q, v = state
        resting = self._curve is None or self.over or not v[joints].any()
        rows = chunk.positions[:, driven]
        blend = self._blend * self._speed
        pace = self._speed  # of plan time
        approaches = self._approaches and not last_row_holds
        self._curve = through(
            times,
            rows,
            plan_now,
            q[joints],
            v[joints] / pace,
            blend,
            resting=resting,
            acceleration=self._body.command_columns.max_rate_derivative[joints] / pace**2,
            approach=APPROACH * self._body.command_columns.max_rate[joints] if approaches else None,
        )
        first = min(rows_passed(times, plan_now, blend), len(times) - 1)
        self._approaches = last_row_holds or (approaches and self._curve.times[1] > times[first] + 1e-6)
        self._joints, self._end, self.over = joints, np.inf if last_row_holds else self._curve.end, False
        self._expires = np.inf if max_age is None else made_at + max_age
        return ""

    def hold(self, pose: Array, where: NDArray[np.bool_]) -> None:
        """What the joints `where` keep while no chunk drives them."""
        self._hold = np.where(where, pose, self._hold)

    def drop(self, pose: Array, *, over: bool) -> None:
        """Nothing is being played any more; the robot keeps `pose`, as one whose plan is `over` or that awaits one."""
        self._hold, self._curve, self._joints = pose.copy(), None, np.empty(0, dtype=np.intp)
        self._end, self._expires, self.over = -np.inf if over else np.inf, np.inf, over

    def prefix(self, now: float, most: int, delays: Sequence[float]) -> Array | None:
        """Rows [p, D] that will have been played before the answer to a question asked now comes; at most `most`."""
        if not most or self._curve is None:
            return None
        plan_now, body = now - self._lag, self._body
        waits = [d * self._speed for d in delays]
        times = prefix_times(plan_now, 1.0 / body.control_hz, most, waits, self._blend * self._speed)
        times = times[(times <= self._end + 1e-9) & (times + self._lag <= self._expires + 1e-9)]
        if not len(times):
            return None
        targets = np.repeat(self._hold[None], len(times), axis=0)
        targets[:, self._joints] = self._curve.sample(times)
        return targets[:, body.action_index]

    def _at(self, moment: float) -> float:
        """Plan time at a robot time of the past."""
        place = bisect_right(self._times, moment)
        if place == 0 or place == len(self._times):
            lag = self._lags[max(place - 1, 0)] if place == 0 else self._lag
            return moment - lag
        t0, t1, lag0, lag1 = (*self._times[place - 1 : place + 1], *self._lags[place - 1 : place + 1])
        return moment - (lag0 + (lag1 - lag0) * (moment - t0) / (t1 - t0))

    def _note(self, moment: float) -> None:
        """The lag was this at a robot time; between two notes it changes evenly."""
        if moment <= self._times[-1]:
            return
        if len(self._times) > 1 and self._lag == self._lags[-1] == self._lags[-2]:
            self._times[-1] = moment
            return
        self._times.append(moment)
        self._lags.append(self._lag)
        if len(self._times) > REMEMBERED:
            del self._times[: REMEMBERED // 2], self._lags[: REMEMBERED // 2]
