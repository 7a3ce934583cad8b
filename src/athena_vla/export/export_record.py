"""What every exported bundle records: its manifest, its weights by form, and what replaying it gave."""

import dataclasses
from pathlib import Path
from typing import Any

from athena_vla import files
from athena_vla.bundle import Bundle, Manifest
from athena_vla.errors import BundleError
from athena_vla.export.export_config import ExportConfig
from athena_vla.gate import Gate
from athena_vla.models.weights.store import TensorStore
from athena_vla.policy import Policy, replay, sensitivity

FILE = "deployment_config.json"


def exported_manifest(config: ExportConfig, source: Bundle, info: dict[str, Any]) -> Manifest:
    """The manifest of an export of `source`, before anything of it is known by running it."""
    return dataclasses.replace(
        source.manifest,
        stage="exported",
        parent_hash=source.hash,
        parent_path=str(source.path),
        config={"export": config.plain()},
        deviation={},
        gates={},
        stage_info=info,
        files={},
    )


def weights_summary(source: Bundle, store: TensorStore) -> dict[str, Any]:
    """Counts of weights by form."""
    bits: dict[str, int] = {}
    for entry in source.manifest.stage_info.get("layers", {}).values():
        bits[f"int{entry['bits']}"] = bits.get(f"int{entry['bits']}", 0) + 1
    return {"quantized_layers": bits, "tensors": len(store.names), "bytes": store.bytes}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    files.write_json(folder / FILE, record, BundleError, sort_keys=True)


def replayed(
    runner: Policy, source: Bundle, folder: Path, record: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Gate]]:
    """Deviation in radians and gates of what was written; what it ran on goes into the record."""
    deviation: dict[str, Any] = {**replay(runner, source.golden)}
    gates = sensitivity(runner, source.golden.observations)
    record["ran_on"] = runner.engine.taken.to_dict()
    write_record(folder, record)
    return deviation, gates
