"""The stage `export`: a bundle's graphs as ONNX for one target, compared graph by graph with torch.

The CPU target may use ONNX Runtime's own operators; device targets are standard ONNX (opset 21) for TensorRT, with the
scripts that build and check the engines on the device. Knows no families: it writes what `graphs()` names.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import athena_vla.bundle as bundles
from athena_vla.bundle import Bundle
from athena_vla.engines.deployment_config import deployment_config
from athena_vla.errors import BundleError, ExportError, MissingDependency, UnknownName
from athena_vla.export import parity
from athena_vla.export import target_device as device
from athena_vla.export.compressed import write_compressed
from athena_vla.export.export_config import ExportConfig
from athena_vla.export.export_record import exported_manifest, replayed, weights_summary, write_record
from athena_vla.export.linear import LinearForm
from athena_vla.export.llama_cpp import TARGET, write_llama
from athena_vla.export.write_graphs import WRITING, write_graphs
from athena_vla.export.writer import OPSET
from athena_vla.models.weights.store import TensorStore
from athena_vla.plan import DEVICES, cost
from athena_vla.plan.predict import as_dict, predict
from athena_vla.policy import Policy
from athena_vla.progress import Progress, quiet

LARGE = 1_000_000_000  # [bytes] of weights from which int8 activations pay on a CPU
CUDA = "cuda"  # the target: graphs for ONNX Runtime's CUDA provider, on any NVIDIA card
COMPARING = "running the graphs beside torch"  # what progress calls it
EDGE_LLM = "edge-llm"
COMPRESSED_NOTE = (
    "A compressed checkpoint, no bundle: tensorrt-edgellm-export FOLDER OUT --reduced-vocab-dir FOLDER/reduced_vocab "
    "makes its graphs, on any machine; its engines are built on the device."
)
CUDA_NOTE = (
    "The graphs are for ONNX Runtime with its CUDA provider, in 16 bits; on a processor they run, slowly. What "
    "they were compared on stands in deployment_config.json under ran_on."
)
GROUP = 128  # inputs that share a scale where a runtime rounds activations


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    path: Path
    target: str
    precision: str
    graphs: dict[str, Any]  # inputs, outputs and parity of each graph
    bytes: int  # graphs and weights
    deviation: dict[str, Any]  # [rad], golden replay through ONNX Runtime
    engine: str  # onnx | tensorrt | none: what this bundle can be run with now
    note: str
    exit_status: int = 0  # 0 what was asked for; 3 no TensorRT, ONNX is the fallback; 1, 4 engines failed: see `note`

    def __str__(self) -> str:
        far = self.deviation.get("max_rad")
        text = "not replayed" if far is None else f"at most {far:.2e} rad from the float model"
        what = f"exported {len(self.graphs)} graphs for {self.target} ({self.precision})"
        if not self.graphs:
            return f"exported a compressed checkpoint for {self.target}: {self.path}\n{self.note}"
        return f"{what}, {text}: {self.path}\n{self.note}"


def export(config: ExportConfig, progress: Progress = quiet) -> ExportResult:
    """Write the exported bundle. Raises `BundleError`, `ExportError`, `UnknownName`."""
    _require_onnx()
    targets = ("cpu", CUDA, *DEVICES, TARGET, EDGE_LLM)
    if config.target not in targets:
        raise UnknownName("export target", config.target, targets)
    source = Bundle.open(config.input)
    if config.target == EDGE_LLM:
        written = write_compressed(source, config.out, overwrite=config.overwrite)
        size = sum(f.stat().st_size for f in written.iterdir() if f.is_file())
        return ExportResult(config.out, EDGE_LLM, "float16", {}, size, {}, "none", COMPRESSED_NOTE)
    if source.manifest.stage not in ("base", "merged", "quantized"):
        todo = "run `athena merge` on it first" if source.manifest.stage == "finetuned" else "export its parent"
        raise BundleError(f"'{source.path}' is {source.manifest.stage}; {todo}.")
    with bundles.claim(config.out, overwrite=config.overwrite, reads=config.input):
        if config.target != TARGET:
            return _export(config, source, progress)
        graphs, deviation, note = write_llama(config, source, progress)
        size = sum(f.stat().st_size for f in (config.out / "weights").iterdir())
        return ExportResult(config.out, TARGET, "float32", graphs, size, deviation, TARGET, note)


def _export(config: ExportConfig, source: Bundle, progress: Progress) -> ExportResult:
    store = source.store()
    how = linear_form(config, store)
    on_device = config.target in DEVICES
    torch.set_num_threads(config.threads)
    info: dict[str, Any] = {
        "target": config.target,
        "precision": str(how.dtype).removeprefix("torch."),
        "form": how.form,
        "accuracy_level": how.accuracy,
        "opset": OPSET,
        "weights": weights_summary(source, store),
        # Q/DQ layers are fused to 4-bit kernels at load; without this entry the fusion rounds activations to int8.
        # OpenVINO rounds activations of 4- and 8-bit layers too, unless told not to.
        "openvino": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if how.accuracy == 4 else 0},
        "session": {"session.qdq_matmulnbits_accuracy_level": how.accuracy},
    }
    manifest = exported_manifest(config, source, info)
    with bundles.writing(config.out, manifest, source.golden, source.tokenizer_files()) as folder:
        fixed = ("batch",) if on_device or config.fixed_batch else ()
        progress.plan({WRITING: 1.0, COMPARING: 1.0 * config.compare})
        info["graphs"] = write_graphs(source, store, folder / "weights", how, fixed, progress)
        note = CUDA_NOTE if config.target == CUDA else "The graphs run on ONNX Runtime and OpenVINO."
        if on_device:
            note = device.widened(store) + device.write_scripts(folder, source, info, config.target)
        predicted = _predicted(source, info, config.target) if on_device else None
        record = deployment_config(source, config.target, config.out, info, predicted=predicted)
        write_record(folder, record)
        deviation: dict[str, Any] = {}
        gates = dict(source.manifest.gates)  # the same numbers run: what failed there fails here
        if config.compare:
            progress(0, 1, COMPARING)
            bundles.seal(folder, manifest)
            written = Bundle.open(folder)
            _require_parity(config, source, written, store, info)
            runner = Policy.of(written, "onnxruntime", config.threads, config.device)
            deviation, asked = replayed(runner, source, folder, record)
            gates |= asked
        bundles.seal(folder, dataclasses.replace(manifest, deviation=deviation, gates=gates, stage_info=info))
        size = sum(f.stat().st_size for f in (folder / "weights").iterdir())
    engine, status = "onnx", 0
    if on_device and config.engine == "auto":
        engine, status, told = device.build(config.out, config.target)
        note = f"{told}\n{note}"
    return ExportResult(
        config.out, config.target, info["precision"], info["graphs"], size, deviation, engine, note, status
    )


def linear_form(config: ExportConfig, store: TensorStore) -> LinearForm:
    """How layers are written for the target. Raises `ExportError` for a combination no runtime takes."""
    if config.target == CUDA:
        # Its kernels multiply 4- and 8-bit weights as they are stored; they have no rounded activations.
        return LinearForm("contrib", 1, torch.float32 if config.precision == "float32" else torch.float16)
    if config.target != "cpu":
        if config.precision == "float32":
            return LinearForm("qdq", 1, torch.float32, tensorrt=True)
        return LinearForm("qdq", 1, torch.float16, tensorrt=True)
    if config.precision == "float16":
        raise ExportError("The CPU target computes in float32: ONNX Runtime has no float16 kernels on x86.")
    rounded = config.accuracy == "int8" or (config.accuracy == "auto" and store.bytes > LARGE)
    return LinearForm("contrib", 4 if rounded else 1, torch.float32)


def _require_parity(
    config: ExportConfig, source: Bundle, exported: Bundle, store: TensorStore, info: dict[str, Any]
) -> None:
    """Parity of each graph into `info`. Raises `ExportError`."""
    limits = parity.Limits(config.tolerance, config.packed_tolerance)
    for name, result in parity.graphs(source, exported, store, limits, config.device).items():
        info["graphs"][name]["parity"] = result


def _predicted(source: Bundle, info: dict[str, Any], target: str) -> dict[str, Any]:
    """What the planner says of this bundle on its target, with the weights that most of its layers have."""
    kinds = info["weights"]["quantized_layers"]
    precision = max(kinds, key=lambda k: kinds[k]) if kinds else "fp16"
    return as_dict(predict(cost.count(source.meta_model()), DEVICES[target], precision))


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingDependency("onnx", "export", "to write graphs") from error
