"""Engines on the full-size bundles: whole actions from process start, bare layers, and the settings to choose from.

Used by bench_7b_cpu.py, one call per process. Knows bundles and engines, not how they were made.
"""
# onnx takes an operator's attributes as keywords of any name.
# pyright: reportArgumentType=false

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np


def act(folder: Path, engine: str, threads: int, runs: int, started: float) -> dict[str, Any]:
    """From this process's start to the first action, then whole actions and their stages."""
    import torch

    from athena_vla.bundle import Bundle
    from athena_vla.models.contract import Tapped
    from athena_vla.models.loops.shared_loop import stage_of
    from athena_vla.policy import Policy

    torch.set_num_threads(threads)
    bundle = Bundle.open(folder, verify=False)  # hashing 5 GB is timed by itself below
    times: dict[str, list[float]] = {}
    policy = Policy.of(bundle, engine, threads)  # pyright: ignore[reportArgumentType]
    inner = policy.engine

    def run(name: str, inputs: Any) -> Any:
        start = time.perf_counter()
        outputs = inner.run(name, inputs)
        times.setdefault(stage_of(name, inputs), []).append(time.perf_counter() - start)
        return outputs

    policy = replace(policy, engine=Tapped(inner, run))
    frame = bundle.golden.observations[0]
    policy.act(frame)
    first = time.perf_counter() - started
    first_stages = {k: v[0] for k, v in times.items()}
    times.clear()
    whole = [timed(lambda: policy.act(frame)) for _ in range(runs)]
    start = time.perf_counter()
    bundle.verify()
    result: dict[str, Any] = {
        "status": "measured here",
        "first_action_seconds": first,
        "first_calls_s": first_stages,
        "verify_hashes_seconds": time.perf_counter() - start,
        "act_median_s": float(np.median(whole)),
        "act_best_s": min(whole),
        "act_samples_s": whole,
        "stages": {name: spread(samples) for name, samples in times.items()},
        "peak_resident_gb": status_gb("VmHWM"),
        "resident_gb": status_gb("VmRSS"),
        "anonymous_gb": status_gb("RssAnon"),
        "threads": threads,
        "settings": {k: bundle.manifest.stage_info.get(k) for k in ("accuracy_level", "session", "openvino")},
    }
    if "step" in times:
        result["decode_tokens_per_second"] = 1.0 / float(np.median(times["step"]))
        result["decode_best_tokens_per_second"] = 1.0 / min(times["step"])
        result["bytes_per_token"] = bytes_per_token(bundle)
    return result


def bytes_per_token(bundle: Any) -> int:
    """What one token must read in the canonical form: int4 codes with fp16 scales, the cache in fp16, 256 rows."""
    text = bundle.spec.body.text
    width, kv = text.width, text.kv_heads * text.head_width
    weights = text.layers * (2 * width * text.heads * text.head_width + 2 * width * kv + 3 * width * text.mlp_width)
    prompt = 1 + bundle.spec.body.patches + 30
    cache = 2 * text.layers * kv * (prompt + bundle.spec.action_dim // 2) * 2
    return int(weights * 4.125 / 8 + 256 * width * 2 + cache)


DEPTH, STEPS = 288, 22  # rows in the cache before decoding, and tokens that are decoded


def beside_llama_bench(folder: Path, program: str, threads: int, runs: int) -> dict[str, Any]:
    """Decoding one token after the other through our engine, and by llama.cpp's own program, on one file, in turn."""
    import json
    import subprocess

    from athena_vla.bundle import Bundle
    from athena_vla.engines.llama_cpp_engine import FILE, LlamaCpp

    bundle = Bundle.open(folder, verify=False)
    info = bundle.manifest.stage_info
    decoder = LlamaCpp(folder / "weights", info, threads, "cpu")._decoder  # the graphs beside it are not measured here
    draw = np.random.default_rng(0)
    prompt, row = (draw.normal(size=(n, info["llama"]["width"])).astype(np.float32) for n in (DEPTH, 1))
    cache = info["llama"]["cache"]
    words = [program, "-m", str(folder / "weights" / FILE), "-p", "0", "-n", str(STEPS), "-d", str(DEPTH), "-r", "1"]
    # Fused attention rounds to 16 bits on a processor: the engine leaves it out there, and so does the rival here.
    words += ["-t", str(threads), "-ctk", cache, "-ctv", cache, "-fa", "off", "-o", "json"]
    ours, theirs, said = list[float](), list[float](), dict[str, Any]()
    for _ in range(runs):
        decoder.logits(prompt, 0)
        start = time.perf_counter()
        for i in range(STEPS):
            decoder.logits(row, DEPTH + i)
        ours.append(STEPS / (time.perf_counter() - start))
        said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)[-1]
        theirs.append(float(said["avg_ts"]))
    return {
        "status": "measured here",
        "depth": DEPTH,
        "tokens": STEPS,
        "threads": threads,
        "ours [tokens/s]": ours,
        "llama-bench [tokens/s]": theirs,
        "share of llama-bench, median of pairs": float(np.median(np.divide(ours, theirs))),
        "llama-bench": {k: said.get(k) for k in ("build_commit", "build_number", "backends", "flash_attn", "cpu_info")},
    }


