"""The full-size policy on this CPU: random weights, int4 decoder, from process start to actions, engine beside engine.

    python benchmarks/bench_7b_cpu.py --work /tmp/athena-7b                    # one-pass family; writes 7b_cpu.json
    python benchmarks/bench_7b_cpu.py --work /tmp/athena-7b-ar --family openvla   # autoregressive: tokens per second

Weights are random, so only times and memory mean anything. Each engine runs in a process of its own, which measures
from its own start. Rivals: OpenVINO on the same graphs, and llama.cpp's Q4_0 of the same shape where llama-cpp-python
and a GGUF file (--gguf) are there; otherwise the result says not run. Needs 12 GB of disk and 8 GB of memory.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("7b_cpu.json")
STARTED = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the bundles, kept between runs")
    parser.add_argument("--family", default="openvla_chunk")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--gguf", type=Path, help="Llama-2-7B shape in Q4_0 for llama.cpp")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--small", action="store_true", help="a model of a few MB, to try the script itself")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.work / "exported", options.one, options.threads, options.runs)))
        return
    report: dict[str, Any] = {"command": sys.argv, "family": options.family, "prepare": prepare(options)}
    from athena_vla.bench import facts

    report["device"] = facts.device_facts()
    report["read_bandwidth_gbs"] = bandwidth(options.threads)
    report["engines"] = {name: in_process(options, name) for name in options.engines}
    report["llama_cpp"] = llama_cpp(options.gguf, options.threads, options.runs)
    weights = report["prepare"]["decoder_bytes"]
    for entry in report["engines"].values():
        rate = entry.get("decode_tokens_per_second")
        if rate:
            entry["share_of_bandwidth"] = rate * weights / 1e9 / report["read_bandwidth_gbs"]
    report["targets"] = {"decode_share": 0.85, "first_action_seconds": 20.0, "resident_gb": 6.0}
    report["kind"] = "measured_here"
    options.out.write_text(json.dumps(report, indent=1, sort_keys=True))
    print(json.dumps(report, indent=1, sort_keys=True))


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """A quantised bundle of random codes, and its ONNX export; reused where it is there."""
    note = options.work / "prepare.json"
    if note.is_file():
        return {**json.loads(note.read_text()), "reused": True}
    import numpy as np
    import torch

    from athena_vla import bundle as bundles
    from athena_vla import embodiment
    from athena_vla.bundle import Bundle, Golden, Manifest
    from athena_vla.data.normalize import NormalizerFit
    from athena_vla.export import ExportConfig, export
    from athena_vla.models import sizes
    from athena_vla.models.store import StoreWriter

    robot = embodiment.load("athena")
    one_pass = options.family != "openvla"
    horizon = 16 if one_pass else 1
    wanted: dict[str, Any] = {"action_dim": robot.action_dim, "state_dim": robot.state_dim, "horizon": horizon}
    if options.small:
        module = importlib.import_module(f"athena_vla.models.{options.family}")
        spec = module.tiny_spec(**wanted, cameras=1, mlp_width=256)
    else:
        spec = sizes.full_size(options.family, **wanted, cameras=1)
    robot = one_camera(robot)
    model = sizes.weightless(options.family, spec)
    fit = NormalizerFit(robot)
    states = torch.rand(64, robot.state_dim).numpy() * (robot.upper - robot.lower) + robot.lower
    fit.add(states[:, None, robot.action_index].repeat(horizon, axis=1), states)
    generator = torch.Generator().manual_seed(0)
    manifest = Manifest(
        stage="quantized",
        family=options.family,
        spec=spec.to_dict(),
        robot=robot.to_dict(),
        normalizer=fit.finish().to_dict(),
    )
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    heads = tuple(f"{h}." for h in model.head_modules())
    start, decoder_bytes = time.perf_counter(), 0
    # Random weights have no golden answer; the frame is there so that the bundle is complete.
    golden = Golden((frame_of(robot),), np.zeros((1, horizon, robot.action_dim)))
    with bundles.writing(options.work / "quantized", manifest, golden, model.tokenizer_files()) as folder:
        writer = StoreWriter(folder / "weights")
        for name, tensor in model.state_dict().items():
            decoder = name in linear and ".layers." in name
            if decoder or (name in linear and not name.startswith(heads) and "lm_head" not in name):
                weight = random_packed(tuple(tensor.shape), 4 if decoder else 8, generator)
                decoder_bytes += weight.bytes if decoder else 0
                writer.add(name, weight)
            elif tensor.ndim < 2:
                writer.add(name, torch.ones(tensor.shape) if "norm" in name else torch.zeros(tensor.shape))
            else:
                writer.add(name, (torch.randn(tensor.shape, generator=generator) * 0.02).half())
        writer.close()
    written = time.perf_counter() - start
    start = time.perf_counter()
    export(
        ExportConfig(
            input=options.work / "quantized",
            out=options.work / "exported",
            accuracy="int8",
            compare=False,
            fixed_batch=True,
        )
    )
    size = sum(f.stat().st_size for f in (options.work / "exported" / "weights").iterdir())
    record = {
        "write_random_seconds": written,
        "export_seconds": time.perf_counter() - start,
        "exported_bytes": size,
        "decoder_bytes": decoder_bytes,
        "bundle": Bundle.open(options.work / "exported", verify=False).hash,
        "peak_resident_gb": peak_gb(),
    }
    note.write_text(json.dumps(record))
    return record


def one_camera(robot: Any) -> Any:
    """The robot with its first camera only."""
    raw = robot.to_dict()
    raw["cameras"] = raw["cameras"][:1]
    return type(robot).from_dict(raw)


def frame_of(robot: Any) -> Any:
    """A random image and the resting pose."""
    import numpy as np

    from athena_vla.embodiment import Observation

    camera = robot.cameras[0]
    image = np.random.default_rng(0).integers(0, 255, (camera.height, camera.width, 3), dtype=np.uint8)
    return Observation({camera.name: image}, robot.default.copy(), "pick up the red cube and put it into the box")


def random_packed(shape: tuple[int, ...], bits: int, generator: Any) -> Any:
    import torch

    from athena_vla.models.packed import Packed

    rows, columns = shape
    group = 128 if bits == 4 else columns
    low, high = (-8, 8) if bits == 4 else (-127, 128)
    codes = torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8)
    scale = columns**-0.5 / (4 if bits == 4 else 73)  # unit gain: a code's standard deviation is about 4.6 or 73
    return Packed(codes, torch.full((rows, columns // group), scale).half(), 4 if bits == 4 else 8)


def in_process(options: argparse.Namespace, engine: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", str(options.work), "--one", engine]
    command += ["--threads", str(options.threads), "--runs", str(options.runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        return {"status": "failed", "problem": done.stderr.strip().splitlines()[-1:]}
    return {"status": "measured here", **json.loads(done.stdout.strip().splitlines()[-1])}


def run_one(folder: Path, engine: str, threads: int, runs: int) -> dict[str, Any]:
    """From this process's start to the first action, then steady state by stage."""
    import numpy as np
    import torch

    from athena_vla.bundle import Bundle
    from athena_vla.policy import Policy

    torch.set_num_threads(threads)
    bundle = Bundle.open(folder, verify=False)  # hashing 5 GB is a matter of loading, timed separately
    times: dict[str, list[float]] = {}
    policy = Policy.of(bundle, engine, threads)  # pyright: ignore[reportArgumentType]
    inner = policy.run

    def run(name: str, inputs: Any) -> Any:
        start = time.perf_counter()
        outputs = inner(name, inputs)
        times.setdefault(name, []).append(time.perf_counter() - start)
        return outputs

    policy = Policy(policy.robot, policy.normalizer, policy.model, run)
    frame = frame_of(policy.robot)
    policy.act(frame)
    first = time.perf_counter() - STARTED
    times.clear()
    whole = []
    for _ in range(runs):
        start = time.perf_counter()
        policy.act(frame)
        whole.append(time.perf_counter() - start)
    stages = {n: {"median_s": float(np.median(v)), "best_s": min(v), "samples_s": v} for n, v in times.items()}
    result = {
        "first_action_seconds": first,
        "act_median_s": float(np.median(whole)),
        "act_best_s": min(whole),
        "stages": stages,
        "peak_resident_gb": peak_gb(),
        "threads": threads,
    }
    if "step" in times:
        result["decode_tokens_per_second"] = 1.0 / float(np.median(times["step"]))
    return result


