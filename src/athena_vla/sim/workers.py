"""Jobs on several spawned processes: results in order, one thread each, and a dead worker is an error, not a wait.

Knows nothing of what the jobs do. Spawned, not forked: a forked child inherits locks of threads that no longer exist.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from athena_vla.errors import SimulationError

Job = TypeVar("Job")
Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_jobs(
    function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int, ahead: int = 4
) -> Iterator[Result]:
    """Results of `function` over `jobs`, in the order of the jobs; `function` must be a module-level function.

    At most `ahead` jobs per worker are under way, so an endless `jobs` is fine. With one worker nothing is spawned.
    Raises what a job raised, and `SimulationError` where a worker process died.
    """
    if workers < 1:
        raise SimulationError(f"{workers} workers cannot do anything: ask for 1 or more.")
    if workers == 1:
        yield from map(function, jobs)
        return
    saved = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # spawned children read it when they import numpy
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    pending: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(function, job))
            if len(pending) >= ahead * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise SimulationError(
            "A worker process died (out of memory, killed, or a script that lacks `if __name__ == '__main__':`). "
            "What is finished is kept; run again with fewer workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
