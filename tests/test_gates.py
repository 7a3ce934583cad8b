"""Each kind of blindness is planted and must be refused; a seeing policy passes, through torch and through a policy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from athena_vla.embodiment import Observation
from athena_vla.errors import BlindPolicy, InvalidObservation
from athena_vla.models import input_gates as gates
from athena_vla.models import openvla_chunk
from athena_vla.models.contract import Engine, HostLoop, ModelInput, Value
from athena_vla.models.loops.parallel_loop import ChunkLoop, ChunkSpec
from athena_vla.models.openvla_chunk import OpenVLAChunk
from athena_vla.models.torch_memory import Calling

RANDOM = np.random.default_rng(0)
OBSERVATIONS = [
    Observation(
        images={"head": RANDOM.integers(0, 256, (24, 32, 3), dtype=np.uint8)},
        state=RANDOM.normal(size=4),
        instruction=text,
    )
    for text in ("touch the red cube", "look at the blue ball")
]


def seeing(o: Observation) -> NDArray[np.float64]:
    text = sum(map(ord, o.instruction)) / 1e4
    return np.array([[o.images["head"].mean() / 255, o.images["head"][0].mean() / 255, text, float(o.state.sum())]])


def test_a_policy_that_sees_and_listens_passes() -> None:
    found = gates.require_sensitive(seeing, OBSERVATIONS, proprio=True)
    assert found.blind_to == ()
    names = {f"sensitivity_{n}" for n in ("black_white", "frames", "language", "proprio")}
    assert {g.name for g in found.gates("rad")} == names
    assert all(g.passed and g.value > g.limit and g.bound == "at least 1e-05 rad" for g in found.gates("rad"))
    gates.require_sensitive(seeing, OBSERVATIONS[:1])


@pytest.mark.parametrize(
    ("drop", "sentence"),
    [([0, 1], "black and a white image"), ([2], "two different instructions"), ([3], "two different states")],
)
def test_each_blindness_is_refused(drop: list[int], sentence: str) -> None:
    def blind(o: Observation) -> NDArray[np.float64]:
        return np.delete(seeing(o), drop, axis=1)

    with pytest.raises(BlindPolicy, match=sentence):
        gates.require_sensitive(blind, OBSERVATIONS, proprio=True)


def test_brightness_alone_is_not_seeing() -> None:
    def average(o: Observation) -> NDArray[np.float64]:
        # Mean brightness tells black from white but hardly one frame from another.
        return np.array([[round(float(o.images["head"].mean()) / 128), len(o.instruction)]])

    with pytest.raises(BlindPolicy, match="camera frames"):
        gates.require_sensitive(average, OBSERVATIONS)


def test_nan_does_not_pass_as_sensitivity() -> None:
    with pytest.raises(BlindPolicy):
        gates.require_sensitive(lambda o: seeing(o) * np.nan, OBSERVATIONS)


def test_observations_are_needed() -> None:
    with pytest.raises(InvalidObservation, match="at least one"):
        gates.check_sensitivity(seeing, [])


def small_model() -> OpenVLAChunk:
    torch.manual_seed(0)
    spec = openvla_chunk.tiny_spec(
        action_dim=3, state_dim=4, horizon=2, image_size=32, tower_width=16, tower_blocks=1, width=32, layers=1
    )
    return OpenVLAChunk.from_spec(spec, {}).eval()


def test_a_model_passes_and_its_vision_runs_once() -> None:
    model = small_model()
    assert gates.check_model(*of(model)).require().blind_to == ()
    counts = gates.require_vision_runs_once(*of(model))
    assert counts == {
        "body.vision_backbone.featurizer": 1,
        "body.vision_backbone.fused_featurizer": 1,
        "body.projector": 1,
    }


def of(model: OpenVLAChunk) -> tuple[HostLoop, Engine]:
    return model.loop, model.engine()


class CachedLoop(ChunkLoop):
    """A planted fault: the image of the first call answers for all later ones."""

    kept: Any = None

    def see(self, engine: Engine, inputs: Mapping[str, Value]) -> Value:
        if self.kept is None:
            self.kept = super().see(engine, inputs)
        return self.kept


class TwiceLoop(ChunkLoop):
    def see(self, engine: Engine, inputs: Mapping[str, Value]) -> Value:
        super().see(engine, inputs)
        return super().see(engine, inputs)


class CachedVision(OpenVLAChunk):
    """A model whose host loop has the fault."""

    def __init__(self, spec: ChunkSpec, files: Mapping[str, bytes], body: Any = None) -> None:
        super().__init__(spec, files, body)
        self.loop = CachedLoop(spec, files)


class DroppedPrompt(OpenVLAChunk):
    """A planted fault: the prompt is sliced away, as ported code does on new transformers."""

    def hidden(self, patches: Any, input_ids: Any, prompt_mask: Any, state: Any, given: Any = None) -> torch.Tensor:
        return super().hidden(patches, input_ids[:, :1], prompt_mask[:, :1], state)


class IgnoredState(OpenVLAChunk):
    def hidden(self, patches: Any, input_ids: Any, prompt_mask: Any, state: Any, given: Any = None) -> torch.Tensor:
        return super().hidden(patches, input_ids, prompt_mask, torch.zeros_like(state))


class TwiceSeen(OpenVLAChunk):
    def __init__(self, spec: ChunkSpec, files: Mapping[str, bytes], body: Any = None) -> None:
        super().__init__(spec, files, body)
        self.loop = TwiceLoop(spec, files)


def planted(kind: type[OpenVLAChunk]) -> OpenVLAChunk:
    model = small_model()
    return kind(model.chunk_spec, model.tokenizer_files(), model.body).eval()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(CachedVision, "does not see"), (DroppedPrompt, "does not listen"), (IgnoredState, "different states")],
)
def test_faults_planted_in_a_model_are_refused(kind: type[OpenVLAChunk], sentence: str) -> None:
    with pytest.raises(BlindPolicy, match=sentence):
        gates.check_model(*of(planted(kind))).require("The model")


def test_zeroed_projector_is_blind() -> None:
    model = small_model()
    with torch.no_grad():
        for parameter in model.body.projector.parameters():
            parameter.zero_()
    assert "black_white" in gates.check_model(*of(model)).blind_to


@pytest.mark.parametrize("kind", [CachedVision, TwiceSeen])
def test_vision_that_does_not_run_exactly_once_is_refused(kind: type[OpenVLAChunk]) -> None:
    model = planted(kind)
    if kind is CachedVision:
        gates.count_vision_calls(*of(model))  # fills the cache
    with pytest.raises(BlindPolicy, match="instead of once"):
        gates.require_vision_runs_once(*of(model))


@pytest.mark.parametrize("times", [0, 1, 2])
def test_vision_of_another_backend_is_counted_by_its_graph(times: int) -> None:
    """The host loop of an exported model: no weights here, every graph through an engine that hides its insides."""
    model = small_model()

    class Loop(ChunkLoop):
        def see(self, engine: Engine, inputs: Mapping[str, Value]) -> Value:
            patches = np.zeros((1, 16, 32), np.float32)
            for _ in range(times):
                patches = super().see(engine, inputs)
            return patches

    loop, engine = Loop(model.chunk_spec, model.tokenizer_files()), Calling(model.engine().run)
    if times == 1:
        assert gates.require_vision_runs_once(loop, engine) == {"vision graph": 1}
    else:
        with pytest.raises(BlindPolicy, match=f"'vision graph' {times} times"):
            gates.require_vision_runs_once(loop, engine)


@pytest.mark.parametrize("tower", ["featurizer", "fused_featurizer"])
def test_a_tower_that_is_not_called_is_refused(tower: str) -> None:
    """As a port does that falls back on one encoder: the other still makes the actions depend on the image."""
    model = small_model()
    backbone = model.body.vision_backbone
    other, channels = (backbone.fused_featurizer, slice(3, 6))
    if tower == "fused_featurizer":
        other, channels = backbone.featurizer, slice(0, 3)
    backbone.forward = lambda pixels: other(pixels[:, channels]).repeat(1, 1, 2)
    assert gates.check_model(*of(model)).blind_to == ()
    with pytest.raises(BlindPolicy, match=rf"\.{tower}' 0 times"):
        gates.require_vision_runs_once(*of(model))


def test_hooks_are_removed() -> None:
    model = small_model()
    gates.require_vision_runs_once(*of(model))
    assert all(not m._forward_hooks for m in model.modules())


def test_act_may_answer_with_a_chunk_of_a_robot() -> None:
    from athena_vla.embodiment import ActionChunk

    act: Callable[[Observation], ActionChunk] = lambda o: ActionChunk(seeing(o), ("a", "b", "c", "d"), 0.1)  # noqa: E731
    assert gates.check_sensitivity(act, OBSERVATIONS).blind_to == ()


def test_model_input_helper_sizes() -> None:
    model = small_model()
    item = ModelInput((np.zeros((64, 64, 3), np.uint8),), np.zeros(4, np.float32), "wave")
    assert model.collate([item])["pixel_values"].shape == (1, 6, 32, 32)
