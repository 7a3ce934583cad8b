"""Build TensorRT engines from the ONNX graphs of this bundle, on the device they will run on. Standalone.

    python3 device/build_on_device.py [--graph NAME] [--trtexec]

Writes weights/NAME.plan and weights/engines.json. Strongly typed: the types in the graph are the types that run; there
are no --fp16 or --int8 flags any more. After each build the engine is inspected, because a build with INT4 weights can
succeed and silently run 16-bit kernels. Exit status: 0 all built and checked, 3 no TensorRT (the ONNX graphs are the
fallback), 4 an engine that is not what was asked for, 1 a build that failed.
"""

import argparse
import ctypes
import gc
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "weights"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", action="append", help="only this graph; may be repeated")
    parser.add_argument("--trtexec", action="store_true", help="print the equivalent trtexec commands and stop")
    options = parser.parse_args()
    settings = json.loads((HERE / "engines.json").read_text())
    names = options.graph or sorted(settings["graphs"])
    unknown = [n for n in names if n not in settings["graphs"]]
    if unknown:
        print(f"No graph {unknown}; there are {sorted(settings['graphs'])}.", file=sys.stderr)
        return 1
    if options.trtexec:
        for name in names:
            print(" ".join(trtexec_command(settings, name)))
        return 0
    try:
        import tensorrt
    except ImportError:
        return report({"engine": "onnx", "reason": "TensorRT is not installed: the ONNX graphs are the fallback"}, 3)
    result = {"engine": "tensorrt", "tensorrt": tensorrt.__version__, "device": device(), "graphs": {}}
    status = 0
    for name in names:
        try:
            entry = build(tensorrt, settings, name)
        except Exception as error:  # every reason is reported under the graph's name
            entry = {"status": "failed", "problem": f"{type(error).__name__}: {error}"}
        result["graphs"][name] = entry
        print(f"{name}: {entry['status']} {entry.get('problem', '')}", flush=True)
        status = max(status, {"built": 0, "failed": 1, "suspicious": 4}[entry["status"]])
    return report(result, status)


def build(tensorrt, settings: dict, name: str) -> dict:
    graph = settings["graphs"][name]
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    # From TensorRT 11 on every network is strongly typed and the flag is gone.
    flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = tensorrt.OnnxParser(network, logger)
    # By path, not by bytes: the weights lie in an external file beside the graph.
    if not parser.parse_from_file(str(WEIGHTS / graph["onnx"])):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        return {"status": "failed", "problem": f"the parser refuses {graph['onnx']}: {errors}"}
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, settings["workspace_mb"] << 20)
    config.builder_optimization_level = settings["optimization_level"]
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    for ranges in graph["profiles"]:
        profile = builder.create_optimization_profile()
        for port, (low, typical, high) in ranges.items():
            profile.set_shape(port, tuple(low), tuple(typical), tuple(high))
        config.add_optimization_profile(profile)
    cache_file = WEIGHTS / "timing.cache"
    cache = config.create_timing_cache(cache_file.read_bytes() if cache_file.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    started = time.time()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"status": "failed", "problem": "the builder returned no engine; see its messages above"}
    write(cache_file, memoryview(config.get_timing_cache().serialize()))
    # The plan is written from where it lies, and all that built it goes before the engine is opened: on a board
    # processor and GPU share one memory, and each of them is as large as the weights.
    write(WEIGHTS / f"{name}.plan", memoryview(plan))
    del plan, cache, config, parser, network, builder
    gc.collect()
    layers = inspect(tensorrt, logger, WEIGHTS / f"{name}.plan")
    write(WEIGHTS / f"{name}.layers.json", json.dumps(layers, indent=1).encode())
    entry = {
        "status": "built",
        "seconds": time.time() - started,
        "bytes": (WEIGHTS / f"{name}.plan").stat().st_size,
        "onnx_sha256": sha256(WEIGHTS / graph["onnx"]),
        "plan_sha256": sha256(WEIGHTS / f"{name}.plan"),
        "tensorrt": tensorrt.__version__,
        "device": device(),
    }
    problem = suspicion(entry["bytes"], graph, layers)
    return {**entry, "status": "suspicious", "problem": problem} if problem else entry


def suspicion(size: int, graph: dict, layers: list) -> str:
    """Why an engine is probably not what the graph asks for; empty if nothing is wrong."""
    if size > 1.5 * graph["weight_bytes"] + (64 << 20):
        return (
            f"the engine has {size / 1e9:.2f} GB, the graph's weights {graph['weight_bytes'] / 1e9:.2f} GB: "
            "weights were probably unpacked to 16 bits"
        )
    wide = [layer for layer in layers if "tf32" in str(layer).lower() or "f32f32_f32f32" in str(layer).lower()]
    if graph["precision"] == "float16" and len(wide) > max(4, len(layers) // 10):
        return f"{len(wide)} of {len(layers)} layers run 32-bit kernels although the graph is 16-bit; see layers.json"
    return ""


def inspect(tensorrt, logger, plan: pathlib.Path) -> list:
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise RuntimeError(f"{plan.name} cannot be loaded by the runtime that built it")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON)
    return json.loads(text).get("Layers", [])


def trtexec_command(settings: dict, name: str) -> list:
    graph = settings["graphs"][name]
    command = [
        "trtexec",
        f"--onnx=weights/{graph['onnx']}",
        "--stronglyTyped",
        f"--saveEngine=weights/{name}.plan",
        f"--memPoolSize=workspace:{settings['workspace_mb']}",
        f"--builderOptimizationLevel={settings['optimization_level']}",
        "--timingCacheFile=weights/timing.cache",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo=weights/{name}.layers.json",
    ]
    for i, ranges in enumerate(graph["profiles"]):
        command.append(f"--profile={i}")
        for kind, column in (("min", 0), ("opt", 1), ("max", 2)):
            shapes = ",".join(f"{port}:{'x'.join(map(str, rows[column]))}" for port, rows in ranges.items())
            command.append(f"--{kind}Shapes={shapes}")
    return command


def device() -> dict:
    """What this machine is; the word Jetson only where the device tree says so."""
    tree = pathlib.Path("/proc/device-tree/model")
    model = tree.read_text(errors="replace").strip("\0\n ") if tree.is_file() else ""
    found = {"model": model or os.uname().machine, "jetson": "jetson" in model.lower(), "gpu": "", "sm": ""}
    release = pathlib.Path("/etc/nv_tegra_release")
    if release.is_file():
        found["l4t"] = release.read_text().splitlines()[0]
    found["gpu"], found["sm"] = gpu()
    questions = {
        "power_mode": ["nvpmodel", "-q"],
        "driver": ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
    }
    for key, command in questions.items():
        try:
            found[key] = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            found[key] = ""
    return found


def gpu() -> tuple:
    """Name and compute capability of the first GPU as its driver says them; empty without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "", ""
    handle, name, numbers = ctypes.c_int(0), ctypes.create_string_buffer(256), []
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(handle), 0):
        return "", ""
    cuda.cuDeviceGetName(name, 256, handle)
    for attribute in (75, 76):  # compute capability: major, minor
        value = ctypes.c_int(0)
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        numbers.append(value.value)
    return name.value.decode(errors="replace"), "".join(map(str, numbers))


def report(result: dict, status: int) -> int:
    result["exit_status"] = status
    write(WEIGHTS / "engines.json", json.dumps(result, indent=1, sort_keys=True).encode())
    print(json.dumps(result, indent=1, sort_keys=True))
    return status


def write(path: pathlib.Path, content) -> None:
    temporary = path.with_name("." + path.name)
    temporary.write_bytes(content)
    os.replace(temporary, path)


def sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
