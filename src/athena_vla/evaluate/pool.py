"""A pool of spawned worker processes that survives the death of one; knows nothing of what the jobs are.

Spawned and not forked: a fork copies locks of running threads (torch, ONNX Runtime) and then hangs. One thread each:
two threads on each of two busy cores run ten times slower than one.
"""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from athena_vla.errors import AthenaError, EvaluationError

Handler = Callable[[Any], Any]
Make = Callable[[Any], Handler]  # a module-level function: it is imported by name in the worker
ATTEMPTS = 2  # a job whose worker dies is given to a fresh worker once
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: int | None = None


def run_jobs(
    make: Make,
    argument: Any,
    jobs: Sequence[Any],
    *,
    workers: int,
    describe: Callable[[Any], str] = str,
) -> Generator[tuple[int, Any], None, None]:
    """Yield (number of the job, result) as they finish, in any order; `make(argument)` builds each worker's handler.

    With one worker everything runs in this process. An error in a job stops the run and is raised here; a worker that
    dies is replaced and its job repeated once. Raises `EvaluationError`.
    """
    if workers < 1:
        raise EvaluationError(f"{workers} workers are not possible; 1 runs everything in this process.")
    if not jobs:
        return
    if workers == 1:
        handler = make(argument)
        for number, job in enumerate(jobs):
            yield number, handler(job)
        return
    waiting = list(range(len(jobs)))[::-1]
    attempts = [0] * len(jobs)
    pool = [_start(make, argument) for _ in range(min(workers, len(jobs)))]
    open_jobs = len(jobs)
    try:
        while open_jobs:
            for worker in pool:
                if worker.job is None and waiting:
                    worker.job = waiting.pop()
                    attempts[worker.job] += 1
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is seen below
                        worker.pipe.send(jobs[worker.job])
            busy = [w for w in pool if w.job is not None]
            ready = set(wait([w.pipe for w in busy] + [w.process.sentinel for w in busy]))
            for place, worker in enumerate(pool):
                number = worker.job
                if number is None or not ({worker.pipe, worker.process.sentinel} & ready):
                    continue
                try:
                    # A worker may answer and die right after: what is in the pipe counts.
                    answered = worker.pipe.poll()
                    outcome, value = worker.pipe.recv() if answered else ("died", None)
                except (EOFError, ConnectionResetError):
                    outcome, value = "died", None
                if outcome == "error":
                    raise EvaluationError(f"{describe(jobs[number])}: {value}")
                if outcome == "done":
                    worker.job = None
                    open_jobs -= 1
                    yield number, value
                    continue
                worker.process.join(5)
                if attempts[number] >= ATTEMPTS:
                    raise EvaluationError(
                        f"The worker process of {describe(jobs[number])} died {ATTEMPTS} times "
                        f"(exit code {worker.process.exitcode}; -9 is usually too little memory: use fewer workers)."
                    )
                waiting.append(number)
                _stop(worker)
                pool[place] = _start(make, argument)
    finally:
        for worker in pool:
            _stop(worker)


def _start(make: Make, argument: Any) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make, argument), daemon=True)
    before = {v: os.environ.get(v) for v in THREAD_VARIABLES}
    try:
        # Read by the math libraries when they load, so they must be in the environment the worker starts with.
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        process.start()
    finally:
        for variable, value in before.items():
            os.environ.pop(variable, None) if value is None else os.environ.__setitem__(variable, value)
    theirs.close()
    return _Worker(process, ours)


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.join(0.2)  # a worker leaves by itself when its pipe closes
    if worker.process.is_alive():
        worker.process.terminate()
        worker.process.join(5)


def _work(pipe: Connection, make: Make, argument: Any) -> None:
    """Main loop of a worker process."""
    handler: Handler | None = None
    while True:
        try:
            job = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            handler = handler or make(argument)
            answer = ("done", handler(job))
        except AthenaError as error:
            answer = ("error", str(error))
        except KeyboardInterrupt:
            return
        except Exception:
            answer = ("error", f"unexpected error in the worker:\n{traceback.format_exc()}")
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            return
