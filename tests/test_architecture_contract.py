"""What every family promises, asked of every family: learning, decoding, graphs, adapters, other robots."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from athena_vla.engines.onnxruntime_engine import OnnxRuntime
from athena_vla.errors import InvalidObservation, ModelError, UnknownName
from athena_vla.export.exporting import write_graphs
from athena_vla.export.linear import LinearForm
from athena_vla.models import architecture, lora, lora_merge
from athena_vla.models.architecture import FAMILIES, Architecture, Tensors
from athena_vla.models.contract import Engine, ModelInput, spec_from_dict
from athena_vla.models.loops.shared_loop import VlaSpec
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.models.weights.store import StoreWriter, TensorStore

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch": 8,
    "tower_width": 16,
    "tower_blocks": 1,
    "width": 32,
    "layers": 2,
    "mlp_width": 64,
    "kv_heads": 1,
}
D, S, H = 3, 4, 2
RANDOM = np.random.default_rng(0)
INPUTS = [
    ModelInput(
        images=tuple(RANDOM.integers(0, 256, (40, 48, 3), dtype=np.uint8) for _ in range(2)),
        state=RANDOM.uniform(-1, 1, S).astype(np.float32),
        instruction=text,
    )
    for text in ("touch the red cube", "raise your left arm slowly, then wave twice", "look at 机器")
]


def spec_of(name: str) -> VlaSpec:
    module = importlib.import_module(FAMILIES[name].partition(":")[0])
    return module.tiny_spec(action_dim=D, state_dim=S, horizon=H, cameras=2, **SMALL)


def fresh(name: str, seed: int = 0) -> VisionLanguageModel:
    torch.manual_seed(seed)
    return cast(VisionLanguageModel, architecture.family(name).from_spec(spec_of(name), {}).eval())


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    return fresh(request.param)


def decode(model: Architecture, inputs: Tensors, engine: Engine | None = None) -> np.ndarray:
    noise = model.loop.noise(len(inputs["input_ids"]), np.random.default_rng(0))
    return model.loop.decode(engine or model.engine(), inputs, noise)


def test_decode_is_finite_bounded_shaped_and_deterministic(model: VisionLanguageModel) -> None:
    inputs = model.collate(INPUTS)
    chunk = decode(model, inputs)
    assert chunk.shape == (3, H, D)
    assert chunk.dtype == np.float32
    assert np.isfinite(chunk).all()
    assert np.abs(chunk).max() <= 1.0
    np.testing.assert_array_equal(chunk, decode(model, model.collate(INPUTS)))
    assert np.ptp(chunk) > 0


def test_a_batch_answers_as_its_members_do(model: VisionLanguageModel) -> None:
    together = decode(model, model.collate(INPUTS))
    for i, item in enumerate(INPUTS):
        np.testing.assert_allclose(decode(model, model.collate([item]))[0], together[i], atol=1e-5)


def test_cached_patches_are_the_same_as_pixels(model: VisionLanguageModel) -> None:
    inputs = model.collate(INPUTS)
    with torch.inference_mode():
        cached = {k: v for k, v in inputs.items() if k != "pixel_values"} | {"patches": model.encode_images(inputs)}
    np.testing.assert_allclose(decode(model, cached), decode(model, inputs), atol=1e-6)


def test_loss_falls_on_one_batch(model: VisionLanguageModel) -> None:
    inputs, target = model.collate(INPUTS), torch.from_numpy(RANDOM.uniform(-1, 1, (3, H, D)).astype(np.float32))
    valid = torch.ones(3, H, dtype=torch.bool)
    optimizer = torch.optim.AdamW(model.train().parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = model.loss(inputs, target, valid)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.6 * losses[0]


def test_rows_past_the_end_of_an_episode_do_not_count(model: VisionLanguageModel) -> None:
    inputs, target = model.collate(INPUTS), torch.zeros(3, H, D)
    valid = torch.tensor([[True, False]] * 3)
    other = target.clone()
    other[:, 1] = 0.9
    if model.reads_tokens:
        # Later tokens see earlier ones, never the other way round: what is masked cannot reach what counts.
        assert model.loss(inputs, target, valid).item() == pytest.approx(model.loss(inputs, other, valid).item())
    assert model.loss(inputs, target, valid).item() == pytest.approx(model.loss(inputs, other, valid).item())
    assert model.loss(inputs, target, ~valid).item() != pytest.approx(model.loss(inputs, other, ~valid).item())
    assert torch.isfinite(model.loss(inputs, target, torch.zeros_like(valid)))


def test_every_parameter_learns(model: VisionLanguageModel) -> None:
    model.loss(model.collate(INPUTS), torch.full((3, H, D), 0.5), torch.ones(3, H, dtype=torch.bool)).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    assert silent == []


def test_onnx_chunk_equals_torch_chunk(model: VisionLanguageModel, tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path)
    for name, tensor in model.state_dict().items():
        writer.add(name, tensor)
    writer.close()
    with torch.device("meta"):
        meta_model = type(model).from_spec(model.spec, model.tokenizer_files())
    source = cast(Any, SimpleNamespace(meta_model=lambda: meta_model))
    folder = tmp_path / "graphs"
    folder.mkdir()
    ports = write_graphs(source, TensorStore(tmp_path), folder, LinearForm("contrib", 1, torch.float32))
    assert list(ports) == [g.name for g in model.graphs()]
    engine = OnnxRuntime(folder, {}, 1)
    for batch in (INPUTS[:1], INPUTS[1:]):
        inputs = model.collate(batch)
        np.testing.assert_allclose(decode(model, inputs, engine), decode(model, inputs), atol=1e-5)


def test_fresh_adapters_change_nothing_and_merging_changes_nothing(model: VisionLanguageModel) -> None:
    inputs = model.collate(INPUTS)
    before = decode(model, inputs)
    counted = lora.attach(model, lora.LoraSettings(rank=4, vision=True, projector=True))
    assert counted.trainable < counted.total
    np.testing.assert_allclose(decode(model, inputs), before, atol=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    target, valid = torch.zeros(3, H, D), torch.ones(3, H, dtype=torch.bool)
    tuned = float(model.loss(inputs, target, valid).detach())
    lora_merge.merge_(model)
    assert float(model.loss(inputs, target, valid).detach()) == pytest.approx(tuned, rel=1e-4)
    assert not any("lora_" in n for n, _ in model.named_parameters())


def test_adapter_paths_exist_and_unknown_targets_are_refused(model: VisionLanguageModel) -> None:
    paths = model.lora_modules(("q_proj", "down_proj"), vision=True, projector=True)
    assert len(paths) == len(set(paths))
    modules = dict(model.named_modules())
    assert all(isinstance(modules[p], torch.nn.Linear) for p in paths)
    layers, towers, blocks = SMALL["layers"], 2, SMALL["tower_blocks"]
    assert len(paths) == 2 * layers + towers * blocks * 4 + 3
    assert len(model.lora_modules(("all-linear",), vision=False, projector=False)) == 7 * layers
    with pytest.raises(UnknownName, match="all-linear"):
        model.lora_modules(("proj",), vision=False, projector=False)
    assert all(name in modules for name in model.head_modules())


def test_specification_survives_json(model: VisionLanguageModel) -> None:
    raw = json.loads(json.dumps(model.spec.to_dict()))
    assert spec_from_dict(model.family, raw) == model.spec
    with pytest.raises(UnknownName, match="horizons"):
        spec_from_dict(model.family, {**raw, "horizons": 1})
    with pytest.raises(UnknownName, match="towel"):
        spec_from_dict(model.family, {**raw, "body": {**raw["body"], "towel": 1}})


def test_rebind_keeps_the_body_and_takes_another_robot(model: VisionLanguageModel) -> None:
    other = model.rebind(dataclasses.replace(model.spec, action_dim=5, state_dim=2, horizon=3, cameras=1))
    assert other.get_submodule("body") is model.body
    item = ModelInput(images=INPUTS[0].images[:1], state=np.zeros(2, np.float32), instruction="wave")
    assert decode(other, other.collate([item])).shape == (1, 3, 5)
    foreign = dataclasses.replace(spec_of(model.family).body, max_prompt_tokens=99)
    with pytest.raises(ModelError, match="another body"):
        model.rebind(dataclasses.replace(cast(VlaSpec, model.spec), body=foreign))


def test_state_dict_round_trip_gives_the_same_chunk(model: VisionLanguageModel) -> None:
    twin = fresh(model.family, seed=1)
    inputs = model.collate(INPUTS)
    twin.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(decode(twin, inputs), decode(model, inputs))


def test_refused_inputs(model: VisionLanguageModel) -> None:
    good = INPUTS[0]

    def refused(match: str, **change: Any) -> None:
        bad = dataclasses.replace(good)
        for name, value in change.items():
            object.__setattr__(bad, name, value)  # past the shapes that are checked while tests run
        with pytest.raises(InvalidObservation, match=match):
            model.collate([bad])

    refused("empty", instruction="  ")
    refused("tokens", instruction="go " * 300)
    refused("characters", instruction="pick up the cube " * 10_000)
    refused("2 cameras", images=good.images[:1])
    refused("finite", state=np.array([0, np.nan, 0, 0], np.float32))
    refused("finite", state=np.zeros(3, np.float32))
    refused("uint8", images=(good.images[0].astype(np.uint16), good.images[1]))
    refused("size zero", images=(np.zeros((0, 4, 3), np.uint8), good.images[1]))


def test_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="openvla_chunk"):
        architecture.family("pi0")


def test_vision_runs_under_autocast_and_in_bfloat16(model: VisionLanguageModel) -> None:
    inputs, target = model.collate(INPUTS), torch.zeros(3, H, D)
    valid = torch.ones(3, H, dtype=torch.bool)
    exact = float(model.loss(inputs, target, valid).detach())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(inputs, target, valid)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(exact, rel=0.05)
    chunk = decode(model, inputs)
    small = model.to(torch.bfloat16)
    # `collate` makes float32; the runner moves it to what the model is in.
    assert np.abs(decode(small, inputs) - chunk).mean() < (0.5 if model.reads_tokens else 0.05)
    for head in small.head_modules():
        small.get_submodule(head).float()
    assert np.isfinite(decode(small, inputs)).all()
    for head in small.head_modules():
        small.get_submodule(head).to(torch.bfloat16)
    assert float(small.loss(small.place(inputs), target, valid).detach()) == pytest.approx(exact, rel=0.05)
