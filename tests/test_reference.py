"""Every kind of released checkpoint against answers of the public reference, recorded on seeded small weights.

The goldens of `test_conformance.py` are two fused models; these are the single towers, the other resize strategies,
both prompts, grouped queries, several data sets and both OFT platforms. See tests/reference/README.md.
"""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import tiny_releases as tiny
from athena_vla.errors import InvalidObservation, ModelError
from athena_vla.models import conformance
from athena_vla.models.conformance import Checkpoint
from athena_vla.models.released import released_weights as checkpoint

RECORDED = Path(__file__).with_name("reference")
VLA = [n for n, r in tiny.RELEASES.items() if r.platform is None]
OFT = [n for n, r in tiny.RELEASES.items() if r.platform is not None]


class Recorded:
    """A release, what the reference said of it, and ours loaded from the same files."""

    def __init__(self, name: str, folder: Path) -> None:
        self.release = tiny.RELEASES[name]
        self.json: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
        self.arrays = dict(np.load(RECORDED / f"{name}.npz"))
        # Names and shapes are the reference's: loading is strict, so a name of our own would be refused.
        shapes = {k: tuple(v) for k, v in self.json["shapes"].items()}
        self.folder = tiny.write(self.release, folder, shapes)
        self.checkpoint: Checkpoint = conformance.load(self.folder, platform=self.release.platform)
        self.pictures = tiny.pictures(self.release.seed)


