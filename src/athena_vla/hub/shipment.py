"""What travels: the files of a bundle, an adapter or a dataset that are listed, and nothing else of their folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from athena_vla.errors import HubError
from athena_vla.hub.hub_config import PushConfig, RepoType
from athena_vla.hub.hub_results import SentFile
from athena_vla.hub.listing import CARD, LISTING, Kind, Listed, Listing
from athena_vla.hub.local_paths import Cutter, needles, scan

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Item:
    """One file on its way: a local one, or content that differs from what lies here."""

    path: str  # in the repository
    source: Path | bytes


@dataclass(frozen=True)
class Licences:
    """Of what is published, and of what it was made from."""

    name: str  # as the Hub spells it; `unknown` where nobody knows it
    note: str = ""
    data: str = ""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What would be published."""

    kind: Kind
    repo_type: RepoType
    hash: str
    items: tuple[Item, ...]
    card: str
    licences: Licences
    cutter: Cutter = field(default_factory=Cutter)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packed:
    """Files with their hashes, listed: ready to be sent."""

    items: tuple[Item, ...]
    files: tuple[SentFile, ...]

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)


def pack(shipment: Shipment, config: PushConfig) -> Packed:
    """Hash every file and list it. Raises `HubError` naming a file that holds a path of this machine."""
    looked_for = needles(config.input, shipment.cutter.found)
    sent = list[SentFile]()
    for item in shipment.items:
        scanned = scan(item.source, looked_for)
        if scanned.holds and not config.allow_paths:
            raise HubError(
                f"'{item.path}' of '{config.input}' holds '{scanned.holds}', a path of this machine, and it cannot be "
                "taken out without changing the file. Make it again elsewhere, or publish it so with --allow-paths."
            )
        sent.append(SentFile(item.path, scanned.bytes, scanned.sha256))
    listing = Listing(
        kind=shipment.kind,
        hash=shipment.hash,
        licence=shipment.licences.name,
        data_licence=shipment.licences.data,
        files={f.path: Listed(f.sha256, f.bytes) for f in sent},
    )
    added = (Item(LISTING, listing.to_bytes()), Item(CARD, shipment.card.encode()))
    for item in added:
        scanned = scan(item.source, looked_for)
        if scanned.holds and not config.allow_paths:
            raise HubError(
                f"The card of '{config.input}' would hold '{scanned.holds}', a path of this machine: it stands in an "
                "instruction, a note or a name. Mend that text, or publish it so with --allow-paths."
            )
        sent.append(SentFile(item.path, scanned.bytes, scanned.sha256))
    return Packed((*shipment.items, *added), tuple(sent))


def left_out(folder: Path, items: Iterable[Item]) -> tuple[str, ...]:
    """A sentence on what else lies in the folder, where something does."""
    here = {i.path for i in items} | {CARD, LISTING}
    others = sorted(
        f.relative_to(folder).as_posix()
        for f in folder.rglob("*")
        if f.is_file() and f.relative_to(folder).as_posix() not in here
    )
    if not others:
        return ()
    return (f"Not published, as it belongs to no list: {few(others)}.",)


def few(names: Sequence[str], most: int = 5) -> str:
    """The first names of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def require_licence(given: str, known: str, what: str) -> str:
    """The licence that is written down. Raises `HubError` where nobody has said one."""
    if given or known:
        return given or known
    raise HubError(
        f"The licence of {what} is not known, and nobody may use what has none. Say it with --license mit (or "
        f"apache-2.0, cc-by-4.0, ...); where you do not know it either, with --license {UNKNOWN}: the card says so."
    )
