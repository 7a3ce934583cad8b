"""`athena pull`: what a repository lists, each file compared with its hash, into a folder that appears whole.

A cut download goes on where it stopped: parts lie beside OUT under their hashes until the folder has its name.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from athena_vla import files
from athena_vla.bundle import Bundle, is_bundle
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.sidecar import SIDECAR
from athena_vla.errors import AthenaError, HubError
from athena_vla.files.resume import PartialResults
from athena_vla.hub.hub_client import Hub, Remote, require_repo
from athena_vla.hub.hub_config import PullConfig, RepoType
from athena_vla.hub.hub_results import PullResult, size
from athena_vla.hub.listing import CARD, LISTING, Listed, Listing, require_inside
from athena_vla.hub.shipment import few
from athena_vla.manifest import Manifest
from athena_vla.progress import Progress, quiet

MANIFEST = "manifest.json"
MOST_CARD = 2**20  # [bytes]
MOST_MANIFEST = 64 * 2**20  # [bytes]
_TYPES: tuple[RepoType, ...] = ("model", "dataset")


@dataclass(frozen=True)
class _Wanted:
    """What is fetched: the files that are listed, and the listing itself."""

    listing: Listing
    loose: Mapping[str, int]  # files that no hash binds -> most bytes: the card, the listing


def pull(config: PullConfig, progress: Progress = quiet) -> PullResult:
    """Fetch REPO into OUT. Raises `HubError`; nothing has the name OUT unless every file is what was listed."""
    require_repo(config.repo)
    hub = Hub()
    with files.claim(
        config.out,
        overwrite=config.overwrite,
        what="a bundle, an adapter or a dataset",
        ours=is_ours,
        error=HubError,
    ):
        remote = _found(hub, config)
        parts = PartialResults(config.out, ["pull", hub.endpoint, config.repo, remote.type], HubError)
        wanted = _wanted(hub, remote, parts)
        _require_fit(config, wanted, parts, remote)
        total = sum(f.bytes for f in wanted.listing.files.values())
        progress.say(f"Fetching from {hub.endpoint}: {len(wanted.listing.files)} files, {size(total)}.")
        result = _fetched(hub, remote, wanted, parts, config, progress)
        parts.remove()
        return result


def is_ours(path: Path) -> bool:
    """Whether a folder looks like something that is pulled or built."""
    return is_bundle(path) or (path / LISTING).is_file() or (path / "meta" / SIDECAR).is_file()


def _found(hub: Hub, config: PullConfig) -> Remote:
    """The repository. Raises `HubError` where there is none, or one of each type and nobody said which."""
    types = _TYPES if config.type == "auto" else (config.type,)
    there = [r for t in types if (r := hub.find(config.repo, t, config.revision)) is not None]
    if len(there) == 1:
        return there[0]
    if there:
        raise HubError(f"'{config.repo}' is both a model and a dataset. Say which: --type model or --type dataset.")
    other = next((t for t in _TYPES if t not in types and hub.find(config.repo, t, config.revision)), None)
    if other:
        raise HubError(f"There is no {config.type} '{config.repo}', but a {other} of that name: --type {other}.")
    known = "" if hub.token else " Nobody is logged in: private ones need `hf auth login` or HF_TOKEN."
    raise HubError(f"{hub.endpoint} has no {' or '.join(types)} '{config.repo}', or you may not see it.{known}")


def _wanted(hub: Hub, remote: Remote, parts: PartialResults) -> _Wanted:
    """The listing; of a bundle that somebody uploaded by other means, its manifest. Raises `HubError` for neither."""
    card = {CARD: MOST_CARD} if CARD in remote.sizes else {}
    listing = hub.listing(remote, parts.folder)
    if listing is None and MANIFEST not in remote.sizes:
        raise HubError(
            f"The {remote.type} '{remote.repo}' was not published by Athena-VLA: it has no {LISTING} and no {MANIFEST}."
            " Fetch it with `hf download`; a recording in it becomes a dataset with `athena data build`."
        )
    if listing is not None and listing.kind != "bundle":
        return _Wanted(listing, {**card, LISTING: 0})
    part = parts.path(f"{remote.commit} {MANIFEST}", ".json")
    hub.fetch(remote, MANIFEST, part, None, MOST_MANIFEST)
    manifest = Manifest.from_dict(files.read_json(part, HubError), remote.repo)
    itself = Listed(files.sha256(part), part.stat().st_size)
    os.replace(part, parts.path(itself.sha256, ".part"))
    bound = {require_inside(n, remote.repo): e for n, e in manifest.files.items()}
    if listing is None:
        unsized = [n for n, e in bound.items() if e.bytes is None]
        if unsized:
            raise HubError(
                f"The manifest of '{remote.repo}' has no sizes ({few(unsized)}). Publish it with athena push."
            )
        sized = {n: Listed(e.sha256, e.bytes or 0) for n, e in bound.items()}
        return _Wanted(Listing(kind="bundle", hash="", files={**sized, MANIFEST: itself}), card)
    same = {n: e.sha256 for n, e in bound.items()} | {MANIFEST: itself.sha256}
    if {n: e.sha256 for n, e in listing.files.items()} != same:
        raise HubError(
            f"'{remote.repo}' is tampered with or damaged: its {LISTING} and its {MANIFEST} list other files."
        )
    return _Wanted(listing, {**card, LISTING: 0})


def _require_fit(config: PullConfig, wanted: _Wanted, parts: PartialResults, remote: Remote) -> None:
    """Raises `HubError` where a file is not there, or all of it is larger than allowed, or than the disk has room."""
    listed = wanted.listing.files
    absent = sorted(n for n in listed if n not in remote.sizes)
    if absent:
        raise HubError(f"'{config.repo}' lists files that it does not hold: {few(absent)}. Publish it again.")
    total = sum(f.bytes for f in listed.values())
    if total > config.most * 1e9:
        raise HubError(
            f"'{config.repo}' has {size(total)}, more than --most {config.most:g} GB. Allow more with --most."
        )
    here = files.size_of([parts.folder])
    files.require_room(config.out, max(total - here, 0), f"'{config.repo}'", HubError)


def _fetched(
    hub: Hub, remote: Remote, wanted: _Wanted, parts: PartialResults, config: PullConfig, progress: Progress
) -> PullResult:
    listed = wanted.listing.files
    total, done = sum(f.bytes for f in listed.values()), 0
    for name, entry in sorted(listed.items()):
        progress(done, total, "fetching", name)
        _fetch_listed(hub, remote, name, entry, parts)
        done += entry.bytes
    progress(total, total, "fetching")
    loose = {n: parts.path(f"{remote.commit} {n}", ".loose") for n in wanted.loose if n != LISTING}
    for name, part in loose.items():
        part.unlink(missing_ok=True)
        hub.fetch(remote, name, part, None, wanted.loose[name])
    with files.whole_folder(config.out, HubError) as made:
        seen = dict[str, Path]()  # two files with the same content are one part
        for name, entry in listed.items():
            _place(parts.path(entry.sha256, ".part"), made / name, seen, entry.sha256)
        for name, part in loose.items():
            os.replace(part, made / name)
        if LISTING in wanted.loose:
            (made / LISTING).write_bytes(wanted.listing.to_bytes())
        found, notes = _opened(made, wanted.listing, config)
    return PullResult(
        path=config.out,
        repo=config.repo,
        type=remote.type,
        kind=wanted.listing.kind,
        commit=remote.commit,
        files=len(listed),
        bytes=total,
        hash=found,
        licence=wanted.listing.licence,
        notes=notes,
    )


def _fetch_listed(hub: Hub, remote: Remote, name: str, entry: Listed, parts: PartialResults) -> None:
    """One file under its hash; a part from before that turns out wrong is fetched once more from its beginning."""
    part = parts.path(entry.sha256, ".part")
    resumed = part.exists()
    if resumed and part.stat().st_size > entry.bytes:
        part.unlink()
    if not part.exists() or part.stat().st_size < entry.bytes:
        hub.fetch(remote, name, part, entry.bytes, entry.bytes)
    if files.sha256(part) != entry.sha256:
        part.unlink()
        if not resumed:
            raise HubError(
                f"'{name}' of '{remote.repo}' is not what was listed: its hash differs. It was damaged on its way, or "
                "changed by somebody. Nothing has been written; try again, or ask who published it."
            )
        _fetch_listed(hub, remote, name, entry, parts)


def _place(part: Path, target: Path, seen: dict[str, Path], sha256: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if sha256 in seen:
        target.write_bytes(seen[sha256].read_bytes())
        return
    os.replace(part, target)
    seen[sha256] = target


def _opened(made: Path, listing: Listing, config: PullConfig) -> tuple[str, tuple[str, ...]]:
    """The hash of what was fetched, read by whoever will use it. Raises `HubError` where it is not what it says."""
    try:
        if listing.kind == "bundle":
            found, notes = _opened_bundle(made, config)
        elif listing.kind == "dataset":
            found, notes = Dataset.open(made).hash, (f"Train on it: athena train --data {config.out} --out policy",)
        else:
            found, notes = listing.hash, ("It is a plain peft adapter: see the card, README.md.",)
    except HubError:
        raise
    except AthenaError as error:
        raise HubError(f"What '{config.repo}' holds cannot be opened, and is not kept: {error}") from error
    if listing.hash and found != listing.hash:
        raise HubError(f"'{config.repo}' says it holds {listing.hash}, and it holds {found}: it is not kept.")
    if config.base and listing.kind == "bundle":
        found = _bound(made, config.base).hash
    return found, notes


def _opened_bundle(made: Path, config: PullConfig) -> tuple[str, tuple[str, ...]]:
    bundle = Bundle.open(made)
    manifest = bundle.manifest
    if manifest.adapter and not (manifest.checkpoint or manifest.parent_path or config.base):
        return bundle.hash, ("Its base is another bundle: pull that one too, and name it here with --base.",)
    return bundle.hash, ()


def _bound(made: Path, base: str) -> Bundle:
    """The bundle with its base named. Raises `BundleError` where that is not the very same that it was trained on."""
    bundle = Bundle.open(made, verify=False)
    manifest = bundle.manifest
    if not manifest.adapter:
        raise HubError("--base is for fine-tuned bundles, and this one has its weights itself. Leave it out.")
    place = str(Path(base).resolve()) if Path(base).exists() else base
    entry = {"checkpoint": place} if manifest.checkpoint else {"parent_path": place}
    bound = dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, **entry))
    _ = bound.release() if manifest.checkpoint else bound.parent()
    text = json.dumps(bound.manifest.to_dict(), indent=1, sort_keys=True)
    (made / MANIFEST).write_text(text)
    return bound
