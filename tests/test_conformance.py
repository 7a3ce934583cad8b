"""Golden vectors of the public reference code, through the conformance surface; the quirks that go with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from athena_vla.errors import InvalidObservation, ModelError, UnknownName
from athena_vla.models import conformance
from athena_vla.models.conformance import Checkpoint

GOLDENS = Path(__file__).resolve().parents[1] / ".." / "shared" / "goldens"
VLA = sorted(p.name for p in GOLDENS.glob("vla_*")) if GOLDENS.is_dir() else []
OFT = sorted(p.name for p in GOLDENS.glob("oft_*")) if GOLDENS.is_dir() else []
pytestmark = pytest.mark.skipif(not VLA, reason="needs ../shared/goldens")


class Golden:
    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.folder = GOLDENS / name
        self.json: dict[str, Any] = json.loads((self.folder / "golden.json").read_text())
        self.arrays = dict(np.load(self.folder / "golden.npz"))
        self.checkpoint = checkpoint

    def image(self, name: str) -> Image.Image:
        return Image.open(self.folder / "images" / f"{name}.png")


@pytest.fixture(scope="module", params=VLA)
def vla(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param, conformance.load(GOLDENS / request.param / "checkpoint"))


@pytest.fixture(scope="module", params=OFT)
def oft(request: pytest.FixtureRequest) -> Golden:
    path = GOLDENS / request.param
    platform = json.loads((path / "golden.json").read_text())["constants"]["ROBOT_PLATFORM"].lower()
    return Golden(request.param, conformance.load(path / "checkpoint", platform=platform))


def common() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    folder = GOLDENS / "common"
    return json.loads((folder / "golden.json").read_text()), dict(np.load(folder / "golden.npz"))


def test_pixels_are_equal_to_the_last_bit(vla: Golden) -> None:
    seen = 0
    for file in sorted((vla.folder / "images").glob("*.png")):
        found = vla.checkpoint.pixel_values(vla.image(file.stem))
        views = {
            "pixel_values": found,
            "pixel_values_every2nd": found[:, :, ::2, ::2],
            "pixel_values_every11th": found.reshape(-1)[::11],
        }
        for key, value in views.items():
            wanted = vla.arrays.get(f"img.{file.stem}.{key}")
            if wanted is not None:
                np.testing.assert_array_equal(value, wanted)
                seen += 1
    assert seen >= 5


def test_patches_logits_and_text_only_logits(vla: Golden) -> None:
    seen = 0
    for key in [k for k in vla.arrays if k.startswith("fwd.") and k.endswith(".input_ids")]:
        image = key.split(".")[1]
        ids = vla.arrays[key]
        pixels = vla.checkpoint.pixel_values(vla.image(image))
        patches = vla.checkpoint.patches(pixels)
        np.testing.assert_allclose(patches, vla.arrays[f"fwd.{image}.projected_patch_embeddings"], atol=1e-4)
        logits = vla.checkpoint.logits(pixels, ids)[0]
        columns = vla.arrays["logit_cols"]
        rows = vla.arrays[f"fwd.{image}.logits_positions"]
        np.testing.assert_allclose(logits[rows][:, columns], vla.arrays[f"fwd.{image}.logits_cols"], atol=1e-4)
        np.testing.assert_allclose(logits[-1], vla.arrays[f"fwd.{image}.logits_last_full"], atol=1e-4)
        wide = torch.from_numpy(logits)
        np.testing.assert_allclose(wide.logsumexp(1), vla.arrays[f"fwd.{image}.logsumexp_all"], atol=1e-4)
        top = wide.topk(2, dim=1).values
        clear = ((top[:, 0] - top[:, 1]) > 1e-3).numpy()
        assert (wide.argmax(1).numpy() == vla.arrays[f"fwd.{image}.argmax_all"])[clear].all()
        text = vla.checkpoint.logits(None, ids)[0]
        np.testing.assert_allclose(text[:, columns], vla.arrays[f"fwd.{image}.textonly_logits_cols"], atol=1e-4)
        seen += 1
    assert seen >= 2


def test_every_recorded_case_of_prediction(vla: Golden) -> None:
    for name, case in vla.json["cases"].items():
        image = vla.image(case["image"])
        assert vla.checkpoint.input_ids(case["instruction"]) == case["input_ids"], name
        assert vla.checkpoint.prompter.answer_ids(case["instruction"]) == case["input_ids_fed_to_generate"], name
        assert vla.checkpoint.predict_ids(image, case["instruction"], case["unnorm_key"]) == case["new_ids"], name
        # One data set per number of action dimensions is generated in full, the others differ in statistics only.
        widths: dict[int, str] = {}
        for key, wanted in case["actions"].items():
            if widths.setdefault(len(wanted), key) == key:
                found = vla.checkpoint.predict_action(image, case["instruction"], key)
            else:
                ids = [*case["input_ids_fed_to_generate"], *case["new_ids"]][-len(wanted) :]
                stats = vla.checkpoint.raw.norm_stats[key]["action"]
                found = conformance.unnormalize(conformance.decode_action(ids), stats)
            np.testing.assert_array_equal(found, wanted, err_msg=f"{name} {key}")


def test_training_examples_batch_loss_and_gradients(vla: Golden) -> None:
    train, arrays, checkpoint = vla.json["train"], vla.arrays, vla.checkpoint
    examples = [
        checkpoint.training_example(vla.image(i), text, action)
        for i, text, action in zip(train["images"], train["instructions"], train["actions"], strict=True)
    ]
    length = max(len(e["input_ids"]) for e in examples)
    ids = [e["input_ids"] + [checkpoint.prompter.pad] * (length - len(e["input_ids"])) for e in examples]
    labels = [e["labels"] + [conformance.IGNORE] * (length - len(e["labels"])) for e in examples]
    np.testing.assert_array_equal(ids, arrays["train.input_ids"])
    np.testing.assert_array_equal(labels, arrays["train.labels"])
    pixels = np.concatenate([e["pixel_values"] for e in examples])
    assert checkpoint.loss(pixels, ids, labels) == pytest.approx(train["loss"], rel=1e-5)
    # A list of single examples is the same batch.
    assert checkpoint.loss(np.stack([e["pixel_values"] for e in examples]), ids, labels) == pytest.approx(
        train["loss"], rel=1e-5
    )

    full = conformance.load(vla.folder / "checkpoint")
    full.loss_tensor(pixels, ids, labels).backward()
    norms = {n: float(p.grad.norm()) for n, p in full.raw.body.named_parameters() if p.grad is not None}
    assert set(norms) == set(train["grad_norms"])
    for name, wanted in train["grad_norms"].items():
        assert norms[name] == pytest.approx(wanted, rel=2e-3, abs=1e-5), name
    assert sorted(full.raw.unused) == sorted(train["params_without_grad"])


def test_the_data_set_must_be_named_where_there_are_several(vla: Golden) -> None:
    if len(vla.checkpoint.raw.norm_stats) > 1:
        with pytest.raises(ModelError, match="name the one"):
            vla.checkpoint.predict_action(vla.image("real"), "lift the mug")
    with pytest.raises(UnknownName, match="nowhere"):
        vla.checkpoint.predict_action(vla.image("real"), "lift the mug", "nowhere")


def test_bfloat16_agrees_where_the_choice_is_clear(vla: Golden) -> None:
    small = conformance.load(vla.folder / "checkpoint", dtype="bfloat16")
    key = next(k for k in vla.arrays if k.startswith("fwd.") and k.endswith(".input_ids"))
    pixels = vla.checkpoint.pixel_values(vla.image(key.split(".")[1]))
    a, b = (c.logits(pixels, vla.arrays[key])[0] for c in (vla.checkpoint, small))
    assert 0 < np.abs(a - b).max() < 0.5
    top = np.sort(a, axis=1)
    clear = top[:, -1] - top[:, -2] > 0.5
    assert (a.argmax(1) == b.argmax(1))[clear].all()


def test_oft_discrete_and_l1(oft: Golden) -> None:
    views = [oft.image(Path(i["file"]).stem) for i in oft.json["images"]]
    checkpoint, instruction, key = oft.checkpoint, oft.json["instruction"], oft.json["unnorm_key"]
    proprio = np.array(oft.json["proprio_raw"])
    assert checkpoint.input_ids(instruction) == oft.json["input_ids"]
    pixels = checkpoint.pixel_values(views)
    step = -(-pixels.shape[2] // oft.arrays["pixel_values"].shape[2])
    np.testing.assert_array_equal(pixels[:, :, ::step, ::step], oft.arrays["pixel_values"])
    np.testing.assert_allclose(checkpoint.patches(pixels), oft.arrays["projected_patch_embeddings"], atol=1e-4)
    ids = np.array(checkpoint.predict_ids(views, instruction, key))
    sure = oft.arrays["discrete.top1_top2_margin"] >= 1e-3
    np.testing.assert_array_equal(ids[sure], oft.arrays["discrete.token_ids"].reshape(-1)[sure])
    found = checkpoint.predict_action(views, instruction, key, proprio)
    np.testing.assert_allclose(found, oft.arrays["l1.actions"], atol=5e-6)
    without = checkpoint.predict_action(views, instruction, None, None)
    np.testing.assert_allclose(without, oft.arrays["l1_noproprio.actions"], atol=5e-6)
    assert np.abs(found - without).max() > 1e-3


def test_oft_training_losses(oft: Golden) -> None:
    train = oft.json["train"]
    ids, labels = oft.arrays["train.input_ids"], oft.arrays["train.labels"]
    pixels = np.concatenate(
        [oft.checkpoint.pixel_values([oft.image(view) for view in views]) for views in train["images"]]
    )
    wanted = train["discrete"]["loss_value"]
    assert oft.checkpoint.loss(pixels, ids, labels) == pytest.approx(wanted, rel=1e-5)
    examples = [
        oft.checkpoint.training_example([oft.image(v) for v in views], text, actions)
        for views, text, actions in zip(
            train["images"], train["instructions"], oft.arrays["train.actions"], strict=True
        )
    ]
    for example, row, label in zip(examples, ids, labels, strict=True):
        count = len(example["input_ids"])
        np.testing.assert_array_equal(example["input_ids"], row[:count])
        np.testing.assert_array_equal(example["labels"], label[:count])


def test_oft_needs_a_platform_that_exists(oft: Golden) -> None:
    with pytest.raises(ModelError, match="platform="):
        conformance.load(oft.folder / "checkpoint")
    with pytest.raises(UnknownName, match="libero, aloha"):
        conformance.load(oft.folder / "checkpoint", platform="mars")


def test_oft_refuses_a_state_that_is_not_a_number(oft: Golden) -> None:
    views = [oft.image(Path(i["file"]).stem) for i in oft.json["images"]]
    state = np.array(oft.json["proprio_raw"])
    state[2] = np.nan
    with pytest.raises(InvalidObservation, match="not finite"):
        oft.checkpoint.predict_action(views, oft.json["instruction"], proprio=state)
    with pytest.raises(InvalidObservation, match="do not fit"):
        oft.checkpoint.predict_action(views, oft.json["instruction"], proprio=state[:3])


def test_oft_pickled_and_plain_files_hold_the_same(oft: Golden) -> None:
    from athena_vla.models.released.oft_files import read_part

    for path in (oft.folder / "checkpoint").glob("*.pt"):
        plain, pickled = read_part(path.with_suffix(".safetensors")), read_part(path)
        assert set(plain) == set(pickled)
        for name, tensor in plain.items():
            torch.testing.assert_close(tensor, pickled[name], rtol=0, atol=0)


def test_action_tables() -> None:
    raw, arrays = common()
    for kind in ("f64", "f32"):
        found = conformance.encode_action(arrays[f"encode.{kind}.values"])
        np.testing.assert_array_equal(found, arrays[f"encode.{kind}.token_ids"])
    np.testing.assert_array_equal(conformance.decode_action(arrays["decode.token_ids"]), arrays["decode.actions"])
    np.testing.assert_array_equal(conformance.encode_action(arrays["batch.actions"]), arrays["batch.token_ids"])
    table = raw["unnormalize"]
    for name, stats in table["stats"].items():
        width = len(stats["q01"])
        for ids, wanted in zip(table["token_ids"], table["actions"][name], strict=True):
            found = conformance.unnormalize(conformance.decode_action(ids[:width]), stats)
            np.testing.assert_array_equal(found, wanted)


def test_normalisation_equals_the_tensorflow_reference() -> None:
    arrays = dict(np.load(GOLDENS / "common" / "tf_golden.npz"))
    stats = {k.split(".")[-1]: v for k, v in arrays.items() if k.startswith("normalize.stats.")}
    for kind in ("bounds", "bounds_q99", "normal"):
        masked = {**stats, "mask": arrays["normalize.action_mask"]}
        found = conformance.normalize(arrays["normalize.action_in"], masked, kind)
        np.testing.assert_allclose(found, arrays[f"normalize.{kind}.action"], atol=1e-6)
        found = conformance.normalize(arrays["normalize.proprio_in"], stats, kind)
        np.testing.assert_allclose(found, arrays[f"normalize.{kind}.proprio"], atol=1e-6)


def test_prompts_of_both_templates() -> None:
    from athena_vla.models.body.prompt import Prompter

    raw, _ = common()
    folders = {"ids": GOLDENS / "common" / "tokenizer", "ids_synth": GOLDENS / "common" / "tokenizer_synth"}
    for key, folder in folders.items():
        prompter = Prompter({p.name: p.read_bytes() for p in folder.iterdir()}, "pure", 2048)
        for row in raw["prompts"]:
            if not row["instruction"].strip():
                continue
            assert prompter.text(row["instruction"]) == row["eval_prompt"]
            assert prompter.ids(row["instruction"]) == row[key], row["instruction"]
            if key == "ids":
                assert prompter.ids(row["instruction"].replace("<image>", "")) == row["builder_ids"]
    files = {p.name: p.read_bytes() for p in folders["ids"].iterdir()}
    vicuna = Prompter(files, "vicuna", 2048)
    for row in raw["prompts"]:
        text = row["instruction"].replace("<image>", "")
        if text.strip():
            assert vicuna.text(text) == row["v01_builder_prompt"]
            assert vicuna.ids(text) == row["v01_ids"], row["instruction"]
