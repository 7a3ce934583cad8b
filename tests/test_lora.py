"""Adapters: what trains, the way there and back, and merging, against the plain model as the oracle."""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportCallIssue=false

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from athena_vla.errors import AthenaError, BundleError, ModelError
from athena_vla.finetune import PRESETS
from athena_vla.models import lora, openvla
from athena_vla.models.architecture import run_torch
from athena_vla.models.body.attention import _WrittenOut, attend
from athena_vla.models.body.tiny_tokenizer import tiny_tokenizer_files
from athena_vla.models.lora import LoraSettings
from athena_vla.models.lora_merge import merge_
from athena_vla.plan.training import trainable_parameters
from small_bundles import small_model

SETTINGS = {
    "lora": LoraSettings(rank=4),
    "dora": LoraSettings(rank=4, dora=True),
    "qlora": LoraSettings(rank=4, quantization="nf4"),
    "qdora": LoraSettings(rank=4, quantization="nf4", dora=True),
    "everything": LoraSettings(rank=4, vision=True, projector=True),
    "full": LoraSettings(method="full", vision=True, projector=True),
    "heads": LoraSettings(method="heads"),
}


def disturb(model: torch.nn.Module) -> None:
    """As after training: every trainable tensor away from its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def answer(model) -> torch.Tensor:
    return model.decode(run_torch(model.eval()), model.example_inputs(), {})


@pytest.mark.parametrize("name", SETTINGS)
def test_attach_changes_nothing_and_what_is_saved_comes_back(toy, name):
    plain, settings = small_model(toy), SETTINGS[name]
    before = answer(plain)
    model = small_model(toy)
    counted = lora.attach(model, settings)
    exact = settings.quantization == "none"
    torch.testing.assert_close(answer(model), before, atol=1e-6 if exact else 0.3, rtol=0)
    disturb(model)
    after = answer(model)
    assert (after - before).abs().max() > 1e-3
    saved = {k: v.clone() for k, v in lora.state(model).items()}
    assert counted.trainable == sum(t.numel() for t in saved.values())
    assert counted.total == lora.count(model).total >= sum(p.numel() for p in plain.parameters())
    again = small_model(toy)
    lora.attach(again, LoraSettings(**json.loads(json.dumps(asdict(settings)))))
    lora.load(again, saved)
    assert torch.equal(answer(again), after)


@pytest.mark.parametrize("name", SETTINGS)
def test_merging_keeps_the_answers_and_the_plain_layout(toy, name):
    model = small_model(toy)
    layout = {k: (v.shape, v.dtype) for k, v in model.state_dict().items()}
    lora.attach(model, SETTINGS[name])
    disturb(model)
    after = answer(model)
    merge_(model)
    assert {k: (v.shape, v.dtype) for k, v in model.state_dict().items()} == layout
    torch.testing.assert_close(answer(model), after, atol=2e-5, rtol=0)


def test_merged_weight_equals_the_formula(toy):
    model = small_model(toy)
    path = "body.language_model.model.layers.0.mlp.up_proj"
    base = model.get_submodule(path).weight.clone()
    lora.attach(model, LoraSettings(rank=4, alpha=12, targets=("up_proj",)))
    disturb(model)
    tensors = lora.state(model)
    a, b = (tensors[f"{path}.lora_{x}.default.weight"] for x in "AB")
    merge_(model)
    torch.testing.assert_close(model.get_submodule(path).weight, base + 12 / 4 * b @ a, atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", [LoraSettings(rank=4, alpha=6), LoraSettings(rank=4, dora=True)])
def test_the_fused_forward_gives_the_same_answers_and_gradients(toy, settings):
    model = small_model(toy)
    lora.attach(model, settings)
    disturb(model)
    inputs = model.example_inputs()
    target, valid = torch.zeros(1, 4, 3), torch.ones(1, 4, dtype=torch.bool)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.loss(inputs, target, valid).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    before, wanted = answer(model), gradients()
    lora.fuse_forward(model, on=True)
    torch.testing.assert_close(answer(model), before, atol=1e-5, rtol=0)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-4)
    lora.fuse_forward(model, on=False)
    assert torch.equal(answer(model), before)


def test_only_named_layers_get_adapters_by_full_path(toy):
    model = small_model(toy, tokens=True)
    lora.attach(model, LoraSettings(rank=2, targets=("q_proj", "lm_head", "embed_tokens")))
    wrapped = {n.split(".lora_")[0] for n, _ in model.named_parameters() if "lora_" in n}
    language = "body.language_model"
    assert wrapped == {
        *(f"{language}.model.layers.{i}.self_attn.q_proj" for i in range(2)),
        f"{language}.lm_head",
        f"{language}.model.embed_tokens",
    }
    # Towers have layers of the same short names; without `vision` none of them trains.
    assert not any("vision" in n for n in lora.state(model))


def test_a_target_the_family_has_no_layer_for_is_reported(toy):
    assert lora.left_out(small_model(toy), LoraSettings(targets=("q_proj", "lm_head"))) == ("lm_head",)
    assert lora.left_out(small_model(toy, tokens=True), LoraSettings(targets=("q_proj", "lm_head"))) == ()


def test_full_fine_tuning_leaves_out_what_is_not_chosen(toy):
    model = small_model(toy)
    lora.attach(model, LoraSettings(method="full"))
    names = set(lora.state(model))
    assert any("language_model.model.norm" in n for n in names)
    assert not any("vision_backbone" in n or ("projector.fc" in n and "state" not in n) for n in names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 0}, "rank >= 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"method": "full", "quantization": "nf4"}, "cannot be trained in full"),
        ({"quantization": "int3"}, "Known: none, nf4"),
        ({"method": "prefix"}, "Known: lora, full, heads"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(change, said):
    with pytest.raises(AthenaError, match=said):
        LoraSettings(**change)


def test_an_unknown_target_lists_the_known_ones(toy):
    with pytest.raises(AthenaError, match=r"'c_attn'.*q_proj"):
        lora.attach(small_model(toy), LoraSettings(targets=("c_attn",)))


def test_a_second_adapter_and_a_foreign_file_are_refused(toy):
    model = small_model(toy)
    lora.attach(model, LoraSettings(rank=4))
    with pytest.raises(ModelError, match="already has adapters"):
        lora.attach(model, LoraSettings(rank=4))
    other = small_model(toy)
    lora.attach(other, LoraSettings(rank=8))
    with pytest.raises(BundleError, match=r"has shape \[8, .*expected \[4"):
        lora.load(model, lora.state(other))


def test_half_precision_bases_train_adapters_in_float32(toy):
    model = small_model(toy).bfloat16()
    lora.attach(model, LoraSettings(rank=4))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(answer(model)).all()


def test_parameter_counts_at_full_size():
    """openvla-7b on the meta device: the published 110,828,288 = decoder 79,953,920 + towers and projector + extras."""
    with torch.device("meta"):
        spec = openvla.full_7b_spec(action_dim=7, state_dim=7)
        model = openvla.OpenVLA(spec, tiny_tokenizer_files())
    reference = trainable_parameters(model, LoraSettings(**PRESETS["openvla_reference"].lora()))
    unread = (
        1_094_656 + 607_232
    )  # linear layers of each tower's last block, and SigLIP's pool: no output depends on them
    assert reference == 107_862_016 == 109_563_904 - unread, "every linear layer, without those that get no gradient"
    assert 109_563_904 + 1_157_120 + 107_264 == 110_828_288, "as published: the output layer, and patch embeddings"
    decoder = lora.attach(model, LoraSettings(rank=32))
    assert decoder.trainable == 79_953_920


@pytest.mark.parametrize("masked", [True, False])
def test_attention_written_out_equals_the_fused_kernel(masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril() if masked else None
    torch.testing.assert_close(
        _WrittenOut.apply(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    )
    assert torch.autograd.gradcheck(lambda *t: _WrittenOut.apply(*t, mask), (q, k, v))


def test_training_in_bfloat16_uses_it_and_stays_close():
    generator = torch.Generator().manual_seed(0)
    wide = [torch.randn(2, 2, 12, 16, generator=generator) for _ in range(3)]
    narrow = [t.bfloat16().requires_grad_() for t in wide]
    exact = [t.bfloat16().float().requires_grad_() for t in wide]
    mask = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    attend(narrow[0], narrow[1], narrow[2], mask).float().square().sum().backward()
    attend(exact[0], exact[1], exact[2], mask).square().sum().backward()
    for a, b in zip(narrow, exact, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad.float() - b.grad).norm() < 0.02 * b.grad.norm()
