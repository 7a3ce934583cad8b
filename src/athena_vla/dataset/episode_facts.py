"""What a build knows of one prepared episode: the JSON beside its shard, and what the sidecar keeps of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from athena_vla.recordings.formats.lerobot_statistics import Stats

Json = Mapping[str, Any]  # as the class that wrote it says: Finding, Note, Segment, Marks, a span of texts


class Unusable(TypedDict):
    """An episode that is left out, and why."""

    id: str
    status: Literal["broken", "failed"]
    reason: str


class Prepared(TypedDict):
    """An episode whose shard is written."""

    id: str
    status: Literal["ok"]
    source: str
    length: int
    success: bool | None
    instructions: list[str]
    kind: str
    segments: Sequence[Json]
    fixes: Sequence[str]
    alignment: Json
    sizes: dict[str, list[int]]  # camera -> height, width
    motion: str  # hash of states and actions: the same for duplicates
    digest: str  # hash of all that is taught
    notes: Sequence[Json]
    findings: Sequence[Json]
    texts: NotRequired[Sequence[Json]]  # only where they differ within the episode
    marks: NotRequired[Json]
    stats: NotRequired[Stats]  # on disk only: they are most of the size


Facts = Prepared | Unusable
