"""ONNX Runtime's part for cards, on host memory: values bound by address, and what it took read back."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from athena_vla.bundle import Bundle
from athena_vla.constrained import WithinReach
from athena_vla.engines import onnxruntime_engine
from athena_vla.engines.cuda_memory import CudaMemory, OnCard
from athena_vla.engines.onnxruntime_engine import OnnxRuntime
from athena_vla.errors import DeviceError, UnknownName
from athena_vla.export import ExportConfig, export
from athena_vla.machine import device
from athena_vla.machine.device import Card, Driver
from athena_vla.policy import Policy
from host_cuda import HostCuda, host_runtime
from small_bundles import observations, write_base

DRIVER = Driver((13, 0), (Card(0, "NVIDIA GeForce RTX 4090", 24_000_000_000, (8, 9)),))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, toy: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bound")
    for name, tokens in (("chunk", False), ("tokens", True)):
        write_base(folder / f"{name}-base", toy, tokens=tokens)
        export(ExportConfig(input=folder / f"{name}-base", out=folder / name, compare=False))
    return {name: folder / name for name in ("chunk", "tokens")}


class OnHost(OnnxRuntime):
    """The binding of a card with the processor's memory in its place."""

    @property
    def device_type(self) -> str:
        return "cpu"


def bound(path: Path) -> Policy:
    bundle = Bundle.open(path)
    engine = OnHost(path / "weights", bundle.manifest.stage_info, device="cpu")
    engine.memory = CudaMemory(host_runtime())
    return Policy(bundle.robot, bundle.normalizer, bundle.loop, engine)


@pytest.mark.parametrize("family", ["chunk", "tokens"])
def test_bound_values_give_the_same_chunks_and_stay_on_the_card(
    exported: dict[str, Path], toy: Any, family: str
) -> None:
    policy, plain = bound(exported[family]), Policy.load(exported[family], "onnxruntime", device="cpu")
    frames = observations(toy, 3)
    np.testing.assert_array_equal(policy.chunks(frames), plain.chunks(frames))
    together = np.stack([c.positions for c in policy.act_batch(frames)])
    np.testing.assert_array_equal(together, np.stack([c.positions for c in plain.act_batch(frames)]))
    memory: CudaMemory = policy.engine.memory  # pyright: ignore[reportAssignmentType]
    library = memory.runtime.library
    assert isinstance(library, HostCuda)
    horizon, joints = plain.loop.spec.horizon, plain.loop.spec.action_dim
    answer = 256 * 4 if family == "tokens" else horizon * joints * 4
    assert set(library.read) <= {answer, answer * len(frames)}, "only logits or actions come back"
    if family == "tokens":
        held, free = (np.stack([c.positions for c in WithinReach(p).act_batch(frames)]) for p in (policy, plain))
        np.testing.assert_array_equal(held, free)


def test_a_graph_answers_on_the_card(exported: dict[str, Path]) -> None:
    policy = bound(exported["chunk"])
    pixels = np.zeros((1, 6 * policy.loop.spec.cameras, 32, 32), np.float32)
    patches = policy.engine.run("vision", {"pixel_values": pixels})["patches"]
    assert isinstance(patches, OnCard)
    assert patches.dtype == np.float32


def test_without_a_provider_for_cards_the_reason_is_told(exported: dict[str, Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(device, "the_driver", lambda: DRIVER)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    policy = Policy.load(exported["chunk"])
    assert policy.engine.taken.device == "cpu"
    assert "is a build for processors" in policy.engine.taken.why
    assert "no card: onnxruntime" in str(policy.engine.taken)
    for word in ("cuda", "cuda:0"):
        with pytest.raises(DeviceError, match=f"Device '{word}' cannot be taken: onnxruntime .*onnxruntime-gpu"):
            Policy.load(exported["chunk"], device=word)
    with pytest.raises(DeviceError, match="Provider 'tensorrt' cannot be taken"):
        Policy.load(exported["chunk"], providers="tensorrt")
    with pytest.raises(DeviceError, match="contradict each other"):
        Policy.load(exported["chunk"], device="cuda", providers="cpu")
    with pytest.raises(UnknownName, match="auto, cpu, cuda, tensorrt"):
        Policy.load(exported["chunk"], providers="vulkan")  # pyright: ignore[reportArgumentType]


def test_a_provider_that_falls_back_in_silence_is_found_out(exported: dict[str, Path], monkeypatch: Any) -> None:
    """A GPU build whose libraries are missing: sessions open on the processor, and only they say so."""
    offered = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    asked: list[Any] = []

    def session(file: str, options: Any, providers: Any) -> Any:
        asked.append(providers)
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    stand_in = SimpleNamespace(
        __version__="1.31.1",
        cuda_version="13.0",
        get_available_providers=lambda: offered,
        preload_dlls=lambda: None,
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=session,
    )
    monkeypatch.setattr(onnxruntime_engine, "_library", lambda: stand_in)
    monkeypatch.setattr(device, "the_driver", lambda: DRIVER)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    policy = Policy.load(exported["chunk"])
    assert [p if isinstance(p, str) else p[0] for p in asked[0]] == offered[1:], "CUDA, then the processor"
    taken = policy.engine.taken
    assert (taken.device, taken.providers) == ("cpu", ("CPUExecutionProvider",))
    assert "fell back to the processor" in taken.why
    expected = Policy.load(exported["chunk"], device="cpu").chunks(Bundle.open(exported["chunk"]).golden.observations)
    np.testing.assert_array_equal(policy.chunks(Bundle.open(exported["chunk"]).golden.observations), expected)
    with pytest.raises(DeviceError, match="Device 'cuda:0' was not taken: ONNX Runtime could not start its CUDA"):
        Policy.load(exported["chunk"], device="cuda:0")
    asked.clear()
    with pytest.raises(DeviceError, match="could not start its Tensorrt"):
        Policy.load(exported["chunk"], device="cuda", providers="tensorrt")
    assert [p if isinstance(p, str) else p[0] for p in asked[0]] == offered
