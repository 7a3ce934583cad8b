"""The adapter of a fine-tuning on its way to the Hub, in the layout that plain peft reads, with its card."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from athena_vla.bundle import ADAPTER_FILE, BUILTIN, Bundle
from athena_vla.dataset.card import plain
from athena_vla.errors import HubError
from athena_vla.finetune.written import chosen_checkpoint
from athena_vla.gate import Gate
from athena_vla.hub.bundle_card import measured
from athena_vla.hub.bundle_shipment import licences_of
from athena_vla.hub.card_parts import HUB_ID, code, front_matter, gate_rows, licence_lines
from athena_vla.hub.hub_config import PushConfig
from athena_vla.hub.shipment import Item, Licences, Shipment, require_licence
from athena_vla.models.lora import LoraSettings
from athena_vla.models.plain_adapter import BODY, PlainAdapter, plain_adapter
from athena_vla.models.released.base_licences import base_licence

WEIGHTS, CONFIG, HEADS = "adapter_model.safetensors", "adapter_config.json", "heads.safetensors"
_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Source:
    """Where an adapter comes from: a bundle, or a checkpoint of a run."""

    tensors: Mapping[str, Tensor]
    settings: LoraSettings
    base: str  # as the training named it: a folder, builtin:NAME, or a Hub id
    licences: Licences
    gates: Mapping[str, Gate]
    measured: Mapping[str, Any]
    of_step: int  # 0: of a bundle


def adapter_shipment(config: PushConfig) -> Shipment:
    """What of a fine-tuned bundle or a run would be published for peft. Raises `BundleError`, `TrainingError`."""
    source = _of_bundle(config) if (config.input / "manifest.json").is_file() else _of_run(config)
    adapter = plain_adapter(source.tensors, source.settings, config.input)
    base = config.base_model or source.base.partition("@")[0]
    base = base if HUB_ID.fullmatch(base) and not Path(base).exists() else ""
    weights = save(_stored(adapter.weights), _METADATA)
    items = [
        Item(CONFIG, json.dumps(adapter.config(base), indent=1, sort_keys=True).encode()),
        Item(WEIGHTS, weights),
    ]
    if adapter.heads:
        items.append(Item(HEADS, save(_stored(adapter.heads), _METADATA)))
    digest = hashlib.sha256(weights).hexdigest()[:16]
    return Shipment(
        kind="adapter",
        repo_type="model",
        hash=digest,
        items=tuple(items),
        card=_card(adapter, source, base, digest, config),
        licences=source.licences,
        notes=("The heads of the robot are in heads.safetensors; peft does not read them.",) if adapter.heads else (),
    )


def _of_bundle(config: PushConfig) -> Source:
    bundle = Bundle.open(config.input)
    manifest = bundle.manifest
    if not manifest.adapter:
        raise HubError(
            f"'{config.input}' is {manifest.stage}: it has no adapter of its own. Publish the bundle, or the adapter "
            "of the fine-tuned bundle that it was made from."
        )
    return Source(
        load_file(bundle.path / ADAPTER_FILE),
        LoraSettings(**manifest.adapter),
        manifest.checkpoint or manifest.parent_path,
        licences_of(bundle, config),
        manifest.gates,
        manifest.stage_info,
        0,
    )


def _of_run(config: PushConfig) -> Source:
    chosen = chosen_checkpoint(config.input, config.step)
    base = config.base_model or chosen.settings.model
    known = base_licence(base)
    name = require_licence(config.license, known.name if known else "", f"'{config.input}'")
    looks = [e for e in chosen.checkpoint.progress.evaluations if e["step"] == chosen.checkpoint.step]
    found = {k: v for k, v in looks[-1].items() if k != "step"} if looks else {}
    return Source(
        chosen.checkpoint.chosen,
        LoraSettings(**chosen.settings.lora()),
        chosen.settings.model,
        Licences(name, known.note if known else "", config.data_license),
        {},
        {"chosen_step": chosen.checkpoint.step, "validation": found},
        chosen.checkpoint.step,
    )


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}


def _card(adapter: PlainAdapter, source: Source, base: str, digest: str, config: PushConfig) -> str:
    settings = adapter.settings
    head = front_matter(
        {
            "library_name": "peft",
            "pipeline_tag": "robotics",
            "base_model": base,
            "datasets": [config.trained_on] if config.trained_on else [],
            "tags": ["robotics", "vla", "lora", "athena-vla"],
        },
        source.licences,
    )
    shipped = source.base if source.base.startswith(BUILTIN) else "a base that has no name on the Hub"
    kind = "DoRA" if settings.dora else "LoRA"
    four = ", trained on a base in 4 bits (nf4)" if settings.quantization == "nf4" else ""
    heads = [
        f"- `{HEADS}`: {len(adapter.heads)} tensors of the robot's own heads, by their names in Athena-VLA. peft does "
        "not read them."
    ]
    return "\n".join(
        [
            *head,
            f"# {kind} adapter of rank {settings.rank}",
            "",
            f"- Base: {plain(base or shipped)}{four}",
            f"- {kind}: rank {settings.rank}, alpha {settings.alpha:g}, {len(adapter.targets)} layers by whole path",
            f"- Hash of `{WEIGHTS}`: `{digest}`",
            *(heads if adapter.heads else []),
            "",
            "## Gates",
            "",
            *gate_rows(source.gates),
            *measured(source.measured),
            *licence_lines(source.licences, "Adapter"),
            "## Use it",
            "",
            f"Module paths are those of the base, without the word `{BODY.rstrip('.')}` that Athena-VLA puts first.",
            "",
            "```python",
            "from peft import PeftModel",
            "",
            f'model = PeftModel.from_pretrained(base, "{config.repo}")  # base: the model named above',
            "```",
            "",
            "Or fetch it with every hash compared:",
            "",
            *code(f"athena pull {config.repo} adapter"),
        ]
    )
