"""Checkpoints in the released layout, a few MB each, built from a seed: the same bytes wherever this file runs.

Needs torch, numpy and safetensors only, so that the environment of the reference can build them too. What the public
reference answers on each of them is recorded in `tests/reference/`, see the README there.
"""

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from athena_vla.models.body.tiny_tokenizer import tiny_tokenizer_files

DINOV2 = "vit_large_patch14_reg4_dinov2.lvd142m"
BACKBONES: dict[str, tuple[list[str], int]] = {
    "siglip-vit-so400m": (["vit_so400m_patch14_siglip_224"], 224),
    "siglip-vit-so400m-384px": (["vit_so400m_patch14_siglip_384"], 384),
    "dinov2-vit-l": ([DINOV2], 224),
    "clip-vit-l": (["vit_large_patch14_clip_224.openai"], 224),
    "in1k-vit-l": (["vit_large_patch16_224.augreg_in21k_ft_in1k"], 224),
    "dinosiglip-vit-so-224px": ([DINOV2, "vit_so400m_patch14_siglip_224"], 224),
    "dinosiglip-vit-so-384px": ([DINOV2, "vit_so400m_patch14_siglip_384"], 384),
    "dinoclip-vit-l-336px": ([DINOV2, "vit_large_patch14_clip_336.openai"], 336),
}
# timm's means and stds of each kind of tower
PIXELS = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "augreg": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
INSTRUCTIONS = ("Pick up the RED block", "open the drawer and put the bowl into the second drawer", " stack  2 CUBES ")


@dataclass(frozen=True)
class Release:
    """One small checkpoint and how it is asked."""

    seed: int
    backbone: str
    strategy: str
    llm: str = "llama2-7b-pure"
    text: dict[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = (7,)  # action dimensions of each data set
    platform: str | None = None
    chunk: int = 0
    images: int = 1
    proprio: int = 0

    @property
    def pixels(self) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
        return [next(v for k, v in PIXELS.items() if k in name) for name in BACKBONES[self.backbone][0]]


RELEASES: dict[str, Release] = {
    "siglip_letterbox_vicuna": Release(1, "siglip-vit-so400m", "letterbox", "vicuna-v15-7b"),
    "siglip384_crop": Release(2, "siglip-vit-so400m-384px", "resize-crop", dims=(4,)),
    "dinov2_crop": Release(3, "dinov2-vit-l", "resize-crop", dims=(5, 7)),
    "clip_naive": Release(4, "clip-vit-l", "resize-naive"),
    "in1k_letterbox": Release(5, "in1k-vit-l", "letterbox", dims=(23,)),
    "fused_letterbox": Release(6, "dinosiglip-vit-so-224px", "letterbox", dims=(7, 7, 14)),
    "fused384_grouped": Release(
        7,
        "dinosiglip-vit-so-384px",
        "resize-crop",
        text={"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 5000.0},
    ),
    "dinoclip_letterbox": Release(8, "dinoclip-vit-l-336px", "letterbox", "vicuna-v15-7b"),
    "oft_aloha": Release(
        9, "dinosiglip-vit-so-224px", "resize-naive", dims=(14,), platform="aloha", chunk=25, images=3, proprio=14
    ),
    "oft_libero_single": Release(10, "siglip-vit-so400m", "letterbox", platform="libero", chunk=8, images=1, proprio=8),
    "oft_libero_fused": Release(
        11, "dinosiglip-vit-so-224px", "resize-naive", platform="libero", chunk=8, images=2, proprio=8
    ),
}


def config(release: Release) -> dict[str, Any]:
    """`config.json`, text defaults left out as in the releases."""
    towers, size = BACKBONES[release.backbone]
    return {
        "arch_specifier": "no-align+" + ("fused-gelu-mlp" if len(towers) == 2 else "gelu-mlp"),
        "architectures": ["OpenVLAForActionPrediction"],
        "hf_llm_id": "none",
        "image_resize_strategy": release.strategy,
        "image_sizes": [size] * len(towers),
        "llm_backbone_id": release.llm,
        "llm_max_length": 2048,
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": statistics(release),
        "oracle_timm_overrides": [{"embed_dim": 24 + 8 * i, "depth": 3, "num_heads": 2} for i in range(len(towers))],
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 88,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "pad_token_id": 32000,
            "vocab_size": 32064,
            **release.text,
        },
        "timm_model_ids": towers,
        "timm_override_act_layers": ["quick_gelu" if "clip" in t and "siglip" not in t else None for t in towers],
        "use_fused_vision_backbone": len(towers) == 2,
        "vision_backbone_id": release.backbone,
    }


def statistics(release: Release) -> dict[str, Any]:
    """One table per data set; masks with and without, one constant dimension."""
    tables: dict[str, Any] = {}
    for i, dim in enumerate(release.dims):
        random = np.random.default_rng([release.seed, i])

        def table(width: int, random: np.random.Generator = random) -> dict[str, Any]:
            low = random.uniform(-2, 0, width)
            span = random.uniform(0.1, 2, width)
            numbers = {
                "min": low - 0.3,
                "q01": low,
                "mean": low + span / 2,
                "q99": low + span,
                "max": low + span + 0.2,
                "std": span / 4,
            }
            return {k: v.round(6).tolist() for k, v in numbers.items()}

        action = table(dim)
        if i % 2 == 0 and release.platform != "aloha":
            action["mask"] = [True] * (dim - 1) + [False]
        if dim > 4:
            for key in ("min", "q01", "mean", "q99", "max"):
                action[key][2] = 0.25
        tables[f"robot_{i}"] = {"action": action, "num_trajectories": 3, "num_transitions": 90}
        if release.proprio:
            tables[f"robot_{i}"]["proprio"] = table(release.proprio)
    return tables


def processor(release: Release) -> dict[str, Any]:
    """The arguments of the reference's image processor; the derived settings are the reference's to compute."""
    towers, size = BACKBONES[release.backbone]
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": release.strategy,
        "input_sizes": [[3, size, size]] * len(towers),
        "interpolations": ["bicubic"] * len(towers),
        "means": [list(m) for m, _ in release.pixels],
        "stds": [list(s) for _, s in release.pixels],
        "use_fused_vision_backbone": len(towers) == 2,
    }


