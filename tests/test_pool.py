"""The worker pool: all results, errors as sentences, and no hanging when workers die."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from athena_vla.errors import EvaluationError, SimulationError
from athena_vla.evaluate import pool
from athena_vla.evaluate.pool import run_jobs


def squares(offset: int) -> Callable[[Any], Any]:
    return lambda job: job * job + offset


def fragile(folder: str) -> Callable[[Any], Any]:
    def handle(job: tuple[str, int]) -> Any:
        what, number = job
        if what == "die once" and not (Path(folder) / "died").exists():
            (Path(folder) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "die":
            os._exit(3)
        if what == "refuse":
            raise SimulationError("no such table")
        if what == "bug":
            raise ZeroDivisionError
        if what == "threads":
            return os.environ["OMP_NUM_THREADS"], os.getpid()
        return number

    return handle


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_answered_once(workers: int) -> None:
    answers = dict(run_jobs(squares, 7, range(9), workers=workers))
    assert answers == {i: i * i + 7 for i in range(9)}


def test_a_killed_worker_is_replaced_and_its_job_repeated(tmp_path: Path) -> None:
    jobs = [("ok", 0), ("die once", 1), ("ok", 2), ("ok", 3)]
    assert dict(run_jobs(fragile, str(tmp_path), jobs, workers=2)) == {0: 0, 1: 1, 2: 2, 3: 3}


def test_a_job_that_kills_every_worker_is_named_and_nothing_hangs(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(EvaluationError, match=r"scene die died 2 times \(exit code 3"):
        list(run_jobs(fragile, str(tmp_path), [("die", 0), ("ok", 1)], workers=2, describe=lambda j: f"scene {j[0]}"))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("what", "says"), [("refuse", "no such table"), ("bug", "ZeroDivisionError")])
def test_errors_cross_the_border_as_sentences(tmp_path: Path, what: str, says: str) -> None:
    assert says in _answer(fragile, str(tmp_path), (what, 0))


def _answer(make: Callable[[str], Callable[[Any], Any]], argument: str, job: Any) -> str:
    """What a worker's main loop sends back for one job; run in a thread, which is as good as a process here."""
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=pool._work, args=(theirs, make, argument))
    thread.start()
    ours.send(job)
    kind, value = ours.recv()
    ours.close()
    thread.join(10)
    assert kind == "error"
    return value


@pytest.mark.slow
def test_workers_run_one_thread_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for _, (threads, pid) in run_jobs(fragile, str(tmp_path), [("threads", 0), ("threads", 0)], workers=2):
        assert threads == "1"
        assert pid != os.getpid()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_no_jobs_and_impossible_workers() -> None:
    assert list(run_jobs(squares, 0, [], workers=2)) == []
    with pytest.raises(EvaluationError, match="not possible"):
        list(run_jobs(squares, 0, [1], workers=0))
