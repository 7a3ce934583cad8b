"""What `athena export` is told; read without torch."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `athena export`."""

    input: Path
    """Base, merged or quantised bundle."""
    out: Path
    """Where the exported bundle goes."""
    target: str = "cpu"
    """cpu; cuda: ONNX Runtime on any NVIDIA card, in 16 bits; or a device that `athena plan` knows, such as
    jetson-orin-nx-16gb; llama.cpp: the decoder as GGUF, the rest as ONNX; edge-llm: the decoder of a token family as a
    checkpoint that TensorRT Edge-LLM's own exporter reads."""
    precision: Literal["auto", "float32", "float16"] = "auto"
    """Type of the activations. auto: float32 on CPUs, float16 for cards and TensorRT."""
    accuracy: Literal["auto", "float32", "int8"] = "auto"
    """CPU only: what 4- and 8-bit layers compute with. int8 rounds activations: 6.5e-3 of error, 4 times the speed.
    auto: int8 for weights above 1 GB."""
    compare: bool = True
    """Run every graph in ONNX Runtime and in torch on the golden observations; a bundle that differs is not written."""
    tolerance: float = 1e-4
    """Largest absolute difference of a float32 graph's outputs."""
    packed_tolerance: float = 1e-5
    """Largest relative difference (RMS) of a graph with quantised weights, activations in float32."""
    threads: int = 1
    """CPU threads for the comparison."""
    device: str = "auto"
    """Where the comparison runs, torch and ONNX Runtime: auto, cpu, cuda or cuda:N."""
    engine: Literal["auto", "onnx"] = "auto"
    """Device targets. auto: build TensorRT engines where TensorRT and the target's GPU are present; where they are not,
    exit status 3 and the JSON's `engine` say that the ONNX graphs are the fallback. onnx: nothing else is asked for."""
    gpu_layers: int = -1
    """llama.cpp: how many layers of the decoder lie on the card, where there is one; -1: all."""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    """llama.cpp: auto takes it on a card only. On a processor it rounds attention to 16 bits: 1.3e-4 of error."""
    cache: Literal["f16", "f32"] = "f16"
    """llama.cpp: type of keys and values. f16: 2e-5 of error and half the memory."""
    micro_batch: int = 0
    """llama.cpp: rows that are computed at once, which bounds its working memory; 0: all rows of a pass."""
    fixed_batch: bool = False
    """Write batch size 1 into the graphs; device targets always do."""
    overwrite: bool = False
    """Replace what has the name of OUT already; it stays until the new one is whole."""

    def plain(self) -> dict[str, Any]:
        """For a manifest: what the result depends on."""
        raw = {k: v for k, v in dataclasses.asdict(self).items() if k != "overwrite"}
        return {k: str(v) if isinstance(v, Path) else v for k, v in raw.items()}
