"""The decoder against transformers' Llama on random weights: whole sequences, step by step, padded, grouped, tailed."""

import dataclasses

import pytest
import torch

from athena_vla.models.body.body_spec import LlamaSpec
from athena_vla.models.body.llama import Llama, SelfAttention, _bias, attention_mask, rotary

SPEC = LlamaSpec(width=48, mlp_width=80, layers=3, heads=6, kv_heads=6, rows=96)


def pair(spec: LlamaSpec) -> tuple[Llama, torch.nn.Module]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=spec.rows,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.rms_epsilon,
        max_position_embeddings=2048,
    )
    reference = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.08) + (parameter.ndim == 1)
            )
    mine = Llama(spec).eval()
    mine.load_state_dict(reference.state_dict())
    return mine, reference


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_whole_sequences_equal_transformers(kv_heads: int) -> None:
    mine, reference = pair(dataclasses.replace(SPEC, kv_heads=kv_heads))
    ids = torch.randint(0, SPEC.rows, (2, 17))
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[1, 12:] = False
    with torch.no_grad():
        theirs = reference(input_ids=ids, attention_mask=valid.long()).logits
        hidden = mine(mine.embed(ids), attention_mask(valid), torch.arange(17)[None].expand(2, -1))
        ours = mine.lm_head(hidden)
    torch.testing.assert_close(ours[valid], theirs[valid], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kv_heads", [6, 2])
def test_steps_equal_transformers_and_the_whole_sequence(kv_heads: int) -> None:
    mine, reference = pair(dataclasses.replace(SPEC, kv_heads=kv_heads))
    ids = torch.randint(0, SPEC.rows, (1, 11))
    with torch.no_grad():
        theirs = reference(input_ids=ids).logits[0]
        first = 5
        nothing = mine.room(mine.model.norm.weight[None], 1).fill_(1e4)
        hidden, keys, values = mine.extend(
            mine.embed(ids[:, :first]), torch.ones(1, first, dtype=torch.bool), torch.tensor([0]), nothing, nothing
        )
        torch.testing.assert_close(mine.lm_head(hidden)[0], theirs[:first], atol=2e-5, rtol=0)
        # Garbage in unused slots must not matter: a static cache is never cleared.
        room = torch.full((*keys.shape[:3], 11 - first, keys.shape[4]), 1e4)
        keys, values = torch.cat([keys, room], dim=3), torch.cat([values, room], dim=3)
        for i in range(first, 11):
            row = mine.embed(ids[:, i : i + 1]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([i])
            hidden, key, value = mine.extend(*row, keys, values)
            keys[:, :, :, i : i + 1], values[:, :, :, i : i + 1] = key, value
            torch.testing.assert_close(mine.lm_head(hidden)[0, 0], theirs[i], atol=2e-5, rtol=0)


def test_the_tail_is_the_end_of_the_whole() -> None:
    torch.manual_seed(0)
    mine = Llama(SPEC).eval()
    x, valid = torch.randn(2, 9, SPEC.width), torch.ones(2, 9, dtype=torch.bool)
    positions = torch.arange(9)[None].expand(2, -1)
    with torch.no_grad():
        whole = mine(x, attention_mask(valid), positions)
        torch.testing.assert_close(mine(x, attention_mask(valid), positions, tail=3), whole[:, -3:])


def test_bidirectional_rows_see_the_future_and_causal_rows_do_not() -> None:
    torch.manual_seed(0)
    mine = Llama(SPEC).eval()
    a = torch.randn(1, 6, SPEC.width)
    b = a.clone()
    b[:, -1] += 1
    valid, positions = torch.ones(1, 6, dtype=torch.bool), torch.arange(6)[None]
    with torch.no_grad():
        causal = [mine(x, attention_mask(valid), positions)[:, 0] for x in (a, b)]
        both = [mine(x, attention_mask(valid, causal=False), positions)[:, 0] for x in (a, b)]
    torch.testing.assert_close(*causal)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_padding_in_the_middle_changes_nothing_where_positions_count_real_tokens() -> None:
    torch.manual_seed(0)
    mine = Llama(SPEC).eval()
    x = torch.randn(1, 7, SPEC.width)
    padded = torch.cat([x[:, :4], torch.randn(1, 3, SPEC.width), x[:, 4:]], dim=1)
    valid = torch.tensor([[True] * 4 + [False] * 3 + [True] * 3])
    with torch.no_grad():
        plain = mine(x, attention_mask(valid[:, valid[0]]), torch.arange(7)[None])
        wide = mine(padded, attention_mask(valid), valid.long().cumsum(1) - 1)
    torch.testing.assert_close(wide[:, -3:], plain[:, -3:], atol=1e-6, rtol=0)


def test_epsilon_of_the_norm_is_used() -> None:
    torch.manual_seed(0)
    x, valid = 1e-3 * torch.randn(1, 4, SPEC.width), torch.ones(1, 4, dtype=torch.bool)
    models = [Llama(dataclasses.replace(SPEC, rms_epsilon=e)) for e in (1e-6, 1e-5)]
    models[1].load_state_dict(models[0].state_dict())
    a, b = (m(x, attention_mask(valid), torch.arange(4)[None]) for m in models)
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_a_card_attends_to_a_joined_cache_as_a_processor_to_two_parts(rows: int, kv_heads: int) -> None:
    """The two ways are one attention: slots that are not filled yet are no part of either."""
    torch.manual_seed(0)
    spec = dataclasses.replace(SPEC, kv_heads=kv_heads)
    attention, slots, filled = SelfAttention(spec), 9, torch.tensor([7, 5])
    x = torch.randn(2, rows, spec.width)
    cos, sin = rotary(filled[:, None] + torch.arange(rows), spec.head_width, spec.rope_theta)
    keys, values = torch.randn(2, 2, kv_heads, slots, spec.head_width)
    past = (torch.arange(slots)[None] < filled[:, None])[:, None, None]
    biases = (_bias(past, x.dtype), _bias(attention_mask(torch.ones(2, rows, dtype=torch.bool)), x.dtype))
    asked = (x, cos, sin, (keys, values), attention.project(x, cos, sin), biases)
    with torch.no_grad():
        torch.testing.assert_close(attention._attend_joined(*asked), attention.attend_cached(*asked))
