"""The user's `deployment_config.json`: what runs where, with which shapes, against which target, and what was achieved.

A figure stands under the word that is true of it: predicted, measured_here or measured_on_device.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from athena_vla import files
from athena_vla.bundle import Bundle
from athena_vla.errors import BundleError

TARGET_TOKENS = 8.0  # [tokens/s] the user's requirement on the Jetson
RUNTIMES = {"qdq": "tensorrt, ONNX as fallback", "llama.cpp": "llama.cpp, onnxruntime beside it"}  # by form
HARDWARE = {
    "jetson-orin-nx-16gb": "jetson_orin_16gb",
    "jetson-orin-nano-8gb": "jetson_orin_nano_8gb",
    "jetson-agx-orin-64gb": "jetson_agx_orin_64gb",
    "jetson-thor": "jetson_thor",
}


def deployment_config(
    source: Bundle,
    target: str,
    model_path: Path,
    info: Mapping[str, Any],
    *,
    predicted: Mapping[str, Any] | None = None,
    measured_here: Mapping[str, Any] | None = None,
    measured_on_device: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record; measurements and predictions are filled in where there are some."""
    robot = source.robot
    rate = robot.control_hz
    return {
        "model_path": str(model_path),
        "hardware_target": HARDWARE.get(target, target.replace("-", "_")),
        "robot": {
            "name": robot.name,
            "joints": list(robot.action_names),
            "hash": robot.hash,
            "control_hz": rate,
            **({"not_called_safe": robot.not_called_safe} if robot.not_called_safe else {}),
        },
        "input_shapes": {
            name: {port: entry["shape"] for port, entry in graph["inputs"].items()}
            for name, graph in info.get("graphs", {}).items()
        },
        "technique": _technique(source, info),
        "performance_target": {
            "tokens_per_second": TARGET_TOKENS,
            "milliseconds_per_token": 1000.0 / TARGET_TOKENS,
            "control_hz": rate,
            "chunk_steps": source.spec.horizon,
            "chunk_deadline_seconds": source.spec.horizon / rate,
        },
        "achieved": {
            "predicted": predicted,
            "measured_here": measured_here,
            "measured_on_device": measured_on_device,
        },
        "parent_hash": source.hash,
    }


def write_deployment_config(
    out: Path,
    exported: Bundle,
    *,
    predicted: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of an exported bundle with what `athena plan` predicted and `athena bench` measured, to `out`.

    `measured` is a benchmark's summary; it goes under the word it carries itself.
    """
    info = exported.manifest.stage_info
    record = deployment_config(exported, info["target"], exported.path, info, predicted=predicted)
    if measured is not None:
        record["achieved"][measured["kind"]] = dict(measured)
    files.write_json(out, record, BundleError, sort_keys=True)
    return record


def verdict(result: Mapping[str, Any] | None, rate: float) -> dict[str, Any]:
    """The two verdicts of one benchmark result: tokens per second as the user asked, and keeping the control rate."""
    if result is None:
        return {"meets_tokens_target": None, "meets_control_rate": None}
    tokens = result.get("tokens_per_second")
    actions = result.get("actions_per_second")
    return {
        "meets_tokens_target": None if tokens is None else bool(tokens >= TARGET_TOKENS),
        "meets_control_rate": None if actions is None else bool(actions >= rate),
    }


def _technique(source: Bundle, info: Mapping[str, Any]) -> dict[str, Any]:
    quantize = source.manifest.config.get("quantize", {})
    return {
        "weights": info.get("weights", {}).get("quantized_layers") or "float",
        "method": quantize.get("method", "none"),
        "group": quantize.get("group"),
        "mean_bits": source.manifest.stage_info.get("mean_bits"),
        "activations": info.get("precision"),
        "runtime": RUNTIMES.get(str(info.get("form")), "onnxruntime"),
        "decoding": source.manifest.family,
    }
