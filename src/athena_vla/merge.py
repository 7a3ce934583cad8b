"""Fold a fine-tuned bundle's adapter into its base: one tensor at a time in float32, verified against the adapter.

A 7B base never lies in memory: each weight is read, summed and written into a shard. Knows nothing of families.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from athena_vla import bundle as bundles
from athena_vla.bundle import ADAPTER_FILE, Bundle, Golden
from athena_vla.errors import BundleError, ModelError
from athena_vla.models import four_bit, lora
from athena_vla.models.lora import LoraSettings
from athena_vla.models.store import StoreWriter, as_float
from athena_vla.policy import Policy, replay, sensitivity
from athena_vla.progress import Progress, quiet
from athena_vla.streaming import is_large, opened

Base = Literal["auto", "original", "nf4"]
_FACTOR = re.compile(r"^(.*)\.(lora_A|lora_B|lora_magnitude_vector)\.[^.]+\.weight$")
_EMBEDDING = re.compile(r"^(.*)\.(lora_embedding_A|lora_embedding_B)\.[^.]+$")
# The 4-bit layers' own CPU kernels round to 16 bits, so that even the exact merge differs from them by some 0.005 rad.
# A model that does not fit into memory recorded its golden chunks in 16 bits, where it was trained.
_TOLERANCE = {"original": 1e-3, "nf4": 0.02, "large": 0.05}  # [rad]


@dataclass(frozen=True)
class MergeConfig:
    """Settings of `athena merge`."""

    input: Path
    """Fine-tuned bundle."""
    out: Path
    """Where the merged bundle goes."""
    base: Base = "auto"
    """After QLoRA: add to the original weights, or to the 4-bit weights (de-quantised) the adapter was trained on.
    auto takes what the adapter was trained on."""
    verify: bool = True
    """Compare adapter and merged model on the golden observations: graph by graph and in radians, or, of a model that
    does not fit into memory, one chunk with the one the adapter's model answered."""
    tolerance: float = 0.0
    """Largest allowed deviation of a merged chunk from the adapter's [rad]; 0 is 0.001, after QLoRA 0.02, and 0.05 for
    models that do not fit into memory."""


@dataclass(frozen=True)
class MergeResult:
    """What was merged and how far it is from the adapter."""

    path: Path
    merged: int  # weights with an adapter
    replaced: int  # tensors stored in full with the adapter
    base: str
    deviation: dict[str, Any]  # [rad], against the adapter's golden chunks

    def __str__(self) -> str:
        far = self.deviation.get("max_rad")
        text = "not compared" if far is None else f"at most {far:.2e} rad from the adapter"
        return f"merged {self.merged} weights into {self.path} (base: {self.base}), {text}"


