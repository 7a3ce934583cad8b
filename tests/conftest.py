"""Fixtures of the whole suite: robots, the optional folder of real recordings and goldens, one torch thread."""

import os
from pathlib import Path

import pytest

# Two OpenMP threads on two busy cores ran ten times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


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
