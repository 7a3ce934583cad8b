"""Loading a full-size checkpoint: seconds, peak memory, and one answer to show that it is alive.

    python scripts/write_random_7b.py --out /tmp/openvla-7b-random        # 15 GB, once
    python benchmarks/bench_load_7b.py /tmp/openvla-7b-random             # writes benchmarks/load_7b.json
    python benchmarks/bench_load_7b.py /tmp/openvla-7b-random --precisions nf4 bfloat16 --act

Every precision runs in a process of its own. Two peaks are reported: `peak_resident` counts mapped pages of the shard
being read, which the kernel takes back under pressure; `peak_anonymous` is what the process itself holds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from athena_vla.bench.facts import device_facts

OUT = Path(__file__).with_suffix("").with_name("load_7b.json")


class Peak(threading.Thread):
    """Samples this process's anonymous memory every 50 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            self.bytes = max(self.bytes, anonymous())


def anonymous() -> int:
    line = next(ln for ln in Path("/proc/self/status").read_text().splitlines() if ln.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure(folder: Path, precision: str, act: bool) -> dict[str, Any]:
    import numpy as np
    import torch

    from athena_vla.models import conformance

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = anonymous()
    peak = Peak()
    peak.start()
    start, cpu = time.perf_counter(), time.process_time()
    loaded = conformance.load(folder, dtype=precision)  # pyright: ignore[reportArgumentType]
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    peak.done.set()
    peak.join()
    shards = sorted(folder.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    result: dict[str, Any] = {
        "precision": precision,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_resident_GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "peak_anonymous_GB": round(peak.bytes / 1e9, 2),
        "kept_anonymous_GB": round((anonymous() - before) / 1e9, 2),
        "before_loading_GB": round(before / 1e9, 2),
        "largest_shard_GB": round(shards[-1].stat().st_size / 1e9, 2),
        "checkpoint_GB": round(sum(p.stat().st_size for p in shards) / 1e9, 2),
        "unused_tensors": len(loaded.raw.unused),
        "parameters_loaded": sum(
            p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in loaded.raw.body.parameters()
        ),
    }
    allowed = 2 * result["largest_shard_GB"] + result["kept_anonymous_GB"] + result["before_loading_GB"]
    result["within_resident_plus_two_shards"] = result["peak_resident_GB"] <= allowed
    if act:
        image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        key = next(iter(loaded.raw.norm_stats))
        start = time.perf_counter()
        ids = loaded.predict_ids(image, "pick up the cube", key)
        result["predict_ids"] = {"ids": ids, "seconds": round(time.perf_counter() - start, 1)}
        start = time.perf_counter()
        black, white = (loaded.patches(loaded.pixel_values(np.full_like(image, v))) for v in (0, 255))
        result["black_white_patches"] = {
            "max_difference": float(np.abs(black - white).max()),
            "seconds": round(time.perf_counter() - start, 1),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="15 GB that scripts/write_random_7b.py writes")
    parser.add_argument("--precisions", nargs="+", default=["nf4", "bfloat16"])
    parser.add_argument("--act", action="store_true", help="also answer one observation")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is None:
        print("bench_load_7b: not run. It needs the folder of a checkpoint, which scripts/write_random_7b.py writes.")
        return
    if options.one:
        print(json.dumps(measure(options.folder, options.one, options.act)))
        return
    machine, runs = device_facts(), []
    for precision in options.precisions:
        command = [sys.executable, __file__, str(options.folder), "--one", precision]
        done = subprocess.run(
            [*command, *(["--act"] if options.act else [])], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(runs[-1], indent=1), flush=True)
    import bitsandbytes
    import safetensors
    import torch

    report = {
        "what": "measured here: a random-weight checkpoint in the exact openvla-7b layout",
        "command": "python benchmarks/bench_load_7b.py FOLDER --precisions " + " ".join(options.precisions),
        "machine": machine,
        "threads": os.environ.get("OMP_NUM_THREADS", "1"),
        "versions": {m.__name__: m.__version__ for m in (torch, bitsandbytes, safetensors)},
        "runs": runs,
    }
    temporary = options.out.with_suffix(".part")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.rename(options.out)


if __name__ == "__main__":
    main()
