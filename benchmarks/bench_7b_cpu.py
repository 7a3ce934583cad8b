"""The full-size policy on this CPU: from a random checkpoint to int4 to actions, engine beside engine.

    python scripts/write_random_7b.py --out runs/openvla-7b-random            # 15 GB, once
    python benchmarks/bench_7b_cpu.py --checkpoint runs/openvla-7b-random        # writes 7b_cpu.json, works in runs/7b
    python benchmarks/bench_7b_cpu.py --small --work /tmp/athena-small --out /tmp/small.json  # tries the script itself

Weights are random, so only times and memory mean anything. Every part runs in a process of its own, which counts from
its own start, and leaves its result in WORK/parts: the same command goes on where it stopped, `--parts` names some.
Rivals on the same shapes: llama.cpp's Q4_0 (--llama-python, an environment with llama-cpp-python and gguf), the bare
4-bit layers of every engine. Without --checkpoint nothing is measured, and that is said.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
OUT = Path(__file__).with_name("7b_cpu.json")
PARTS = (
    "prepare",
    "bandwidth",
    "settings",
    "llama_cpp",
    "chunk:packed",
    "chunk:onnxruntime",
    "chunk:openvino",
    "tokens:packed",
    "tokens:onnxruntime",
    "chunk:llama.cpp",
    "tokens:llama.cpp",
    "llama_bench",
    "bare:packed",
    "bare:onnxruntime",
    "bare:openvino",
    "bandwidth_after",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder of the random checkpoint")
    parser.add_argument("--work", type=Path, default=Path("runs/7b"), help="40 GB on the way, 24 kept")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--again", action="store_true", help="measure the named parts anew")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--vision-bits", type=int, default=8, choices=(8, 16))
    parser.add_argument("--llama-python", help="python with llama-cpp-python and gguf")
    parser.add_argument("--llama-bench", help="llama.cpp's own llama-bench, of the version that llama-cpp-python holds")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--small", action="store_true", help="a model of a few MB")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [p for p in options.parts if p not in PARTS]
    if unknown:
        sys.exit(f"bench_7b_cpu: no parts {unknown}; there are {', '.join(PARTS)}.")
    if options.checkpoint is None and not options.small and not (options.work / "prepare.json").is_file():
        print("bench_7b_cpu: not run. It needs --checkpoint, 15 GB that scripts/write_random_7b.py writes.")
        return
    if options.one:
        result = one(options, options.one)
        place = options.work / "parts" / f"{options.one.replace(':', '-')}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(result, indent=1))
        return
    for part in options.parts:
        in_process(options, part)
    report = assemble(options)
    options.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "parts"}, indent=1, sort_keys=True))


def in_process(options: argparse.Namespace, part: str) -> None:
    place = options.work / "parts" / f"{part.replace(':', '-')}.json"
    if place.is_file() and not options.again:
        return
    words = [f"--{k.replace('_', '-')}={v}" for k in KEPT if (v := getattr(options, k)) is not None]
    command = [sys.executable, __file__, *words, *(["--small"] if options.small else []), "--one", part]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    kind, _, engine = part.partition(":")
    dropped = kind in FAMILIES and drop_from_cache(folder(options, kind, engine))
    start = time.perf_counter()
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    print(f"{part}: {time.perf_counter() - start:.0f} s, status {done.returncode}", flush=True)
    if done.returncode:
        print(done.stderr[-2000:], flush=True)
    elif kind in FAMILIES:
        place.write_text(json.dumps(json.loads(place.read_text()) | {"dropped_from_page_cache": dropped}, indent=1))


def folder(options: argparse.Namespace, kind: str, engine: str) -> Path:
    """The bundle an engine runs: exported, or quantised for the one that runs weights as they are stored."""
    quantized = {"chunk": "int4-chunk", "tokens": "int4"}
    return options.work / {"packed": quantized[kind], "llama.cpp": f"{kind}-llama"}.get(engine, kind)


def drop_from_cache(where: Path) -> bool:
    """Ask the kernel to forget the bundle's files, so that a first action starts from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in (f for f in where.rglob("*") if f.is_file()):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


FAMILIES = ("chunk", "tokens")
KEPT = ("checkpoint", "work", "threads", "runs", "vision_bits", "llama_python", "llama_bench")


