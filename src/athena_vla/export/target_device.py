"""What a device target gets beside its graphs: scripts that build, verify and time engines there, and their settings.

TensorRT is never needed to write them. Knows file names and shape ranges, not families.
"""

import importlib.util
import json
import math
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from athena_vla.bundle import Bundle
from athena_vla.errors import ExportError
from athena_vla.export import tensorrt_operators
from athena_vla.models.weights.store import TensorStore
from athena_vla.plan.devices import DEVICES

SCRIPTS = ("build_on_device.py", "verify_on_device.py", "bench_on_device.py")
NO_TENSORRT = 3  # exit status, of this stage and of the script
# JetPack -> TensorRT: the oldest and the newest the graphs are written for.
TENSORRT = {"6.2": "10.3", "7.2": "10.16"}


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
                "profiles": profiles(ports),
            }
            for name, ports in info["graphs"].items()
        },
        "status": "not run on a device: written by athena export, to be run by you",
    }
    (place / "engines.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
    return (
        f"Copy the bundle to the {DEVICES[target].label} and run: python3 device/build_on_device.py. "
        "Without TensorRT the ONNX graphs are the fallback."
    )


def profiles(ports: dict[str, Any]) -> list[dict[str, list[list[int]]]]:
    """Shape ranges of every input with varying axes, for each kind of call: minimum, optimum, maximum."""
    varying = {n: p["shape"] for n, p in ports["inputs"].items() if not all(isinstance(s, int) for s in p["shape"])}

    def ranges(shape: list[int | str], axes: dict[str, tuple[int, int, int]]) -> list[list[int]]:
        return [[s if isinstance(s, int) else axes[s][i] for s in shape] for i in range(3)]

    return [{name: ranges(shape, axes) for name, shape in varying.items()} for axes in ports["profiles"]]


def require_parsable(folder: Path, info: dict[str, Any]) -> None:
    """Refuse graphs with nodes that TensorRT does not take, by their names. Raises `ExportError`."""
    import onnx

    for name in info["graphs"]:
        model = onnx.load(str(folder / f"{name}.onnx"), load_external_data=False)
        foreign = list(tensorrt_operators.refused(model))
        if foreign:
            more = f" ({len(foreign)} in all)" if len(foreign) > 3 else ""
            raise ExportError(
                f"Graph '{name}' holds what TensorRT {TENSORRT['6.2']} does not take: {'; '.join(foreign[:3])}{more}. "
                "This is a fault of the program: report it. The CPU target has no such limit."
            )


def widened(store: TensorStore) -> str:
    """A sentence on quantised weights that TensorRT would not keep as they are; empty where it keeps all."""
    wide = [n for n in sorted(store.packed) if not tensorrt_operators.takes(*store.packing(n))]
    if not wide:
        return ""
    blocks = " and ".join(map(str, tensorrt_operators.BLOCKS))
    return (
        f"{len(wide)} of {len(store.packed)} quantised weights are written in 16 bits, such as '{wide[0]}': TensorRT "
        f"keeps 4-bit weights in blocks of {blocks}, and folds 8-bit ones beside 16-bit activations. "
    )


def build(bundle: Path, target: str) -> tuple[str, int, str]:
    """Build the engines here where this is the target; engine, exit status, and a sentence.

    The same script that is copied to the device does it, so there is one way to build.
    """
    if importlib.util.find_spec("tensorrt") is None:
        return "onnx", NO_TENSORRT, "No engine was built: TensorRT is not installed here (exit status 3)."
    here, wanted = _compute_capability(), DEVICES[target].sm
    if here != wanted:
        found = f"a GPU of compute capability {here / 10}" if here else "no GPU"
        reason = f"TensorRT is here with {found}, the target's is {wanted / 10}: engines run where they are built"
        return "onnx", NO_TENSORRT, f"No engine was built: {reason} (exit status 3)."
    script = bundle / "device" / SCRIPTS[0]
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return "tensorrt", 0, "Engines were built and checked."
    what = "An engine is not what was asked for" if done.returncode == 4 else "An engine could not be built"
    record = bundle / "weights" / "engines.json"
    return "onnx", done.returncode, f"{what}: see {record}; the ONNX graphs are the fallback."


def _compute_capability() -> int:
    """Of the first GPU, such as 87; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor


def _weight_bytes(file: Path) -> int:
    """Bytes of the weights a graph refers to: the least an engine with the same precision can be."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    total = 0
    for tensor in model.graph.initializer:
        length = next((int(e.value) for e in tensor.external_data if e.key == "length"), None)
        total += length if length is not None else math.prod(tensor.dims) * 4
    return total
