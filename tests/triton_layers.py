"""A decoder's layers by the card's kernels in Triton's interpreter, or compiled for cards that are not there; JSON.

python tests/triton_layers.py numbers     # the largest differences from the layers as they are written
python tests/triton_layers.py compile     # bytes of machine code for each card
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

if sys.argv[1] == "numbers":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import triton
from torch import nn

from athena_vla.models.body.body_spec import LlamaSpec
from athena_vla.models.body.card_layer import card_layers
from athena_vla.models.body.llama import Llama, attention_mask
from athena_vla.models.weights import packed, triton_row
from athena_vla.models.weights.packed_linear import CardLinear
from packed_layers import random_weight
from triton_kernels import CARDS

LENGTH, SLOTS = 18, 70


def model(groups: int, bits: int) -> tuple[Llama, Llama]:
    """The model as a card takes it, and the same by float weights."""
    torch.manual_seed(0)
    plain = Llama(LlamaSpec(width=64, mlp_width=96, layers=2, heads=4, kv_heads=groups, rows=96)).eval()
    coded = Llama(plain.spec).eval()
    for module in plain.parameters():
        nn.init.normal_(module, std=0.3)
    coded.load_state_dict(plain.state_dict())
    if bits:
        for path, module in list(coded.named_modules()):
            if isinstance(module, nn.Linear) and ".layers." in path:
                weight = random_weight(module.out_features, module.in_features, 32, bits)
                stored = packed.store("w", weight)
                plain.get_submodule(path).weight.data = weight.dequantize()
                parent, _, name = path.rpartition(".")
                layer = CardLinear(stored["w" + packed.CODES[bits]], stored["w.scales"], bits, None)
                setattr(coded.get_submodule(parent), name, layer)
    return coded, plain


@torch.inference_mode()
def numbers() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for groups, bits in ((2, 0), (4, 4), (2, 8)):
        coded, plain = model(groups, bits)
        before = {n: p.clone() for n, p in coded.state_dict().items()}
        layers = card_layers(coded)
        assert len(layers) == 2
        name = f"{groups} groups, {bits or 'no'} bits"
        found[f"{name}: weights"] = all(torch.equal(p, before[n]) for n, p in coded.state_dict().items())
        x = torch.randn(2, LENGTH, 64)
        valid = torch.ones(2, LENGTH, dtype=torch.bool)
        valid[1, -3:] = False
        places = torch.arange(LENGTH)[None].expand(2, -1)
        for causal in (True, False):
            for tail in (0, 5) if causal else (0,):
                if tail and bits:  # the tail's layer runs as it is written, and on a processor codes do not
                    continue
                mask = attention_mask(valid, causal)
                coded.on_card = layers
                gap = coded(x, mask, places, tail) - plain(x, mask, places, tail)
                found[f"{name}: causal {causal}, tail {tail}"] = float(gap.abs().max())
        coded.on_card = layers
        cache = [torch.randn(2, 1, groups, SLOTS, 16) for _ in range(2)]
        for filled in (1, 69):
            position = torch.tensor([filled])
            row, one = x[:1, :1], torch.ones(1, 1, dtype=torch.bool)
            given = [coded.extend(row, one, position, *cache), plain.extend(row, one, position, *cache)]
            found[f"{name}: behind {filled}"] = max(float((a - b).abs().max()) for a, b in zip(*given, strict=True))
    return found


def compiled() -> dict[str, Any]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    places = ("x", "y", "p", "cos", "sin", "weight", "add", "keys", "values", "new_keys", "new_values")
    types = dict.fromkeys(places, "*bf16") | {"position": "*i64", "scale": "fp32", "epsilon": "fp32"}
    kernels = {
        "plain row": (triton_row._plain_row, {"K": 4096, "ADD": True, "R": 4, "W": 1024}),
        "attend row": (triton_row._attend_row, {"H": 32, "G": 32, "W": 128, "B": triton_row.SLOTS}),
        "norm row": (triton_row._norm_row, {"K": 4096, "W": 4096}),
        "turn rows": (triton_row._turn_rows, {"W": 128, "B": triton_row.TURNED}),
        "gate": (triton_row._gate, {"B": 1024}),
    }
    found: dict[str, Any] = {}
    for card, capability in CARDS.items():
        for name, (function, constants) in kernels.items():
            known = types | dict.fromkeys(constants, "constexpr")
            signature = {n: known.get(n, "i32") for n in function.arg_names}
            source = ASTSource(fn=function, signature=signature, constexprs=constants)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            found[f"{card}, {name}"] = len(made.asm["cubin"])
    return found


if __name__ == "__main__":
    print(json.dumps(numbers() if sys.argv[1] == "numbers" else compiled()))
