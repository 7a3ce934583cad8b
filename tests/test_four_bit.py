"""NF4 of our own against bitsandbytes, bit for bit."""

import pytest
import torch

from athena_vla.errors import ModelError
from athena_vla.models.weights import nf4 as four_bit

bnb = pytest.importorskip("bitsandbytes")


def tables() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    code = bnb.functional.get_4bit_type("nf4", device="cpu")
    bounds = (code[1:] + code[:-1]) / 2
    # Every boundary between two codes, and its neighbours on both sides; 1 in each block keeps the scale at 1.
    edges = torch.cat([bounds, bounds.nextafter(bounds + 1), bounds.nextafter(bounds - 1), code, torch.ones(4)])
    return {
        "normal": torch.randn(192, 704) * 0.02,
        "wide": torch.randn(64, 2048).exp() * torch.randn(64, 2048).sign(),
        "edges": torch.nn.functional.pad(edges, (0, 64 - len(edges))).repeat(4, 2),
        "zeros": torch.zeros(4, 64),
        "tiny": torch.randn(8, 64) * 1e-39,
        "odd": torch.randn(5, 13),
    }


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", list(tables()))
def test_codes_and_scales_are_bitsandbytes_own(name: str, dtype: torch.dtype, double: bool) -> None:
    weight = tables()[name].to(dtype)
    wanted, theirs = bnb.functional.quantize_4bit(weight, compress_statistics=double, quant_type="nf4")
    codes, ours = four_bit.quantized(weight, double=double)
    assert torch.equal(codes, wanted)
    one, other = ours.as_dict(packed=True), theirs.as_dict(packed=True)
    assert set(one) == set(other)
    assert all(torch.equal(one[k], other[k]) for k in one)
    torch.testing.assert_close(
        bnb.functional.dequantize_4bit(codes, ours), bnb.functional.dequantize_4bit(wanted, theirs), rtol=0, atol=0
    )


def test_the_layer_computes_with_what_it_says() -> None:
    weight, bias = tables()["normal"], torch.randn(192)
    layer = four_bit.linear(weight, bias, double=True, compute=torch.float32, device="cpu")
    dense = four_bit.dequantized(layer)
    assert four_bit.is_four_bit(layer)
    torch.testing.assert_close(dense, four_bit.round_trip(weight, double=True), rtol=0, atol=0)
    x = torch.randn(3, 704)
    torch.testing.assert_close(layer(x), x @ dense.T + bias, rtol=1e-4, atol=1e-5)
    assert 0 < (dense - weight).abs().max() < 0.16 * weight.abs().max()


def test_broken_weights_are_refused() -> None:
    weight = tables()["normal"]
    weight[7, 9] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        four_bit.quantized(weight, double=True)
