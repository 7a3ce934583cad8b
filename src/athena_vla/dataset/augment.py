"""Train-time image augmentation: a crop of 0.9 of the area, and colour; numpy and PIL only.

A policy that acts sees the middle of the same area: see `models.body.images`. Images keep the size they came with.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage

from athena_vla.recordings.episode import Image


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Ranges of the random changes; the defaults are those OpenVLA is trained with, hue left out."""

    crop_area: float = 0.9
    """Share of the image's area that a crop keeps; 1 switches cropping off."""
    brightness: float = 0.2
    """Largest change of brightness, as a share of full scale."""
    contrast: float = 0.2
    """Largest relative change of contrast around the image's mean."""
    saturation: float = 0.2
    """Largest relative change of saturation."""


def augment(image: Image, rng: np.random.Generator, config: AugmentConfig) -> Image:
    """A randomly cropped and coloured copy of one image; the same state of `rng` gives the same image."""
    height, width = image.shape[:2]
    side = float(np.sqrt(config.crop_area))
    # Two independent offsets: drawing both from one number moves the box only along the diagonal (dlimp does).
    top, left = rng.random() * (1 - side), rng.random() * (1 - side)
    brightness = rng.uniform(-config.brightness, config.brightness)
    contrast = 1 + rng.uniform(-config.contrast, config.contrast)
    saturation = 1 + rng.uniform(-config.saturation, config.saturation)
    cropped = _crop(image, top * height, left * width, side) if config.crop_area < 1 else image
    return _colour(cropped, brightness, contrast, saturation)


def _crop(image: Image, top: float, left: float, side: float) -> Image:
    height, width = image.shape[:2]
    box = (left, top, left + side * width, top + side * height)  # PIL resamples from a fractional box
    picture = PillowImage.fromarray(image).resize((width, height), PillowImage.Resampling.BILINEAR, box=box)
    return np.asarray(picture, dtype=np.uint8)


def _colour(image: Image, brightness: float, contrast: float, saturation: float) -> Image:
    pixels = image.astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    # One affine map per pixel: saturation mixes with its grey value, contrast with the mean, brightness adds.
    pixels = grey[..., None] * (1 - saturation) + pixels * saturation
    pixels = (pixels - grey.mean()) * contrast + grey.mean() + 255.0 * brightness
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