ROWS = (1, 306)  # of a decoding step, and of a chunk's pass


def bare(folder: Path, engine: str, threads: int, runs: int) -> dict[str, Any]:
    """Only the decoder's 4-bit layers, one after the other: what an engine can reach at best with the same weights."""
    call, layers = bare_packed(folder, threads) if engine == "packed" else bare_graph(folder, engine, threads)
    result: dict[str, Any] = {"status": "measured here", "layers": layers, "threads": threads}
    call(306)
    result["rows_306"] = spread([timed(lambda: call(306)) for _ in range(max(2, runs - 1))])
    result["peak_resident_gb"] = status_gb("VmHWM")
    if engine != "openvino":  # which decodes no tokens here
        result |= one_row(lambda: call(1), 4 * runs, threads)
    return result


def one_row(call: Callable[[], None], runs: int, threads: int) -> dict[str, Any]:
    """A decoding step's layers, in turns with reading memory: what a shared machine reads changes by the second."""
    import read_bandwidth

    block = np.ones(1 << 28, dtype=np.float32)
    probes = list(read_bandwidth.kernels(block, threads).values())
    call()
    samples, rates = [], []
    for _ in range(runs):
        samples.append(timed(call))
        rates.append(block.nbytes / min(timed(probe) for probe in probes) / 1e9)
    return {"rows_1": spread(samples), "read_between_gbs": {"median": float(np.median(rates)), "best": max(rates)}}


def spread(samples: list[float]) -> dict[str, Any]:
    return {"median_s": float(np.median(samples)), "best_s": min(samples), "n": len(samples)}


def bare_packed(folder: Path, threads: int) -> tuple[Callable[[int], None], int]:
    import torch

    from athena_vla.bundle import Bundle
    from athena_vla.models.weights.packed_linear import PackedLinear

    torch.set_num_threads(threads)
    model = Bundle.open(folder, verify=False).packed_model()
    layers = [m for m in model.modules() if isinstance(m, PackedLinear) and m.bits == 4]
    inputs = {(r, k): torch.randn(r, k).bfloat16() for r in ROWS for k in {m.in_features for m in layers}}

    def call(rows: int) -> None:
        with torch.inference_mode():
            for layer in layers:
                layer(inputs[rows, layer.in_features])

    return call, len(layers)


