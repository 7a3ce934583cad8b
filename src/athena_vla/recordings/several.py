"""Several recordings read as one: episodes of all, each with the name of its recording before its own."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from athena_vla.errors import AthenaError, RecordingError, UnknownName
from athena_vla.recordings.episode import BrokenEpisode, Episode, Recording, RecordingInfo
from athena_vla.recordings.notes import Note

SEPARATOR = "/"  # between the name of a recording and the episode's own


class Several:
    """Two or more recordings; `ids` are NAME/ID, and a name that comes twice gets a number."""

    format = "several"

    def __init__(self, parts: Sequence[Recording]) -> None:
        self.path = parts[0].path
        self.parts: dict[str, Recording] = {}
        for part in parts:
            stem = part.path.resolve().name
            count = sum(n == stem or n.startswith(f"{stem}-") for n in self.parts)
            self.parts[f"{stem}-{count + 1}" if count else stem] = part

    def ids(self) -> tuple[str, ...]:
        return tuple(f"{name}{SEPARATOR}{i}" for name, part in self.parts.items() for i in part.ids())

    def read(self, episode_id: str, /) -> Episode:
        name, _, own = episode_id.partition(SEPARATOR)
        if name not in self.parts:
            raise UnknownName("recording", name, self.parts)
        return replace(self.parts[name].read(own), id=episode_id)

    def episodes(self) -> Iterator[Episode | BrokenEpisode]:
        for name, part in self.parts.items():
            for item in part.episodes():
                yield replace(item, id=f"{name}{SEPARATOR}{item.id}")

    def whole_notes(self) -> tuple[Note, ...]:
        return tuple(_of(name, n) for name, part in self.parts.items() for n in part.whole_notes())

    def info(self) -> RecordingInfo:
        """Counts of all; names and rate of the first, with a note where another differs."""
        found = {name: part.info() for name, part in self.parts.items()}
        first = next(iter(found.values()))
        notes = [_of(name, n) for name, i in found.items() for n in i.notes]
        for name, i in found.items():
            if i.joint_names != first.joint_names:
                notes.append(Note("column.renamed", f"{name} has other action columns: {', '.join(i.joint_names)}"))
            if i.fps != first.fps:
                notes.append(Note("clock.rate", f"{name} has {i.fps:g} Hz, the first recording {first.fps:g}"))
        said = [i.successes for i in found.values() if i.successes is not None]
        return replace(
            first,
            episodes=sum(i.episodes for i in found.values()),
            frames=sum(i.frames for i in found.values()),
            duration=sum(i.duration for i in found.values()),
            tasks=tuple(dict.fromkeys(t for i in found.values() for t in i.tasks)),
            successes=sum(said) if said else None,
            notes=tuple(notes),
        )


def joined(paths: Sequence[Path], open_one: Callable[[Path], Recording]) -> Recording:
    """One recording, or several as one. Raises `RecordingError`."""
    resolved = [p.resolve() for p in paths]
    twice = next((p for p in resolved if resolved.count(p) > 1), None)
    if twice is not None:
        raise RecordingError(f"'{twice}' is named twice; its episodes would count double.")
    parts = [open_one(p) for p in paths]
    return parts[0] if len(parts) == 1 else Several(parts)


def read_or_broken(recording: Recording, episode_id: str) -> Episode | BrokenEpisode:
    """An episode, or why it cannot be read."""
    try:
        return recording.read(episode_id)
    except AthenaError as error:
        return BrokenEpisode(episode_id, f"{recording.path}#{episode_id}", str(error), error.code)


def chosen(ids: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The ids without those that are excluded. Raises `UnknownName`."""
    gone = {i for name in exclude for i in episodes_named(ids, name, "episode to exclude")}
    return [i for i in ids if i not in gone]


def episodes_named(ids: Sequence[str], name: str, kind: str) -> list[str]:
    """The ids that a person means: a whole id, the episode's own in every recording, or its number, as 3 for
    episode_0003. Raises `UnknownName`.
    """
    own = {i: i.rsplit(SEPARATOR, 1)[-1] for i in ids}
    found = [i for i in ids if name in (i, own[i])]
    if not found and name.isascii() and name.isdigit():
        numbers = {i: re.search(r"\d+$", last) for i, last in own.items()}
        found = [i for i, number in numbers.items() if number is not None and int(number[0]) == int(name)]
    if not found:
        raise UnknownName(kind, name, ids)
    return found


def _of(name: str, note: Note) -> Note:
    episode = f"{name}{SEPARATOR}{note.episode}" if note.episode else ""
    return replace(note, text=f"{name}: {note.text}", episode=episode)
