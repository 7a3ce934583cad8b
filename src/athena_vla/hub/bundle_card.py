"""The card of a bundle: what it is, gates, deviation in radians, what was measured, hashes, licences, how to use it."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from athena_vla.bundle import BUILTIN, Bundle
from athena_vla.dataset.card import plain
from athena_vla.gate import failed
from athena_vla.hub.card_parts import HUB_ID, code, front_matter, gate_rows, licence_lines
from athena_vla.hub.hub_config import PushConfig
from athena_vla.hub.shipment import Licences
from athena_vla.manifest import Manifest

STAGES = {
    "base": "a base policy",
    "finetuned": "a fine-tuned adapter with the heads of its robot",
    "merged": "a fine-tuned policy with its adapter folded in",
    "quantized": "a quantised policy",
    "exported": "an exported policy: graphs that run without PyTorch",
}


def hub_base(origin: str, config: PushConfig) -> str:
    """The base by its name on the Hub, "" where it has none."""
    name = config.base_model or origin.partition("@")[0]
    return name if HUB_ID.fullmatch(name) else ""


def bundle_card(bundle: Bundle, config: PushConfig, licences: Licences, origin: str, evidence: Sequence[str]) -> str:
    """README.md of a published bundle; `origin`: what the first of its line was made from, where that is known."""
    manifest, robot = bundle.manifest, bundle.robot
    head = front_matter(
        {
            "library_name": "athena-vla",
            "pipeline_tag": "robotics",
            "base_model": hub_base(origin, config),
            "datasets": [config.trained_on] if config.trained_on else [],
            "tags": ["robotics", "vla", "athena-vla", manifest.family, manifest.stage],
        },
        licences,
    )
    missed = failed(manifest.gates.values())
    warned = ["> It fails gates, and `athena serve` refuses it.", ""] if missed else []
    elsewhere = bool(manifest.adapter) and not manifest.checkpoint and not manifest.parent_path.startswith(BUILTIN)
    base = ", which is needed too and named with `--base`" if elsewhere else ""
    named = plain(hub_base(origin, config) or (origin if origin.startswith(BUILTIN) else "another bundle"))
    return "\n".join(
        [
            *head,
            f"# {plain(robot.name)}: {STAGES[manifest.stage]}",
            "",
            *warned,
            f"- Family: {plain(manifest.family)}; robot: {plain(robot.name)}, {len(robot.joints)} joints, "
            f"{robot.control_hz:g} Hz; cameras: {', '.join(map(plain, robot.camera_names)) or 'none'}",
            f"- Base: {'itself' if manifest.stage == 'base' else named + base}",
            f"- Hash of the bundle: `{bundle.hash}`",
            f"- Hash of what it was made from: `{plain(manifest.parent_hash) or 'none'}`",
            f"- Hash of the data: `{plain(manifest.dataset_hash) or 'none'}`",
            "",
            "## Gates",
            "",
            *gate_rows(manifest.gates),
            *_deviation(manifest),
            *measured(manifest.stage_info),
            *evidence,
            *licence_lines(licences, "Policy"),
            "## Use it",
            "",
            *code(
                f"athena pull {config.repo} policy{' --base BASE' if elsewhere else ''}", f"athena {_verb(manifest)}"
            ),
            "Every file is listed with its SHA-256 in `athena_hub.json`; `athena pull` compares each one.",
            "",
            "A policy that moved one robot well says nothing about another one. Keep the safety filter on.",
            "",
        ]
    )


def measured(info: Mapping[str, Any]) -> list[str]:
    """Numbers that the stage wrote down; nothing is computed here."""
    rows = [f"- {name.replace('_', ' ')}: {info[name]}" for name in ("steps", "chosen_step") if name in info]
    found = cast(Mapping[str, object], info.get("validation") or {})
    numbers = {k: v for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    rows += [f"- held out, {plain(k.replace('_', ' '))}: {v:.6g}" for k, v in numbers.items()]
    success = found.get("success")
    if isinstance(success, Mapping):
        rows.append(f"- scenes of the simulator solved: {success.get('solved')} of {success.get('scenes')}")
    return ["## Measured while it was trained", "", *rows, ""] if rows else []


def _deviation(manifest: Manifest) -> list[str]:
    """[rad] against what the bundle before answered to the golden observations."""
    said = manifest.deviation
    if "max_rad" not in said:
        return []
    joints = cast(Mapping[str, float], said.get("per_joint_max_rad") or {})
    rows = [f"| {plain(name)} | {value:.3g} |" for name, value in joints.items()]
    table = ["| joint | largest deviation [rad] |", "|---|---|", *rows, ""] if rows else []
    head = f"Its answers to the golden observations are at most {float(said['max_rad']):.3g} rad from its parent's."
    return ["## Deviation", "", head, "", *table]


def _verb(manifest: Manifest) -> str:
    if manifest.adapter:
        return "merge policy merged"
    return "serve policy" if manifest.stage == "exported" else "export policy exported"
