"""A recording whose targets are the next joint positions: for end-effector commands and other kinds of actions."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import BrokenEpisode, Episode, Recording, RecordingInfo
from athena_vla.recordings.notes import Note
from athena_vla.recordings.several import read_or_broken
from athena_vla.recordings.streams import Stream

SAID = "targets are the next joint positions (--targets next-state); the recorded actions are the stream 'actions'"


class NextState:
    """Wraps a recording; row t of the targets is row t + 1 of the states, and the last row holds."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.path = recording.path

    def ids(self) -> tuple[str, ...]:
        return self.recording.ids()

    def whole_notes(self) -> tuple[Note, ...]:
        return self.recording.whole_notes()

    def read(self, episode_id: str, /) -> Episode:
        episode = self.recording.read(episode_id)
        if not episode.state_names:
            raise RecordingError(
                f"Episode {episode_id} ({episode.source}) records no joint positions, so --targets next-state has "
                "nothing to take."
            )
        from_actions = {"actions": Stream(episode.actions)} if episode.joint_names else {}
        kept = tuple(n for n in episode.notes if n.code not in ("joint.unmatched", "column.unnamed"))
        return replace(
            episode,
            actions=np.concatenate([episode.states[1:], episode.states[-1:]]),
            joint_names=episode.state_names,
            streams={**episode.streams, **from_actions},
            notes=(*kept, Note("action.next_positions", SAID)),
        )

    def episodes(self) -> Iterator[Episode | BrokenEpisode]:
        return (read_or_broken(self, episode_id) for episode_id in self.ids())

    def info(self) -> RecordingInfo:
        found = self.recording.info()
        return replace(found, joint_names=found.state_names, notes=(*found.notes, Note("action.next_positions", SAID)))