@pytest.fixture(scope="module", params=VLA)
def vla(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=OFT)
def oft(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(request.param, tmp_path_factory.mktemp(request.param))


def pixels_are_equal(recorded: Recorded) -> None:
    for name, picture in recorded.pictures.items():
        found = recorded.checkpoint.pixel_values(picture)
        step = 101 if found.shape[-1] < 300 else 307
        np.testing.assert_array_equal(found.reshape(-1)[::step], recorded.arrays[f"pixels.{name}"], err_msg=name)


def test_pixels_of_every_mode_and_strategy(vla: Recorded) -> None:
    pixels_are_equal(vla)


def test_prompt_ids(vla: Recorded) -> None:
    for text, ids in zip(tiny.INSTRUCTIONS, vla.json["input_ids"], strict=True):
        assert vla.checkpoint.input_ids(text) == ids


def test_patches_and_logits(vla: Recorded) -> None:
    checkpoint, arrays = vla.checkpoint, vla.arrays
    for i, name in enumerate(("wide", "clear")):
        pixels = checkpoint.pixel_values(vla.pictures[name])
        np.testing.assert_allclose(checkpoint.patches(pixels)[0, ::23, ::3], arrays[f"patches.{name}"], atol=1e-4)
        logits = checkpoint.logits(pixels, [*vla.json["input_ids"][i], 29871])[0]
        np.testing.assert_allclose(logits[::17][:, arrays["columns"]], arrays[f"logits.{name}"], atol=1e-4)
        np.testing.assert_allclose(logits[-1, ::37], arrays[f"logits_last.{name}"], atol=1e-4)
        total = torch.from_numpy(logits).logsumexp(1)[::5]
        np.testing.assert_allclose(total, arrays[f"logsumexp.{name}"], atol=1e-4)


def test_predicted_tokens_and_actions(vla: Recorded) -> None:
    for case in vla.json["cases"]:
        assert case["margin"] > 1e-3, "record it again with another seed"
        image, text = vla.pictures[case["image"]], tiny.INSTRUCTIONS[case["instruction"]]
        assert vla.checkpoint.predict_ids(image, text, case["unnorm_key"]) == case["new_ids"]
        np.testing.assert_array_equal(
            vla.checkpoint.predict_action(image, text, case["unnorm_key"]), case["action"], err_msg=str(case)
        )


def test_training_batch_loss_and_gradients(vla: Recorded) -> None:
    train, pad = vla.json["train"], vla.checkpoint.prompter.pad
    examples = [
        vla.checkpoint.training_example(vla.pictures[name], text, action)
        for name, text, action in zip(("square", "tall", "grey"), tiny.INSTRUCTIONS, train["actions"], strict=True)
    ]
    for example, ids, labels in zip(examples, train["input_ids"], train["labels"], strict=True):
        count = len(example["input_ids"])
        assert example["input_ids"] == ids[:count]
        assert example["labels"] == labels[:count]
        assert set(ids[count:]) <= {pad}
    pixels = np.concatenate([e["pixel_values"] for e in examples])
    loss = vla.checkpoint.loss_tensor(pixels, train["input_ids"], train["labels"])
    assert float(loss.detach()) == pytest.approx(train["loss"], rel=1e-5)
    body = vla.checkpoint.raw.body
    loss.backward()
    norms = {n: float(p.grad.norm()) for n, p in body.named_parameters() if p.grad is not None}
    body.zero_grad(set_to_none=True)
    assert set(norms) == set(train["grad_norms"])
    for name, wanted in train["grad_norms"].items():
        assert norms[name] == pytest.approx(wanted, rel=2e-3, abs=1e-5), name


def test_one_data_set_needs_no_name_several_do(vla: Recorded) -> None:
    image = vla.pictures["small"]
    if len(vla.release.dims) == 1:
        wanted = vla.checkpoint.predict_action(image, "wave", "robot_0")
        np.testing.assert_array_equal(vla.checkpoint.predict_action(image, "wave"), wanted)
    else:
        with pytest.raises(ModelError, match="robot_0, robot_1"):
            vla.checkpoint.predict_action(image, "wave")


def test_saving_gives_the_same_files_back(vla: Recorded, tmp_path: Path) -> None:
    raw = checkpoint.load(vla.folder, "bfloat16", unused=True)
    checkpoint.save(
        tmp_path, raw.body, raw.tokenizer_files, raw.norm_stats, config={**raw.config, "auto_map": {"a": "b.C"}}
    )
    # What transformers 4.40.1 stopped at when the reference was given such a folder.
    with safe_open(tmp_path / "model.safetensors", framework="pt") as stream:
        assert stream.metadata() == {"format": "pt"}
    assert not any("auto_map" in json.loads(f.read_text()) for f in tmp_path.glob("*.json"))
    assert all(isinstance(m, str) for m in json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"])
    again = conformance.load(tmp_path)
    pixels = again.pixel_values(vla.pictures["wide"])
    np.testing.assert_array_equal(pixels, vla.checkpoint.pixel_values(vla.pictures["wide"]))
    ids = vla.json["input_ids"][0]
    np.testing.assert_array_equal(again.logits(pixels, ids), vla.checkpoint.logits(pixels, ids))


def test_oft_pixels_patches_and_tokens(oft: Recorded) -> None:
    pixels_are_equal(oft)
    views = [oft.pictures[name] for name in oft.json["views"]]
    text = tiny.INSTRUCTIONS[0]
    pixels = oft.checkpoint.pixel_values(views if len(views) > 1 else views[0])
    np.testing.assert_allclose(oft.checkpoint.patches(pixels)[0, ::23, ::3], oft.arrays["patches"], atol=1e-4)
    for kind, proprio in (("discrete", None), ("proprio", oft.json["proprio"])):
        ids = np.array(oft.checkpoint.predict_ids(views, text, "robot_0", proprio))
        sure = oft.arrays[f"{kind}.margin"] >= 1e-3
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(ids[sure], oft.arrays[f"{kind}.ids"][sure])


def test_oft_actions_in_physical_units(oft: Recorded) -> None:
    views, text = [oft.pictures[name] for name in oft.json["views"]], tiny.INSTRUCTIONS[0]
    found = oft.checkpoint.predict_action(views, text, "robot_0", np.array(oft.json["proprio"]))
    assert found.shape == (oft.release.chunk, oft.release.dims[0])
    # The head speaks in half ranges. Two float32 kernels of these sums differ by up to 64 units in the last place of
    # one, 1/1000 of a token's bin; in radians that is as many half ranges of each joint.
    stats = oft.checkpoint.raw.norm_stats["robot_0"]["action"]
    half = (np.array(stats["max"]) - np.array(stats["min"])) / 2 + 1e-8
    atol = 64 * np.finfo(np.float32).eps
    np.testing.assert_allclose(found / half, oft.arrays["l1.actions"] / half, rtol=0, atol=atol)
    found = oft.checkpoint.predict_action(views, text)
    np.testing.assert_allclose(found / half, oft.arrays["l1_noproprio.actions"] / half, rtol=0, atol=atol)


def test_oft_without_a_head_speaks_tokens(oft: Recorded, tmp_path: Path) -> None:
    for file in oft.folder.iterdir():
        if not file.name.startswith("action_head"):
            (tmp_path / file.name).symlink_to(file)
    discrete = conformance.load(tmp_path, platform=oft.release.platform)
    views = [oft.pictures[name] for name in oft.json["views"]]
    sure = oft.arrays["discrete.margin"].reshape(oft.release.chunk, -1) >= 1e-3
    found = discrete.predict_action(views, tiny.INSTRUCTIONS[0])
    np.testing.assert_array_equal(found[sure], oft.arrays["discrete.actions"][sure])


def test_oft_training_batch_and_loss(oft: Recorded) -> None:
    train, views = oft.json["train"], oft.json["views"]
    batch = []
    for order, text, actions in zip((views, views[::-1]), tiny.INSTRUCTIONS[:2], train["actions"], strict=True):
        example = oft.checkpoint.training_example([oft.pictures[n] for n in order], text, actions)
        row = len(batch)
        count = len(example["input_ids"])
        assert example["input_ids"] == train["input_ids"][row][:count]
        assert example["labels"] == train["labels"][row][:count]
        batch.append(example["pixel_values"])
    found = oft.checkpoint.loss(np.concatenate(batch), train["input_ids"], train["labels"])
    assert found == pytest.approx(train["loss"], rel=1e-5)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded("oft_libero_fused", tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "empty"), ("  \n ", "empty"), ("cube " * 10_000, "tokens; this model takes|characters; this model takes")],
)
def test_instructions_no_model_can_take(one: Recorded, text: str, match: str) -> None:
    image = one.pictures["square"]
    for ask in (
        lambda: one.checkpoint.input_ids(text),
        lambda: one.checkpoint.predict_action([image, image], text),
        lambda: one.checkpoint.training_example([image, image], text, np.zeros((8, 7))),
    ):
        with pytest.raises(InvalidObservation, match=match):
            ask()


