"""The chunked family: parameters, queries, padding, masks, and what another robot keeps."""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import dataclasses

import numpy as np
import pytest
import torch

from athena_vla.models import openvla_chunk, openvla_oft
from athena_vla.models.architecture import run_torch
from athena_vla.models.body.tiny_tokenizer import tiny_tokenizer_files
from athena_vla.models.contract import ModelInput
from athena_vla.models.openvla_chunk import OpenVLAChunk, full_7b_spec, tiny_spec
from athena_vla.models.openvla_oft import OpenVLAOFT

SIZES: dict = {"image_size": 32, "tower_width": 16, "tower_blocks": 1, "width": 32, "layers": 2, "mlp_width": 64}


def model_of(horizon: int = 4, **more: int) -> OpenVLAChunk:
    torch.manual_seed(0)
    spec = tiny_spec(action_dim=3, state_dim=5, horizon=horizon, **SIZES)
    return OpenVLAChunk.from_spec(dataclasses.replace(spec, **more), {}).eval()


def item(text: str, seed: int = 0) -> ModelInput:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return ModelInput((image,), random.normal(size=5).astype(np.float32), text)


def test_parameters_do_not_grow_with_the_horizon() -> None:
    counts = [sum(p.numel() for p in model_of(h).parameters()) for h in (1, 8, 64)]
    assert len(set(counts)) == 1
    with torch.device("meta"):
        full = [
            OpenVLAChunk.from_spec(full_7b_spec(action_dim=23, state_dim=23, horizon=h), tiny_tokenizer_files(32000))
            for h in (1, 16)
        ]
        heads = [sum(p.numel() for n in m.head_modules() for p in m.get_submodule(n).parameters()) for m in full]
        oft = OpenVLAOFT.from_spec(openvla_oft.full_7b_spec(action_dim=23, state_dim=23), tiny_tokenizer_files(32000))
    assert heads[0] == heads[1] < 25e6
    # The reference's head: 151 M parameters at 7 joints, 420 M at 23.
    assert sum(p.numel() for p in oft.head.parameters()) == pytest.approx(420e6, rel=0.01)


def test_the_same_weights_serve_another_horizon_with_the_same_first_steps() -> None:
    """Causal: later queries cannot reach earlier ones."""
    long, short = model_of(6), model_of(2)
    short.load_state_dict(long.state_dict())
    inputs = long.collate([item("wave")])
    a, b = (m.decode(run_torch(m), inputs, {}) for m in (long, short))
    torch.testing.assert_close(a[:, :2], b, atol=1e-6, rtol=0)


def test_queries_differ_from_step_to_step() -> None:
    queries = model_of().queries(64).detach()
    gaps = torch.cdist(queries, queries) + 1e3 * torch.eye(64)
    assert float(gaps.min()) > 1e-3


def test_more_padding_changes_nothing() -> None:
    model = model_of()
    inputs = model.collate([item("touch the red cube")])
    wide = {
        **inputs,
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 9), value=7),
        "prompt_mask": torch.nn.functional.pad(inputs["prompt_mask"], (0, 9), value=False),
    }
    a, b = (model.decode(run_torch(model), x, {}) for x in (inputs, wide))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_without_proprio_the_state_cannot_matter() -> None:
    model = model_of(proprio=False)
    assert not model.reads_state
    assert model.head_modules() == ["queries", "head"]
    inputs = model.collate([item("wave")])
    other = {**inputs, "state": inputs["state"] + 1}
    a, b = (model.decode(run_torch(model), x, {}) for x in (inputs, other))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert "state" not in {g.name: g for g in model.graphs()}["language"].example


def test_rebinding_keeps_queries_and_trunk_and_renews_the_rest() -> None:
    model = model_of()
    torch.manual_seed(1)
    other = model.rebind(dataclasses.replace(model.chunk_spec, action_dim=7, horizon=9, state_dim=2))
    torch.testing.assert_close(other.queries.state_dict(), model.queries.state_dict())
    torch.testing.assert_close(other.head.fc1.weight, model.head.fc1.weight)
    assert other.head.fc2.weight.shape == (7, model.chunk_spec.head_width)
    assert other.state_projector.fc1.weight.shape[1] == 2
    same = model.rebind(model.chunk_spec)
    assert not torch.equal(same.head.fc2.weight, model.head.fc2.weight)


def test_same_seed_same_weights() -> None:
    a, b = model_of().state_dict(), model_of().state_dict()
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_loss_is_the_mean_absolute_error_of_valid_rows() -> None:
    model = model_of()
    inputs = model.collate([item("wave"), item("touch the red cube", 1)])
    target = torch.rand(2, 4, 3) * 2 - 1
    valid = torch.tensor([[True, True, False, False], [True, True, True, False]])
    with torch.no_grad():
        hidden = model.hidden(model.encode_images(inputs), inputs["input_ids"], inputs["prompt_mask"], inputs["state"])
        error = (model.head(hidden) - target).abs()[valid].mean()
        assert float(model.loss(inputs, target, valid)) == pytest.approx(float(error), rel=1e-6)


def test_oft_head_reads_one_position_early() -> None:
    """The first action is read at the prompt's last token: changing the placeholders' number moves nothing before."""
    torch.manual_seed(0)
    spec = openvla_oft.tiny_spec(action_dim=3, state_dim=5, horizon=2, **SIZES)
    model = OpenVLAOFT.from_spec(spec, {}).eval()
    inputs = model.collate([item("wave"), item("touch the red cube", 1)])
    with torch.no_grad():
        patches = model.encode_images(inputs)
        hidden = model.hidden(patches, inputs["input_ids"], inputs["prompt_mask"], inputs["state"])
        ids = inputs["input_ids"][:1, : int(inputs["prompt_mask"][0].sum())]
        # Restated without padding, slices and helpers.
        words = model.body.language_model.embed(ids)
        state = model.state_projector(inputs["state"][:1])
        end = model.body.language_model.embed(torch.tensor([[2]]))
        x = torch.cat([words[:, :1], patches[:1], state, words[:, 1:], torch.zeros(1, 6, 32), end], dim=1)
        mask = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool)
        full = model.body.language_model(x, mask, torch.arange(x.shape[1])[None])
    start = patches.shape[1] + 1 + ids.shape[1] - 1
    torch.testing.assert_close(hidden[:1], full[:, start : start + 6], atol=1e-5, rtol=0)


def test_module_names_are_stable() -> None:
    """Adapters are stored under these names."""
    names = openvla_chunk.OpenVLAChunk.from_spec(tiny_spec(action_dim=3, state_dim=5, **SIZES), {}).lora_modules(
        ("q_proj",), vision=True, projector=True
    )
    assert names[0] == "body.language_model.model.layers.0.self_attn.q_proj"
    assert "body.vision_backbone.fused_featurizer.blocks.0.mlp.fc2" in names
    assert names[-1] == "body.projector.fc3"