def bandwidth(threads: int) -> float:
    """[GB/s] best of several sums over 2 GB, much larger than the caches."""
    import torch

    torch.set_num_threads(threads)
    block = torch.ones(500_000_000, dtype=torch.float32)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        best = max(best, block.numel() * 4 / (time.perf_counter() - start) / 1e9)
    return best


def llama_cpp(gguf: Path | None, threads: int, runs: int) -> dict[str, Any]:
    try:
        from llama_cpp import Llama
    except ImportError:
        return {"status": "not run", "reason": "llama-cpp-python is not installed"}
    if gguf is None:
        return {"status": "not run", "reason": "no --gguf file was given"}
    model = Llama(str(gguf), n_ctx=512, n_threads=threads, n_batch=512, verbose=False)
    prompt = list(range(5, 293))
    prefill = []
    for _ in range(max(2, runs // 3)):
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        prefill.append(time.perf_counter() - start)
    start = time.perf_counter()
    for i in range(22):
        model.eval([100 + i])
    return {
        "status": "measured here",
        "prefill_288_best_s": min(prefill),
        "decode_tokens_per_second": 22 / (time.perf_counter() - start),
    }


def peak_gb() -> float:
    from athena_vla.bench.facts import peak_memory_gb

    return peak_memory_gb()


if __name__ == "__main__":
    main()
