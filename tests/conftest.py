"""Fixtures of the whole suite: robots, the optional folder of real recordings and goldens, one torch thread."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner import *  # noqa: F403  the hooks

# Two OpenMP threads on two busy cores ran ten times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Bounds here are a processor's: bits, seconds, memory. What is written for a card runs by `make test-gpu`.
if os.environ.get("ATHENA_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src"


def modules_with_shapes() -> list[str]:
    """The modules of the package whose annotations name shapes, found by their text: nothing is imported."""
    files = sorted(p for p in SOURCE.rglob("*.py") if "from jaxtyping import" in p.read_text(encoding="utf-8"))
    return [".".join(p.relative_to(SOURCE).with_suffix("").parts) for p in files]


try:
    from jaxtyping import install_import_hook
except ImportError:  # only the core is installed
    pass
else:
    # While tests run, shapes and types at these boundaries are checked; it comes before the package's first import.
    install_import_hook(modules_with_shapes(), "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real recordings and reference vectors beside the checkout; tests that need them skip where they are absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the folder of real recordings and goldens (../shared) is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def toy():
    from athena_vla import embodiment

    return embodiment.load("toy")


@pytest.fixture(scope="session")
def athena():
    from athena_vla import embodiment

    return embodiment.load("athena")


@pytest.fixture(scope="session")
def released_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights in the exact layout of openvla-7b; not to be changed."""
    spec = importlib.util.spec_from_file_location("write_random_7b", REPOSITORY / "scripts" / "write_random_7b.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["write_random_7b"] = script
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("released") / "openvla"
    script.write(script.WriteConfig(out=folder, tiny=True, shard_bytes=200_000))
    return folder


@pytest.fixture
def interrupted_at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Any], None]:
    """Fine-tune with a configuration and interrupt the training when it comes to a step."""
    from athena_vla.finetune import finetune, loop

    def interrupted(last: int, config: Any) -> None:
        original = loop.Trainer._step

        def dies(self: loop.Trainer, step: int) -> Any:
            if step == last:
                raise KeyboardInterrupt
            return original(self, step)

        with monkeypatch.context() as patched:
            patched.setattr(loop.Trainer, "_step", dies)
            with pytest.raises(KeyboardInterrupt):
                finetune(config)

    return interrupted
