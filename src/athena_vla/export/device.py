"""What a device target gets beside its graphs: scripts that build, verify and time engines there, and their settings.

TensorRT is never needed to write them. Knows file names and shape ranges, not families.
"""

import importlib.util
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

from athena_vla.bundle import Bundle
from athena_vla.errors import ExportError
from athena_vla.plan.devices import DEVICES

SCRIPTS = ("build_on_device.py", "verify_on_device.py", "bench_on_device.py")
# JetPack -> TensorRT: the oldest and the newest the graphs are written for.
TENSORRT = {"6.2": "10.3", "7.2": "10.16"}
FORBIDDEN = ("Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization")  # newer than TensorRT 10.3's parser
LONGEST = {"tokens": 256, "cache": 1024}
SHORTEST = {"tokens": 2, "cache": 64}
TYPICAL = {"tokens": 32, "cache": 320}


def write_scripts(folder: Path, source: Bundle, info: dict[str, Any], target: str) -> str:
    """Put `device/` into the bundle; returns the sentence that says what to do with it."""
    require_parsable(folder / "weights", info)
    place = folder / "device"
    place.mkdir()
    scripts = resources.files("athena_vla.export") / "scripts"
    for name in SCRIPTS:
        (place / name).write_text((scripts / name).read_text())
    settings = {
        "target": target,
        "sm": DEVICES[target].sm,
        "jetson": DEVICES[target].jetson,
        "tensorrt": TENSORRT,
        "family": source.manifest.family,
        "control_hz": source.robot.control_hz,
        "horizon": source.spec.horizon,
        "workspace_mb": 2048,
        "optimization_level": 5,
        "graphs": {
            name: {
                "onnx": f"{name}.onnx",
                "precision": info["precision"],
                "weight_bytes": _weight_bytes(folder / "weights" / f"{name}.onnx"),
                "profiles": profiles(ports["inputs"]),
            }
            for name, ports in info["graphs"].items()
        },
        "status": "not run on a device: written by athena export, to be run by you",
    }
    (place / "engines.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
    return (
        f"Copy the bundle to the {DEVICES[target].label} and run: python3 device/build_on_device.py. "
        "No engine was built or run here; without TensorRT the ONNX graphs are the fallback."
    )


def profiles(inputs: dict[str, Any]) -> list[dict[str, list[list[int]]]]:
    """Shape ranges of every input with varying axes: minimum, optimum, maximum."""
    profile: dict[str, list[list[int]]] = {}
    for name, port in inputs.items():
        if all(isinstance(s, int) for s in port["shape"]):
            continue
        rows = [[s if isinstance(s, int) else table.get(s, 1) for s in port["shape"]] for table in _RANGES]
        profile[name] = rows
    return [profile] if profile else []


_RANGES = (SHORTEST, TYPICAL, LONGEST)


def require_parsable(folder: Path, info: dict[str, Any]) -> None:
    """Refuse graphs with operators or domains TensorRT cannot parse. Raises `ExportError`."""
    import onnx

    for name in info["graphs"]:
        model = onnx.load(str(folder / f"{name}.onnx"), load_external_data=False)
        foreign = sorted({n.op_type for n in model.graph.node if n.domain or n.op_type in FORBIDDEN})
        if foreign:
            raise ExportError(f"Graph '{name}' uses {foreign}, which TensorRT {TENSORRT['6.2']} does not parse.")


def available_engine() -> str:
    """tensorrt where it can be imported here, onnx otherwise."""
    return "tensorrt" if importlib.util.find_spec("tensorrt") is not None else "onnx"


def _weight_bytes(file: Path) -> int:
    """Bytes of the weights a graph refers to: the least an engine with the same precision can be."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    total = 0
    for tensor in model.graph.initializer:
        length = next((int(e.value) for e in tensor.external_data if e.key == "length"), None)
        total += length if length is not None else math.prod(tensor.dims) * 4
    return total
