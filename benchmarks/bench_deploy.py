"""The deployment stages on a small model: seconds, bytes, error in radians and latency, for every precision and engine.

    python benchmarks/bench_deploy.py [--bundle BUNDLE] [--work FOLDER]      # writes benchmarks/deploy.json

Without --bundle the base that ships with the package is taken.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from athena_vla.bench import BenchConfig, BenchResult, bench, facts
from athena_vla.export import ExportConfig, export
from athena_vla.quantize import QuantizeConfig, quantize

OUT = Path(__file__).with_name("deploy.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="builtin:base", help="base or merged bundle")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "kind": "measured_here",
        "command": sys.argv,
        "device": facts.device_facts(),
        "precisions": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for precision in ("float", "int8", "int4"):
            report["precisions"][precision] = one(options, folder, precision)
    options.out.write_text(json.dumps(report, indent=1, sort_keys=True, default=str))
    print(json.dumps({p: r["latency"] for p, r in report["precisions"].items()}, indent=1))


def one(options: argparse.Namespace, folder: Path, precision: str) -> dict[str, Any]:
    source, entry = Path(options.bundle), {}
    if precision != "float":
        start = time.perf_counter()
        made = quantize(QuantizeConfig(input=source, out=folder / precision, bits=8 if precision == "int8" else 4))
        source = folder / precision
        entry |= {"quantize_seconds": time.perf_counter() - start, "mean_bits": made.mean_bits, "bytes": made.bytes}
        assert made.error is not None
        entry["error_rad"] = {k: getattr(made.error, k) for k in ("mean_rad", "p95_rad", "max_rad")}
    start = time.perf_counter()
    exported = export(ExportConfig(input=source, out=folder / f"{precision}-onnx"))
    entry |= {"export_seconds": time.perf_counter() - start, "deviation_rad": exported.deviation["max_rad"]}
    entry["parity"] = {name: graph["parity"] for name, graph in exported.graphs.items()}
    entry["latency"] = {}
    for backend in ("onnxruntime", "openvino"):
        result = bench(BenchConfig(bundle=exported.path, backend=backend, runs=options.runs))
        assert isinstance(result, BenchResult)
        rows = {"whole action": result.record["whole_action"], **result.record["stages"]}
        entry["latency"][backend] = {n: {k: r[k] for k in ("p50_ms", "p95_ms", "p99_ms")} for n, r in rows.items()}
    return entry


if __name__ == "__main__":
    main()
