"""The black box keeps the last minutes whatever ends the program; a full disk is a fault with a sentence."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from athena_vla.control import black_box
from athena_vla.control.black_box import BlackBox
from athena_vla.control.black_box_reader import read_box
from athena_vla.control.runtime import LEVELS, Runtime, RuntimeConfig
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.errors import RecordingError, SafetyError
from test_runtime import Puppet, Wave

HERE = Path(__file__).parent


class Seeing(Puppet):
    """Its pictures carry the number of the observation."""

    def observe(self) -> Observation:
        seen = super().observe()
        return replace(seen, images={c: np.full((4, 6, 3), self.observations % 256, np.uint8) for c in seen.images})


def test_what_was_kept_is_the_trace(toy: Embodiment, tmp_path: Path) -> None:
    with BlackBox(tmp_path / "box", toy) as box:
        runtime = Runtime(Seeing(toy), Wave(toy), SafetyFilter(toy), RuntimeConfig(record_images=True), recorder=box)
        trace = runtime.run(2.0)
    kept = read_box(tmp_path / "box")
    assert kept.robot == toy
    assert kept.cut_off == kept.without_images == 0
    for name in ("times", "commands", "targets", "levels", "states", "state_times"):
        np.testing.assert_array_equal(getattr(kept.trace, name), getattr(trace, name), err_msg=name)
    assert kept.trace.instruction == trace.instruction
    assert kept.trace.ended_by == "duration"
    assert [c.positions.tolist() for c in kept.trace.chunks] == [c.positions.tolist() for c in trace.chunks]
    assert len(kept.trace.frames) == len(trace.frames) == 20
    for mine, theirs in zip(kept.trace.frames, trace.frames, strict=True):
        np.testing.assert_array_equal(mine.images["front"], theirs.images["front"])
    assert abs(kept.wall[-1] - time.time()) < 60


VICTIM = """
import sys; sys.path.insert(0, sys.argv[2])
from test_black_box import *
from athena_vla import embodiment
toy = embodiment.load("toy")
box = BlackBox(sys.argv[1], toy)
robot = Seeing(toy, wall=True)
def told():
    print(robot.ticks, flush=True)
    return False
runtime = Runtime(robot, Wave(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2), recorder=box)
runtime.run(60, until=told, real_time=True)
"""


def test_kill_9_loses_nothing_that_is_older_than_a_moment(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(tmp_path / "box"), str(HERE)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    ticks = 0
    for line in process.stdout:
        ticks = int(line)
        if ticks > 120:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read_box(tmp_path / "box")
    assert len(kept.trace.commands) >= ticks - 50  # half a second of records may have waited for the disk
    assert kept.trace.ended_by == "cut off"
    assert np.diff(kept.trace.stamps).min() > 0


def test_only_the_last_time_and_the_given_space_are_kept(toy: Embodiment, tmp_path: Path, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(black_box.time, "time", lambda: now[0])
    with BlackBox(tmp_path, toy, seconds=60.0, most_bytes=2_000_000) as box:
        for k in range(6000):
            now[0] += 0.05
            q = np.full(3, 0.001 * k)
            box.commanded(now[0], now[0], q, q, 0)
            if k % 4 == 0:
                images = {"front": np.random.default_rng(k).integers(0, 256, (48, 64, 3), dtype=np.uint8)}
                box.observed(Observation(images, q, "wave", now[0]))
            while box._queue.qsize() > 1000:
                time.sleep(0.001)
    assert sum(f.stat().st_size for f in tmp_path.glob("*.box")) <= 2_000_000
    kept = read_box(tmp_path)
    assert kept.wall[-1] == now[0]
    assert 55 <= now[0] - kept.wall[0] <= 60 + 2 * black_box.SEGMENT
    assert kept.without_images > 0  # what did not fit of the images, and nothing else
    assert len(kept.trace.frames) > 0
    np.testing.assert_allclose(np.diff(kept.wall), 0.05, atol=1e-9)


def test_a_full_disk_is_a_fault_with_a_sentence_and_not_the_end(toy: Embodiment, tmp_path: Path, monkeypatch) -> None:
    real, full = os.write, [False]

    def write(file: int, data: bytes) -> int:
        if full[0]:
            real(file, bytes(data)[:7])  # a part of it, as a disk does
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    monkeypatch.setattr(black_box.os, "write", write)
    robot = Puppet(toy, wall=True)

    def until() -> bool:
        full[0] = 0.5 < robot.time < 1.0
        return False

    with BlackBox(tmp_path, toy) as box:
        config = RuntimeConfig(replan_every=2, latch=False)
        trace = Runtime(robot, Wave(toy), SafetyFilter(toy), config, recorder=box).run(2.0, until=until, real_time=True)
    assert any("No space left" in e and str(tmp_path) in e for e in trace.errors)
    assert trace.interventions["recorder"] > 0
    assert "stop" in {LEVELS[k] for k in trace.levels[: trace.braking_from]}
    assert LEVELS[trace.levels[trace.braking_from - 1]] == "follow"  # there was room again
    kept = read_box(tmp_path)
    assert kept.cut_off == 0
    assert len(kept.trace.commands) < len(trace.commands)
    assert kept.trace.commands[-1].tolist() == trace.commands[-1].tolist()


def test_a_disk_without_room_or_a_folder_that_is_none_is_refused(toy: Embodiment, tmp_path: Path) -> None:
    with pytest.raises(SafetyError, match="MB"):
        BlackBox(tmp_path, toy, most_bytes=10**18)
    (tmp_path / "file").write_text("")
    with pytest.raises(SafetyError, match="cannot write"):
        BlackBox(tmp_path / "file", toy)


def test_every_cut_leaves_the_records_before_it(toy: Embodiment, tmp_path: Path) -> None:
    with BlackBox(tmp_path / "box", toy) as box:
        Runtime(Seeing(toy), Wave(toy), SafetyFilter(toy), recorder=box).run(0.3)
    (file,) = (tmp_path / "box").glob("*.box")
    data = file.read_bytes()
    whole = len(read_box(file).trace.commands)
    rng = np.random.default_rng(0)
    for _ in range(60):
        cut = int(rng.integers(1, len(data)))
        part = tmp_path / "part.box"
        part.write_bytes(data[:cut])
        try:
            kept = read_box(part)
        except RecordingError:
            continue
        assert len(kept.trace.commands) <= whole
        spoiled = bytearray(data)
        spoiled[cut] ^= 0x55
        part.write_bytes(spoiled)
        try:
            kept = read_box(part)
        except RecordingError:
            continue
        assert kept.cut_off > 0


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "another file"])
def test_what_is_no_black_box_is_refused(tmp_path: Path, what: str) -> None:
    target = tmp_path / "x"
    if what == "an empty folder":
        target.mkdir()
    elif what == "another file":
        target.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(RecordingError, match=str(target)):
        read_box(target)
