"""A decoder as GGUF, the file that llama.cpp reads: the stored numbers as they are, one weight in memory at a time.

4-bit codes become blocks of Q4_0 and 8-bit codes blocks of Q8_0, each of 32 inputs with the scale of their group; float
weights keep their type, and codes that fill no whole blocks become float32. Nothing is rounded again. Rows of queries
and keys change their order, since llama.cpp turns neighbouring pairs where Llama turns halves.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from athena_vla.errors import MissingDependency
from athena_vla.models.body.body_spec import LlamaSpec
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import TensorStore

PREFIX = "body.language_model."
BLOCK = 32  # inputs that share a scale in llama.cpp's forms
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTPUT = "lm_head.weight"
BUNDLE = "athena.bundle"  # the key under which the file names the bundle that it belongs to


def write_decoder(
    path: Path, text: LlamaSpec, store: TensorStore, bundle: str, context: int, choices: tuple[int, int]
) -> dict[str, int]:
    """Write the file; how many weights have each form. Raises `MissingDependency`.

    `choices` are the first and last (exclusive) token whose logits are read: the output layer has no other rows.
    """
    gguf = library()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(text.width)
    writer.add_block_count(text.layers)
    writer.add_feed_forward_length(text.mlp_width)
    writer.add_head_count(text.heads)
    writer.add_head_count_kv(text.kv_heads)
    writer.add_layer_norm_rms_eps(text.rms_epsilon)
    writer.add_rope_dimension_count(text.head_width)
    writer.add_rope_freq_base(text.rope_theta)
    writer.add_tokenizer_model("none")
    writer.add_string(BUNDLE, bundle)
    rows = choices[1] - choices[0] if text.output else BLOCK
    writer.add_vocab_size(rows)
    forms: dict[str, int] = {}
    names = list(_names(text))
    shapes = {n: _form_in(store, name, rows if name.endswith(OUTPUT) else 0) for n, name in names}
    # Rows come in from outside, so the table of words is not read; the file has to have one.
    writer.add_tensor_info("token_embd.weight", (rows, text.width), np.dtype(np.float16), rows * text.width * 2)
    for n, _ in names:
        kind, shape, size = shapes[n]
        forms[kind] = forms.get(kind, 0) + 1
        raw = getattr(gguf.GGMLQuantizationType, kind)
        stored = shape if kind in ("F32", "F16", "BF16") else gguf.quant_shape_to_byte_shape(shape, raw)
        element = {"F32": np.float32, "F16": np.float16}.get(kind, np.uint8)
        if kind == "BF16":
            stored = (*shape[:-1], shape[-1] * 2)
        writer.add_tensor_info(n, stored, np.dtype(element), size, raw_dtype=None if kind in ("F32", "F16") else raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_tensor_data(np.zeros((rows, text.width), np.float16))
    for n, name in names:
        heads = {"attn_q": text.heads, "attn_k": text.kv_heads}.get(n.split(".")[-2], 0)
        weight = _turned(store.read(name), heads)
        chosen = _rows(weight, *choices) if name.endswith(OUTPUT) else weight
        writer.write_tensor_data(content(chosen, shapes[n][0]))
    writer.close()
    return forms


def library() -> Any:
    """Raises `MissingDependency`."""
    try:
        import gguf
    except ImportError as error:
        raise MissingDependency("gguf", "llama", "to write a decoder for llama.cpp") from error
    return gguf


def _names(text: LlamaSpec) -> Iterator[tuple[str, str]]:
    """Names in the file and in the state dict, in the file's order."""
    for layer in range(text.layers):
        for ours, theirs in PARTS.items():
            yield f"blk.{layer}.{theirs}.weight", f"{PREFIX}model.layers.{layer}.{ours}.weight"
    yield "output_norm.weight", f"{PREFIX}model.norm.weight"
    if text.output:
        yield "output.weight", f"{PREFIX}{OUTPUT}"


