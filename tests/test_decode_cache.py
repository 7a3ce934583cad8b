"""The decode cache: one for each image size, and each image is decoded once for any number of workers and ranks."""

import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.dataset.mixed import MixedSet
from athena_vla.finetune import finetune
from recordings import clean, write
from small_bundles import small_run, write_base

EPISODES, LENGTH = 6, 14


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy) -> Path:
    root = tmp_path_factory.mktemp("world")
    write(root / "rec", *(clean(i, length=LENGTH) for i in range(EPISODES)))
    write_base(root / "base", toy)
    return root


@pytest.fixture
def a_set(world, tmp_path) -> Path:
    build(BuildConfig(input=world / "rec", out=tmp_path / "set", robot="toy", horizon=4, workers=1, validation=0.2))
    return tmp_path / "set"


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """Who decoded which image, over all processes: a line for each, written by what takes images from the store."""
    log = tmp_path / "decoded.txt"
    log.touch()
    original = Dataset.frames

    def counted(self, camera):
        for image in original(self, camera):
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            yield image

    monkeypatch.setattr(Dataset, "frames", counted)
    return lambda: log.read_text().split()


def run(world: Path, a_set: Path, out: Path, **changes):
    fields = {"model": str(world / "base"), "data": a_set, "out": out, "max_steps": 2, "accumulation": 4}
    fields |= {"device": "cpu", "select": "last", "cache_features": "never"}
    return finetune(small_run(**{**fields, **changes}))


def test_workers_start_when_each_image_is_decoded(world, a_set, tmp_path, decoded) -> None:
    run(world, a_set, tmp_path / "out", workers=2)
    assert decoded() == [str(os.getpid())] * (EPISODES * LENGTH)
    run(world, a_set, tmp_path / "again", workers=1)
    assert len(decoded()) == EPISODES * LENGTH, "a second run opens the file"


def _open(path: Path, start) -> None:
    dataset = Dataset.open(path)
    start.wait()
    dataset.cache_frames()
    assert dataset[0].observation.images["front"].any()


def test_processes_that_come_together_decode_once(a_set, decoded) -> None:
    """As ranks do, or workers of a run that found no cache: one decodes, the others wait for its file."""
    context = multiprocessing.get_context("fork")
    start = context.Event()
    ranks = [context.Process(target=_open, args=(a_set, start)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    start.set()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert len(decoded()) == EPISODES * LENGTH
    assert len(set(decoded())) == 1
    assert not list((a_set / ".cache").glob(".*")), "nothing but the cache is left"


def test_a_cache_for_each_size_and_one_decode_for_all(a_set, decoded) -> None:
    whole, small, smaller = Dataset.open(a_set), Dataset.open(a_set), Dataset.open(a_set)
    whole.cache_frames()
    small.cache_frames((24, 32))
    smaller.cache_frames((12, 12))
    assert len(decoded()) == EPISODES * LENGTH
    image = whole[5].observation.images["front"]
    for other, (height, width) in ((small, (24, 32)), (smaller, (12, 12))):
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
        assert np.array_equal(other[5].observation.images["front"], np.asarray(resized))
    sizes = {f.stem.rpartition("-")[2] for f in (a_set / ".cache").glob("frames-*.npy")}
    assert sizes == {"x".join(map(str, image.shape[:2])), "24x32", "12x12"}


def test_training_on_small_images_resizes_each_once(world, a_set, tmp_path, decoded) -> None:
    run(world, a_set, tmp_path / "out", workers=2, image_size=16)
    assert decoded() == [str(os.getpid())] * (EPISODES * LENGTH)
    assert [f.name for f in (a_set / ".cache").glob("frames-*")] == ["frames-front-16x16.npy"]
    assert small_run(image_size=16).identity() != small_run().identity(), "other images are another run"
    assert "image_size" not in small_run().to_dict(), "runs of before are hashed as before"


def test_a_set_of_several_prepares_each(a_set, decoded) -> None:
    one = Dataset.open(a_set)
    MixedSet.prepare_frames(SimpleNamespace(sets=(one, Dataset.open(a_set))))  # pyright: ignore[reportArgumentType]
    assert len(decoded()) == EPISODES * LENGTH
