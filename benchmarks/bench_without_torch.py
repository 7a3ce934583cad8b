"""A served bundle with and without torch: start, first action, one act, resident memory.

    python benchmarks/bench_without_torch.py [BUNDLE] --out benchmarks/without_torch.json

Three processes take turns: the exported bundle where `import torch` raises, the same where torch is imported first, and
torch's own engine on the bundle before its export. All run the same host loop. BUNDLE is a base, merged or quantised
one; the shipped base where none is given.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from athena_vla.bench.facts import device_facts
from athena_vla.export import ExportConfig, export

CHILD = """
import sys, time
place, engine, begun, torch = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
if torch == "raises":
    sys.modules["torch"] = None
elif torch == "imported":
    import torch
import json
from pathlib import Path
import numpy as np
from athena_vla.bundle import Bundle
from athena_vla.policy import Policy
place = Path(place)
policy = Policy.load(place, engine, threads=1, device="cpu")
loaded = time.time() - begun
frames = Bundle.open(place).golden.observations
policy.act(frames[0])
first = time.time() - begun
took = []
for i in range(200):
    t = time.perf_counter()
    policy.act(frames[i % len(frames)])
    took.append(time.perf_counter() - t)
lines = dict(x.split(":", 1) for x in open("/proc/self/status"))
mib = {k: int(lines[k].split()[0]) / 1024 for k in ("VmRSS", "RssAnon")}
assert (sys.modules.get("torch") is not None) == (torch != "raises")
print(json.dumps({"loaded [s]": loaded, "first action [s]": first, "act [ms]": 1e3 * float(np.median(took)),
    "resident [MiB]": mib["VmRSS"], "of it anonymous [MiB]": mib["RssAnon"]}))
"""


@dataclass(frozen=True)
class Config:
    bundle: Annotated[str, tyro.conf.Positional] = "builtin:base"
    """The bundle before its export."""
    out: Path = Path("benchmarks/without_torch.json")
    """Where the numbers go."""
    rounds: int = 5
    """How often the three take turns."""


@dataclass(frozen=True)
class Kind:
    place: str
    engine: str
    torch: str
    rows: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


def measured(kind: Kind) -> dict[str, float]:
    words = [sys.executable, "-c", CHILD, kind.place, kind.engine, str(time.time()), kind.torch]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=surroundings)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(config: Config) -> None:
    """Export once, let the three take turns."""
    with tempfile.TemporaryDirectory() as name:
        exported = str(Path(name) / "exported")
        export(ExportConfig(input=Path(config.bundle), out=Path(exported), compare=False))
        kinds = {
            "ONNX Runtime, torch cannot be imported": Kind(exported, "onnxruntime", "raises"),
            "ONNX Runtime, torch imported": Kind(exported, "onnxruntime", "imported"),
            "torch": Kind(config.bundle, "torch", "imported"),
        }
        for kind in kinds.values():
            measured(kind)  # what the system caches
        for _ in range(config.rounds):
            for title, kind in kinds.items():
                kind.rows.append(measured(kind))
                print(title, {k: round(v, 2) for k, v in kind.rows[-1].items()}, flush=True)
    content = {
        "command": "python benchmarks/bench_without_torch.py",
        "kind": "measured_here",
        "machine": device_facts(),
        "bundle": config.bundle,
        "rounds": config.rounds,
        "median": {
            title: {key: round(statistics.median(r[key] for r in kind.rows), 3) for key in kind.rows[0]}
            for title, kind in kinds.items()
        },
    }
    config.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
