"""A bundle on its way to the Hub: its listed files, a manifest without paths of this machine, and its card.

A manifest without those paths has another hash. It says the one before in `stage_info.published`, and a child that
was made from the bundle before knows it by that.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from athena_vla.bundle import BUILTIN, PUBLISHED, Bundle, is_bundle
from athena_vla.dataset.sidecar import SIDECAR
from athena_vla.errors import HubError
from athena_vla.files import read_json_object
from athena_vla.hub.bundle_card import bundle_card
from athena_vla.hub.card_evidence import benchmark_lines, comparison_lines
from athena_vla.hub.hub_config import PushConfig
from athena_vla.hub.local_paths import Cutter
from athena_vla.hub.shipment import UNKNOWN, Item, Licences, Shipment, few, left_out, require_licence
from athena_vla.manifest import FileEntry, Manifest
from athena_vla.models.released.base_licences import base_licence

MANIFEST = "manifest.json"
GENERATIONS = 16  # as many are looked back at


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
    licences = licences_of(bundle, config)
    notes = list(left_out(bundle.path, items))
    if cutter.found:
        notes.append(f"Paths of this machine were cut to their last names: {few(sorted(cutter.found))}.")
    if published.hash != bundle.hash:
        notes.append(f"Its hash here is {bundle.hash}; without those paths it is {published.hash}.")
    if _base_is_a_bundle(manifest):
        notes.append("Its base is another bundle: publish that too, and pull this one with --base.")
    evidence = [*benchmark_lines(config.bench, bundle), *comparison_lines(config.compare, bundle)]
    return Shipment(
        kind="bundle",
        repo_type="model",
        hash=published.hash,
        items=items,
        card=bundle_card(published, config, licences, origin_of(bundle), evidence),
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


def licences_of(bundle: Bundle, config: PushConfig) -> Licences:
    """What is known of the licences of a policy: its base's, and that of the data where the set still lies here."""
    known = base_licence(origin_of(bundle)) or base_licence(config.base_model)
    name = require_licence(config.license, known.name if known else "", f"'{config.input}'")
    note = known.note if known and name != UNKNOWN else ""
    said = next(filter(None, map(_data_licence, _line(bundle))), "")
    return Licences(name, note, config.data_license or said)


def origin_of(bundle: Bundle) -> str:
    """What the first of a bundle's line was made from: builtin:NAME, owner/name@commit, or nothing that has a name."""
    first = _line(bundle)[-1]
    return Cutter().text(first.checkpoint or first.parent_path)


def _line(bundle: Bundle) -> list[Manifest]:
    """A bundle's manifest and those of what it was made from, as far as they lie here and are the very same."""
    found = [bundle.manifest]
    while len(found) < GENERATIONS and is_bundle(Path(found[-1].parent_path or "nowhere")):
        parent = Bundle.open(found[-1].parent_path, verify=False)
        if found[-1].parent_hash not in parent.known_as:
            break
        found.append(parent.manifest)
    return found


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
