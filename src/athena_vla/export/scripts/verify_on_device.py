"""Replay this bundle's golden observations through its TensorRT engines on the device; compare with the float model.

    python3 device/verify_on_device.py [--backend tensorrt|onnxruntime] [--limit RADIANS]

Needs athena-vla installed. Exit status: 0 within the limit, 4 beyond it, 2 a bundle or engine that cannot be used.
"""

import argparse
import json
import pathlib
import sys

BUNDLE = pathlib.Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--limit", type=float, help="largest deviation [rad]; default: what was recorded, plus 0.01")
    options = parser.parse_args()
    from athena_vla.bundle import Bundle
    from athena_vla.errors import AthenaError
    from athena_vla.policy import Policy, replay

    try:
        bundle = Bundle.open(BUNDLE)
        result = replay(Policy.of(bundle, options.backend), bundle.golden)
    except AthenaError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    recorded = float(bundle.manifest.deviation.get("max_rad", 0.0))
    limit = recorded + 0.01 if options.limit is None else options.limit
    passed = result["max_rad"] <= limit
    tree = pathlib.Path("/proc/device-tree/model")
    board = tree.read_text(errors="replace").lower() if tree.is_file() else ""
    # Some modules name themselves 'NVIDIA Orin ..' without the word.
    jetson = "jetson" in board or ("nvidia" in board and "orin" in board)
    kind = "measured_on_device" if jetson else "measured_here"
    record = {"kind": kind, "backend": options.backend, **result, "limit_rad": limit, "passed": passed}
    (BUNDLE / "device" / "verified.json").write_text(json.dumps(record, indent=1, sort_keys=True))
    print(json.dumps(record, indent=1, sort_keys=True))
    return 0 if passed else 4


if __name__ == "__main__":
    sys.exit(main())