def _form_in(store: TensorStore, name: str, rows: int) -> tuple[str, tuple[int, ...], int]:
    """`form_of` a stored weight, or of so many `rows` of it; codes, nearly all of the file, are not read for it."""
    if name not in store.packed:
        weight = store.read(name)
        return form_of(_rows(weight, 0, rows) if rows else weight)
    every, columns = store.shape(name)
    return _blocks((rows or every, columns), *store.packing(name))


def _rows(weight: Tensor | Packed, first: int, last: int) -> Tensor | Packed:
    if isinstance(weight, Packed):
        return Packed(weight.codes[first:last].contiguous(), weight.scales[first:last].contiguous(), weight.bits)
    return weight[first:last].contiguous()


def _blocks(shape: tuple[int, int], bits: int, group: int) -> tuple[str, tuple[int, ...], int]:
    rows, columns = shape
    if columns % BLOCK or group % BLOCK:
        return "F32", shape, rows * columns * 4
    kind, each = ("Q4_0", 2 + BLOCK // 2) if bits == 4 else ("Q8_0", 2 + BLOCK)
    return kind, shape, rows * (columns // BLOCK) * each


def form_of(weight: Tensor | Packed) -> tuple[str, tuple[int, ...], int]:
    """Form, shape and bytes of a weight. Codes whose groups are no whole blocks are written out in float32, exactly."""
    if isinstance(weight, Packed):
        return _blocks(weight.shape, weight.bits, weight.group)
    kind = {torch.float16: "F16", torch.bfloat16: "BF16"}.get(weight.dtype, "F32")
    if weight.ndim == 1:
        kind = "F32"  # llama.cpp multiplies norms in float32 only; every narrower number is one of those
    return kind, tuple(weight.shape), weight.numel() * (4 if kind == "F32" else 2)


def content(weight: Tensor | Packed, kind: str) -> NDArray[Any]:
    """The bytes of a weight in its form."""
    if isinstance(weight, Packed):
        if kind == "F32":
            return weight.dequantize().numpy()  # a code times a scale of 16 bits has its place in 24
        return q4_0(weight) if kind == "Q4_0" else q8_0(weight)
    if kind == "BF16":
        return weight.contiguous().view(torch.uint8).numpy().reshape(*weight.shape[:-1], -1)
    return weight.to(torch.float16 if kind == "F16" else torch.float32).contiguous().numpy()


def q4_0(weight: Packed) -> NDArray[np.uint8]:
    """Blocks of a fp16 scale and 16 bytes: input `j` in the low half of byte `j`, input `j + 16` in the high one."""
    codes = weight.codes.numpy().reshape(weight.shape[0], -1, BLOCK)
    unsigned = (codes.astype(np.int16) + 8).astype(np.uint8)
    packed = (unsigned[..., : BLOCK // 2] | (unsigned[..., BLOCK // 2 :] << 4)).astype(np.uint8)
    return np.concatenate([_scales(weight), packed], axis=2).reshape(weight.shape[0], -1)


def q8_0(weight: Packed) -> NDArray[np.uint8]:
    """Blocks of a fp16 scale and 32 codes."""
    codes = np.ascontiguousarray(weight.codes.numpy()).view(np.uint8).reshape(weight.shape[0], -1, BLOCK)
    return np.concatenate([_scales(weight), codes], axis=2).reshape(weight.shape[0], -1)


def _scales(weight: Packed) -> NDArray[np.uint8]:
    """[out, blocks, 2] bytes: each block has the scale of its group."""
    each = np.repeat(weight.scales.numpy(), weight.group // BLOCK, axis=1)
    return np.ascontiguousarray(each)[..., None].view(np.uint8)


def _turned(weight: Tensor | Packed, heads: int) -> Tensor | Packed:
    """The rows of every head in llama.cpp's order: first and second half in turn."""
    if heads == 0:
        return weight
    rows = weight.shape[0]
    order = torch.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
    if isinstance(weight, Packed):
        return Packed(weight.codes[order].contiguous(), weight.scales[order].contiguous(), weight.bits)
    return weight[order].contiguous()
