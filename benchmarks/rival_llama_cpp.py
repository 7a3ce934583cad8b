"""llama.cpp on a Llama-2-7B shape in Q4_0, random weights: load, a pass over a prompt, single tokens. Prints JSON.

    python rival_llama_cpp.py --gguf FILE [--small] [--threads 2] [--prompt 306] [--tokens 22] [--runs 3]

Runs in an environment of its own that has `llama-cpp-python` and `gguf`; writes FILE (3.9 GB) where it is not there.
"""

import argparse
import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

STARTED = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=306)
    parser.add_argument("--tokens", type=int, default=22)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--plain-buffers", action="store_true", help="without weights repacked for wide instructions")
    options = parser.parse_args()
    if not options.gguf.is_file():
        write(options.gguf, (4096, 11008, 2, 32) if options.small else (4096, 11008, 32, 32))
    if not options.write_only:
        print(json.dumps(measure(options)))


def write(path: Path, shape: tuple[int, int, int, int]) -> None:
    """Random blocks; 4-bit decoder and token table, 6-bit output, as llama.cpp's own Q4_0 files have them."""
    import gguf

    width, mlp, layers, heads = shape
    noise = np.random.default_rng(0).integers(0, 256, 1 << 24, dtype=np.uint8)  # repeated: times do not depend on it
    writer = gguf.GGUFWriter(str(path.with_suffix(".part")), "llama", use_temp_file=False)
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(32064)
    writer.add_tokenizer_model("no_vocab")
    q4, q6 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q6_K

    def quantized(name: str, rows: int, columns: int, kind: Any, size: int, block: int, scale_at: int) -> None:
        raw = np.resize(noise, (rows, columns // block, size))
        raw[..., scale_at : scale_at + 2] = np.array([columns**-0.5 / 60], np.float16).view(np.uint8)
        writer.add_tensor(name, raw.reshape(rows, -1), raw_dtype=kind)

    def four(name: str, rows: int, columns: int) -> None:
        quantized(name, rows, columns, q4, 18, 32, 0)

    four("token_embd.weight", 32064, width)
    for i in range(layers):
        for name, rows, columns in (
            *((f"attn_{n}", width, width) for n in ("q", "k", "v", "output")),
            ("ffn_gate", mlp, width),
            ("ffn_up", mlp, width),
            ("ffn_down", width, mlp),
        ):
            four(f"blk.{i}.{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(width, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    quantized("output.weight", 32064, width, q6, 210, 256, 208)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import llama_cpp as api

    api.llama_backend_init()
    settings = api.llama_model_default_params()
    settings.use_extra_bufts = not options.plain_buffers
    model = api.llama_model_load_from_file(str(options.gguf).encode(), settings)
    if not model:
        sys.exit(f"llama.cpp cannot load '{options.gguf}'")
    context_settings = api.llama_context_default_params()
    context_settings.n_ctx, context_settings.n_batch, context_settings.n_ubatch = 512, 512, 512
    context_settings.n_threads = context_settings.n_threads_batch = options.threads
    context = api.llama_init_from_model(model, context_settings)
    memory = api.llama_get_memory(context)

    def run(tokens: list[int]) -> float:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        start = time.perf_counter()
        status = api.llama_decode(context, api.llama_batch_get_one(array, len(tokens)))
        api.llama_synchronize(context)
        assert status == 0, status
        return time.perf_counter() - start

    prompt = list(range(5, 5 + options.prompt))
    first = run(prompt)
    until_first = time.perf_counter() - STARTED
    prefill, steps = [], []
    for _ in range(options.runs):
        api.llama_memory_clear(memory, True)
        prefill.append(run(prompt))
        steps += [run([100 + i]) for i in range(options.tokens)]
    return {
        "status": "measured here",
        "version": api.__version__,
        "system": api.llama_print_system_info().decode(),
        "file_bytes": os.path.getsize(options.gguf),
        "seconds_to_first_pass": until_first,
        "first_pass_s": first,
        "pass_tokens": options.prompt,
        "pass_median_s": float(np.median(prefill)),
        "pass_samples_s": prefill,
        "decode_tokens_per_second": 1.0 / float(np.median(steps)),
        "decode_best_tokens_per_second": 1.0 / min(steps),
        "step_samples_s": steps,
        "peak_resident_gb": status_gb("VmHWM"),
        "anonymous_gb": status_gb("RssAnon"),
        "threads": options.threads,
        "repacked_weights": not options.plain_buffers,
    }


def status_gb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024e-9


if __name__ == "__main__":
    main()
