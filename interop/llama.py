"""The engine over llama.cpp with the real library: `make interop` compiles it once and runs the tests that need it.

There is no wheel of llama-cpp-python; compiling takes some six minutes on two cores. xllamacpp has wheels, but they
export only what it calls itself: llama-cpp-python's bindings miss functions in it (2026.10.11549).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WANTED = "llama-cpp-python==0.3.36"
OFF = ("SERVER", "TESTS", "EXAMPLES", "TOOLS")
TESTS = ("tests/test_llama_cpp.py", "tests/test_llama_cpp_engine.py")


def library(folder: Path) -> Path:
    """The compiled library; made where it does not exist yet. It lies beside the tests' own packages, not in them."""
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        flags = "-DGGML_NATIVE=ON " + " ".join(f"-DLLAMA_BUILD_{part}=OFF" for part in OFF)
        words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", partial, WANTED, "diskcache"]
        subprocess.run(words, check=True, env={**os.environ, "CMAKE_ARGS": flags})
        partial.rename(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=ROOT / ".venv-llama")
    arguments = parser.parse_args()
    places = [str(ROOT / "src"), str(ROOT / "tests"), str(library(arguments.library).resolve())]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    subprocess.run(
        [sys.executable, "-c", "import llama_cpp"], check=True, env=surroundings
    )  # else the tests would skip
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", *TESTS], cwd=ROOT, env=surroundings)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
