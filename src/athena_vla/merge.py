"""Fold a fine-tuned bundle's adapter into its base: one tensor at a time in float32, verified against the adapter.

A 7B base never lies in memory: each weight is read, summed and written into a shard. What fits into memory is judged
before anything is rounded: the merged model's graphs answer as the adapter's do, and what was written is that model
rounded, bit by bit. Knows nothing of families.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import athena_vla.bundle as bundles
from athena_vla.bundle import ADAPTER_FILE, Bundle, Golden
from athena_vla.errors import BundleError, ModelError
from athena_vla.finetune.merge_config import MergeConfig
from athena_vla.gate import Gate
from athena_vla.models import lora
from athena_vla.models.architecture import Architecture, Tensors, run_torch
from athena_vla.models.lora import LoraSettings
from athena_vla.models.lora_merge import Factors, merge_, plain_
from athena_vla.models.weights import nf4 as four_bit
from athena_vla.models.weights.store import StoreWriter, TensorStore, as_float
from athena_vla.offload import is_large, opened
from athena_vla.policy import Deviation, Policy, encode, replay, sensitivity
from athena_vla.progress import Progress, quiet

MERGING, COMPARING = "merging weights", "comparing with the adapter"  # what progress calls them
_FACTOR = re.compile(r"^(.*)\.(lora_A|lora_B|lora_magnitude_vector)\.[^.]+\.weight$")
_EMBEDDING = re.compile(r"^(.*)\.(lora_embedding_A|lora_embedding_B)\.[^.]+$")
_LINEAR, _TABLE, _MAGNITUDE = {"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}, "lora_magnitude_vector"
# The 4-bit layers' own CPU kernels round to 16 bits, so that even the exact merge differs from them by some 0.005 rad.
# A model that does not fit into memory recorded its golden chunks in 16 bits, where it was trained.
_TOLERANCE = {"original": 1e-3, "nf4": 0.02, "large": 0.05}  # [rad]
# Largest difference of a graph's outputs from the adapter's, as a share of their largest value, both in float32: a
# hundred times what another order of sums makes, a tenth of what an adapter forgotten on one layer makes.
_GRAPHS = 1e-4
_CALLS = 4  # of each graph that are compared: the prompt's, and some of single tokens


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

    factors: dict[str, Factors]  # by weight name
    full: dict[str, Tensor]
    scale: float

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: LoraSettings) -> "Adapter":
        """Sort an adapter file. Raises `ModelError` for a weight with a part too few or too many."""
        parts: dict[str, dict[str, Tensor]] = {}
        full: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            match = _FACTOR.match(key) or _EMBEDDING.match(key)
            if match:
                parts.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
            else:
                full[key] = tensor
        magnitude = {_MAGNITUDE} if settings.dora else set[str]()
        for name, found in parts.items():
            if set(found) - {_MAGNITUDE} not in (_LINEAR, _TABLE) or set(found) & {_MAGNITUDE} != magnitude:
                kind = "DoRA" if settings.dora else "LoRA"
                raise ModelError(f"The adapter of '{name}' is no complete {kind} adapter: it has {sorted(found)}.")
        factors = dict[str, Factors]()
        for name, found in parts.items():
            down, up = (found[k] for k in sorted(set(found) - {_MAGNITUDE}))
            factors[name] = Factors(down, up, found.get(_MAGNITUDE), set(found) >= _TABLE)
        return cls(factors, full, settings.alpha / settings.rank)

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The base weight with its adapter, float32."""
        return self.factors[name].fold(name, weight, self.scale)


def merge(config: MergeConfig, progress: Progress = quiet) -> MergeResult:
    """Write the merged bundle. Raises `BundleError`, `ModelError`."""
    source = Bundle.open(config.input)
    if not source.manifest.adapter:
        raise BundleError(f"'{source.path}' is {source.manifest.stage}, not fine-tuned: there is no adapter to merge.")
    with bundles.claim(config.out, overwrite=config.overwrite, reads=config.input):
        return _merge(config, source, progress)


def _merge(config: MergeConfig, source: Bundle, progress: Progress) -> MergeResult:
    settings = LoraSettings(**source.manifest.adapter)
    adapter = Adapter.of(load_file(source.path / ADAPTER_FILE), settings)
    store = source.base_store()
    base = config.base if config.base != "auto" else ("nf4" if settings.quantization == "nf4" else "original")
    large = is_large(store)
    kind = "large" if large else "nf4" if settings.quantization == "nf4" else "original"
    tolerance = config.tolerance or _TOLERANCE[kind]
    nf4 = {f"{p}.weight" for p in lora.four_bit_paths(source.meta_model())} if base == "nf4" else set[str]()
    wanted = dict(source.meta_model().state_dict())
    _require_fit(source, adapter, store, wanted)
    exact, outputs = None, dict[str, float]()
    if config.verify and not large:
        # On the processor, as the weights below: on a card NF4's codes and DoRA's norms differ in their last bit.
        exact, outputs = judged(source, base)
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
        progress.plan({MERGING: 1.0, COMPARING: 1.0 * config.verify})
        writer = StoreWriter(folder / "weights")
        for done, name in enumerate(wanted):
            progress(done, len(wanted), MERGING)
            if name in adapter.full:
                writer.add(name, adapter.full[name])
                continue
            weight = store.read(name)
            assert isinstance(weight, Tensor), "bases are not quantised"
            stored = weight.dtype
            if name in nf4:
                # A bundle's model computes in float32: so do its 4-bit layers, whatever type the weights lie in.
                weight = as_float(weight) if isinstance(store, TensorStore) else weight
                weight = four_bit.round_trip(weight, double=settings.double_quantization)
            if name in adapter.factors:
                weight = adapter.merged(name, weight)
            writer.add(name, weight.to(stored))
        writer.close()
        deviation = dict[str, Any]()
        gates: dict[str, Gate] = {}
        progress(len(wanted), len(wanted), MERGING)
        if config.verify:
            progress(0, 1, COMPARING)
            bundles.seal(folder, manifest)
            written = Bundle.open(folder)
            if exact is None:
                deviation |= verify_large(source, written, config.device)
            else:
                _require_written(written, exact)
                merged = Policy.of(written, "torch", device=config.device)
                deviation |= {**replay(merged, source.golden), "outputs_max": outputs}
                gates = sensitivity(merged, source.golden.observations)
            if not deviation["max_rad"] <= tolerance:
                raise BundleError(_refusal(source, written, settings, base, deviation["max_rad"], tolerance))
        bundles.seal(folder, dataclasses.replace(manifest, deviation=deviation, gates=gates))
    return MergeResult(config.out, len(adapter.factors), len(adapter.full), base, deviation)


