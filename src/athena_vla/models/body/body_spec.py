"""The sizes of a body: vision towers, projector, decoder, images and prompts, as data; torch is not needed here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from athena_vla.errors import UnknownName
from athena_vla.models.body.images import (
    DINOV2_MEAN,
    DINOV2_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    ImageSpec,
    image_spec,
)
from athena_vla.models.body.prompt import Template
from athena_vla.models.body.tiny_tokenizer import TINY_ROWS, TINY_VOCABULARY

Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True, kw_only=True)
class VitSpec:
    """One tower. `blocks` counts the blocks that are computed; the features are the output of the last of them.

    Released towers store one more block, a final norm and sometimes an attention pool that nothing reads
    (OpenVLA takes the second-to-last block); `unused` says whether this model keeps those.
    """

    name: str
    image_size: int  # [px]
    patch: int  # [px]
    width: int
    blocks: int
    heads: int
    mlp_width: int
    class_token: bool = False
    registers: int = 0
    position_on_prefix: bool = False  # the class token has a position embedding (plain ViT, CLIP)
    layer_scale: bool = False
    pre_norm: bool = False  # CLIP: a norm before the first block, and no bias in the patch embedding
    attention_pool: bool = False  # SigLIP: stored, never read
    epsilon: float = 1e-6
    activation: Activation = "gelu"
    unused: bool = False

    @property
    def grid(self) -> int:
        return self.image_size // self.patch

    @property
    def patches(self) -> int:
        return self.grid**2


def tower_spec(
    timm_id: str, image_size: int, *, width: int | None = None, depth: int | None = None, heads: int | None = None
) -> VitSpec:
    """The tower that a released checkpoint means by this timm id; `depth` counts stored blocks, as there."""
    base = timm_id.split(".")[0]
    if base not in _TOWERS:
        raise UnknownName("vision tower", timm_id, _TOWERS)
    patch, own_width, own_depth, own_heads, ratio, kind = _TOWERS[base]
    width = width or own_width
    options = _KINDS[kind]
    return VitSpec(
        name=timm_id,
        image_size=image_size,
        patch=patch,
        width=width,
        blocks=(depth or own_depth) - 1,
        heads=heads or own_heads,
        mlp_width=int(width * ratio),
        unused=True,
        **options,
    )


# timm id -> patch, width, depth, heads, MLP ratio, kind (sizes from timm 0.9.10's definitions)
_TOWERS: dict[str, tuple[int, int, int, int, float, str]] = {
    "vit_small_patch14_reg4_dinov2": (14, 384, 12, 6, 4.0, "dinov2_registers"),
    "vit_base_patch14_reg4_dinov2": (14, 768, 12, 12, 4.0, "dinov2_registers"),
    "vit_large_patch14_reg4_dinov2": (14, 1024, 24, 16, 4.0, "dinov2_registers"),
    "vit_large_patch14_dinov2": (14, 1024, 24, 16, 4.0, "dinov2"),
    "vit_base_patch16_siglip_224": (16, 768, 12, 12, 4.0, "siglip"),
    "vit_base_patch16_siglip_256": (16, 768, 12, 12, 4.0, "siglip"),
    "vit_base_patch16_siglip_384": (16, 768, 12, 12, 4.0, "siglip"),
    "vit_so400m_patch14_siglip_224": (14, 1152, 27, 16, 3.7362, "siglip"),
    "vit_so400m_patch14_siglip_384": (14, 1152, 27, 16, 3.7362, "siglip"),
    "vit_large_patch14_clip_224": (14, 1024, 24, 16, 4.0, "clip"),
    "vit_large_patch14_clip_336": (14, 1024, 24, 16, 4.0, "clip"),
    "vit_large_patch16_224": (16, 1024, 24, 16, 4.0, "vit"),
}
_KINDS: dict[str, dict] = {
    "dinov2_registers": {"class_token": True, "registers": 4, "layer_scale": True},
    "dinov2": {"class_token": True, "position_on_prefix": True, "layer_scale": True},
    "siglip": {"attention_pool": True},
    "clip": {
        "class_token": True,
        "position_on_prefix": True,
        "pre_norm": True,
        "epsilon": 1e-5,
    },
    "vit": {"class_token": True, "position_on_prefix": True},
}


@dataclass(frozen=True, kw_only=True)
class LlamaSpec:
    """Sizes of the decoder. Released OpenVLA configurations leave `rms_epsilon` at transformers' default of 1e-6."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    rows: int  # of the embedding table, padding included
    pad_multiple: int = 64  # `rows` minus this is the vocabulary that action tokens count from
    rms_epsilon: float = 1e-6
    rope_theta: float = 10000.0
    output: bool = True  # has an lm_head

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def vocabulary(self) -> int:
        return self.rows - self.pad_multiple


