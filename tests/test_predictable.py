"""The finding that the first image tells the instruction: planted, absent from clean recordings, and cheap."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from athena_vla.check import CheckConfig, check
from athena_vla.check.findings import Finding
from athena_vla.check.predictable import FirstImages, guessed
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.texts import requests, said
from recordings import Pixels, clean, pictures, write

CODE = "language.predictable"
TASKS = (("touch the red box", "tap the red box"), ("open the drawer",), ("wave", "wave your hand"))


def episode(number: int, place: int, task: int, texts: tuple[str, ...] = ()) -> Episode:
    """In one of a few places, which differ in their background, with one of the tasks."""
    made = clean(number, length=20)
    images = pictures(np.asarray(made.states, np.float64), 50 + place)
    lamp = np.random.default_rng(number).integers(-6, 7)  # the light is never the same twice
    images = np.clip(images.astype(np.int16) + lamp + 30 * place, 0, 255).astype(np.uint8)
    return dataclasses.replace(
        made,
        id=f"episode_{number:04d}",
        cameras={"front": Pixels(images)},
        texts=said(texts or TASKS[task], 20),
    )


def found(path: Path) -> list[Finding]:
    return [f for f in check(CheckConfig(input=path)).findings if f.code == CODE]


def test_a_task_that_is_always_recorded_in_its_own_place_is_named(tmp_path: Path) -> None:
    write(tmp_path / "in", *(episode(i, i % 3, i % 3) for i in range(15)))
    (named,) = found(tmp_path / "in")
    assert named.severity == "warning"
    assert named.episode is None
    assert "for 100% of 15 episodes" in named.message
    assert "(3 instructions, p 0.001)" in named.message


@pytest.mark.parametrize("seed", range(3))
def test_the_same_places_with_tasks_in_mixed_order_are_not(tmp_path: Path, seed: int) -> None:
    tasks = np.random.default_rng(seed).permutation(np.arange(15) // 5)
    write(tmp_path / "in", *(episode(i, i % 3, int(tasks[i])) for i in range(15)))
    assert found(tmp_path / "in") == []


@pytest.mark.parametrize("what", ["one task", "few episodes", "no texts twice", "placeholders"])
def test_where_nothing_can_be_said_nothing_is(tmp_path: Path, what: str) -> None:
    episodes = {
        "one task": [episode(i, i % 3, 0) for i in range(15)],
        "few episodes": [episode(i, i % 3, i % 3) for i in range(9)],
        "no texts twice": [episode(i, i % 3, 0, (f"do number {i}",)) for i in range(15)],
        "placeholders": [episode(i, i % 2, 0, ("perform a task", "execute task")[i % 2 :][:1]) for i in range(15)],
    }[what]
    write(tmp_path / "in", *episodes)
    assert found(tmp_path / "in") == []


def test_wordings_that_meet_ask_for_the_same() -> None:
    asked = requests([("a", "b"), ("c",), ("d", "b"), ("e", "c"), ("f",)])
    assert asked["a"] == asked["b"] == asked["d"]
    assert asked["c"] == asked["e"]
    assert len({asked["a"], asked["c"], asked["f"]}) == 3


def test_the_guess_is_the_nearest_neighbours_and_chance_is_known() -> None:
    """Against distances taken one by one, and a share that can be computed."""
    rng = np.random.default_rng(1)
    grids, labels = rng.uniform(0, 255, (30, 8)).astype(np.float32), np.arange(30) % 3
    right, expected, p = guessed(grids, labels)
    hits = 0
    for i in range(30):
        apart = [np.inf if j == i else float(np.abs(grids[i] - grids[j]).sum()) for j in range(30)]
        hits += labels[int(np.argmin(apart))] == labels[i]
    assert right == hits / 30
    assert expected == pytest.approx(9 / 29, abs=0.02)  # of 29 others nine have the same label
    assert p > 0.01


def test_p_is_honest_where_there_is_nothing_to_find() -> None:
    rng = np.random.default_rng(2)
    ps = [guessed(rng.uniform(0, 255, (24, 6)).astype(np.float32), np.arange(24) % 2)[2] for _ in range(60)]
    assert sum(p <= 0.05 for p in ps) <= 8


def test_many_episodes_are_sampled_and_cost_little() -> None:
    first = FirstImages()
    rng = np.random.default_rng(3)
    example = clean(0, length=2)
    started = time.process_time()
    for i in range(3000):
        grid = rng.integers(0, 80, (60, 80)).astype(np.uint8) + np.uint8(80 * (i % 2))
        first.add(dataclasses.replace(example, texts=said(TASKS[i % 2], 2)), [grid])
    (named,) = first.findings()
    assert time.process_time() - started < 2.0
    assert named.code == CODE


def test_the_simulators_own_recordings_are_not_named(tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="recording needs the simulator (extra sim)")
    from athena_vla.sim.record import RecordConfig, record

    for twins in (False, True):
        out = tmp_path / str(twins)
        record(RecordConfig(out=out, episodes=42, workers=1, image_size=48, quiet=True, twins=twins))
        assert found(out) == []
