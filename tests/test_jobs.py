"""The worker pool: all results, errors as sentences, and no hanging when workers die."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from athena_vla import jobs as pool
from athena_vla.errors import EvaluationError
from athena_vla.jobs import calling, ordered, run_jobs
from fragile_jobs import fragile


def squares(offset: int) -> Callable[[Any], Any]:
    return lambda job: job * job + offset


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
        list(
            run_jobs(
                fragile,
                str(tmp_path),
                [("die", 0), ("ok", 1)],
                workers=2,
                describe=lambda j: f"scene {j[0]}",
                error=EvaluationError,
            )
        )
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
        list(run_jobs(squares, 0, [1], workers=0, error=EvaluationError))


def slow_first(seconds: float) -> Callable[[int], int]:
    def handle(number: int) -> int:
        time.sleep(seconds if number == 0 else 0)
        return number

    return handle


def test_results_come_in_order_where_that_is_asked_for() -> None:
    finished = list(run_jobs(slow_first, 2.0, range(6), workers=2))
    assert [n for n, _ in finished] != sorted(n for n, _ in finished)
    assert list(ordered(run_jobs(slow_first, 0.5, range(6), workers=2))) == list(range(6))
    assert list(ordered([(2, "c"), (0, "a"), (1, "b")])) == ["a", "b", "c"]


def test_an_endless_stream_is_taken_a_few_at_a_time() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = run_jobs(calling, abs, numbers(), workers=2)
    found = list(itertools.islice(results, 5))
    results.close()
    assert len(found) == 5
    assert all(number == result for number, result in found)
    assert len(taken) <= 5 + 2 * pool.AHEAD
    assert not multiprocessing.active_children()


def pid_and_wait(seconds: float) -> Callable[[int], int]:
    def handle(number: int) -> int:
        if number:
            time.sleep(seconds)
        return os.getpid()

    return handle


def test_stopping_early_ends_workers_that_are_busy() -> None:
    start = time.monotonic()
    results = run_jobs(pid_and_wait, 60.0, [0, 1, 1, 1], workers=2)
    next(results)
    results.close()
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()


SCRIPT = """
import sys, time
from athena_vla.jobs import run_jobs
from test_jobs import pid_and_wait
if __name__ == "__main__":
    for _, pid in run_jobs(pid_and_wait, 60.0, [0, 0, 1, 1], workers=2):
        print(pid, flush=True)
"""


def test_an_interrupt_ends_every_worker(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        workers = {int(process.stdout.readline()) for _ in range(2)}
        process.send_signal(signal.SIGINT)  # to the parent alone, not to the group as a terminal does
        process.wait(30)
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {workers}")
