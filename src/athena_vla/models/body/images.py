"""Camera image to normalised pixels, exactly as the released processors do it; one function for training and serving.

Resize-naive, letterbox or resize-crop with PIL's filters, then one normalised copy per vision tower, channels stacked
in the model's own order. Knows nothing of towers' weights, prompts or robots.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from athena_vla.errors import InvalidObservation, ModelError, UnknownName

Rgb = NDArray[np.uint8]  # [height, width, 3]
STRATEGIES = ("resize-naive", "letterbox", "resize-crop")
DINOV2_MEAN, DINOV2_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class TowerImage:
    """How one tower wants its pixels. `resize` is (height, width), or one number for the shorter side."""

    resize: tuple[int, ...]  # [px]
    crop: tuple[int, int]  # [px] height, width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = 3  # PIL's number; 3 is bicubic


@dataclass(frozen=True)
class ImageSpec:
    """Geometry first (padding, resize, crop), then one normalisation per tower."""

    towers: tuple[TowerImage, ...]
    letterbox_fill: tuple[int, ...] | None = None  # RGB of the padding to a square, None: no padding
    crop_area: float = 1.0  # share of the area kept around the centre; 0.9 for models trained with random crops

    @property
    def channels(self) -> int:
        return 3 * len(self.towers)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ImageSpec":
        towers = tuple(
            TowerImage(
                resize=tuple(t["resize"]),
                crop=(t["crop"][0], t["crop"][1]),
                mean=tuple(t["mean"]),
                std=tuple(t["std"]),
                resample=t["resample"],
            )
            for t in raw["towers"]
        )
        fill = raw["letterbox_fill"]
        return cls(towers, None if fill is None else tuple(fill), raw["crop_area"])


def image_spec(
    size: int, strategy: str, normalisation: Sequence[tuple[Sequence[float], Sequence[float]]], crop_area: float = 1.0
) -> ImageSpec:
    """The specification that a strategy's name stands for, one (mean, std) per tower."""
    if strategy not in STRATEGIES:
        raise UnknownName("image resize strategy", strategy, STRATEGIES)
    resize = (size, size) if strategy == "resize-naive" else (size,)
    towers = tuple(TowerImage(resize, (size, size), tuple(mean), tuple(std)) for mean, std in normalisation)
    # The reference pads for all towers with the colour of the last one.
    fill = tuple(int(255 * m) for m in towers[-1].mean) if strategy == "letterbox" else None
    return ImageSpec(towers, fill, crop_area)


def image_spec_from_processor(raw: Mapping[str, Any], source: str) -> ImageSpec:
    """Read a `preprocessor_config.json`. Stored `tvf_*` parameters win over the means, as in the reference."""
    try:
        sizes = [int(s[-1]) for s in raw.get("input_sizes") or [(3, 224, 224)]]
        means = raw.get("means") or [SIGLIP_MEAN] * len(sizes)
        stds = raw.get("stds") or [SIGLIP_STD] * len(sizes)
        strategy = raw.get("image_resize_strategy", "letterbox")
        if not len(sizes) == len(means) == len(stds):
            raise ModelError(
                f"{source}: {len(sizes)} input sizes but {len(means)} means and {len(stds)} stds; one each per tower."
            )
        base = image_spec(sizes[0], strategy, list(zip(means, stds, strict=True)))
        resampling = [_RESAMPLE[str(name)] for name in raw.get("interpolations") or ["bicubic"] * len(sizes)]
        towers = []
        for i, tower in enumerate(base.towers):
            resize: Any = (sizes[i],) * len(tower.resize)
            crop: Any = (sizes[i], sizes[i])
            mean, std, resample = tower.mean, tower.std, resampling[i]
            if raw.get("tvf_resize_params"):
                stored = raw["tvf_resize_params"][i]
                resize, resample = stored["size"], int(stored["interpolation"])
                if stored.get("max_size") is not None:
                    raise ModelError(f"{source}: a resize with max_size {stored['max_size']} is not known here.")
            if raw.get("tvf_crop_params"):
                crop = raw["tvf_crop_params"][i]["output_size"]
            if raw.get("tvf_normalize_params"):
                mean, std = raw["tvf_normalize_params"][i]["mean"], raw["tvf_normalize_params"][i]["std"]
            resize = (resize,) if isinstance(resize, int) else tuple(resize)
            crop = (crop, crop) if isinstance(crop, int) else (crop[0], crop[-1])
            towers.append(TowerImage(resize, crop, tuple(mean), tuple(std), resample))
        fill = base.letterbox_fill
        if "tvf_do_letterbox" in raw:
            stored_fill = raw.get("tvf_letterbox_fill")
            fill = (tuple(stored_fill) if stored_fill is not None else fill) if raw["tvf_do_letterbox"] else None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"{source}: not a Prismatic image processor ({type(error).__name__}: {error}).") from error
    return ImageSpec(tuple(towers), fill)


