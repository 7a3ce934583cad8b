"""On a CUDA card: `make test-gpu`. Every family and engine against the processor, calls captured and replayed.

Ran on an NVIDIA H200 (torch 2.11, CUDA 13.0); `benchmarks/gpu_deploy.json` has the times of that run.
"""

import numpy as np
import pytest
import torch

from athena_vla import embodiment
from athena_vla.models.captured import MOST, CapturedEngine
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig, quantize
from small_bundles import observations, write_base

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card and ATHENA_TEST_GPU=1"),
]
KINDS = {"chunk": {}, "tokens": {"tokens": True}, "oft": {"oft": True}}


@pytest.fixture(scope="module", params=list(KINDS))
def bundles(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_base(folder / "base", embodiment.load("athena"), **KINDS[request.param])
    quantize(QuantizeConfig(folder / "base", folder / "q", sensitivity=False, vision_bits=8, check=False))
    return folder


@pytest.mark.parametrize("name", ["base", "q"])
def test_float_weights_answer_as_on_the_processor(bundles, name) -> None:
    """Written, captured and replayed alike: the same bits in every round, and the processor's to rounding."""
    frames = observations(embodiment.load("athena"), 6, seed=4)
    host = Policy.load(bundles / name, "torch", device="cpu").chunks(frames)
    card = Policy.load(bundles / name, "torch", device="cuda")
    rounds = [card.chunks(frames) for _ in range(4)]
    assert np.abs(rounds[0] - host).max() < 1e-4
    assert all(np.abs(r - rounds[0]).max() < 1e-6 for r in rounds)
    assert isinstance(card.engine, CapturedEngine)
    assert card.engine.refused == ""
    assert 0 < len(card.engine.calls) <= MOST


def test_codes_as_stored_answer_nearly_as_on_the_processor(bundles) -> None:
    frames = observations(embodiment.load("athena"), 6, seed=4)
    host = Policy.load(bundles / "q", "packed", device="cpu").chunks(frames)
    card = Policy.load(bundles / "q", device="cuda")
    assert card.engine.taken.engine == "packed"
    if card.loop.family != "openvla":  # of random weights tokens are ties, which rounding decides
        assert np.abs(card.chunks(frames) - host).mean() < 0.02
    assert np.array_equal(card.chunks(frames), card.chunks(frames))
