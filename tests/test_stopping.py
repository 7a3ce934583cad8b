"""Ctrl-C and SIGTERM, sent to a real process: what is said to be kept is there, and the next start goes on from it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from athena_vla import embodiment
from athena_vla.finetune import checkpoint
from athena_vla.stopping import Interrupted, sigterm_as_ctrl_c, until_asked
from recordings import clean, write
from small_bundles import write_base

STEPS = 120


def test_the_first_signal_asks_and_the_same_again_interrupts(capsys) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with until_asked("after this step") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGTERM)  # a process group may get both
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capsys.readouterr().err.count("stopping after this step") == 1
    with sigterm_as_ctrl_c(), pytest.raises(KeyboardInterrupt) as error:
        os.kill(os.getpid(), signal.SIGTERM)
    assert isinstance(error.value, Interrupted)
    assert error.value.status == 143


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    from athena_vla.dataset.build import BuildConfig, build

    folder = tmp_path_factory.mktemp("interrupted")
    toy = embodiment.load("toy")
    write(folder / "rec", *(clean(i, 30) for i in range(3)))
    build(BuildConfig(input=folder / "rec", out=folder / "set", robot="toy", horizon=4, workers=1))
    write_base(folder / "base", toy)
    return folder


def command(world: Path, out: Path, *words: str) -> list[str]:
    run = [
        sys.executable,
        "-m",
        "athena_vla.cli",
        "train",
        "--model",
        str(world / "base"),
        "--data",
        str(world / "set"),
    ]
    run += ["--out", str(out), "--rank", "2", "--batch", "2", "--accumulation", "1", "--device", "cpu"]
    run += ["--max-steps", str(STEPS), "--evaluate-every", str(STEPS), "--log-every", "1", "--no-tensorboard"]
    return [*run, *words]


@pytest.fixture(scope="module")
def whole(world) -> Path:
    """The same training without an interruption."""
    subprocess.run(command(world, world / "whole"), capture_output=True, check=True)
    return world / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)])
def test_a_training_that_is_interrupted_keeps_the_step_it_was_at(world, whole, tmp_path, number, processes) -> None:
    out = tmp_path / "policy"
    more = ["--processes", str(processes)] if processes > 1 else []
    running = subprocess.Popen(
        command(world, out, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "policy.run" / "log.jsonl"
    until = time.monotonic() + 200
    while not (log.is_file() and re.search(r'"step": [3-9]', log.read_text())):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    running.send_signal(number)
    _, said = running.communicate(timeout=200)
    assert running.returncode == 128 + number, said
    assert "Traceback" not in said
    found = re.search(
        rf"interrupted; the checkpoint of step (\d+) of {STEPS} is kept in '(.+)'; the same command", said
    )
    assert found, said
    step = int(found[1])
    kept, _ = checkpoint.load(Path(found[2]), step)
    assert kept.step == step == checkpoint.steps(Path(found[2]))[-1]
    done = max(json.loads(line).get("step", 0) for line in log.read_text().splitlines())
    assert done == step, "no step was lost"
    assert not list(Path(found[2]).glob(".writing*"))
    again = subprocess.run(command(world, out, *more), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"Going on from the checkpoint of step {step} of {STEPS}" in again.stderr
    if processes == 1:
        one, other = (load_file(p / "weights" / "adapter.safetensors") for p in (out, whole))
        assert set(one) == set(other)
        assert all(torch.equal(one[k], other[k]) for k in one), "as if it had never been interrupted"


@pytest.mark.slow
def test_before_the_first_step_nothing_is_said_to_be_kept(world, tmp_path) -> None:
    running = subprocess.Popen(
        command(world, tmp_path / "policy"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("trainable"):
            break
    running.send_signal(signal.SIGINT)
    said = running.stderr.read()
    assert running.wait(120) == 130
    assert re.search("no training step was kept|checkpoint of step", said), said
    if "no training step" in said:
        assert checkpoint.steps(tmp_path / "policy.run" / "checkpoints") == []


def test_a_demo_that_is_interrupted_names_its_finished_steps(tmp_path, monkeypatch) -> None:
    from athena_vla.demo import DemoConfig, chain, learning, recording
    from athena_vla.demo import demo as whole

    def finished(name: str):
        return lambda run: run.journal.step(name, name, {}, dict)

    def stops(run) -> None:
        raise Interrupted("the checkpoint of step 7 of 9 is kept in 'x'; the same command goes on from it.")

    monkeypatch.setattr(recording, "record", finished("record"))
    monkeypatch.setattr(recording, "prepare", stops)
    monkeypatch.setattr(learning, "train", stops)
    monkeypatch.setattr(chain, "DISK_NEEDED", 0)
    with pytest.raises(Interrupted) as error:
        whole(DemoConfig(out=tmp_path))
    assert str(error.value).startswith("finished steps are kept (record); the checkpoint of step 7 of 9")