def test_images_no_model_can_take(one: Recorded, tmp_path: Path) -> None:
    deep = np.zeros((20, 30, 3), dtype=np.uint16)
    grey = Image.fromarray(deep[:, :, 0])
    grey.save(tmp_path / "grey.png")
    _write_deep_png(tmp_path / "colour.png", deep)
    wrong = {
        "size zero": [Image.new("RGB", (0, 10)), np.zeros((0, 5, 3), np.uint8)],
        "more than 8 bits": [grey, Image.open(tmp_path / "grey.png"), Image.open(tmp_path / "colour.png")],
        "uint8": [deep, np.zeros((5, 5, 3), np.float32), np.zeros((5, 5, 2), np.uint8)],
    }
    for match, images in wrong.items():
        for image in images:
            with pytest.raises(InvalidObservation, match=match):
                one.checkpoint.pixel_values(image)


def _write_deep_png(path: Path, image: np.ndarray) -> None:
    """A colour PNG of 16 bits, which Pillow reads but cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite(one: Recorded, value: float) -> None:
    state = np.array(one.json["proprio"])
    state[0] = value
    image = one.pictures["square"]
    for ask in (one.checkpoint.predict_action, one.checkpoint.predict_ids):
        with pytest.raises(InvalidObservation, match="not finite"):
            ask([image, image], "wave", proprio=state)


def test_an_adapter_without_its_base_is_named(one: Recorded, tmp_path: Path) -> None:
    for file in one.folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "lora_adapter").mkdir()
    (tmp_path / "lora_adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="LoRA adapter without the model.*[Mm]erge"):
        conformance.load(tmp_path, platform="libero")
    # Beside merged weights, as the releases have it, the adapter is already part of them.
    (tmp_path / "model.safetensors").symlink_to(one.folder / "model.safetensors")
    conformance.load(tmp_path, platform="libero")


def test_film_and_diffusion_are_refused_by_name(one: Recorded, tmp_path: Path) -> None:
    for file in one.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    film = tmp_path / "vision_backbone--50000_checkpoint.pt"
    torch.save({"module.x": torch.zeros(1)}, film)
    with pytest.raises(ModelError, match="FiLM vision backbone, which is not supported"):
        conformance.load(tmp_path, platform="libero")
    film.unlink()
    (tmp_path / "action_head--150000_checkpoint.pt").unlink()
    torch.save({"module.noise_predictor.x": torch.zeros(1)}, tmp_path / "action_head--150000_checkpoint.pt")
    with pytest.raises(ModelError, match="not an L1 action head.*diffusion"):
        conformance.load(tmp_path, platform="libero")


def test_an_empty_list_of_images_is_refused(oft: Recorded) -> None:
    with pytest.raises(InvalidObservation, match="no image"):
        oft.checkpoint.pixel_values([])