def one(options: argparse.Namespace, part: str) -> dict[str, Any]:
    """One part, in this process."""
    sys.path.insert(0, str(Path(__file__).parent))
    kind, _, engine = part.partition(":")
    if kind in ("bandwidth", "bandwidth_after"):
        import read_bandwidth

        return read_bandwidth.measure(options.threads)
    if kind == "prepare":
        import seven_b

        return seven_b.prepare(options.checkpoint, options.work, options.small, options.vision_bits)
    if kind == "llama_cpp":
        return llama_cpp(options)
    import seven_b_engines as engines

    if kind == "settings":
        return engines.settings(options.threads, options.small)
    if kind == "llama_bench":
        if options.llama_bench is None:
            return {"status": "not run", "reason": "no --llama-bench was given"}
        return engines.beside_llama_bench(
            folder(options, "tokens", "llama.cpp"), options.llama_bench, options.threads, options.runs
        )
    if kind == "bare":
        return engines.bare(folder(options, "chunk", engine), engine, options.threads, options.runs)
    return engines.act(folder(options, kind, engine), engine, options.threads, options.runs, STARTED)


def llama_cpp(options: argparse.Namespace) -> dict[str, Any]:
    if options.llama_python is None:
        return {"status": "not run", "reason": "no --llama-python was given"}
    script = Path(__file__).with_name("rival_llama_cpp.py")
    command = [options.llama_python, str(script), "--gguf", str(options.work / "q4_0.gguf")]
    command += ["--threads", str(options.threads), "--runs", str(max(2, options.runs // 2))]
    command += ["--small"] if options.small else []
    done = subprocess.run(command, capture_output=True, text=True)
    note = {}
    if done.returncode < 0:  # its AMX kernels crash on some virtual machines
        note = {"with_repacked_weights": f"ended by signal {-done.returncode}"}
        done = subprocess.run([*command, "--plain-buffers"], capture_output=True, text=True)
    if done.returncode:
        return {"status": "failed", "problem": f"status {done.returncode}: {done.stderr.strip()[-300:]}"}
    return json.loads(done.stdout.strip().splitlines()[-1]) | note


def assemble(options: argparse.Namespace) -> dict[str, Any]:
    """All parts that are there, and what they say about the targets."""
    from athena_vla.bench import facts

    parts: dict[str, Any] = {}
    for part in PARTS:
        place = options.work / "parts" / f"{part.replace(':', '-')}.json"
        parts[part] = json.loads(place.read_text()) if place.is_file() else {"status": "not run"}
    device = facts.device_facts()
    report: dict[str, Any] = {
        "kind": "measured_here",
        "what": "random weights of openvla-7b's layout, int4; only times and memory mean anything",
        "command": sys.argv,
        "device": device,
        "parts": parts,
        "targets": {"decode_share": 0.85, "act_over_bare": 1.15, "first_action_seconds": 20.0, "resident_gb": 6.0},
    }
    probes = [parts[p]["best_gbs"] for p in ("bandwidth", "bandwidth_after") if "best_gbs" in parts[p]]
    reached: dict[str, Any] = {"read_bandwidth_gbs": max(probes) if probes else None}
    rival = parts["llama_cpp"].get("decode_tokens_per_second")
    for name, entry in parts.items():
        if "act_median_s" not in entry:
            continue
        row = {k: entry[k] for k in ("first_action_seconds", "act_median_s", "peak_resident_gb", "anonymous_gb")}
        rate = entry.get("decode_tokens_per_second")
        if rate and probes:
            row["decode_tokens_per_second"] = rate
            row["decode_share_of_bandwidth"] = rate * entry["bytes_per_token"] / 1e9 / max(probes)
            row["ahead_of_llama_cpp"] = None if rival is None else rate > rival
        reached[name] = row
    bare = {n.partition(":")[2]: e["rows_306"] for n, e in parts.items() if "rows_306" in e}
    acts = {n.partition(":")[2]: e for n, e in parts.items() if n.startswith("chunk:") and "act_median_s" in e}
    if bare and acts:
        # Best samples and medians: what a machine gives that is shared with others varies from minute to minute.
        for kind in ("best_s", "median_s"):
            language = min(b[kind] for b in bare.values())
            vision = min(e["stages"]["vision"][kind] for e in acts.values())
            reached[f"fastest_bare_language_{kind}"], reached[f"fastest_vision_{kind}"] = language, vision
            for name, entry in acts.items():
                ratio = entry[f"act_{kind}"] / (language + vision)
                reached[f"chunk:{name}"][f"act_over_fastest_bare_and_vision_{kind}"] = ratio
    report["reached"] = reached
    return report


if __name__ == "__main__":
    main()