def tokenizer_files() -> dict[str, bytes]:
    """The tiny tokenizer with Llama 2's 32,000 ids and its lone space at 29871, which the reference has built in."""
    files = tiny_tokenizer_files(32000)
    raw = json.loads(files["tokenizer.json"])
    words = raw["model"]["vocab"]
    there = next(word for word, number in words.items() if number == 29871)
    words["▁"], words[there] = 29871, words["▁"]
    return {**files, "tokenizer.json": json.dumps(raw, ensure_ascii=False).encode()}


def weight(seed: int, name: str, shape: Iterable[int]) -> torch.Tensor:
    """A bfloat16 tensor that depends on its name and shape only, of a size that keeps every layer alive."""
    shape = tuple(shape)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x = random.standard_normal(shape).astype(np.float32)
    if name.endswith("embed_tokens.weight"):
        x *= 0.6
    elif name.endswith("lm_head.weight"):
        x *= 1.3 / shape[1] ** 0.5
        x[31744:32000] *= 2.0  # so that most answers are actions
    elif len(shape) >= 2 and not name.endswith(("pos_embed", "token", "latent")):
        x *= 1.3 / float(np.prod(shape[1:])) ** 0.5
    elif name.endswith(("weight", "scale_factor")):
        x = 1 + 0.2 * x
    else:
        x *= 0.3
    return torch.from_numpy(x).bfloat16()


def write(release: Release, folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """The folder of a checkpoint. `shapes` come from a model, so that two implementations check each other's names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(release)))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor(release)))
    for name, content in tokenizer_files().items():
        (folder / name).write_bytes(content)
    save_file(
        {n: weight(release.seed, n, s) for n, s in shapes.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    if release.platform:
        for part, names in oft_parts(release).items():
            tensors = {f"module.{n}": weight(release.seed, f"{part}.{n}", s) for n, s in names.items()}
            torch.save(tensors, folder / f"{part}--150000_checkpoint.pt")
    return folder


def oft_parts(release: Release) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of the files beside an OFT checkpoint."""
    width, dim = 32, release.dims[0]
    head = {f"model.layer_norm1.{k}": (width * dim,) for k in ("weight", "bias")}
    head |= {"model.fc1.weight": (width, width * dim), "model.fc1.bias": (width,)}
    for i in range(2):
        head |= {f"model.mlp_resnet_blocks.{i}.ffn.0.{k}": (width,) for k in ("weight", "bias")}
        head |= {f"model.mlp_resnet_blocks.{i}.ffn.1.weight": (width, width)}
        head |= {f"model.mlp_resnet_blocks.{i}.ffn.1.bias": (width,)}
    head |= {f"model.layer_norm2.{k}": (width,) for k in ("weight", "bias")}
    head |= {"model.fc2.weight": (dim, width), "model.fc2.bias": (dim,)}
    projector = {
        "fc1.weight": (width, release.proprio),
        "fc1.bias": (width,),
        "fc2.weight": (width, width),
        "fc2.bias": (width,),
    }
    return {"action_head": head, "proprio_projector": projector}


def pictures(seed: int) -> dict[str, Image.Image]:
    """Wide, tall, small, grey, with transparency, palette: sizes that round awkwardly."""
    random = np.random.default_rng([seed, 99])

    def scene(height: int, width: int, channels: int) -> NDArray[np.uint8]:
        y, x = np.mgrid[0:height, 0:width]
        waves = [
            128 + 90 * np.sin(x / random.uniform(5, 40) + random.uniform(0, 6)) * np.cos(y / random.uniform(5, 40))
            for _ in range(channels)
        ]
        image = np.stack(waves, axis=-1) + random.normal(0, 15, (height, width, channels))
        return np.clip(image, 0, 255).astype(np.uint8)

    palette = Image.frombytes("P", (111, 150), (scene(150, 111, 1) // 16).tobytes())
    palette.putpalette(random.integers(0, 256, 48, dtype=np.uint8).tobytes())
    return {
        "square": Image.fromarray(scene(256, 256, 3)),
        "wide": Image.fromarray(scene(121, 342, 3)),
        "tall": Image.fromarray(scene(331, 200, 3)),
        "small": Image.fromarray(scene(64, 97, 3)),
        "grey": Image.fromarray(scene(90, 91, 1)[:, :, 0]),
        "clear": Image.fromarray(scene(300, 203, 4)),
        "palette": palette,
        "exact": Image.fromarray(scene(224, 224, 3)),
    }
