"""Time this bundle stage by stage on the device it runs on, and write deployment_config.json with what was measured.

    python3 device/bench_on_device.py [--backend tensorrt|onnxruntime] [--runs 1000]

Needs athena-vla installed. The result is called measured_on_device only where the device tree names a Jetson.
"""

import argparse
import json
import pathlib
import subprocess
import sys

BUNDLE = pathlib.Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    out = BUNDLE / "device" / "measured.json"
    command = [sys.executable, "-m", "athena_vla.cli", "bench", str(BUNDLE), "--backend", options.backend]
    done = subprocess.run([*command, "--runs", str(options.runs), "--out", str(out)], check=False)
    if done.returncode not in (0, 1):
        return done.returncode
    file = BUNDLE / "deployment_config.json"
    record = json.loads(file.read_text())
    summary = json.loads(out.read_text())["summary"]
    record["achieved"][summary["kind"]] = summary
    print(f"{summary['kind']}: {file.parent / 'device' / 'deployment_config.json'}")
    (BUNDLE / "device" / "deployment_config.json").write_text(json.dumps(record, indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
