"""The stage `prepare`: an exported bundle's weights packed for ONNX Runtime once, on the machine that runs it.

Starts are faster and packed weights are file pages, not memory of the process. The answers are compared before anything
takes its name: with and without, they are the same to the last bit.
"""

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from athena_vla import onnx_session
from athena_vla.bundle import Bundle, sha256
from athena_vla.errors import ExportError
from athena_vla.policy import Policy


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of `athena prepare`."""

    bundle: Path
    """Exported bundle; twice the size of its graphs is needed on disk."""
    threads: int = 1
    """CPU threads of the comparison."""
    compare: bool = True
    """Compare the answer to the first golden observation with and without."""


@dataclass(frozen=True)
class PrepareResult:
    """What was written."""

    path: Path
    graphs: tuple[str, ...]
    bytes: int
    seconds: float
    compared: bool

    def __str__(self) -> str:
        same = "the answer is the same to the last bit" if self.compared else "not compared"
        return (
            f"prepared {', '.join(self.graphs)} for this machine in {self.seconds:.1f} s, {self.bytes / 1e9:.2f} GB, "
            f"{same}: {self.path}"
        )


def prepare(config: PrepareConfig) -> PrepareResult:
    """Write `prepared/` into the bundle's folder. Raises `ExportError`, `BundleError`."""
    started = time.perf_counter()
    bundle = Bundle.open(config.bundle, verify=False)
    if bundle.manifest.stage != "exported":
        raise ExportError(f"'{bundle.path}' is {bundle.manifest.stage}, not exported; only graphs can be prepared.")
    weights, info = bundle.path / "weights", bundle.manifest.stage_info
    place = bundle.path / onnx_session.PREPARED
    shutil.rmtree(place, ignore_errors=True)
    bundle.verify()
    before = _answer(bundle, config.threads) if config.compare else None
    # Written under another name: what is half there is never used.
    folder = Path(tempfile.mkdtemp(prefix=f".{onnx_session.PREPARED}-", dir=bundle.path))
    try:
        for name in info["graphs"]:
            onnx_session.store(weights, name, info.get("session", {}), folder)
        files = {f.name: sha256(f) for f in sorted(folder.iterdir())}
        size = sum(f.stat().st_size for f in folder.iterdir())
        record = {
            "machine": onnx_session.machine(),
            "graphs": {name: onnx_session.digest(weights / f"{name}.onnx") for name in info["graphs"]},
            "files": files,
        }
        (folder / onnx_session.RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))
        folder.chmod(0o755)
        folder.rename(place)
        if before is not None and not np.array_equal(before, _answer(bundle, config.threads)):
            raise ExportError("The prepared graphs answer differently; they were removed. The bundle runs as before.")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        raise
    return PrepareResult(place, tuple(info["graphs"]), size, time.perf_counter() - started, config.compare)


def _answer(bundle: Bundle, threads: int) -> np.ndarray:
    return Policy.of(bundle, "onnxruntime", threads).act(bundle.golden.observations[0]).positions
