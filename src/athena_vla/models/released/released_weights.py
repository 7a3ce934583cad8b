"""Checkpoints of the released OpenVLA layout: from a folder or a Hub id into memory, shard by shard, and back to disk.

Keys are strict: a checkpoint fits or is refused with the names that do not. No remote code is ever run. Knows the
layout, not what the model is used for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from torch import Tensor, nn

from athena_vla.errors import ModelError, UnknownName
from athena_vla.models.body.body_spec import PrismaticSpec, without_unused
from athena_vla.models.body.prismatic import LANGUAGE_TARGETS, Prismatic
from athena_vla.models.precision import product_type
from athena_vla.models.released.release import release_config, release_processor, spec_from_release
from athena_vla.models.weights import nf4 as four_bit
from athena_vla.models.weights.store import StoreWriter, TensorStore

Precision = Literal["float32", "bfloat16", "float16", "nf4"]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_JSON_FILES = (*TOKENIZER_FILES, "config.json", "generation_config.json", "preprocessor_config.json")
_WANTED = ("*.json", "*.model", "*.safetensors", "*.pt")  # *.py stays away: it would be remote code


@dataclass(frozen=True)
class Checkpoint:
    """A released checkpoint in memory."""

    folder: Path
    body: Prismatic
    tokenizer_files: dict[str, bytes]
    norm_stats: dict[str, Any]  # data set -> action and proprio statistics
    config: dict[str, Any]
    unused: tuple[str, ...]  # stored vision weights that no output depends on
    skipped: tuple[str, ...]  # stored weights that were not loaded on request

    @property
    def spec(self) -> PrismaticSpec:
        return self.body.spec


def fetch(source: str | Path, *, revision: str | None = None, offline: bool = False) -> Path:
    """The local folder of a checkpoint: itself, or a snapshot of a Hub repository in the Hub's cache.

    Raises `ModelError` saying what is missing and how to get it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ModelError(f"There is no folder '{source}', and it is not a Hub id of the form owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED), local_files_only=offline))
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"The Hub has no model '{name}', or it needs a licence you have not accepted. Check the name, or log in "
            "with `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        at = f" at revision '{revision}'" if revision else ""
        reason = "offline mode is on" if offline else f"the Hub cannot be reached ({type(error).__name__})"
        raise ModelError(
            f"'{name}'{at} is not complete in the local cache, and {reason}. Connect once and load it again (downloads "
            "resume), or pass the path of a folder that holds the checkpoint."
        ) from error


def load(
    source: str | Path,
    precision: Precision = "bfloat16",
    *,
    double: bool = True,
    device: str = "cpu",
    unused: bool = False,
    output: bool = True,
    revision: str | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Load strictly, one shard at a time.

    `unused` keeps the vision layers that nothing reads (needed to save the checkpoint again), `output` the token
    output. With "nf4" the decoder's linear layers are quantised as they are read (`double`: their
    scales too) and multiply in the type that is native on `device`; everything else is bfloat16.
    """
    if precision not in get_args(Precision):
        raise UnknownName("precision", precision, get_args(Precision))
    folder = fetch(source, revision=revision, offline=offline)
    config, spec = read_spec(folder)
    with torch.device("meta"):
        full = Prismatic(spec)
        lean_spec = lean(spec, unused=unused, output=output)
        body = Prismatic(lean_spec)
    if (folder / "lora_adapter").is_dir() and not any(folder.glob("model*.safetensors*")):
        raise ModelError(
            f"'{folder}' holds a LoRA adapter without the model it belongs to. Merge it into its base with the scripts "
            "that made it, and load the merged folder."
        )
    with TensorStore(folder) as store:
        _require_keys(full, store, folder)
    wanted = set(body.state_dict())
    shards: dict[str, list[str]] = {}
    for name in sorted(wanted):
        shards.setdefault(store.places[name], []).append(name)
    for shard, names in shards.items():
        # Closing each shard gives its mapped pages back before the next is touched.
        with safe_open(folder / shard, framework="pt") as stream:
            for name in names:
                _place(body, name, stream.get_tensor(name), precision, double, device)
    norm_stats = dict(config.get("norm_stats") or {})
    own = folder / "dataset_statistics.json"
    if own.is_file():
        # A fine-tuned model keeps its base's table in config.json; what it was tuned on is written here.
        norm_stats = _read_json(own)
    return Checkpoint(
        folder,
        body.eval(),
        {n: (folder / n).read_bytes() for n in TOKENIZER_FILES if (folder / n).is_file()},
        norm_stats,
        config,
        tuple(full.unused_parameters()),
        tuple(sorted(set(store.names) - wanted)),
    )


def lean(spec: PrismaticSpec, *, unused: bool = False, output: bool = True) -> PrismaticSpec:
    """The specification without what nothing reads."""
    towers = spec.towers if unused else tuple(without_unused(t) for t in spec.towers)
    return replace(spec, towers=towers, text=replace(spec.text, output=output))


def read_spec(folder: Path) -> tuple[dict[str, Any], PrismaticSpec]:
    """The raw configuration and the specification it means. Raises `ModelError` where the folder is no checkpoint."""
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise ModelError(f"'{folder}' is not an OpenVLA checkpoint: it has no {name}. It holds {there}.")
    config = _read_json(folder / "config.json")
    processor = _read_json(folder / "preprocessor_config.json")
    return config, spec_from_release(config, processor, str(folder / "config.json"))


def save(
    folder: Path,
    body: Prismatic,
    tokenizer_files: Mapping[str, bytes],
    norm_stats: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    shard_bytes: int = 7_000_000_000,
) -> None:
    """Write the released layout, which the reference reads. `config` is the original one where there is one."""
    spec = body.spec
    if not spec.text.output or not all(t.unused for t in spec.towers):
        raise ModelError(
            "The released layout stores vision layers that nothing reads, and the token output; this model was loaded "
            "without them. Load it with unused=True and output=True to save it again."
        )
    if any(p.is_meta for p in body.parameters()) or any(p.dtype == torch.uint8 for p in body.parameters()):
        raise ModelError(
            "A model in 4 bits or without weights cannot be saved in the released layout; load it in bf16."
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**config, "norm_stats": dict(norm_stats)} if config else release_config(spec, norm_stats)
    files: dict[str, Any] = {
        "config.json": settings,
        "preprocessor_config.json": release_processor(spec.images),
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": spec.text.vocabulary,
        },
        "processor_config.json": {"processor_class": "PrismaticProcessor"},
    }
    # Released files name model code that lies beside them. None is saved here, and loaders stop where it is missing.
    settings.pop("auto_map", None)
    writer = StoreWriter(folder, shard_bytes)
    for name, tensor in body.state_dict().items():
        writer.add(name, tensor.cpu())
    writer.close()
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
    for name, raw in files.items():
        (folder / name).write_text(json.dumps(raw, indent=2, sort_keys=True))


def _require_keys(full: Prismatic, store: TensorStore, folder: Path) -> None:
    """Every key and shape as expected, or one error that lists what is not."""
    expected = {n: tuple(t.shape) for n, t in full.state_dict().items()}
    missing = [n for n in expected if n not in store.places]
    unexpected = [n for n in store.names if n not in expected]
    if missing or unexpected:
        raise ModelError(
            f"The weights of '{folder}' do not fit its configuration: {len(missing)} of {len(expected)} are missing"
            f"{_listed(missing)}, {len(unexpected)} are unexpected{_listed(unexpected)}."
        )
    wrong = [f"{n} {list(store.shape(n))} for {list(s)}" for n, s in expected.items() if store.shape(n) != s]
    if wrong:
        raise ModelError(f"The weights of '{folder}' have {len(wrong)} wrong shapes: {'; '.join(wrong[:6])}.")


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})" if names else ""


def _place(body: nn.Module, name: str, weight: Tensor, precision: Precision, double: bool, device: str) -> None:
    """Put one weight into the model: a copy, so that no mapped file stays open behind it."""
    path, _, leaf = name.rpartition(".")
    module = body.get_submodule(path)
    target = path.rpartition(".")[2]
    if precision == "nf4" and target in LANGUAGE_TARGETS and path.startswith("language_model.model.layers."):
        parent, _, child = path.rpartition(".")
        compute = product_type(device)
        small = four_bit.linear(weight.to(torch.bfloat16, copy=True), double=double, compute=compute, device=device)
        setattr(body.get_submodule(parent), child, small)
        return
    dtype = torch.bfloat16 if precision == "nf4" else getattr(torch, precision)
    module.register_parameter(leaf, nn.Parameter(weight.to(device=device, dtype=dtype, copy=True)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"'{path}' is not valid JSON ({error}). Copy or download it again.") from error
    if not isinstance(raw, dict):
        raise ModelError(f"'{path}' holds a {type(raw).__name__}, not an object.")
    return raw
