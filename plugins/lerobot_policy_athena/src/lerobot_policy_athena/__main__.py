"""python -m lerobot_policy_athena BUNDLE FOLDER"""

import argparse
import sys
from pathlib import Path

from athena_vla.errors import AthenaError
from lerobot_policy_athena.folder import write_folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the folder by which LeRobot opens a bundle of Athena-VLA.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-action-steps", type=int, default=0, help="rows of a chunk that are played; 0: all")
    parser.add_argument("--backend", default="auto", help="torch, onnxruntime, openvino, tensorrt or llama.cpp")
    parser.add_argument("--on", default="auto", help="where the policy runs: auto, cpu, cuda or cuda:N")
    options = parser.parse_args()
    try:
        print(write_folder(options.bundle, options.folder, options.n_action_steps, options.backend, options.on))
    except AthenaError as problem:
        sys.exit(f"lerobot_policy_athena: {problem}")


if __name__ == "__main__":
    main()
