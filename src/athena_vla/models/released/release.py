"""The released layout as data: `config.json` and `preprocessor_config.json` to the body's specification, and back.

Knows names, ids and defaults of the releases; reads and writes no file.
"""

from collections.abc import Mapping
from typing import Any

from athena_vla.errors import ModelError
from athena_vla.models.body.body_spec import LlamaSpec, PrismaticSpec, VitSpec, tower_spec
from athena_vla.models.body.images import ImageSpec, image_spec_from_processor
from athena_vla.models.body.prompt import Template

_BACKBONES = {
    "clip-vit-l": (["vit_large_patch14_clip_224.openai"], 224),
    "clip-vit-l-336px": (["vit_large_patch14_clip_336.openai"], 336),
    "dinov2-vit-l": (["vit_large_patch14_reg4_dinov2.lvd142m"], 224),
    "in1k-vit-l": (["vit_large_patch16_224.augreg_in21k_ft_in1k"], 224),
    "siglip-vit-b16-224px": (["vit_base_patch16_siglip_224"], 224),
    "siglip-vit-b16-256px": (["vit_base_patch16_siglip_256"], 256),
    "siglip-vit-b16-384px": (["vit_base_patch16_siglip_384"], 384),
    "siglip-vit-so400m": (["vit_so400m_patch14_siglip_224"], 224),
    "siglip-vit-so400m-384px": (["vit_so400m_patch14_siglip_384"], 384),
    "dinoclip-vit-l-336px": (["vit_large_patch14_reg4_dinov2.lvd142m", "vit_large_patch14_clip_336.openai"], 336),
    "dinosiglip-vit-so-224px": (["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"], 224),
    "dinosiglip-vit-so-384px": (["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384"], 384),
}
# transformers' defaults of a Llama configuration, which released files leave out.
_LLAMA_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
}


def spec_from_release(config: Mapping[str, Any], processor: Mapping[str, Any], source: str) -> PrismaticSpec:
    """Raises `ModelError` for another family's configuration or one that needs what is not implemented."""
    kind = config.get("model_type")
    if kind not in ("openvla", "prismatic"):
        raise ModelError(
            f"'{source}' is the configuration of a '{kind}' model; this loader reads the released OpenVLA layout "
            "(model_type 'openvla')."
        )
    try:
        towers = _towers(config, source)
        text = _text(config, source)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(f"'{source}' lacks or garbles a field ({type(error).__name__}: {error}).") from error
    images = image_spec_from_processor(processor, f"{source} (preprocessor_config.json)")
    if len(images.towers) != len(towers):
        raise ModelError(
            f"'{source}' has {len(towers)} vision towers, its image processor makes images for {len(images.towers)}."
        )
    for tower, image in zip(towers, images.towers, strict=True):
        if image.crop != (tower.image_size, tower.image_size):
            raise ModelError(
                f"'{source}': tower '{tower.name}' takes {tower.image_size} px, its image processor makes {image.crop}."
            )
    vicuna = "vicuna" in str(config.get("llm_backbone_id", "")) or "v01" in str(config.get("llm_backbone_id", ""))
    template: Template = "vicuna" if vicuna else "pure"
    return PrismaticSpec(
        towers=towers,
        images=images,
        text=text,
        # The reference decides by the number of towers, not by `arch_specifier`.
        projector="fused-gelu-mlp" if len(towers) == 2 else "gelu-mlp",
        template=template,
        max_prompt_tokens=int(config.get("llm_max_length", 2048)) - towers[0].patches - 256,
    )


def _towers(config: Mapping[str, Any], source: str) -> tuple[VitSpec, ...]:
    backbone = config.get("vision_backbone_id")
    known_ids, known_size = _BACKBONES.get(str(backbone), (None, None))
    ids = config.get("timm_model_ids") or known_ids
    if not ids:
        raise ModelError(f"'{source}' names no vision tower that is known here (vision_backbone_id '{backbone}').")
    if config.get("use_fused_vision_backbone", len(ids) == 2) != (len(ids) == 2) or len(ids) > 2:
        raise ModelError(f"'{source}' has {len(ids)} vision towers but use_fused_vision_backbone says otherwise.")
    sizes: list[Any] = config.get("image_sizes") or [known_size or 224] * len(ids)
    sizes = [int(s[-1]) if isinstance(s, list | tuple) else int(s) for s in sizes]
    overrides = config.get("oracle_timm_overrides") or [None] * len(ids)
    activations = config.get("timm_override_act_layers") or [None] * len(ids)
    towers = []
    for timm_id, size, override, activation in zip(ids, sizes, overrides, activations, strict=True):
        own = dict(override or {})
        tower = tower_spec(
            timm_id,
            size,
            width=own.pop("embed_dim", None),
            depth=own.pop("depth", None),
            heads=own.pop("num_heads", None),
        )
        if own:
            raise ModelError(f"'{source}' overrides {sorted(own)} of '{timm_id}'; known: embed_dim, depth, num_heads.")
        # CLIP's own weights were trained with quick_gelu; released configurations say so here.
        if activation not in (None, "gelu", "quick_gelu"):
            raise ModelError(f"'{source}' asks for the activation '{activation}'; known: gelu, quick_gelu.")
        if activation is not None:
            tower = VitSpec(**{**tower.__dict__, "activation": activation})
        towers.append(tower)
    if len({t.patches for t in towers}) > 1:
        raise ModelError(f"'{source}': the towers make different numbers of patches.")
    return tuple(towers)


