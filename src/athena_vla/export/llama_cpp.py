"""The target llama.cpp: vision, rows and heads as ONNX graphs, the decoder as GGUF, one bundle.

Knows no families: a model with a causal decoder says what is left without it.
"""

import dataclasses
import importlib.util
from typing import Any

import torch

import athena_vla.bundle as bundles
from athena_vla.bundle import Bundle
from athena_vla.engines.deployment_config import deployment_config
from athena_vla.engines.llama_cpp_engine import FILE
from athena_vla.errors import ExportError
from athena_vla.export.export_config import ExportConfig
from athena_vla.export.export_record import exported_manifest, replayed, weights_summary, write_record
from athena_vla.export.gguf_decoder import library, write_decoder
from athena_vla.export.linear import LinearForm
from athena_vla.export.write_graphs import write_graphs
from athena_vla.export.writer import OPSET
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.policy import Policy
from athena_vla.progress import Progress

TARGET = "llama.cpp"


def write_llama(config: ExportConfig, source: Bundle, progress: Progress) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Write the bundle; graphs, deviation in radians, and a note. Raises `ExportError`, `BundleError`."""
    model = source.meta_model().eval()
    decoder = model.causal_decoder() if isinstance(model, VisionLanguageModel) else None
    if not isinstance(model, VisionLanguageModel) or decoder is None:
        raise ExportError(
            f"Family '{source.manifest.family}' reads its action rows both ways, and llama.cpp decodes causally: "
            "export it with --target cpu or a device."
        )
    if config.micro_batch < 0:
        raise ExportError(f"--micro-batch is a number of rows, 0 for all; it is {config.micro_batch}.")
    library()  # before anything is written
    text = model.body_spec.text
    own: dict[str, Any] = {
        "bundle": source.hash,
        "width": text.width,
        "rows": decoder.last - decoder.first,
        "logits": decoder.logits,
        "choices": [0, decoder.last - decoder.first],
        "outputs": decoder.outputs,
        "context": -(-decoder.context // 32) * 32,
        "cache": config.cache,
        "flash_attention": config.flash_attention,
        "gpu_layers": config.gpu_layers,
        "micro_batch": config.micro_batch,
    }
    store = source.store()
    info: dict[str, Any] = {
        "target": TARGET,
        "precision": "float32",
        "form": "llama.cpp",
        "opset": OPSET,
        "weights": weights_summary(source, store),
        "llama": own,
    }
    manifest = exported_manifest(config, source, info)
    deviation: dict[str, Any] = {}
    note = "The decoder runs in llama.cpp (extra llama); it was not replayed here: llama-cpp-python is not installed."
    with bundles.writing(config.out, manifest, source.golden, source.tokenizer_files()) as folder:
        how = LinearForm("contrib", 1, torch.float32)
        weights = folder / "weights"
        info["graphs"] = write_graphs(source, store, weights, how, (), progress, decoder.graphs, model)
        own["forms"] = write_decoder(
            weights / FILE, text, store, own["bundle"], own["context"], (decoder.first, decoder.last)
        )
        record = deployment_config(source, TARGET, config.out, info)
        write_record(folder, record)
        gates = dict(source.manifest.gates)
        if config.compare and importlib.util.find_spec("llama_cpp") is not None:
            bundles.seal(folder, manifest)
            runner = Policy.of(Bundle.open(folder), TARGET, config.threads, config.device)
            deviation, asked = replayed(runner, source, folder, record)
            gates |= asked
            note = "The decoder runs in llama.cpp, which rounds activations of quantised layers to 8 bits."
        bundles.seal(folder, dataclasses.replace(manifest, deviation=deviation, gates=gates, stage_info=info))
    return info["graphs"], deviation, note
