"""A bundle on its way to the Hub: its listed files, a manifest without paths of this machine, and its card.

A manifest without those paths has another hash. It says the one before in `stage_info.published`, and a child that
was made from the bundle before knows it by that.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from athena_vla.bundle import BUILTIN, PUBLISHED, Bundle, FileEntry, Manifest
from athena_vla.dataset.sidecar import SIDECAR
from athena_vla.errors import HubError
from athena_vla.files import read_json_object
from athena_vla.hub.bundle_card import bundle_card
from athena_vla.hub.hub_config import PushConfig
from athena_vla.hub.local_paths import Cutter
from athena_vla.hub.shipment import UNKNOWN, Item, Licences, Shipment, few, left_out, require_licence
from athena_vla.models.released.base_licences import base_licence

MANIFEST = "manifest.json"


def bundle_shipment(config: PushConfig) -> Shipment:
    """What of a bundle would be published. Raises `BundleError` where it is not whole, `HubError`."""
    bundle = Bundle.open(config.input)
    cutter = Cutter()
    texts = _cut_texts(bundle, cutter)
    manifest = without_paths(bundle, cutter, texts, config.base_model)
    content = json.dumps(manifest.to_dict(), indent=1, sort_keys=True).encode()
    if manifest is bundle.manifest:
        content = (bundle.path / MANIFEST).read_bytes()
    items = (
        Item(MANIFEST, content),
        *(Item(name, texts.get(name, bundle.path / name)) for name in sorted(manifest.files)),
    )
    published = dataclasses.replace(bundle, manifest=manifest)
    licences = licences_of(manifest, config)
    notes = list(left_out(bundle.path, items))
    if cutter.found:
        notes.append(f"Paths of this machine were cut to their last names: {few(sorted(cutter.found))}.")
    if published.hash != bundle.hash:
        notes.append(f"Its hash here is {bundle.hash}; without those paths it is {published.hash}.")
    if _base_is_a_bundle(manifest):
        notes.append("Its base is another bundle: publish that too, and pull this one with --base.")
    return Shipment(
        kind="bundle",
        repo_type="model",
        hash=published.hash,
        items=items,
        card=bundle_card(published, config, licences),
        licences=licences,
        cutter=cutter,
        notes=tuple(notes),
    )


def without_paths(bundle: Bundle, cutter: Cutter, texts: dict[str, bytes], base_model: str) -> Manifest:
    """The manifest that is published; the very same object where it holds no path of this machine."""
    before = bundle.manifest
    base = base_model if before.checkpoint else ""
    checkpoint = cutter.text(before.checkpoint)
    changed = {name: FileEntry(hashlib.sha256(t).hexdigest(), len(t)) for name, t in texts.items()}
    after = dataclasses.replace(
        before,
        parent_path=before.parent_path if before.parent_path.startswith(BUILTIN) else "",
        checkpoint=checkpoint if checkpoint == before.checkpoint else base or checkpoint,
        config=cutter.value(before.config),
        stage_info=cutter.value(before.stage_info),
        files={**before.files, **changed},
    )
    if before.parent_path and not after.parent_path:
        cutter.text(before.parent_path)
    if after == before:
        return before
    if PUBLISHED in before.stage_info:  # it was pulled, and is published again: the first hash is what children know
        return after
    return dataclasses.replace(after, stage_info={**after.stage_info, PUBLISHED: {"hash": bundle.hash}})


def licences_of(manifest: Manifest, config: PushConfig) -> Licences:
    """What is known of the licences of a policy: its base's, and that of the data where the set still lies here."""
    known = base_licence(manifest.checkpoint or manifest.parent_path or config.base_model)
    known = known or base_licence(config.base_model)
    name = require_licence(config.license, known.name if known else "", f"'{config.input}'")
    note = known.note if known and name != UNKNOWN else ""
    return Licences(name, note, config.data_license or _data_licence(manifest))


def _data_licence(manifest: Manifest) -> str:
    """The licence lines that the training's set has from its recordings, where it is still the very same."""
    place = manifest.config.get("data")
    sidecar = Path(place) / "meta" / SIDECAR if isinstance(place, str) and place else None
    if sidecar is None or not sidecar.is_file():
        return ""
    said = read_json_object(sidecar, HubError)
    lines = said.get("licences")
    same = said.get("hash") == manifest.dataset_hash
    return "; ".join(map(str, lines)) if same and isinstance(lines, list) else ""


def _cut_texts(bundle: Bundle, cutter: Cutter) -> dict[str, bytes]:
    """Listed JSON files beside the manifest that hold paths, without them. Weights and tokenizers are never touched."""
    changed = dict[str, bytes]()
    for name in bundle.manifest.files:
        if "/" in name or not name.endswith(".json"):
            continue
        before = read_json_object(bundle.path / name, HubError)
        after = cutter.value(before)
        if after != before:
            changed[name] = json.dumps(after, indent=1, sort_keys=True).encode()
    return changed


def _base_is_a_bundle(manifest: Manifest) -> bool:
    return bool(manifest.adapter) and not manifest.checkpoint and not manifest.parent_path
