"""Physical joint values <-> the unit interval [-1, 1] a model works in: fitted once, a property of dataset x robot.

Knows nothing of files, images or models. `decode` is the exact way back; what was clipped on the way in is clipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from athena_vla.dataset.windows import chunks, starts
from athena_vla.embodiment import Embodiment
from athena_vla.errors import DatasetError, UnknownName

NormalizationMode = Literal["minmax", "q01q99", "meanstd"]
MODES = get_args(NormalizationMode)
STANDARD_DEVIATIONS = 4.0  # meanstd: mean +- 4 sigma fills the unit interval
# A joint never gets a range below this share of its mechanical range: x / 1e-8 explodes (openpi#814: -3200), and a
# joint that hardly moved in the recordings must still be decoded close to where it was. 0.02 of 2.6 rad is 3 degrees.
LEAST_RANGE_SHARE = 0.02
RESERVOIR_ROWS = 100_000  # quantiles come from at most this many rows, drawn with a fixed seed

Float = NDArray[np.floating[Any]]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Normalizer:
    """Affine map per column; `delta` joints are encoded relative to the current state of the same joint.

    All arrays in the columns' own units ([rad] for joints, of difference for delta joints): the unit interval is
    [low, high].
    """

    robot_name: str
    robot_hash: str
    joint_names: tuple[str, ...]  # D action columns
    state_names: tuple[str, ...]  # S state columns
    modes: tuple[NormalizationMode, ...]  # per action column
    is_delta: NDArray[np.bool_]  # [D]
    state_column: NDArray[np.intp]  # [D], the state column of each action column; -1: it is not observed
    action_low: Array  # [D]
    action_high: Array  # [D]
    state_low: Array  # [S]
    state_high: Array  # [S]
    still: tuple[str, ...] = ()  # joints that hardly moved, and therefore got a widened range
    rows: int = 0  # chunks the statistics come from

    @classmethod
    def fit(
        cls,
        robot: Embodiment,
        chunks: Float,
        states: Float,
        mode: NormalizationMode | Mapping[str, NormalizationMode] = "minmax",
    ) -> "Normalizer":
        """Fit on chunks `[N, H, D]` (or single actions `[N, D]`) and the states `[N, S]` they start from.

        `mode` is one for all joints or one per joint group; groups that are not named get minmax, the right one for
        absolute joint targets: q01/q99 would clip the extreme postures a task is about.
        """
        fit = NormalizerFit(robot, mode)
        fit.add(chunks, states)
        return fit.finish()

    def encode(self, chunk: Float, state: Float) -> NDArray[np.float32]:
        """Unit values of a chunk `[..., H, D]` [rad] that starts at state `[..., S]` [rad]; clipped to [-1, 1]."""
        chunk, state = self._checked(chunk, state)
        relative = chunk - self._base(state)
        return _to_unit(relative, self.action_low, self.action_high)

    def decode(self, unit: Float, state: Float) -> Array:
        """Joint targets [rad] of unit values `[..., H, D]`; the inverse of `encode` for the same state."""
        unit, state = self._checked(unit, state)
        middle, half = (self.action_high + self.action_low) / 2, (self.action_high - self.action_low) / 2
        return np.clip(unit, -1.0, 1.0) * half + middle + self._base(state)

    def encode_state(self, state: Float) -> NDArray[np.float32]:
        """Unit values of a state `[..., S]` [rad], clipped to [-1, 1]."""
        if state.shape[-1] != len(self.state_names):
            raise DatasetError(
                f"The statistics of '{self.robot_name}' are for {len(self.state_names)} state columns, "
                f"the state has {state.shape[-1]}."
            )
        return _to_unit(np.asarray(state, np.float64), self.state_low, self.state_high)

    def require(self, robot: Embodiment) -> "Normalizer":
        """Itself, when these are the statistics of that robot. Raises `DatasetError`."""
        if robot.hash == self.robot_hash:
            return self
        if robot.name != self.robot_name or robot.action_names != self.joint_names:
            reason = "another robot's joints"
        else:
            reason = f"'{robot.name}' as it was described then ({self.robot_hash}); the description has changed since"
        raise DatasetError(
            f"These statistics belong to '{self.robot_name}' ({self.robot_hash}) with {len(self.joint_names)} action "
            f"joints, not to '{robot.name}' ({robot.hash}) with {robot.action_dim}: they describe {reason}. "
            "Build the dataset for this robot."
        )

    def bin_width(self, bins: int = 255) -> Array:
        """[rad] per joint that one bin of an action tokeniser spans; a rough tokeniser hides behind wide statistics."""
        return (self.action_high - self.action_low) / bins

    def to_dict(self) -> dict[str, Any]:
        return {
            "robot_name": self.robot_name,
            "robot_hash": self.robot_hash,
            "joint_names": list(self.joint_names),
            "state_names": list(self.state_names),
            "modes": list(self.modes),
            "is_delta": self.is_delta.tolist(),
            "state_column": self.state_column.tolist(),
            "action_low": self.action_low.tolist(),
            "action_high": self.action_high.tolist(),
            "state_low": self.state_low.tolist(),
            "state_high": self.state_high.tolist(),
            "still": list(self.still),
            "rows": self.rows,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Normalizer":
        """Inverse of `to_dict`, bit-exact; unknown and missing keys are refused."""
        known = set(cls.__dataclass_fields__)
        for key in raw:
            if key not in known:
                raise UnknownName("field of the normaliser", key, sorted(known))
        missing = sorted(known - set(raw))
        if missing:
            raise DatasetError(f"The normaliser lacks {', '.join(missing)}.")
        width, states = len(raw["joint_names"]), len(raw["state_names"])
        arrays: dict[str, Array] = {}
        for key, size in (("action_low", width), ("action_high", width), ("state_low", states), ("state_high", states)):
            arrays[key] = np.array(raw[key], dtype=np.float64)
            if arrays[key].shape != (size,) or not np.isfinite(arrays[key]).all():
                raise DatasetError(f"The normaliser's {key} is not {size} finite numbers.")
        if (arrays["action_high"] <= arrays["action_low"]).any() or (arrays["state_high"] <= arrays["state_low"]).any():
            raise DatasetError("The normaliser has a joint whose range is empty.")
        return cls(
            robot_name=str(raw["robot_name"]),
            robot_hash=str(raw["robot_hash"]),
            joint_names=tuple(raw["joint_names"]),
            state_names=tuple(raw["state_names"]),
            modes=tuple(_known_mode(m) for m in raw["modes"]),
            is_delta=np.array(raw["is_delta"], dtype=np.bool_),
            state_column=np.array(raw["state_column"], dtype=np.intp),
            still=tuple(raw["still"]),
            rows=int(raw["rows"]),
            **arrays,
        )

    def _base(self, state: Array) -> Array:
        """[..., 1, D] what each action column is relative to: the current position of delta joints, else 0."""
        return np.where(self.is_delta, state[..., self.state_column], 0.0)[..., None, :]

    def _checked(self, chunk: Float, state: Float) -> tuple[Array, Array]:
        if chunk.ndim < 2 or chunk.shape[-1] != len(self.joint_names) or state.shape[-1] != len(self.state_names):
            raise DatasetError(
                f"The statistics of '{self.robot_name}' are for chunks [..., H, {len(self.joint_names)}] and states "
                f"[..., {len(self.state_names)}]; got {list(chunk.shape)} and {list(state.shape)}."
            )
        return np.asarray(chunk, np.float64), np.asarray(state, np.float64)


class NormalizerFit:
    """Accumulates statistics chunk by chunk in constant memory; `finish` gives the `Normalizer`."""

    def __init__(self, robot: Embodiment, mode: NormalizationMode | Mapping[str, NormalizationMode] = "minmax") -> None:
        if isinstance(mode, Mapping):
            known = (*robot.groups, *robot.channel_names)
            for group in mode:
                if group not in known:
                    what = "joint group or channel" if robot.channels else "joint group"
                    raise UnknownName(f"{what} of robot '{robot.name}'", group, known)
        per_group = mode if isinstance(mode, Mapping) else dict.fromkeys((*robot.groups, *robot.channel_names), mode)
        joints, channels = [robot.joint(n) for n in robot.action_joints], robot.commanded_channels
        groups = (*(j.group for j in joints), *(c.name for c in channels))
        self.robot = robot
        self.modes: tuple[NormalizationMode, ...] = tuple(_known_mode(per_group.get(g, "minmax")) for g in groups)
        self.is_delta = np.array([j.mode == "delta" for j in joints] + [False] * len(channels))
        self._actions = _Moments(robot.action_dim, "q01q99" in self.modes)
        self._states = _Moments(robot.state_dim, "q01q99" in self.modes)

    def add(self, chunks: Float, states: Float, valid: NDArray[np.bool_] | None = None) -> None:
        """Chunks `[N, H, D]` or actions `[N, D]`, states `[N, S]`; rows that are not `valid` `[N, H]` do not count."""
        chunks = np.asarray(chunks, np.float64)
        states = np.asarray(states, np.float64)
        if chunks.ndim == 2:
            chunks = chunks[:, None, :]
        expected = (len(states), chunks.shape[1], self.robot.action_dim)
        if chunks.shape != expected or states.shape != (len(chunks), self.robot.state_dim):
            raise DatasetError(
                f"Robot '{self.robot.name}' has {self.robot.action_dim} action joints and {self.robot.state_dim} state "
                f"columns; the chunks have shape {list(chunks.shape)} and the states {list(states.shape)}."
            )
        if not np.isfinite(chunks).all() or not np.isfinite(states).all():
            raise DatasetError("Statistics cannot be fitted on values that are not finite; check the recording first.")
        relative = chunks - np.where(self.is_delta, self.robot.action_of(states), 0.0)[:, None, :]
        self._actions.add(relative[valid] if valid is not None else relative.reshape(-1, self.robot.action_dim))
        self._states.add(states)

    def add_episode(self, states: NDArray[Any], actions: NDArray[Any], horizon: int, stride: int) -> None:
        """All chunks of an episode, of states `[T, S]` and actions `[T, D]`."""
        first = starts(len(states), stride)
        windows, valid = chunks(actions, first, horizon)
        self.add(windows, states[first], valid)

    def finish(self) -> Normalizer:
        robot = self.robot
        if self._states.count == 0:
            raise DatasetError(f"There is not one sample to fit the statistics of '{robot.name}' on.")
        low, high, still = _widen(*self._actions.range(self.modes), LEAST_RANGE_SHARE * robot.action_columns.span)
        state_modes: list[NormalizationMode] = ["minmax"] * robot.state_dim
        for column, mode in zip(robot.action_state_index, self.modes, strict=True):
            if column >= 0:
                state_modes[column] = mode
        state_low, state_high, _ = _widen(
            *self._states.range(tuple(state_modes)), LEAST_RANGE_SHARE * robot.state_columns.span
        )
        return Normalizer(
            robot_name=robot.name,
            robot_hash=robot.hash,
            joint_names=robot.action_names,
            state_names=robot.state_names,
            modes=self.modes,
            is_delta=self.is_delta,
            state_column=robot.action_state_index,
            action_low=low,
            action_high=high,
            state_low=state_low,
            state_high=state_high,
            still=tuple(n for n, s in zip(robot.action_names, still, strict=True) if s),
            rows=self._states.count,
        )


class _Moments:
    """Running minimum, maximum, mean and variance, and where quantiles are wanted a bounded sample of rows."""

    def __init__(self, width: int, keeps_rows: bool) -> None:
        self.count = 0
        self.low = np.full(width, np.inf)
        self.high = np.full(width, -np.inf)
        self.mean = np.zeros(width)
        self.squares = np.zeros(width)
        self._rows = np.zeros((RESERVOIR_ROWS if keeps_rows else 0, width), np.float32)
        self._filled = 0
        self._random = np.random.default_rng(0)  # which rows the quantiles see; fixed, so that a rebuild agrees

    def add(self, rows: Array) -> None:
        if not len(rows):
            return
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))
        # Chan's pairwise update: exact in one pass and independent of the magnitude of the mean.
        mean = rows.mean(axis=0)
        total = self.count + len(rows)
        gap = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(axis=0) + gap**2 * self.count * len(rows) / total
        self.mean += gap * len(rows) / total
        if len(self._rows):
            self._sample(rows)
        self.count = total

    def range(self, modes: tuple[NormalizationMode, ...]) -> tuple[Array, Array]:
        deviation = np.sqrt(self.squares / max(self.count, 1)) * STANDARD_DEVIATIONS
        lows = {"minmax": self.low, "meanstd": self.mean - deviation}
        highs = {"minmax": self.high, "meanstd": self.mean + deviation}
        if len(self._rows):
            # Column by column: a copy of all rows at once would be the largest thing in memory.
            columns = self._rows[: self._filled].T
            quantiles = np.array([np.quantile(c.astype(np.float64), [0.01, 0.99]) for c in columns])
            lows["q01q99"], highs["q01q99"] = quantiles.T
        low = np.array([lows[m][i] for i, m in enumerate(modes)], dtype=np.float64)
        high = np.array([highs[m][i] for i, m in enumerate(modes)], dtype=np.float64)
        return low, high

    def _sample(self, rows: Array) -> None:
        """Algorithm R, vectorised: every row seen so far is kept with the same probability."""
        room = min(RESERVOIR_ROWS - self._filled, len(rows))
        self._rows[self._filled : self._filled + room] = rows[:room]
        self._filled += room
        rest = rows[room:]
        if len(rest):
            places = self._random.integers(0, self.count + room + 1 + np.arange(len(rest)))
            kept = places < RESERVOIR_ROWS
            self._rows[places[kept]] = rest[kept]


def _to_unit(values: Array, low: Array, high: Array) -> NDArray[np.float32]:
    unit = (values - (high + low) / 2) / ((high - low) / 2)
    return np.clip(unit, -1.0, 1.0).astype(np.float32)


def _widen(low: Array, high: Array, least: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Ranges below `least` grow around their middle."""
    still = (high - low) < least
    middle = (low + high) / 2
    return np.where(still, middle - least / 2, low), np.where(still, middle + least / 2, high), still


def _known_mode(mode: str) -> NormalizationMode:
    for known in MODES:
        if mode == known:
            return known
    raise UnknownName("normalisation mode", mode, MODES)
