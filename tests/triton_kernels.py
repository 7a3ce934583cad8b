"""The Triton kernels in their interpreter, or compiled for cards that are not there; prints JSON.

python tests/triton_kernels.py numbers     # relative errors against the de-quantised weight
python tests/triton_kernels.py compile     # bytes of machine code for each card
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

from athena_vla.models.weights import packed, triton_kernel
from packed_layers import random_weight

CARDS = {"A100": 80, "RTX 3090, A6000": 86, "Orin": 87, "RTX 4090, L4": 89, "H100": 90}
# bits, outputs, inputs, group: sizes that no tile divides, one scale per output, and the 7B model's longest rows
SHAPES = ((4, 37, 384, 128), (4, 20, 256, 32), (8, 37, 384, 384), (8, 16, 384, 128), (4, 24, 160, 16))
SHAPES = (*SHAPES, (8, 10, 1076, 1076), (4, 8, 11008, 128))


def numbers() -> dict[str, Any]:
    found: dict[str, Any] = {"products": {}, "unpacked": {}}
    for bits, outputs, inputs, group in SHAPES:
        weight = random_weight(outputs, inputs, group, bits)
        stored = packed.store("w", weight)
        codes, scales, exact = stored["w" + packed.CODES[bits]], stored["w.scales"], weight.dequantize()
        name = f"{bits} bits {outputs}x{inputs} by {group}"
        # In float32: the interpreter has no bfloat16, it drops bits where a card rounds.
        found["unpacked"][name] = torch.equal(triton_kernel.unpacked(codes, scales, bits, torch.float32), exact)
        for rows in (1, 2, 17, 40):
            x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
            y, right = triton_kernel.linear(x, codes, scales, bits), x.double() @ exact.double().T
            found["products"][f"{name}, {rows} rows"] = float((y.double() - right).norm() / right.norm())
    return found


def compiled() -> dict[str, Any]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    found: dict[str, Any] = {}
    for name, capability in CARDS.items():
        for bits in (4, 8):
            codes = "*u8" if bits == 4 else "*i8"
            sizes = {"K": 4096, "GROUP": 128, "BITS": bits}
            same = {"scales": "*fp16", "outputs": "i32"}
            kernels = {
                "one row": (
                    triton_kernel._one_row,
                    {"x": "*bf16", "codes": "*i32", "y": "*bf16", "add": "*bf16"},
                    {"ADD": True, "R": 8, "W": 512},
                ),
                "some rows": (
                    triton_kernel._some_rows,
                    {"x": "*bf16", "codes": codes, "y": "*bf16", "count": "i32"},
                    {"M": 16, "N": 32, "B": 16 * bits},
                ),
                "unpack": (triton_kernel._unpack, {"codes": codes, "weight": "*bf16"}, {"B": 1024}),
            }
            for kernel, (function, types, own) in kernels.items():
                constants = sizes | own
                types = types | same | dict.fromkeys(constants, "constexpr")
                source = ASTSource(
                    fn=function, signature={n: types[n] for n in function.arg_names}, constexprs=constants
                )
                made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
                found[f"{name}, {bits} bits, {kernel}"] = len(made.asm["cubin"])
    return found


if __name__ == "__main__":
    print(json.dumps(numbers() if sys.argv[1] == "numbers" else compiled()))