@dataclass(frozen=True, kw_only=True)
class PrismaticSpec:
    """Everything that shapes the body and what goes into it. The first tower is `featurizer`, the second is fused."""

    towers: tuple[VitSpec, ...]
    images: ImageSpec
    text: LlamaSpec
    projector: Literal["gelu-mlp", "fused-gelu-mlp", "linear"]
    template: Template
    max_prompt_tokens: int  # longer prompts are refused

    @property
    def patches(self) -> int:
        """Patch embeddings per camera."""
        return self.towers[0].patches

    @property
    def vision_width(self) -> int:
        return sum(t.width for t in self.towers)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "PrismaticSpec":
        """Inverse of `dataclasses.asdict`, also after a round trip through JSON."""
        known = set(cls.__dataclass_fields__)
        for key in raw:
            if key not in known:
                raise UnknownName("field of the body's specification", key, sorted(known))
        fields = dict(raw)
        fields["towers"] = tuple(VitSpec(**t) for t in raw["towers"])
        fields["images"] = ImageSpec.from_dict(raw["images"])
        fields["text"] = LlamaSpec(**raw["text"])
        return cls(**fields)


def tiny_body(
    *,
    image_size: int = 96,
    patch: int = 8,
    tower_width: int = 64,
    tower_blocks: int = 2,
    tower_heads: int = 2,
    width: int = 128,
    layers: int = 4,
    heads: int = 2,
    kv_heads: int = 2,
    mlp_width: int = 344,
    crop_area: float = 1.0,
    output: bool = True,
) -> PrismaticSpec:
    """The same code as 7B with other numbers: trains on two CPU cores."""

    def tower(name: str, *, dinov2: bool) -> VitSpec:
        return VitSpec(
            name=name,
            image_size=image_size,
            patch=patch,
            width=tower_width,
            blocks=tower_blocks,
            heads=tower_heads,
            mlp_width=4 * tower_width,
            class_token=dinov2,
            registers=4 if dinov2 else 0,
            layer_scale=dinov2,
        )

    return PrismaticSpec(
        towers=(tower("tiny_dinov2", dinov2=True), tower("tiny_siglip", dinov2=False)),
        images=image_spec(
            image_size, "resize-naive", [(DINOV2_MEAN, DINOV2_STD), (SIGLIP_MEAN, SIGLIP_STD)], crop_area
        ),
        text=LlamaSpec(
            width=width,
            mlp_width=mlp_width,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            rows=TINY_ROWS,
            pad_multiple=TINY_ROWS - TINY_VOCABULARY,
            output=output,
        ),
        projector="fused-gelu-mlp",
        template="pure",
        max_prompt_tokens=256,
    )


def full_7b_body(*, crop_area: float = 1.0, output: bool = True, unused: bool = False) -> PrismaticSpec:
    """openvla-7b. `unused` keeps the vision layers that the release stores and nothing reads."""
    towers = (
        tower_spec("vit_large_patch14_reg4_dinov2.lvd142m", 224),
        tower_spec("vit_so400m_patch14_siglip_224", 224),
    )
    if not unused:
        towers = tuple(without_unused(t) for t in towers)
    return PrismaticSpec(
        towers=towers,
        # The released processor stores the ImageNet values after a round trip through bfloat16.
        images=image_spec(
            224,
            "resize-naive",
            [
                ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)),
                (SIGLIP_MEAN, SIGLIP_STD),
            ],
            crop_area,
        ),
        text=LlamaSpec(width=4096, mlp_width=11008, layers=32, heads=32, kv_heads=32, rows=32064, output=output),
        projector="fused-gelu-mlp",
        template="pure",
        max_prompt_tokens=512,
    )


def without_unused(tower: VitSpec) -> VitSpec:
    """The same tower without the stored layers that no output depends on."""
    return VitSpec(**{**tower.__dict__, "unused": False})
