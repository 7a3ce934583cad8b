"""OpenVLA's body: one or two vision towers, projector, Llama, under the parameter names of the released checkpoints.

Turns pixels into patch embeddings and splices them between BOS and the prompt. Knows nothing of files, prompts' text,
actions or robots.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from athena_vla.errors import UnknownName
from athena_vla.models.body.body_spec import PrismaticSpec, VitSpec
from athena_vla.models.body.llama import Llama
from athena_vla.models.body.vit import VisionTransformer

LANGUAGE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LANGUAGE_ENDS = ("embed_tokens", "lm_head")
_TOWER_LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class VisionBackbone(nn.Module):
    def __init__(self, towers: tuple[VitSpec, ...]) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(towers[0])
        if len(towers) == 2:
            self.fused_featurizer = VisionTransformer(towers[1])
        self.fused = len(towers) == 2

    def forward(self, pixels: Float[Tensor, "b c height width"]) -> Float[Tensor, "b patches e"]:
        """One camera; with two towers their features side by side, DINOv2 first."""
        if not self.fused:
            return self.featurizer(pixels)
        return torch.cat([self.featurizer(pixels[:, :3]), self.fused_featurizer(pixels[:, 3:])], dim=2)


class Projector(nn.Module):
    """Vision features to the decoder's width: three layers for two towers, two for one."""

    def __init__(self, kind: str, vision_width: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "linear":
            self.fc1 = nn.Linear(vision_width, width)
        elif kind == "fused-gelu-mlp":
            self.fc1 = nn.Linear(vision_width, 4 * vision_width)
            self.fc2 = nn.Linear(4 * vision_width, width)
            self.fc3 = nn.Linear(width, width)
        else:
            self.fc1 = nn.Linear(vision_width, width)
            self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.kind != "linear":
            x = self.fc2(F.gelu(x))
        return self.fc3(F.gelu(x)) if self.kind == "fused-gelu-mlp" else x


def spliced(
    patches: Float[Tensor, "b p e"], words: Float[Tensor, "b l e"], valid: Bool[Tensor, "b l"]
) -> tuple[Float[Tensor, "b l2 e"], Bool[Tensor, "b l2"]]:
    """Patches behind the first word, and where the rows are real."""
    x = torch.cat([words[:, :1], patches.to(words.dtype), words[:, 1:]], dim=1)
    seen = torch.ones_like(valid[:, :1]).expand(-1, patches.shape[1])
    return x, torch.cat([valid[:, :1], seen, valid[:, 1:]], dim=1)


class Prismatic(nn.Module):
    """The body. State-dict keys are those of the released checkpoints."""

    def __init__(self, spec: PrismaticSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision_backbone = VisionBackbone(spec.towers)
        self.projector = Projector(spec.projector, spec.vision_width, spec.text.width)
        self.language_model = Llama(spec.text)

    def vision(self, pixels: Float[Tensor, "b c height width"]) -> Float[Tensor, "b patches e"]:
        """Patch embeddings of all cameras, one camera after the other, in the decoder's width."""
        batch, channels, height, width = pixels.shape
        cameras = channels // self.spec.images.channels
        # Cameras go through the shared towers as one batch.
        x = pixels.reshape(batch * cameras, -1, height, width)
        x = self.projector(self.vision_backbone(x))
        return x.reshape(batch, cameras * x.shape[1], x.shape[2])

    def splice(
        self, patches: Float[Tensor, "b p e"], ids: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]
    ) -> tuple[Float[Tensor, "b l2 e"], Bool[Tensor, "b l2"]]:
        """`[BOS, patches, rest of the prompt]` and where it is real."""
        return spliced(patches, self.language_model.embed(ids), valid)

    def unused_parameters(self) -> list[str]:
        """Names of stored vision parameters that no output depends on."""
        return [
            f"vision_backbone.{name}.{parameter}"
            for name, tower in self.vision_backbone.named_children()
            if isinstance(tower, VisionTransformer)
            for parameter in tower.unused_parameters()
        ]

    def linear_modules(self, targets: tuple[str, ...], *, vision: bool, projector: bool) -> list[str]:
        """Full paths of the linear layers that an adapter may sit on; layers nothing reads are left out.

        `targets` names the decoder's layers, or is ("all-linear",); `embed_tokens` and `lm_head` only when named, and
        `lm_head` only where the body has one. Raises `UnknownName`.
        """
        known = (*LANGUAGE_TARGETS, *_LANGUAGE_ENDS, "all-linear")
        for target in targets:
            if target not in known:
                raise UnknownName("LoRA target", target, known)
        wanted = LANGUAGE_TARGETS if "all-linear" in targets else tuple(t for t in LANGUAGE_TARGETS if t in targets)
        found = [
            f"language_model.model.layers.{i}.{'self_attn' if t in LANGUAGE_TARGETS[:4] else 'mlp'}.{t}"
            for i in range(self.spec.text.layers)
            for t in wanted
        ]
        if "embed_tokens" in targets:
            found.append("language_model.model.embed_tokens")
        if "lm_head" in targets and self.spec.text.output:
            found.append("language_model.lm_head")
        if vision:
            names = ("featurizer", "fused_featurizer")[: len(self.spec.towers)]
            found += [
                f"vision_backbone.{name}.blocks.{i}.{linear}"
                for name, tower in zip(names, self.spec.towers, strict=True)
                for i in range(tower.blocks)
                for linear in _TOWER_LINEARS
            ]
        if projector:
            found += [f"projector.{name}" for name, _ in self.projector.named_children()]
        return found

    @torch.no_grad()
    def initialize(self) -> None:
        """Weights to train from scratch."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        for tower in self.vision_backbone.children():
            assert isinstance(tower, VisionTransformer)
            tower.initialize()
        for layer in self.projector.children():
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.language_model.initialize()
