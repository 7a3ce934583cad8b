"""`athena push`: a bundle, an adapter or a dataset becomes a repository of the Hub in one commit."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from athena_vla.dataset.sidecar import SIDECAR
from athena_vla.errors import HubError, MissingDependency
from athena_vla.hub.bundle_shipment import bundle_shipment
from athena_vla.hub.card_parts import HUB_ID
from athena_vla.hub.dataset_shipment import dataset_shipment
from athena_vla.hub.hub_client import Hub, Remote, require_repo
from athena_vla.hub.hub_config import PushConfig
from athena_vla.hub.hub_results import PushResult, size
from athena_vla.hub.listing import CARD, LISTING, Kind
from athena_vla.hub.shipment import Packed, Shipment, few, pack
from athena_vla.progress import Progress, quiet

# What a repository may hold before the first push: the Hub's own file, and what people write on its pages.
_HARMLESS = frozenset({".gitattributes", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt"})


@dataclass(frozen=True)
class _There:
    """The repository before the push."""

    exists: bool
    stale: tuple[str, ...] = ()  # published before, and no longer part of it


def push(config: PushConfig, progress: Progress = quiet) -> PushResult:
    """Publish INPUT as REPO. Raises `HubError`, and what opening INPUT raises; the Hub sees all of it or nothing."""
    require_repo(config.repo)
    for option, name in (("--base-model", config.base_model), ("--trained-on", config.trained_on)):
        if name and not HUB_ID.fullmatch(name):
            raise HubError(f"{option} '{name}' is no name on the Hub: it is owner/name.")
    if (config.bench or config.compare) and kind_of(config) != "bundle":
        raise HubError("--bench and --compare are for the card of a bundle, and this is none. Leave them out.")
    kind_of(config)
    hub = None if config.dry_run else Hub()
    account = hub.require_account() if hub else ""  # before minutes of hashing
    shipment = shipment_of(config)
    progress.say(f"Hashing {len(shipment.items)} files of '{config.input}'.")
    packed = pack(shipment, config)
    if hub:
        progress.say(f"Publishing to {hub.endpoint} as {account}: {len(packed.files)} files, {size(packed.bytes)}.")
    url = _send(hub, config, shipment, packed) if hub else ""
    return PushResult(
        repo=config.repo,
        type=shipment.repo_type,
        kind=shipment.kind,
        files=packed.files,
        card=shipment.card,
        hash=shipment.hash,
        revision=config.revision,
        url=url,
        notes=shipment.notes,
        dry_run=config.dry_run,
    )


def kind_of(config: PushConfig) -> Kind:
    """What INPUT is. Raises `HubError` for what is nothing that can be published, or not as what was asked for."""
    path = config.input
    bundle, dataset = (path / "manifest.json").is_file(), (path / "meta" / SIDECAR).is_file()
    run = any((f / "checkpoints").is_dir() for f in (path, path.with_name(f"{path.name}.run")))
    found: Kind | None = "bundle" if bundle else "dataset" if dataset else "adapter" if run else None
    if found is None:
        raise HubError(
            f"'{path}' is no bundle (a folder with a manifest.json), no built dataset (one with a meta/{SIDECAR}) and "
            "no run of a fine-tuning (one with checkpoints). Those can be published."
        )
    wanted = found if config.kind == "auto" else config.kind
    if wanted != found and not (wanted == "adapter" and bundle):
        raise HubError(f"'{path}' is a {found}, and cannot be published as a {wanted}. Leave --kind out.")
    return wanted


def shipment_of(config: PushConfig) -> Shipment:
    """What would be published of INPUT."""
    kind = kind_of(config)
    if kind == "bundle":
        return bundle_shipment(config)
    if kind == "dataset":
        return dataset_shipment(config)
    try:
        from athena_vla.hub.adapter_shipment import adapter_shipment  # reads tensors with torch
    except ModuleNotFoundError as error:
        raise MissingDependency((error.name or "torch").partition(".")[0], "train", "to read an adapter") from error
    return adapter_shipment(config)


def _send(hub: Hub, config: PushConfig, shipment: Shipment, packed: Packed) -> str:
    before = _there(hub, config, shipment)
    if not before.exists:
        hub.create(config.repo, shipment.repo_type, private=config.private)
    if config.revision != "main" and not hub.has_branch(config.repo, shipment.repo_type, config.revision):
        hub.branch(config.repo, shipment.repo_type, config.revision)
    message = config.message or f"{shipment.kind} {shipment.hash[:16]}, by Athena-VLA"
    return hub.publish(config.repo, shipment.repo_type, packed.items, before.stale, message, config.revision)


def _there(hub: Hub, config: PushConfig, shipment: Shipment) -> _There:
    """What the repository holds now. Raises `HubError` where the push would mix with, or show, what it must not."""
    kind = shipment.repo_type
    remote = hub.find(config.repo, kind, "main")
    if remote is None:
        return _There(False)
    if config.private and not remote.private:
        raise HubError(
            f"The {kind} '{config.repo}' exists and everybody can see it, whatever --private says. Make it private on "
            "its page, or choose another name."
        )
    if config.revision != "main" and hub.has_branch(config.repo, kind, config.revision):
        remote = hub.find(config.repo, kind, config.revision) or remote  # a new branch begins with what main holds
    return _There(True, _stale(hub, remote, shipment))


def _stale(hub: Hub, remote: Remote, shipment: Shipment) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as work:
        listing = hub.listing(remote, Path(work))
    if listing is None:
        others = sorted(set(remote.sizes) - _HARMLESS)
        if others:
            raise HubError(
                f"The {remote.type} '{remote.repo}' holds files that were not published from here ({few(others)}), and "
                "they would stay among the new ones. Choose another name, or empty it."
            )
        return ()
    if listing.kind != shipment.kind:
        raise HubError(
            f"The {remote.type} '{remote.repo}' holds a {listing.kind}, and this is a {shipment.kind}: choose "
            "another name."
        )
    now = {i.path for i in shipment.items} | {CARD, LISTING}
    return tuple(sorted(p for p in listing.files if p in remote.sizes and p not in now))
