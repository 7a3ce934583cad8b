"""ONNX Runtime sessions, and graphs stored with their weights as this machine's kernels want them.

The runtime repacks every quantised weight when a session opens: seconds and gigabytes that are the same at every start.
A prepared graph holds the repacked weights in a file that is memory-mapped. It is good for one runtime on one kind of
CPU, which is why `athena prepare` writes it where the bundle runs. Knows files, not families.
"""

import hashlib
import json
import platform
import warnings
from pathlib import Path
from typing import Any

from athena_vla.errors import ExportError, MissingDependency

PREPARED = "prepared"  # beside the bundle's `weights`
RECORD = "prepared.json"
SMALLEST = 1024  # [bytes] of a constant that goes into the external file


def open_session(folder: Path, name: str, settings: dict[str, Any], threads: int) -> Any:
    """A session of `folder/name.onnx`, or of what was prepared from it. Raises `ExportError`."""
    prepared = usable(folder, name)
    options = _options(settings, threads)
    if prepared is not None:
        import onnxruntime

        # It was optimised when it was stored; optimised again, its constants would be copied.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _open(prepared or folder / f"{name}.onnx", options)


def store(folder: Path, name: str, settings: dict[str, Any], out: Path) -> None:
    """Write `out/name.onnx` with all its weights, repacked ones included, in `out/name.data`. Raises `ExportError`."""
    options = _options(settings, 1)
    options.optimized_model_filepath = str(out / f"{name}.onnx")
    for key, value in {
        "session.optimized_model_external_initializers_file_name": f"{name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(SMALLEST),
        "session.save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(key, value)
    _open(folder / f"{name}.onnx", options)


def usable(folder: Path, name: str) -> Path | None:
    """The prepared graph, if there is one for this machine; warns where there is one for another."""
    place = folder.parent / PREPARED
    if not (place / RECORD).is_file():
        return None
    record = json.loads((place / RECORD).read_text())
    if name not in record["graphs"]:
        return None
    differs = [k for k, v in machine().items() if record["machine"].get(k) != v]
    if record["graphs"][name] != digest(folder / f"{name}.onnx"):
        differs.append("graph")
    if differs:
        warnings.warn(
            f"'{place}' was prepared for another {' and '.join(differs)}: not used. Run `athena prepare` again here.",
            stacklevel=2,
        )
        return None
    return place / f"{name}.onnx"


def prepared_files(bundle: Path) -> dict[str, str]:
    """Hashes of what was prepared in a bundle's folder, by relative path; empty where nothing was."""
    record = bundle / PREPARED / RECORD
    if not record.is_file():
        return {}
    return {f"{PREPARED}/{name}": value for name, value in json.loads(record.read_text())["files"].items()}


def machine() -> dict[str, str]:
    """What decides how weights are packed: the runtime, and what the CPU can do."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else [platform.processor()]
    able = next((line for line in lines if line.lower().startswith(("flags", "features"))), lines[0] if lines else "")
    words = " ".join(sorted(able.partition(":")[2].split()))
    return {
        "ONNX Runtime": _runtime().__version__,
        "CPU": f"{platform.machine()} {hashlib.sha256(words.encode()).hexdigest()[:16]}",
    }


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _options(settings: dict[str, Any], threads: int) -> Any:
    options = _runtime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in settings.items():
        options.add_session_config_entry(key, str(value))
    return options


def _open(file: Path, options: Any) -> Any:
    try:
        return _runtime().InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own types
        raise ExportError(f"ONNX Runtime cannot load graph '{file.stem}' of '{file.parent}': {error}") from error


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "export", "to run exported graphs") from error
    return onnxruntime
