"""Image preprocessing: strategies, refusals, and the TensorFlow crops and resizes of the reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from athena_vla.errors import InvalidObservation, ModelError, UnknownName
from athena_vla.models.body.images import (
    DINOV2_MEAN,
    DINOV2_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    center_crop,
    image_spec,
    image_spec_from_processor,
    pixels,
    to_rgb,
)

GOLDENS = Path(__file__).resolve().parents[1] / ".." / "shared" / "goldens" / "common"
RANDOM = np.random.default_rng(0)
BOTH = [(DINOV2_MEAN, DINOV2_STD), (SIGLIP_MEAN, SIGLIP_STD)]


def picture(height: int, width: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_two_towers_are_two_normalisations_of_the_same_pixels() -> None:
    image = picture(32, 32)
    found = pixels(image, image_spec(32, "resize-naive", BOTH))
    assert found.shape == (6, 32, 32)
    scaled = image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(found[3:], (scaled - np.float32(0.5)) / np.float32(0.5))
    mean, std = (np.array(v, np.float32)[:, None, None] for v in BOTH[0])
    np.testing.assert_array_equal(found[:3], (scaled - mean) / std)


@pytest.mark.parametrize("size", [(40, 64), (64, 41), (33, 32), (7, 90), (1, 1)])
@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
def test_every_strategy_fits_every_shape(size: tuple[int, int], strategy: str) -> None:
    found = pixels(picture(*size), image_spec(32, strategy, BOTH))
    assert found.shape == (6, 32, 32)
    assert np.isfinite(found).all()


def test_letterbox_keeps_the_aspect_and_pads_with_the_last_mean() -> None:
    white = np.full((16, 64, 3), 255, np.uint8)
    found = pixels(white, image_spec(64, "letterbox", BOTH))[3:]
    assert found[:, 32, 32].min() > 0.99  # the picture, white
    np.testing.assert_allclose(found[:, 2, :], 127 / 255 * 2 - 1, atol=1e-6)  # above it, grey


def test_resize_crop_keeps_the_middle() -> None:
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = 255
    assert pixels(image, image_spec(32, "resize-crop", BOTH))[3:].min() > 0.99
    assert pixels(image, image_spec(32, "resize-naive", BOTH))[3:].min() < -0.9


def test_stored_parameters_win_over_means() -> None:
    raw: dict[str, Any] = {
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, 8, 8]],
        "means": [[0.1, 0.2, 0.3]],
        "stds": [[1.0, 1.0, 1.0]],
        "interpolations": ["bicubic"],
    }
    assert image_spec_from_processor(raw, "x").towers[0].mean == (0.1, 0.2, 0.3)
    raw["tvf_normalize_params"] = [{"mean": [0.5] * 3, "std": [0.25] * 3, "inplace": False}]
    raw["tvf_resize_params"] = [{"size": 8, "interpolation": 2, "max_size": None, "antialias": True}]
    tower = image_spec_from_processor(raw, "x").towers[0]
    assert (tower.mean, tower.std, tower.resize, tower.resample) == ((0.5,) * 3, (0.25,) * 3, (8,), 2)
    with pytest.raises(ModelError, match="not a Prismatic image processor"):
        image_spec_from_processor({"input_sizes": [None]}, "x")
    with pytest.raises(UnknownName, match="resize-crop"):
        image_spec_from_processor({**raw, "image_resize_strategy": "squeeze"}, "x")


def test_grey_palette_and_transparent_images_are_converted() -> None:
    grey = Image.fromarray(picture(8, 8)[:, :, 0])
    assert np.ptp(np.asarray(to_rgb(grey)), axis=2).max() == 0
    for mode in ("RGBA", "P", "LA", "1", "CMYK"):
        assert to_rgb(Image.fromarray(picture(8, 8)).convert(mode)).mode == "RGB"


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros((4, 4, 3), np.uint16), "uint8"),
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), "uint8"),
        (np.zeros((0, 4, 3), np.uint8), "size zero"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "more than 8 bits"),
        (Image.fromarray(np.zeros((4, 4), np.int32)), "more than 8 bits"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "more than 8 bits"),
        (Image.new("RGB", (0, 4)), "size zero"),
    ],
)
def test_images_that_are_refused(image: Any, match: str) -> None:
    with pytest.raises(InvalidObservation, match=match):
        to_rgb(image)


def test_crop_keeps_the_share_of_area_that_was_asked_for() -> None:
    ramp = np.repeat(np.linspace(0, 255, 101).astype(np.uint8)[None, :, None], 101, axis=0).repeat(3, axis=2)
    found = center_crop(ramp, 0.9)[50, :, 0].astype(float)
    assert (found[-1] - found[0]) / 255 == pytest.approx(np.sqrt(0.9), abs=0.01)
    np.testing.assert_array_equal(center_crop(ramp, 1.0), ramp)


def lanczos_resize(image: np.ndarray, size: int) -> np.ndarray:
    """To `size` x `size` with an antialiased three-lobed Lanczos filter in float, as the reference does."""
    rows, columns = _lanczos_weights(image.shape[0], size), _lanczos_weights(image.shape[1], size)
    wide = np.einsum("ri,ijc,kj->rkc", rows, image.astype(np.float32), columns, optimize=True)
    return np.clip(np.round(wide), 0, 255).astype(np.uint8)


def _lanczos_weights(length: int, count: int) -> np.ndarray:
    """`[count, length]`; the filter widens with the reduction, its weights add up to one."""
    scale = length / count
    width = max(scale, 1.0)
    centre = (np.arange(count) + 0.5) * scale
    distance = (np.arange(length)[None, :] + 0.5 - centre[:, None]) / width
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="needs ../shared/goldens")
@pytest.mark.parametrize("name", ["noise", "real256", "scene224", "scene_vga"])
def test_crop_and_resize_equal_tensorflow(name: str) -> None:
    arrays = dict(np.load(GOLDENS / "tf_golden.npz"))
    image = np.asarray(to_rgb(Image.open(GOLDENS / "images" / f"{name}.png")))
    resized = lanczos_resize(image, 224)
    wanted = arrays[f"{name}.train_resize_lanczos3_224"]
    step = 224 // len(wanted)
    assert np.abs(resized[::step, ::step].astype(int) - wanted).max() <= 1
    wanted = arrays[f"{name}.center_crop_0.9_of_224"]
    step = 224 // len(wanted)
    assert np.abs(center_crop(resized, 0.9)[::step, ::step].astype(int) - wanted).max() <= 1
