"""The decoder in llama.cpp beside ONNX Runtime on the same stored numbers: error in radians, act, resident memory.

    python benchmarks/bench_llama_cpp.py BUNDLE [BUNDLE ...] --out benchmarks/llama_cpp.json

Each bundle is a merged or quantised one. It is exported for both; each export acts in a process of its own, in turn.
Needs the extra `llama`. The 7B sizes were not run here with this script.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from athena_vla.bench.facts import device_facts
from athena_vla.bundle import Bundle
from athena_vla.export import ExportConfig, export

ROUNDS, ACTS = 3, 100
CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
from athena_vla.policy import Policy
begun = time.perf_counter()
policy = Policy.load(Path(sys.argv[1]), threads=1)
from athena_vla.bundle import Bundle
frames = Bundle.open(Path(sys.argv[1])).golden.observations
policy.act(frames[0])
first = time.perf_counter() - begun
took = []
for i in range(int(sys.argv[2])):
    t = time.perf_counter()
    policy.act(frames[i % len(frames)])
    took.append(time.perf_counter() - t)
own = [x.split() for x in open("/proc/self/status") if x.startswith("RssAnon")][0]
print(json.dumps({"first_s": first, "act_ms": 1e3 * float(np.median(took)), "own_mib": int(own[1]) / 1024}))
"""


def acted(path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(ACTS)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "llama_cpp.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for source in arguments.bundles:
            places = {}
            for target in ("cpu", "llama.cpp"):
                places[target] = Path(work) / f"{source.name}-{target}"
                export(ExportConfig(source, places[target], target=target))
            runs: dict[str, list[dict[str, float]]] = {t: [] for t in places}
            for _ in range(ROUNDS):
                for target, path in places.items():
                    runs[target].append(acted(path))
            for target, path in places.items():
                manifest = Bundle.open(path).manifest
                middle = {k: sorted(r[k] for r in runs[target])[ROUNDS // 2] for k in runs[target][0]}
                rows.append(
                    {
                        "bundle": source.name,
                        "family": manifest.family,
                        "engine": "ONNX Runtime" if target == "cpu" else "llama.cpp",
                        "forms": manifest.stage_info.get("llama", {}).get("forms", {}),
                        "max_rad": manifest.deviation["max_rad"],
                        "mean_rad": manifest.deviation["mean_rad"],
                        **{k: round(v, 3) for k, v in middle.items()},
                    }
                )
                print(rows[-1], flush=True)
    result = {
        "command": "python benchmarks/bench_llama_cpp.py MERGED INT8 INT4",
        "kind": "measured_here",
        "machine": device_facts(),
        "llama_cpp_python": version("llama-cpp-python"),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