_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def to_rgb(image: Image.Image | NDArray[Any]) -> Image.Image:
    """RGB image of 8 bits. Grey, palette and RGBA images are converted (alpha is dropped, as the reference does).

    Raises `InvalidObservation` for an empty image or one of more than 8 bits, whose scale is unknown.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise InvalidObservation(
                f"An image is {image.dtype} {list(image.shape)}; a model takes uint8 [height, width, 3]. "
                "Scale 16-bit or float images to 8 bits where you know their range."
            )
        if 0 in image.shape:
            raise InvalidObservation(f"An image has size zero: {list(image.shape)}.")
        image = Image.fromarray(image)
    # A colour file of 16 bits opens as RGB and loses its lower half when it is read; until then its encoding tells.
    deep = any(";16" in str(part) for part in getattr(image, "tile", ()))
    if deep or image.mode.startswith(("I", "F")):
        raise InvalidObservation(
            f"An image has mode '{image.mode}{';16' if deep else ''}' (more than 8 bits per channel); a model takes "
            "8-bit RGB. Scale it to 8 bits where you know its range."
        )
    if 0 in image.size:
        raise InvalidObservation(f"An image has size zero: {image.size[0]} x {image.size[1]}.")
    return image if image.mode == "RGB" else image.convert("RGB")


def pixels(image: Image.Image | NDArray[Any], spec: ImageSpec) -> NDArray[np.float32]:
    """Normalised `[3 * towers, height, width]` of one image."""
    rgb = to_rgb(image)
    if spec.crop_area < 1.0:
        rgb = Image.fromarray(center_crop(np.asarray(rgb), spec.crop_area))
    if spec.letterbox_fill is not None:
        rgb = _pad_to_square(rgb, spec.letterbox_fill)
    out, shaped = [], {}
    for tower in spec.towers:
        geometry = (tower.resize, tower.crop, tower.resample)
        if geometry not in shaped:
            resized = _crop(_resize(rgb, tower.resize, tower.resample), tower.crop)
            # Planes first: arithmetic on pixels of three bytes runs in steps of three, several times as slow.
            planes = np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
            shaped[geometry] = planes.astype(np.float32) / np.float32(255)
        mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (tower.mean, tower.std))
        normal = shaped[geometry] - mean
        normal /= std
        out.append(normal)
    return np.concatenate(out)


def center_crop(image: Rgb, area: float, size: tuple[int, int] | None = None) -> Rgb:
    """Keep the middle `area` of the image and scale it back, bilinear without antialiasing.

    As the reference's evaluation does; the side is sqrt(area). `size` (height, width) defaults to the image's own.
    """
    height, width = image.shape[:2]
    rows, columns = size or (height, width)
    side = math.sqrt(area)
    y = _crop_places(height, rows, side)
    x = _crop_places(width, columns, side)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (y - top)[:, None, None].astype(np.float32), (x - left)[None, :, None].astype(np.float32)
    wide = image.astype(np.float32) / np.float32(255)
    upper = wide[top][:, left] + (wide[top][:, right] - wide[top][:, left]) * across
    lower = wide[bottom][:, left] + (wide[bottom][:, right] - wide[bottom][:, left]) * across
    # The reference converts back with floor(255.5 x).
    return np.clip((upper + (lower - upper) * down) * np.float32(255.5), 0, 255).astype(np.uint8)


def _crop_places(length: int, count: int, side: float) -> NDArray[np.float32]:
    """Sample positions of `tf.image.crop_and_resize`: corners of the box fall on the first and last sample."""
    low = np.float32((1 - np.float32(side)) / 2)
    high = np.float32(low + np.float32(side))
    scale = np.float32((high - low) * np.float32(length - 1) / np.float32(max(count - 1, 1)))
    return low * np.float32(length - 1) + np.arange(count, dtype=np.float32) * scale


def _pad_to_square(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    width, height = image.size
    across, down = int((max(image.size) - width) / 2), int((max(image.size) - height) / 2)
    # Flooring leaves one pixel short for odd differences; the reference does the same.
    padded = Image.new("RGB", (width + 2 * across, height + 2 * down), fill)
    padded.paste(image, (across, down))
    return padded


def _resize(image: Image.Image, size: tuple[int, ...], resample: int) -> Image.Image:
    width, height = image.size
    if len(size) == 2:
        rows, columns = size
    elif width <= height:
        rows, columns = int(size[0] * height / width), size[0]
    else:
        rows, columns = size[0], int(size[0] * width / height)
    # Two calls fix the order of the passes: horizontal first, 8 bits between; newer Pillows choose by shape.
    for target in ((columns, height), (columns, rows)):
        if image.size != target:
            image = image.resize(target, Image.Resampling(resample))
    return image


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    (width, height), (rows, columns) = image.size, size
    if (width, height) == (columns, rows):
        return image
    if width < columns or height < rows:
        across, down = max(columns - width, 0), max(rows - height, 0)
        padded = Image.new("RGB", (width + across, height + down))
        padded.paste(image, (across // 2, down // 2))
        image, (width, height) = padded, padded.size
    left, top = round((width - columns) / 2.0), round((height - rows) / 2.0)
    return image.crop((left, top, left + columns, top + rows))
