"""Vision towers against timm where it loads, and against a plain restatement of their definition everywhere."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from athena_vla.errors import UnknownName
from athena_vla.models.body.body_spec import VitSpec, tower_spec
from athena_vla.models.body.vit import VisionTransformer

IDS = [
    "vit_large_patch14_reg4_dinov2.lvd142m",
    "vit_so400m_patch14_siglip_224",
    "vit_base_patch16_siglip_224",
    "vit_large_patch14_clip_224.openai",
    "vit_large_patch16_224.augreg_in21k_ft_in1k",
]


def randomized(spec: VitSpec) -> VisionTransformer:
    torch.manual_seed(0)
    tower = VisionTransformer(spec).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.1)
    return tower


def restated(tower: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    """The definition, one head and one patch at a time, from the state dict alone."""
    spec, w = tower.spec, {k: v.double() for k, v in tower.state_dict().items()}
    grid, patch, e = spec.grid, spec.patch, spec.width

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + spec.epsilon).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    kernel = w["patch_embed.proj.weight"].reshape(e, -1)
    rows = [
        kernel @ pixels[0, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].double().reshape(-1)
        for i in range(grid)
        for j in range(grid)
    ]
    x = torch.stack(rows)
    if not spec.pre_norm:
        x = x + w["patch_embed.proj.bias"]
    prefix = [w["cls_token"][0]] if spec.class_token else []
    if spec.position_on_prefix:
        x = torch.cat([*prefix, x]) + w["pos_embed"][0]
        prefix = []
    else:
        x = x + w["pos_embed"][0]
    x = torch.cat([*prefix, *([w["reg_token"][0]] if spec.registers else []), x])
    if spec.pre_norm:
        x = norm(x, "norm_pre")
    for i in range(spec.blocks):
        b = f"blocks.{i}"
        y = norm(x, f"{b}.norm1") @ w[f"{b}.attn.qkv.weight"].T + w[f"{b}.attn.qkv.bias"]
        width, heads = e // spec.heads, []
        for h in range(spec.heads):
            q, k, v = (y[:, part * e + h * width : part * e + (h + 1) * width] for part in range(3))
            heads.append((q @ k.T / math.sqrt(width)).softmax(-1) @ v)
        y = torch.cat(heads, dim=1) @ w[f"{b}.attn.proj.weight"].T + w[f"{b}.attn.proj.bias"]
        x = x + y * (w[f"{b}.ls1.scale_factor"] if spec.layer_scale else 1)
        y = norm(x, f"{b}.norm2") @ w[f"{b}.mlp.fc1.weight"].T + w[f"{b}.mlp.fc1.bias"]
        if spec.activation == "gelu":
            y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        else:
            y = y / (1 + torch.exp(-1.702 * y))
        y = y @ w[f"{b}.mlp.fc2.weight"].T + w[f"{b}.mlp.fc2.bias"]
        x = x + y * (w[f"{b}.ls2.scale_factor"] if spec.layer_scale else 1)
    return x[-spec.patches :]


@pytest.mark.parametrize("timm_id", IDS)
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_towers_equal_their_definition(timm_id: str, activation: Any) -> None:
    spec = dataclasses.replace(tower_spec(timm_id, 56, width=24, depth=3, heads=3), activation=activation)
    tower, pixels = randomized(spec), torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels)[0].double(), restated(tower, pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("timm_id", IDS[:4])
def test_towers_equal_timm(timm_id: str) -> None:
    try:
        import timm
    except Exception as error:  # timm needs torchvision, which may be absent or broken
        pytest.skip(f"timm does not load here: {error}")
    sizes = {"embed_dim": 24, "depth": 3, "num_heads": 3}
    name = timm_id.split(".")[0]
    theirs = timm.create_model(name, pretrained=False, num_classes=0, img_size=56, **sizes).eval()
    tower = VisionTransformer(tower_spec(timm_id, 56, width=24, depth=3, heads=3)).eval()
    state = {k.replace(".gamma", ".scale_factor"): v for k, v in theirs.state_dict().items()}
    tower.load_state_dict(state)
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        wanted = theirs.get_intermediate_layers(pixels, n={1})[0]
        torch.testing.assert_close(tower(pixels), wanted, atol=1e-5, rtol=1e-5)


def test_full_sizes_are_those_of_the_release() -> None:
    """Parameter counts of timm's own models: 304.4 M at 518 px (1369 positions) and 427.7 M."""
    with torch.device("meta"):
        towers = [VisionTransformer(tower_spec(n, 224)) for n in IDS[:2]]
    counts = [sum(p.numel() for p in t.parameters()) for t in towers]
    assert counts[0] + (1369 - 256) * 1024 == pytest.approx(304.4e6, rel=2e-4)
    assert counts[1] == pytest.approx(427.7e6, rel=2e-4)
    assert [t.spec.patches for t in towers] == [256, 256]
    assert [t.spec.blocks for t in towers] == [23, 26]


def test_unused_weights_are_reported_and_truly_unused() -> None:
    spec = tower_spec("vit_so400m_patch14_siglip_224", 28, width=24, depth=2, heads=2)
    tower = randomized(spec)
    tower(torch.randn(1, 3, 28, 28)).square().sum().backward()
    silent = [n for n, p in tower.named_parameters() if p.grad is None]
    assert sorted(silent) == sorted(tower.unused_parameters())
    assert any(n.startswith("attn_pool.") for n in silent)
    assert any(n.startswith("blocks.1.") for n in silent)


def test_unknown_towers_are_refused() -> None:
    with pytest.raises(UnknownName, match="vit_large_patch14_reg4_dinov2"):
        tower_spec("resnet50.a1", 224)
