"""The autoregressive family: steps against teacher forcing, constraints, and what an untrained model may answer."""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportAttributeAccessIssue=false

import dataclasses

import numpy as np
import pytest
import torch

from athena_vla.errors import ModelError
from athena_vla.models import openvla
from athena_vla.models.architecture import Tensors, run_torch
from athena_vla.models.contract import ModelInput
from athena_vla.models.loops.token_loop import TokenLoop
from athena_vla.models.openvla import OpenVLA
from athena_vla.models.torch_memory import Calling

SIZES: dict = {"image_size": 32, "tower_width": 16, "tower_blocks": 1, "width": 32, "layers": 2, "mlp_width": 64}
D, H = 5, 2


@pytest.fixture(scope="module")
def model() -> OpenVLA:
    torch.manual_seed(0)
    return OpenVLA.from_spec(openvla.tiny_spec(action_dim=D, state_dim=3, horizon=H, **SIZES), {}).eval()


def loop_of(model: OpenVLA) -> TokenLoop:
    assert isinstance(model.loop, TokenLoop)
    return model.loop


@pytest.fixture(scope="module")
def inputs(model: OpenVLA) -> Tensors:
    random = np.random.default_rng(0)
    return model.collate(
        [
            ModelInput((random.integers(0, 256, (32, 32, 3), dtype=np.uint8),), np.zeros(3, np.float32), text)
            for text in ("wave", "touch the red cube with your left hand")
        ]
    )


def test_step_by_step_logits_equal_teacher_forced_logits(model: OpenVLA, inputs: Tensors) -> None:
    seen: list[torch.Tensor] = []
    plain = run_torch(model)

    def recording(name: str, tensors: Tensors) -> Tensors:
        out = plain(name, tensors)
        if "logits" in out:
            seen.append(out["logits"])
        return out

    with torch.no_grad():
        tokens = torch.from_numpy(loop_of(model).decode_ids(Calling(recording), inputs))
        forced = model.answer_logits(inputs, tokens)
    assert len(seen) == H * D
    action = slice(model.action_tokens.first, model.action_tokens.vocabulary)  # all that may be chosen is all there is
    torch.testing.assert_close(torch.stack(seen, dim=1), forced[:, :-1, action], atol=1e-5, rtol=0)


def test_logits_cost_answer_rows_only_and_the_last_layer_no_picture(model: OpenVLA, inputs: Tensors) -> None:
    language = model.body.language_model
    rows: dict[str, int] = {}
    hooks = [
        part.register_forward_pre_hook(lambda _, given, name=name: rows.update({name: given[0].shape[1]}))
        for name, part in (("output", language.lm_head), ("last", language.model.layers[-1].mlp))
    ]
    tokens = torch.full((inputs["input_ids"].shape[0], 5), model.action_tokens.first)
    model.answer_logits(inputs, tokens)
    for hook in hooks:
        hook.remove()
    words = inputs["input_ids"].shape[1] + 5
    assert rows == {"output": 6, "last": words - 1}


def test_the_state_is_not_an_input(model: OpenVLA, inputs: Tensors) -> None:
    assert not model.reads_state
    assert model.head_modules() == []
    other = {**inputs, "state": torch.ones_like(inputs["state"])}
    a, b = (model.decode(run_torch(model), x, {}) for x in (inputs, other))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_constrained_choice_is_the_best_action_token(model: OpenVLA, inputs: Tensors) -> None:
    with torch.no_grad():
        tokens = torch.from_numpy(loop_of(model).decode_ids(model.engine(), inputs))
        logits = model.answer_logits(inputs, tokens)[:, :-1]
    assert int(tokens.min()) >= model.action_tokens.first
    best = (
        logits[:, :, model.action_tokens.first : model.action_tokens.vocabulary].argmax(-1) + model.action_tokens.first
    )
    assert torch.equal(tokens, best)


def test_rows_are_held_to_what_the_rows_before_them_allow(model: OpenVLA, inputs: Tensors) -> None:
    batch, horizon = len(inputs["input_ids"]), model.spec.horizon
    asked: list[np.ndarray] = []

    def allowed(rows: np.ndarray) -> np.ndarray:
        """Row 0 in [-0.9, -0.7], every later row at most 0.1 above the one before it."""
        asked.append(rows)
        low = rows[:, -1] if rows.shape[1] else np.full((batch, D), -0.9)
        high = low + 0.1 if rows.shape[1] else np.full((batch, D), -0.7)
        return (loop_of(model).bins >= low[:, :, None] - 1e-6) & (loop_of(model).bins <= high[:, :, None] + 1e-6)

    chunk = loop_of(model).decode_among(model.engine(), inputs, allowed)
    assert [a.shape for a in asked] == [(batch, r, D) for r in range(horizon)]
    for r, rows in enumerate(asked):
        np.testing.assert_array_equal(rows, chunk[:, :r])
    assert (chunk[:, 0] >= -0.9 - 1e-6).all()
    assert (chunk[:, 0] <= -0.7 + 1e-6).all()
    assert (np.diff(chunk, axis=1) <= 0.1 + 1e-6).all()
    assert (np.diff(chunk, axis=1) >= -1e-6).all()
    free = loop_of(model).decode_among(model.engine(), inputs, lambda rows: np.ones((batch, D, 256), dtype=bool))
    np.testing.assert_array_equal(free, model.decode(run_torch(model), inputs, {}).numpy())


def test_an_unconstrained_model_that_answers_in_words_is_refused(model: OpenVLA, inputs: Tensors) -> None:
    spec = dataclasses.replace(model.token_spec, constrained=False)
    loose = OpenVLA(spec, model.tokenizer_files(), model.body).eval()
    with pytest.raises(ModelError, match="no actions"):
        loose.decode(run_torch(loose), inputs, {})


def test_loss_is_the_mean_over_actions_and_the_end_token(model: OpenVLA, inputs: Tensors) -> None:
    target = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (2, H, D)).astype(np.float32))
    tokens = torch.from_numpy(model.action_tokens.encode(target.numpy())).reshape(2, -1)
    with torch.no_grad():
        chances = model.answer_logits(inputs, tokens).log_softmax(-1)
        wanted = torch.cat([tokens, torch.full((2, 1), 2)], dim=1)
        by_hand = -chances.gather(2, wanted[:, :, None]).mean()
        loss = model.loss(inputs, target, torch.ones(2, H, dtype=torch.bool))
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-6)


def test_training_on_tokens_reproduces_them(model: OpenVLA, inputs: Tensors) -> None:
    torch.manual_seed(0)
    own = OpenVLA.from_spec(model.spec, {})
    target = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, (2, H, D)).astype(np.float32))
    optimizer = torch.optim.AdamW(own.parameters(), 1e-2)
    for _ in range(50):
        own.loss(inputs, target, torch.ones(2, H, dtype=torch.bool)).backward()
        optimizer.step()
        optimizer.zero_grad()
    chunk = own.eval().decode(run_torch(own), inputs, {})
    assert float((chunk - target).abs().max()) <= 1 / 255 + 1e-6


def test_a_body_without_token_output_is_refused() -> None:
    spec = openvla.tiny_spec(action_dim=D, state_dim=3, **SIZES)
    body = dataclasses.replace(spec.body, text=dataclasses.replace(spec.body.text, output=False))
    with pytest.raises(ModelError, match="token output"):
        OpenVLA.from_spec(dataclasses.replace(spec, body=body), {})


def test_full_size_needs_its_own_tokenizer() -> None:
    with torch.device("meta"), pytest.raises(ModelError, match="tokenizer files"):
        OpenVLA.from_spec(openvla.full_7b_spec(), {})
