"""The list of files in a repository that this package published: what each must be, read with sentences.

It lies in the repository as `athena_hub.json`. The card is not bound by it: people edit cards on the Hub.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, cast, get_args

from athena_vla.errors import HubError

Kind = Literal["bundle", "adapter", "dataset"]
LISTING, CARD = "athena_hub.json", "README.md"
FORMAT = 1
MOST_FILES = 200_000
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Listed:
    """What one file must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a repository holds, and under which licences."""

    kind: Kind
    hash: str  # of the bundle or the set, as its reader computes it
    licence: str = ""
    data_licence: str = ""
    files: dict[str, Listed] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: object) -> "Listing":
        """Inverse of `to_bytes`. Raises `HubError` for what is no listing, and for a path out of the folder."""
        try:
            raw = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise HubError(f"The listing {LISTING} of '{where}' cannot be read: {error}. Publish it again.") from error
        if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, Mapping) else type(raw).__name__
            raise HubError(f"The listing {LISTING} of '{where}' has format {found!r}; this version reads {FORMAT}.")
        texts = {k: raw.get(k, "") for k in ("kind", "hash", "licence", "data_licence")}
        files = raw.get("files")
        known = {"format", "files", *texts}
        if set(raw) != known or not all(isinstance(t, str) for t in texts.values()) or not isinstance(files, dict):
            raise HubError(f"The listing {LISTING} of '{where}' is damaged, or from a newer version. Publish it again.")
        if texts["kind"] not in get_args(Kind):
            raise HubError(f"'{where}' holds a '{texts['kind']}'; known are {', '.join(get_args(Kind))}.")
        if len(files) > MOST_FILES:
            raise HubError(f"'{where}' lists {len(files)} files; at most {MOST_FILES} are fetched.")
        listed = {str(p): _listed(str(p), e, where) for p, e in cast(dict[str, Any], files).items()}
        return cls(kind=cast(Kind, texts.pop("kind")), **texts, files=listed)


def require_inside(path: str, where: object) -> str:
    """Raises `HubError` for a path that is not plainly one below the folder."""
    parts = PurePosixPath(path)
    wrong = not path or parts.is_absolute() or ".." in parts.parts or str(parts) != path or path in (LISTING, CARD)
    if wrong or "\\" in path or ":" in path or any(ord(c) < 32 for c in path) or parts.parts[0].startswith("."):
        raise HubError(f"'{where}' lists '{path}', which is no path inside its folder. Nothing of it is fetched.")
    return path


def _listed(path: str, raw: Any, where: object) -> Listed:
    require_inside(path, where)
    if isinstance(raw, dict) and set(raw) == {"sha256", "bytes"}:
        sha, count = raw["sha256"], raw["bytes"]
        if isinstance(sha, str) and _HASH.fullmatch(sha) and type(count) is int and count >= 0:
            return Listed(sha, count)
    raise HubError(f"'{where}' says of '{path}' no valid hash and size. Publish it again.")