def bare_graph(folder: Path, engine: str, threads: int) -> tuple[Callable[[int], None], int]:
    import onnx
    from onnx import TensorProto, helper

    from athena_vla.bundle import Bundle
    from athena_vla.engines.onnxruntime_engine import OnnxRuntime
    from athena_vla.engines.openvino_engine import OpenVino

    info = Bundle.open(folder, verify=False).manifest.stage_info
    model = onnx.load(str(folder / "weights" / "language.onnx"), load_external_data=False)
    layers = [n for n in model.graph.node if n.op_type == "MatMulNBits" and _attribute(n, "bits") == 4]
    sizes = sorted({_attribute(n, "K") for n in layers})
    used = {name for n in layers for name in n.input[1:]}
    inputs = [helper.make_tensor_value_info(f"x{k}", 1, ["rows", k]) for k in sizes]
    first_row = helper.make_tensor("first_row", TensorProto.INT64, (1,), [0])
    nodes, outputs = [], []
    for n in layers:
        n.input[0] = f"x{_attribute(n, 'K')}"
        row = f"{n.output[0]}_row"  # whole outputs would be copied out of the engine, which no pass does
        nodes += [n, helper.make_node("Gather", [n.output[0], "first_row"], [row], axis=0)]
        outputs.append(helper.make_tensor_value_info(row, 1, [1, _attribute(n, "N")]))
    constants = [t for t in model.graph.initializer if t.name in used]
    graph = helper.make_graph(nodes, "bare", inputs, outputs, [*constants, first_row])
    file = folder / "weights" / "bare.onnx"
    onnx.save(helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), str(file))
    try:
        kind = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}[engine]
        runner = kind(folder / "weights", info, threads, "cpu")
        runner.load("bare")
    finally:
        file.unlink()
    random = np.random.default_rng(0)
    feeds = {r: {f"x{k}": random.normal(size=(r, k)).astype(np.float32) for k in sizes} for r in ROWS}

    def call(rows: int) -> None:
        runner.run("bare", feeds[rows])

    return call, len(layers)


def settings(threads: int, small: bool) -> dict[str, Any]:
    """Two layers' 4-bit matrices with every combination of block size, accuracy level and threads, in ONNX Runtime."""
    width, mlp = (256, 512) if small else (4096, 11008)
    rows: list[dict[str, Any]] = []
    for block in (32, 64, 128):
        for accuracy in (1, 4):
            for count in sorted({1, threads}):
                call = nbits_layers(width, mlp, block, accuracy, count)
                for tokens, repeats in ((1, 12), (306, 2)):
                    samples = [call(tokens) for _ in range(repeats + 1)][1:]
                    rows.append(
                        {"block": block, "accuracy": accuracy, "threads": count, "rows": tokens}
                        | {"median_ms": 1e3 * float(np.median(samples)), "best_ms": 1e3 * min(samples)}
                    )
    return {"status": "measured here", "layers": 2, "rows": rows}


def nbits_layers(width: int, mlp: int, block: int, accuracy: int, threads: int) -> Callable[[int], float]:
    """Seconds of one pass over two layers' matrices, as a function of the number of rows."""
    import onnxruntime
    from onnx import TensorProto, helper

    shapes = [(width, width)] * 4 + [(mlp, width)] * 2 + [(width, mlp)]
    random, nodes, constants, outputs = np.random.default_rng(0), [], [], []
    for i, (n, k) in enumerate(shapes * 2):
        raw = random.integers(0, 256, n * k // 2, dtype=np.uint8)
        shape = (n, k // block, block // 2)
        constants.append(helper.make_tensor(f"w{i}", TensorProto.UINT8, shape, raw.tobytes(), raw=True))
        scales = np.full(n * k // block, 0.01, np.float32)
        constants.append(helper.make_tensor(f"s{i}", TensorProto.FLOAT, scales.shape, scales.tobytes(), raw=True))
        options = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": accuracy}
        nodes.append(helper.make_node("MatMulNBits", [f"x{k}", f"w{i}", f"s{i}"], [f"y{i}"], **MS, **options))
        outputs.append(helper.make_tensor_value_info(f"y{i}", 1, ["rows", n]))
    inputs = [helper.make_tensor_value_info(f"x{k}", 1, ["rows", k]) for k in sorted({width, mlp})]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads, session_options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options, providers=["CPUExecutionProvider"]
    )

    def run(rows: int) -> float:
        feed = {f"x{k}": np.ones((rows, k), np.float32) for k in sorted({width, mlp})}
        return timed(lambda: session.run(None, feed))

    return run


MS = {"domain": "com.microsoft"}


def timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def status_gb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024e-9


def _attribute(node: Any, name: str) -> int:
    return next(a.i for a in node.attribute if a.name == name)
