"""What a policy would have commanded at some frames of an episode, on the clock of the recorded targets."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from athena_vla.embodiment import Embodiment, Observation
from athena_vla.errors import ViewError
from athena_vla.policy import Policy
from athena_vla.recordings.alignment import AlignedEpisode, Alignment, align
from athena_vla.recordings.column_names import plain_name
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.resample import Steps, control_steps
from athena_vla.recordings.texts import alternatives_at
from athena_vla.view.timeline import Array, PredictedChunk, Timeline


class Predictions:
    """A policy that is asked at frames of recorded episodes, with what the robot saw there."""

    def __init__(self, bundle: Path, device: str = "auto") -> None:
        self.policy = Policy.load(bundle, device=device)

    @property
    def robot(self) -> Embodiment:
        return self.policy.robot

    def added(self, timeline: Timeline, episode: Episode, count: int, /) -> Timeline:
        """The timeline with chunks at `count` frames, evenly spaced. Raises `ViewError`, `DatasetError`."""
        robot = self.robot
        aligned = align(episode, robot, Alignment())
        fps = float(aligned.record["recorded_fps"])
        first, stop = int(aligned.record["first"]), int(aligned.record["stop"])
        steps = control_steps(stop - first, fps, robot.control_hz)
        asked = np.unique(np.linspace(0, max(len(steps.state) - 2, 0), count).round().astype(int)).tolist()
        frames = np.arange(len(timeline), dtype=np.float64)
        chunks = []
        for step in asked:
            observation = _observation(aligned, step, 1.0 / robot.control_hz)
            positions = self.policy.act(observation).positions
            if not np.isfinite(positions).all():
                raise ViewError(f"The policy answers what is no number at step {step} of episode {episode.id}.")
            times = np.interp(_places(steps, step, len(positions)) + first, frames, timeline.times)
            times = np.maximum.accumulate(times + _beyond(steps, step, len(positions)) / robot.control_hz)
            at = float(np.interp(steps.state[step] + first, frames, timeline.times))
            chunks.append(PredictedChunk(at, times, _names(timeline, robot.action_names), positions))
        return replace(timeline, predicted=tuple(chunks))


def _observation(aligned: AlignedEpisode, step: int, period: float) -> Observation:
    texts = alternatives_at(aligned.texts, step) or aligned.episode.instructions
    if not texts:
        raise ViewError(
            f"Episode {aligned.episode.id} ({aligned.episode.source}) has no instruction to ask a policy for."
        )
    return Observation(
        images={name: frames[int(aligned.picture[step])] for name, frames in aligned.cameras.items()},
        state=aligned.states[step].copy(),
        instruction=texts[0],
        time=step * period,
    )


def _places(steps: Steps, step: int, rows: int) -> Array:
    """[H] recorded row that each row of the chunk is drawn over; past the end the last one."""
    return steps.target[np.minimum(step + np.arange(rows), len(steps.target) - 1)]


def _beyond(steps: Steps, step: int, rows: int) -> Array:
    """[H] control periods by which a row lies past the last recorded step."""
    return np.maximum(step + np.arange(rows) - (len(steps.target) - 1), 0).astype(np.float64)


def _names(timeline: Timeline, names: tuple[str, ...]) -> tuple[str, ...]:
    """The chunk's columns under the names that the timeline draws them by."""
    drawn = {plain_name(c.name): c.name for c in timeline.columns}
    return tuple(drawn.get(plain_name(n), n) for n in names)
