"""Notes: what a reader, a check or a build has to say about a recording, with a code to decide by and words to read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from athena_vla.errors import UnknownName

# What each code stands for. Programs decide by the code; the text of a note is for people and may change.
NOTE_CODES: dict[str, str] = {
    "action.lag": "states follow actions",
    "action.next_positions": "the recording has no commands; targets are the next positions",
    "articulation.several": "joint positions of several articulations are recorded, none is chosen",
    "camera.depth": "a depth stream is named and left out",
    "camera.joined_by_time": "rows were cut where images were not; each row has the image of its time",
    "camera.joined_by_rank": "time stamps and images do not meet; images are taken in their order",
    "camera.lag": "images follow the joints",
    "camera.missing": "a camera that the metadata promises is not there",
    "camera.only": "the only recorded camera is taken as the robot's",
    "camera.pictures_lost": "rows without an image",
    "camera.shared_span": "two episodes point at one stretch of video",
    "camera.short": "a camera ends before the episode does; the tail is dropped",
    "camera.sparse": "a camera was rendered more seldom than states; its last image is held",
    "clock.guessed": "no rate is recorded; a known one of the recorder or environment is taken",
    "clock.missing": "no clock and no rate are recorded",
    "clock.rate": "time stamps run at another rate than the declared one",
    "column.missing": "a column that the metadata promises is not there",
    "column.renamed": "a column is read under another name",
    "column.unnamed": "columns without names are taken in the order of the robot",
    "column.unreadable": "a column that holds no numbers is left out",
    "column.unused": "recorded columns do not become part of the set",
    "count.declared": "declared counts are not those of the files",
    "count.gaps": "numbers of episodes or frames have gaps",
    "count.mask": "a mask names episodes that are not there",
    "episode.broken": "an episode cannot be read or used and is left out",
    "episode.cut": "a file ends too early; what is whole before that is read",
    "episode.duplicate_number": "two episodes have one number",
    "episode.short": "an episode is shorter than one chunk",
    "episode.unlisted": "files of an episode that the table does not name are left out",
    "file.lfs_pointer": "a pointer file holds an address, not the data",
    "joint.still": "joints that hardly move got a wider range",
    "joint.unmatched": "action columns are not one per joint position",
    "language.missing": "frames without words",
    "language.placeholder": "a recorder's own placeholder is left out",
    "limits.clipped": "statistics end at the limits of joints, not at recorded values beyond them",
    "metadata.template": "a path template asks for a field that the format does not have",
    "metadata.missing": "a table of the format is missing",
    "pictures.only": "the recording holds images and nothing else",
    "split.mask": "a mask of the recording names a split",
    "state.locked": "no state is recorded for locked joints",
    "state.missing": "no joint positions are recorded; the previous target stands for the state",
    "state.mismatch": "recorded joint positions contradict each other",
    "state.relative": "whether joint positions are relative, and what follows from it",
    "stream.unused": "recorded streams do not become part of the set",
    "success.missing": "the recording does not say whether episodes succeeded",
    "text": "a note of an older version, of which only the words are known",
}


@dataclass(frozen=True)
class Note:
    """One thing to know about a recording or a set.

    `items` are the columns, cameras, joints or files it is about; `episode` is "" where it is about all of them.
    """

    code: str
    text: str
    items: tuple[str, ...] = ()
    episode: str = ""

    def __post_init__(self) -> None:
        if self.code not in NOTE_CODES:
            raise UnknownName("code of a note", self.code, NOTE_CODES)

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        return {"code": self.code, "text": self.text, "items": list(self.items), "episode": self.episode}

    @classmethod
    def from_json(cls, raw: Any) -> "Note":
        """Inverse of `to_dict`; sets of older versions hold words alone, and codes of newer ones are not known here."""
        if not isinstance(raw, Mapping):
            return cls("text", str(raw))
        code = str(raw.get("code"))
        items = tuple(map(str, raw.get("items", ())))
        return cls(code if code in NOTE_CODES else "text", str(raw.get("text")), items, str(raw.get("episode", "")))


def texts_of(notes: "tuple[Note, ...] | list[Note]") -> list[str]:
    """The words of notes, each once."""
    return list(dict.fromkeys(n.text for n in notes))
