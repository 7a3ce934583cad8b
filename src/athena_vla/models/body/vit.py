"""Vision transformers as OpenVLA uses them (DINOv2, SigLIP, CLIP): patch features of one inner block.

Parameter names are those of the released checkpoints. Knows nothing of image files, projectors or language.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from athena_vla.models.body.attention import attend
from athena_vla.models.body.body_spec import Activation, VitSpec


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        # The exact GELU: the tanh approximation costs 1e-3 in the features.
        x = F.gelu(x) if self.activation == "gelu" else x * torch.sigmoid(1.702 * x)
        return self.fc2(x)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class LayerScale(nn.Module):
    """Released files call the parameter `scale_factor`: Hugging Face used to rewrite names that contain gamma."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, eps=spec.epsilon)
        self.attn = Attention(spec.width, spec.heads)
        self.ls1 = LayerScale(spec.width) if spec.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(spec.width, eps=spec.epsilon)
        self.mlp = Mlp(spec.width, spec.mlp_width, spec.activation)
        self.ls2 = LayerScale(spec.width) if spec.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """Stored with SigLIP, read by nothing: parameters only, so that a file comes back complete."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.q = nn.Linear(spec.width, spec.width)
        self.kv = nn.Linear(spec.width, 2 * spec.width)
        self.proj = nn.Linear(spec.width, spec.width)
        self.norm = nn.LayerNorm(spec.width, eps=spec.epsilon)
        self.mlp = Mlp(spec.width, spec.mlp_width, spec.activation)


class PatchEmbed(nn.Module):
    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, spec.width, spec.patch, stride=spec.patch, bias=not spec.pre_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # [B, P, E]


class VisionTransformer(nn.Module):
    """`[b, 3, size, size]` normalised pixels to `[b, patches, width]`, class and register tokens dropped."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbed(spec)
        prefix = int(spec.class_token) if spec.position_on_prefix else 0
        self.pos_embed = nn.Parameter(torch.zeros(1, prefix + spec.patches, spec.width))
        if spec.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        if spec.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, spec.registers, spec.width))
        self.norm_pre = nn.LayerNorm(spec.width, eps=spec.epsilon) if spec.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.blocks + int(spec.unused)))
        if spec.unused:
            self.norm = nn.LayerNorm(spec.width, eps=spec.epsilon)
            if spec.attention_pool:
                self.attn_pool = AttentionPool(spec)

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b patches e"]:
        spec = self.spec
        x = self.patch_embed(pixels)
        prefix = [self.cls_token.expand(x.shape[0], -1, -1)] if spec.class_token else []
        if spec.position_on_prefix:
            x = torch.cat([*prefix, x], dim=1) + self.pos_embed
            prefix = []
        else:
            x = x + self.pos_embed
        if spec.registers:
            prefix.append(self.reg_token.expand(x.shape[0], -1, -1))
        x = self.norm_pre(torch.cat([*prefix, x], dim=1) if prefix else x)
        for block in self.blocks[: spec.blocks]:
            x = block(x)
        return x[:, x.shape[1] - spec.patches :]

    def unused_parameters(self) -> list[str]:
        """Names of parameters that no output depends on."""
        dead = (f"blocks.{self.spec.blocks}.", "norm.", "attn_pool.")
        return [n for n, _ in self.named_parameters() if n.startswith(dead)] if self.spec.unused else []

    @torch.no_grad()
    def initialize(self) -> None:
        """Weights to train from scratch: small residual branches, smooth two-dimensional positions."""
        for name, parameter in self.named_parameters():
            if name.endswith("scale_factor"):
                parameter.fill_(1.0)
            elif name == "pos_embed":
                parameter.zero_()
                parameter[:, -self.spec.patches :] = _smooth_positions(self.spec.grid, self.spec.width)
            elif name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * self.spec.blocks) ** 0.5)
            elif name == "patch_embed.proj.weight":
                nn.init.normal_(parameter, std=(3 * self.spec.patch**2) ** -0.5)
            elif parameter.ndim >= 2:
                nn.init.normal_(parameter, std=min(0.02 * (768 / self.spec.width) ** 0.5, 0.06))


def _smooth_positions(grid: int, width: int) -> Tensor:
    """Sines and cosines of x and y with low frequencies: from half a period to `grid / 4` periods per image."""
    count = -(-width // 4)
    frequencies = torch.pi * torch.logspace(0, 1, count, base=max(grid / 2, 2.0))  # [rad per image]
    place = (torch.arange(grid) + 0.5) / grid
    waves = torch.cat([torch.sin(place[:, None] * frequencies), torch.cos(place[:, None] * frequencies)], dim=1)
    rows = waves[:, None].expand(grid, grid, -1)
    columns = waves[None, :].expand(grid, grid, -1)
    return 0.5 * torch.cat([rows, columns], dim=2).reshape(grid * grid, -1)[:, :width]
