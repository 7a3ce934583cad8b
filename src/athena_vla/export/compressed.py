"""A quantised decoder as a compressed checkpoint of the common layout: what TensorRT Edge-LLM's exporter reads.

The layout is that of GPTQ checkpoints (symmetric, groups along the input, no reordering), so the codes are the bundle's
own and nothing is rounded again. Only the language part of the token family: vision, projector and the host loop stay
with the ONNX graphs. Knows the layout, not the program that reads it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from athena_vla import files
from athena_vla.bundle import Bundle
from athena_vla.errors import BundleError, ExportError, ModelError
from athena_vla.models.loops.shared_loop import VlaSpec
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import StoreWriter, save

PREFIX = "body.language_model."
BITS = 4
ZERO = 8  # codes are stored unsigned; the layout keeps the zero point minus one
ROW_MAP = "reduced_vocab/vocab_map.safetensors"  # the token ids that may be answered, for --reduced-vocab-dir
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_compressed(source: Bundle, out: Path, *, overwrite: bool = False) -> Path:
    """The language part of a quantised bundle as a folder of safetensors, config and tokenizer.

    Raises `BundleError` for a bundle without 4-bit codes or without token output, `ExportError` for layers that the
    layout cannot hold.
    """
    spec = source.spec
    if source.manifest.stage != "quantized":
        raise BundleError(
            f"'{source.path}' is {source.manifest.stage}; a compressed checkpoint is made of a quantised one."
        )
    if not isinstance(spec, VlaSpec) or not spec.body.text.output:
        raise BundleError(f"Family '{source.manifest.family}' has no token output: its graphs go through ONNX instead.")
    store = source.store()
    text = spec.body.text
    with (
        files.claim(out, overwrite=overwrite, what="a compressed checkpoint", ours=_is_ours, error=BundleError),
        files.whole_folder(out, BundleError) as part,
    ):
        writer, group = StoreWriter(part), 0
        for name in (n for n in store.names if n.startswith(PREFIX)):
            weight, key = store.read(name), name.removeprefix(PREFIX)
            if isinstance(weight, Packed):
                group = _require_layout(key, weight, group)
                for suffix, tensor in pack(weight).items():
                    writer.add(f"{key.removesuffix('.weight')}.{suffix}", tensor)
            else:
                writer.add(key, weight.half())
        if not group:
            raise BundleError(f"'{source.path}' has no layer in 4 bits.")
        writer.close()
        config = configuration(text, group)
        (part / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
        for name, content in source.tokenizer_files().items():
            (part / name).write_bytes(_with_template(content) if name == "tokenizer_config.json" else content)
        rows = torch.tensor([*range(text.vocabulary - 256, text.vocabulary), 2], dtype=torch.int32)
        (part / ROW_MAP).parent.mkdir()
        save({"vocab_map": rows.sort().values}, part / ROW_MAP)
        (part / "athena.json").write_text(json.dumps({"bundle": source.hash, "spec": spec.to_dict()}, default=str))
    return out


def _is_ours(folder: Path) -> bool:
    return (folder / ROW_MAP).is_file() and (folder / "athena.json").is_file()


def pack(weight: Packed) -> dict[str, Tensor]:
    """`qweight` [in/8, out] and `qzeros` [groups, out/8] int32, `scales` [groups, out] fp16, `g_idx` [in]."""
    rows, columns = weight.shape
    unsigned = (weight.codes.to(torch.int32) + ZERO).t().reshape(columns // 8, 8, rows)
    zeros = torch.full((columns // weight.group, rows // 8, 8), ZERO - 1, dtype=torch.int32)
    return {
        "qweight": _join(unsigned, 1),
        "qzeros": _join(zeros, 2),
        "scales": weight.scales.t().contiguous(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // weight.group,
    }


def unpack(parts: Mapping[str, Tensor]) -> Packed:
    """Inverse of `pack`. Raises `ModelError` for another zero point or order of inputs."""
    qweight, scales = parts["qweight"], parts["scales"]
    codes = _split(qweight, 1).reshape(-1, qweight.shape[1])
    group = codes.shape[0] // scales.shape[0]
    if not bool((_split(parts["qzeros"], 2) == ZERO - 1).all()):
        raise ModelError("The compressed weight is not symmetric: its zero points differ from 8.")
    if not torch.equal(parts["g_idx"], torch.arange(codes.shape[0], dtype=torch.int32) // group):
        raise ModelError("The compressed weight has its inputs in another order.")
    return Packed((codes - ZERO).t().to(torch.int8).contiguous(), scales.t().contiguous(), BITS)


def configuration(text: Any, group: int) -> dict[str, Any]:
    """The language model's own configuration, as readers of checkpoints expect it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": text.width,
        "intermediate_size": text.mlp_width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_width,
        "vocab_size": text.rows,
        "rms_norm_eps": text.rms_epsilon,
        "rope_theta": text.rope_theta,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": text.vocabulary,
        "torch_dtype": "float16",
        "quantization_config": {
            "quant_method": "gptq",
            "bits": BITS,
            "group_size": group,
            "sym": True,
            "desc_act": False,
            "lm_head": False,
            "checkpoint_format": "gptq",
        },
    }


def _require_layout(name: str, weight: Packed, group: int) -> int:
    """The group all layers share. Raises `ExportError`."""
    if weight.bits != BITS:
        raise ExportError(
            f"'{name}' has {weight.bits} bits; the layout has one number of bits for all layers. Quantise with "
            "--budget-bits 4.2, which lifts none."
        )
    if group and weight.group != group:
        raise ExportError(f"'{name}' has groups of {weight.group} inputs, others of {group}; the layout has one size.")
    if weight.shape[0] % 8 or weight.shape[1] % 8:
        raise ExportError(f"'{name}' has shape {list(weight.shape)}; the layout packs eight codes into a word.")
    return weight.group


def _join(nibbles: Tensor, axis: int) -> Tensor:
    """Eight 4-bit numbers along `axis` into one int32, the first lowest."""
    shifts = torch.arange(8, dtype=torch.int64) * 4
    wide = nibbles.to(torch.int64) << shifts.reshape([-1 if i == axis else 1 for i in range(nibbles.ndim)])
    total = wide.sum(dim=axis)
    return torch.where(total >= 1 << 31, total - (1 << 32), total).to(torch.int32).contiguous()


def _split(words: Tensor, axis: int) -> Tensor:
    """Inverse of `_join`."""
    shifts = torch.arange(8, dtype=torch.int64) * 4
    wide = words.to(torch.int64).unsqueeze(axis) >> shifts.reshape(
        [-1 if i == axis else 1 for i in range(words.ndim + 1)]
    )
    return (wide & 15).to(torch.int32)


def _with_template(content: bytes) -> bytes:
    """Exporters ask for a chat template even of a model that is never chatted with."""
    raw = json.loads(content)
    raw.setdefault("chat_template", PLAIN_TEMPLATE)
    return json.dumps(raw, indent=1).encode()