class Weights(Protocol):
    """Where base weights are read from."""

    names: tuple[str, ...]

    def read(self, name: str) -> Any: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Adapter:
    """The factors of each adapted weight, and tensors that replace the base's."""

    factors: dict[str, dict[str, Tensor]]  # weight name -> lora_A, lora_B, ...
    full: dict[str, Tensor]
    scale: float

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: LoraSettings) -> "Adapter":
        """Sort an adapter file. Raises `ModelError` for a weight with only one factor."""
        factors: dict[str, dict[str, Tensor]] = {}
        full: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            match = _FACTOR.match(key) or _EMBEDDING.match(key)
            if match:
                factors.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
            else:
                full[key] = tensor
        for name, parts in factors.items():
            if {"lora_A", "lora_B"} - set(parts) and {"lora_embedding_A", "lora_embedding_B"} - set(parts):
                raise ModelError(f"The adapter of '{name}' is incomplete: it has only {sorted(parts)}.")
        return cls(factors, full, settings.alpha / settings.rank)

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The base weight with its adapter, float32."""
        parts = self.factors[name]
        if "lora_embedding_A" in parts:
            return weight + self.scale * (parts["lora_embedding_B"].float() @ parts["lora_embedding_A"].float()).t()
        total = weight + self.scale * (parts["lora_B"].float() @ parts["lora_A"].float())
        if "lora_magnitude_vector" in parts:  # DoRA: the direction from the sum, the length of each row learned
            total = total * (parts["lora_magnitude_vector"].float() / total.norm(dim=1))[:, None]
        return total


def merge(config: MergeConfig, progress: Progress = quiet) -> MergeResult:
    """Write the merged bundle. Raises `BundleError`, `ModelError`."""
    source = Bundle.open(config.input)
    if not source.manifest.adapter:
        raise BundleError(f"'{source.path}' is {source.manifest.stage}, not fine-tuned: there is no adapter to merge.")
    settings = LoraSettings(**source.manifest.adapter)
    adapter = Adapter.of(load_file(source.path / ADAPTER_FILE), settings)
    store = source.base_store()
    base = config.base if config.base != "auto" else ("nf4" if settings.quantization == "nf4" else "original")
    large = is_large(store)
    kind = "large" if large else "nf4" if settings.quantization == "nf4" else "original"
    tolerance = config.tolerance or _TOLERANCE[kind]
    nf4 = {f"{p}.weight" for p in lora.four_bit_paths(source.skeleton())} if base == "nf4" else set[str]()
    wanted = dict(source.skeleton().state_dict())
    _require_fit(source, adapter, store, wanted)
    manifest = dataclasses.replace(
        source.manifest,
        stage="merged",
        parent_hash=source.hash,
        parent_path=str(source.path),
        checkpoint="",
        adapter={},
        config={"merge": {"base": base, "tolerance": tolerance}},
        stage_info={"base": base, "merged": len(adapter.factors), "replaced": len(adapter.full)},
        deviation={},
        gates={},
        files={},
    )
    with bundles.writing(config.out, manifest, source.golden, source.tokenizer_files()) as folder:
        writer = StoreWriter(folder / "weights")
        for done, name in enumerate(wanted):
            progress(done, len(wanted), "merging weights")
            if name in adapter.full:
                writer.add(name, adapter.full[name])
                continue
            weight = store.read(name)
            assert isinstance(weight, Tensor), "bases are not quantised"
            if name in nf4:
                weight = four_bit.round_trip(weight, double=settings.double_quantization)
            if name in adapter.factors:
                weight = adapter.merged(name, as_float(weight)).to(weight.dtype)
            writer.add(name, weight)
        writer.close()
        deviation: dict[str, Any] = {}
        gates: dict[str, Any] = {}
        progress(len(wanted), len(wanted), "comparing with the adapter" if config.verify else "merging weights")
        if config.verify:
            bundles.seal(folder, manifest)
            written = Bundle.open(folder)
            if large:
                deviation = verify_large(source, written)
            else:
                deviation = verify(source, written)
                gates = sensitivity(Policy.of(written, "torch"), source.golden.observations)
            if not deviation["max_rad"] <= tolerance:
                raise BundleError(
                    f"Merging '{source.path}' moves its chunks by {deviation['max_rad']:.2e} rad, more than the "
                    f"allowed {tolerance:.0e}. Base: {base}; try the other one (--base), or raise --tolerance."
                )
        bundles.seal(folder, dataclasses.replace(manifest, deviation=deviation, gates=gates))
    return MergeResult(config.out, len(adapter.factors), len(adapter.full), base, deviation)


def verify(source: Bundle, merged: Bundle) -> dict[str, Any]:
    """Deviation of the merged model from the adapter model: golden chunks [rad] and every graph's outputs."""
    result = replay(Policy.of(merged, "torch"), source.golden)
    before, after = source.model(), merged.model()
    outputs: dict[str, float] = {}
    with torch.inference_mode():
        for mine, theirs in zip(before.graphs(), after.graphs(), strict=True):
            pairs = zip(mine.module(**mine.example), theirs.module(**mine.example), strict=True)
            outputs[mine.name] = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
    return {**result, "outputs_max": outputs}


def verify_large(source: Bundle, merged: Bundle) -> dict[str, Any]:
    """Deviation [rad] from one golden chunk; the merged weights are read layer by layer while they run."""
    golden = Golden(source.golden.observations[:1], source.golden.chunks[:1])
    with opened(merged) as policy:
        return {**replay(policy, golden), "observations": 1}


def _require_fit(source: Bundle, adapter: Adapter, store: Weights, wanted: Mapping[str, Tensor]) -> None:
    """Every weight of the merged model has one origin, and every part of the adapter has a place."""
    strange = [n for n in (*adapter.factors, *adapter.full) if n not in wanted]
    lost = [n for n in wanted if n not in store.names and n not in adapter.full]
    misfit = [
        n for n, t in wanted.items() if n not in adapter.full and n in store.names and tuple(t.shape) != store.shape(n)
    ]
    problems = [f"no place for {n}" for n in strange] + [f"no weight {n}" for n in lost]
    problems += [f"{n} has another shape in the base" for n in misfit]
    if problems:
        base = source.manifest.checkpoint or source.manifest.parent_path
        raise BundleError(
            f"The adapter '{source.path}' does not fit its base '{base}': {'; '.join(problems[:6])} "
            f"({len(problems)} in all). It belongs to another base."
        )
