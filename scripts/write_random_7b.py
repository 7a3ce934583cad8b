"""Write a checkpoint with random weights in the exact layout of openvla-7b: bf16, three shards, about 15 GB.

For trying loading, memory, quantisation and speed at full size without the released weights. The tokenizer is a
stand-in of the same size (the Llama 2 tokenizer has its own licence); give --tokenizer to copy yours. Needs only disk:
one tensor is in memory at a time.
"""

import json
import shutil
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from athena_vla.errors import AthenaError, ModelError
from athena_vla.models.body.body_spec import PrismaticSpec, full_7b_body, tiny_body
from athena_vla.models.body.prismatic import Prismatic
from athena_vla.models.body.tiny_tokenizer import tiny_tokenizer_files
from athena_vla.models.released.release import release_config, release_processor
from athena_vla.models.released.released_weights import TOKENIZER_FILES


@dataclass(frozen=True)
class WriteConfig:
    """A random openvla-7b."""

    out: Path
    """New folder for the checkpoint."""
    seed: int = 0
    """Seed of the weights: the same seed writes the same bytes."""
    shard_bytes: int = 7_000_000_000
    """Largest size of a shard; the default gives three, as released."""
    tokenizer: Path | None = None
    """Folder whose tokenizer files are copied instead of the stand-in."""
    tiny: bool = False
    """The same layout at a size for tests."""


def write(config: WriteConfig) -> Path:
    """Write the checkpoint. Raises `ModelError` where the folder exists or the disk is too small."""
    if config.out.exists():
        raise ModelError(f"'{config.out}' exists already; give a new folder, nothing is overwritten.")
    spec = tiny_release() if config.tiny else full_7b_body(unused=True)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in Prismatic(spec).named_parameters()}
    total = 2 * sum(torch.Size(s).numel() for s in shapes.values())
    config.out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.out.parent).free
    if free < total * 1.05:
        raise ModelError(
            f"The checkpoint needs {total / 1e9:.1f} GB; '{config.out.parent}' has {free / 1e9:.1f} GB free."
        )
    shards = divide(shapes, config.shard_bytes)
    part = config.out.with_name(config.out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    generator = torch.Generator().manual_seed(config.seed)
    places: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        single = len(shards) == 1
        file = "model.safetensors" if single else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_shard(part / file, {n: shapes[n] for n in names}, generator)
        places |= dict.fromkeys(names, file)
        print(f"wrote {file}: {len(names)} tensors, {(part / file).stat().st_size / 1e9:.2f} GB", flush=True)
    files = {
        "config.json": release_config(spec, {"random": random_statistics()}),
        "preprocessor_config.json": release_processor(spec.images),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": spec.text.vocabulary},
    }
    if len(shards) > 1:
        files["model.safetensors.index.json"] = {"metadata": {"total_size": total}, "weight_map": places}
    for name, raw in files.items():
        (part / name).write_text(json.dumps(raw, indent=2, sort_keys=True))
    for name, content in tokenizer_files(config.tokenizer, spec.text.vocabulary).items():
        (part / name).write_bytes(content)
    part.rename(config.out)
    return config.out


def tiny_release() -> PrismaticSpec:
    """The tiny body under names that the released layout knows."""
    from dataclasses import replace

    from athena_vla.models.body.body_spec import tower_spec

    body = tiny_body(image_size=28, width=64, layers=2, mlp_width=128)
    towers = tuple(
        tower_spec(n, 28, width=24, depth=3, heads=2)
        for n in ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
    )
    return replace(body, towers=towers, max_prompt_tokens=2048 - towers[0].patches - 256)


def divide(shapes: dict[str, tuple[int, ...]], most: int) -> list[list[str]]:
    """Names in order, cut into shards of at most `most` bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        here = 2 * torch.Size(shape).numel()
        if shards[-1] and size + here > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += here
    return shards


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> None:
    """A safetensors file, tensor after tensor: 8 bytes of header length, the header, the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)))
        stream.write(text)
        for name, shape in shapes.items():
            stream.write(random_weight(name, shape, generator).view(torch.uint8).numpy().tobytes())


def random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms and scales are one, biases zero, the rest normal with variance 1 / inputs: activations stay finite."""
    if len(shape) == 1:
        return torch.zeros(shape, dtype=torch.bfloat16) if name.endswith("bias") else torch.ones(shape).bfloat16()
    inputs = torch.Size(shape[1:]).numel()
    std = 0.02 if name.endswith(("embed_tokens.weight", "pos_embed", "token", "latent")) else inputs**-0.5
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=std, generator=generator).contiguous()


def random_statistics() -> dict[str, object]:
    action = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "min": [-1.0] * 7, "max": [1.0] * 7, "mean": [0.0] * 7}
    return {"action": {**action, "std": [1.0] * 7, "mask": [True] * 6 + [False]}, "num_transitions": 0}


def tokenizer_files(folder: Path | None, vocabulary: int) -> dict[str, bytes]:
    if folder is None:
        return tiny_tokenizer_files(vocabulary)
    found = {n: (folder / n).read_bytes() for n in TOKENIZER_FILES if (folder / n).is_file()}
    if "tokenizer.json" not in found:
        raise ModelError(f"'{folder}' has no tokenizer.json.")
    return found


def main() -> int:
    config = tyro.cli(WriteConfig, description=__doc__)
    start = time.perf_counter()
    try:
        out = write(config)
    except AthenaError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{out}: done in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