def judged(source: Bundle, base: str) -> tuple[Tensors, dict[str, float]]:
    """The merged weights before they are rounded, and how far each graph is from the adapter's with the same inputs.

    The largest difference as a share of the largest output, both in float32 on the base that is merged into. Raises
    `BundleError` where a graph answers otherwise.
    """
    model = source.model().float()
    originals = source.base_store() if base == "original" else None
    if originals is not None:
        paths = lora.four_bit_paths(source.meta_model())
        plain_(model, {path: as_float(originals.read(f"{path}.weight")) for path in paths})
    plain_(model)
    calls = _calls(model, source)
    merge_(model, wide=True)
    run, far = run_torch(model), dict[str, float]()
    for name, inputs, before in calls:
        after = run(name, inputs)
        for key, value in before.items():
            wide = value.float()
            error = float((after[key].float() - wide).abs().max()) / max(float(wide.abs().max()), 1e-30)
            far[name] = max(far.get(name, 0.0), error) if error == error else float("inf")
    wrong = {name: error for name, error in far.items() if not error <= _GRAPHS}
    if wrong:
        listed = ", ".join(f"'{n}' by {e:.1e}" for n, e in wrong.items())
        raise BundleError(
            f"The merged weights of '{source.path}' do not answer as its adapter does, before any rounding: graph "
            f"{listed} of its largest output, where {_GRAPHS:.0e} is allowed. This is a fault of the program, and no "
            "option mends it: serve the adapter as it is, and report this."
        )
    return model.state_dict(), far


def _calls(model: Architecture, source: Bundle) -> list[tuple[str, Tensors, Tensors]]:
    """What decoding the golden observations asks of each graph, and what is answered: name, inputs, outputs."""
    inner, calls = run_torch(model), list[tuple[str, Tensors, Tensors]]()

    def run(name: str, inputs: Tensors) -> Tensors:
        outputs = inner(name, inputs)
        if sum(known == name for known, _, _ in calls) < _CALLS:
            calls.append((name, {k: v.clone() for k, v in inputs.items()}, {k: v.clone() for k, v in outputs.items()}))
        return outputs

    items = [encode(o, source.robot, source.normalizer) for o in source.golden.observations]
    with torch.inference_mode():
        model.decode(run, model.collate(items), model.noise(len(items), np.random.default_rng(0)))
    return calls


def _require_written(written: Bundle, exact: Mapping[str, Tensor]) -> None:
    """What was written is what was judged, rounded: bit by bit. Raises `BundleError`."""
    with written.store() as store:
        for name in store.names:
            weight = store.stored(name)  # nothing is packed here
            if not torch.equal(as_float(weight), as_float(exact[name].to(weight.dtype)).cpu()):
                raise BundleError(
                    f"Weight '{name}' was not written as it was merged in memory: a fault of the program or of the "
                    "disk. Nothing was kept; merge again, and report it if it stays."
                )


def _refusal(source: Bundle, written: Bundle, settings: LoraSettings, base: str, far: float, tolerance: float) -> str:
    """Why a merge that is exact moves the policy all the same, and what helps."""
    said = (
        f"Merging '{source.path}' moves its chunks by {far:.2e} rad, more than the allowed {tolerance:.0e}. The merge "
        "itself is exact"
    )
    if settings.quantization == "nf4" and base == "original":
        return f"{said}; the adapter was trained on the base's 4-bit weights: take them with --base nf4."
    with written.store() as store:
        kinds = {weight.dtype for name in store.names if isinstance(weight := store.read(name), Tensor)}
    narrow = sorted(str(k).removeprefix("torch.") for k in kinds if k.is_floating_point and k.itemsize < 4)
    if narrow:
        return (
            f"{said}; the base is stored in {', '.join(narrow)}, and so is what is merged into it. Allow the rounding "
            f"with --tolerance {far * 1.1:.1g} if the robot can bear it, or serve the adapter as it is."
        )
    return (
        f"{said}; the golden chunks were recorded on another machine or in another precision. Compare both with "
        f"athena evaluate, and allow the difference with --tolerance {far * 1.1:.1g}."
    )


def verify_large(source: Bundle, merged: Bundle, device: str) -> Deviation:
    """Deviation [rad] from one golden chunk; the merged weights are read layer by layer while they run."""
    golden = Golden(source.golden.observations[:1], source.golden.chunks[:1])
    with opened(merged, device) as policy:
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