def _text(config: Mapping[str, Any], source: str) -> LlamaSpec:
    raw = {**_LLAMA_DEFAULTS, **{k: v for k, v in config["text_config"].items() if v is not None}}
    wanted: dict[str, tuple[Any, ...]] = {
        "model_type": ("llama",),
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "tie_word_embeddings": (False,),
    }
    for key, allowed in wanted.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise ModelError(
                f"'{source}': a language model with {key} = {raw[key]!r} is not known; only {allowed[0]!r}."
            )
    theta = float(raw["rope_theta"])
    # Newer transformers write the rotary settings as one dictionary.
    rope = raw.get("rope_parameters") or raw.get("rope_scaling")
    if rope:
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ModelError(f"'{source}': scaled rotary positions ({rope}) are not known here.")
        theta = float(rope.get("rope_theta", theta))
    heads = int(raw["num_attention_heads"])
    if raw.get("head_dim", raw["hidden_size"] // heads) != raw["hidden_size"] // heads:
        raise ModelError(f"'{source}': heads of width {raw['head_dim']} do not fit a hidden size {raw['hidden_size']}.")
    return LlamaSpec(
        width=int(raw["hidden_size"]),
        mlp_width=int(raw["intermediate_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads", heads)),
        rows=int(raw["vocab_size"]),
        pad_multiple=int(config.get("pad_to_multiple_of", 64)),
        rms_epsilon=float(raw["rms_norm_eps"]),
        rope_theta=theta,
    )


def release_config(spec: PrismaticSpec, norm_stats: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` that the reference reads; sizes that differ from timm's go into our own override field."""
    ids = [t.name for t in spec.towers]
    sizes = [t.image_size for t in spec.towers]
    named = {tuple(names): (key, size) for key, (names, size) in _BACKBONES.items()}
    backbone = next((k for names, (k, size) in named.items() if list(names) == ids and size == sizes[0]), "custom")
    overrides = [{"embed_dim": t.width, "depth": t.blocks + 1, "num_heads": t.heads} for t in spec.towers]
    text = spec.text
    config: dict[str, Any] = {
        "arch_specifier": f"no-align+{spec.projector}",
        "architectures": ["OpenVLAForActionPrediction"],
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": _strategy(spec.images),
        "image_sizes": sizes,
        "llm_backbone_id": "vicuna-v15-7b" if spec.template == "vicuna" else "llama2-7b-pure",
        "llm_max_length": spec.max_prompt_tokens + spec.patches + 256,
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": dict(norm_stats),
        "output_projector_states": False,
        "pad_to_multiple_of": text.pad_multiple,
        "pad_token_id": text.vocabulary,
        "text_config": {
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "model_type": "llama",
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "num_key_value_heads": text.kv_heads,
            "pad_token_id": text.vocabulary,
            "rms_norm_eps": text.rms_epsilon,
            "rope_theta": text.rope_theta,
            "torch_dtype": "bfloat16",
            "vocab_size": text.rows,
        },
        "timm_model_ids": ids,
        "timm_override_act_layers": [None if t.activation == "gelu" else t.activation for t in spec.towers],
        "torch_dtype": "bfloat16",
        "use_fused_vision_backbone": len(ids) == 2,
        "vision_backbone_id": backbone,
    }
    if any(tower_spec(t.name, t.image_size).width != t.width for t in spec.towers) or any(
        tower_spec(t.name, t.image_size).blocks != t.blocks for t in spec.towers
    ):
        config["oracle_timm_overrides"] = overrides
    return config


def release_processor(images: ImageSpec) -> dict[str, Any]:
    """A `preprocessor_config.json` that the reference reads."""
    towers = images.towers
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": _strategy(images),
        "input_sizes": [[3, *t.crop] for t in towers],
        "interpolations": ["bicubic"] * len(towers),
        "means": [list(t.mean) for t in towers],
        "stds": [list(t.std) for t in towers],
        "processor_class": "PrismaticProcessor",
        "tvf_crop_params": [{"output_size": list(t.crop)} for t in towers],
        "tvf_do_letterbox": images.letterbox_fill is not None,
        "tvf_letterbox_fill": None if images.letterbox_fill is None else list(images.letterbox_fill),
        "tvf_normalize_params": [{"inplace": False, "mean": list(t.mean), "std": list(t.std)} for t in towers],
        "tvf_resize_params": [
            {
                "antialias": True,
                "interpolation": t.resample,
                "max_size": None,
                "size": list(t.resize) if len(t.resize) == 2 else t.resize[0],
            }
            for t in towers
        ],
        "use_fused_vision_backbone": len(towers) == 2,
    }


def _strategy(images: ImageSpec) -> str:
    if images.letterbox_fill is not None:
        return "letterbox"
    return "resize-naive" if len(images.towers[0].resize) == 2 else "resize-crop"
