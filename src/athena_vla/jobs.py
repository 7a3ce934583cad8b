"""Jobs in processes of their own, or on a Ray cluster: one pool, which survives the death of a worker.

Knows nothing of the jobs. Spawned and not forked: a fork copies the locks of running threads (torch, ONNX Runtime) and
then hangs. One thread each: two threads on each of two busy cores run ten times slower than one.
"""

import contextlib
import heapq
import itertools
import logging
import multiprocessing
import os
import socket
import traceback
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, TypeVar

from athena_vla.errors import AthenaError, MissingDependency

Job = TypeVar("Job")
Result = TypeVar("Result")
Argument = TypeVar("Argument")

Place = Literal["here", "ray"]
ATTEMPTS = 2  # a job whose worker dies is given to a fresh worker once
RAY_ATTEMPTS = 4  # the same on Ray, where a whole machine may go
AHEAD = 4  # jobs per worker that are taken from an endless stream
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_NO_GUARD = "or a script that starts workers without an `if __name__ == '__main__':` guard"


def run_jobs(
    make: Callable[[Argument], Callable[[Job], Result]],
    argument: Argument,
    jobs: Iterable[Job],
    *,
    workers: int,
    place: Place = "here",
    describe: Callable[[Job], str] = str,
    error: type[AthenaError] = AthenaError,
) -> Generator[tuple[int, Result], None, None]:
    """Yield (number of the job, result) as they finish; `make(argument)` builds what does jobs, once in each worker.

    `make` is a module's function: a worker imports it by name. `jobs` may be endless: only a few per worker are under
    way. With one worker everything runs in this process. An error in a job stops the run and is raised here as `error`
    with the job's description; a worker that dies is replaced and its job repeated once (on Ray, where machines may go,
    three times). When the caller stops early, or is interrupted, all workers end.
    """
    if workers < 1:
        raise error(f"{workers} workers are not possible; 1 runs everything in this process.")
    if place == "ray":
        yield from _on_ray(make, argument, jobs, describe, error)
    elif workers == 1:
        handler = make(argument)
        for number, job in enumerate(jobs):
            yield number, handler(job)
    else:
        yield from _Pool(make, argument, describe, error).run(jobs, workers)


def calling(function: Callable[[Job], Result]) -> Callable[[Job], Result]:
    """The `make` of jobs for which nothing has to be built: the argument, a module's function, does them."""
    return function


def ordered(results: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """The results in the order of their jobs."""
    waiting: list[tuple[int, Result]] = []
    wanted = 0
    for number, result in results:
        heapq.heappush(waiting, (number, result))
        while waiting and waiting[0][0] == wanted:
            yield heapq.heappop(waiting)[1]
            wanted += 1


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: int | None = None


class _Pool:
    """Local workers, each with a pipe of its own: a dead one is noticed, and takes nothing else with it."""

    def __init__(
        self,
        make: Callable[[Any], Callable[[Any], Any]],
        argument: Any,
        describe: Callable[[Any], str],
        error: type[AthenaError],
    ) -> None:
        self.make, self.argument, self.describe, self.error = make, argument, describe, error
        self.workers: list[_Worker] = []
        self.open: dict[int, Any] = {}  # jobs that have no result yet
        self.attempts: dict[int, int] = {}
        self.waiting: list[int] = []  # of the open ones, those that no worker has

    def run(self, jobs: Iterable[Any], workers: int) -> Generator[tuple[int, Any], None, None]:
        stream = enumerate(jobs)
        self._take(stream, AHEAD * workers)
        try:
            self.workers = [self._start() for _ in range(min(workers, len(self.open)))]
            while self.open:
                self._hand_out()
                for worker in self._ready():
                    answer = self._answer(worker)
                    if answer is not None:
                        yield answer
                self._take(stream, AHEAD * workers - len(self.open))
        finally:
            _stop([w.process for w in self.workers], [w.pipe for w in self.workers])

    def _take(self, stream: Iterator[tuple[int, Any]], count: int) -> None:
        for _ in range(count):
            number, job = next(stream, (-1, None))
            if number < 0:
                return
            self.open[number] = job
            self.attempts[number] = 0
            self.waiting.append(number)

    def _hand_out(self) -> None:
        for worker in self.workers:
            if worker.job is None and self.waiting:
                worker.job = self.waiting.pop(0)
                self.attempts[worker.job] += 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is seen in `_answer`
                    worker.pipe.send(self.open[worker.job])

    def _ready(self) -> list[_Worker]:
        busy = [w for w in self.workers if w.job is not None]
        ready = set(wait([w.pipe for w in busy] + [w.process.sentinel for w in busy]))
        return [w for w in busy if {w.pipe, w.process.sentinel} & ready]

    def _answer(self, worker: _Worker) -> tuple[int, Any] | None:
        """The result that a worker sent; None where it died and its job is to be repeated. Raises `self.error`."""
        number = worker.job
        assert number is not None
        try:
            # A worker may answer and die right after: what is in the pipe counts.
            outcome, value = worker.pipe.recv() if worker.pipe.poll() else ("died", None)
        except (EOFError, ConnectionResetError):
            outcome, value = "died", None
        if outcome == "error":
            raise self.error(f"{self.describe(self.open[number])}: {value}")
        if outcome == "done":
            worker.job = None
            del self.open[number], self.attempts[number]
            return number, value
        worker.process.join(5)
        if self.attempts[number] >= ATTEMPTS:
            raise self.error(
                f"The worker process of {self.describe(self.open[number])} died {ATTEMPTS} times (exit code "
                f"{worker.process.exitcode}; -9 is usually too little memory: use fewer workers; {_NO_GUARD}). "
                "What is finished is kept."
            )
        self.waiting.insert(0, number)
        _stop([worker.process], [worker.pipe])
        self.workers[self.workers.index(worker)] = self._start()
        return None

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.make, self.argument), daemon=True)
        with _environment(dict.fromkeys(THREAD_VARIABLES, "1")):
            process.start()
        theirs.close()
        return _Worker(process, ours)


def _work(pipe: Connection, make: Callable[[Any], Callable[[Any], Any]], argument: Any) -> None:
    """Main loop of a worker process."""
    handler: Callable[[Any], Any] | None = None
    while True:
        try:
            job = pipe.recv()
        except (EOFError, ConnectionResetError, KeyboardInterrupt):
            return
        try:
            handler = handler or make(argument)
            answer = ("done", handler(job))
        except AthenaError as problem:
            answer = ("error", str(problem))
        except KeyboardInterrupt:
            return
        except Exception:
            answer = ("error", f"unexpected error in the worker:\n{traceback.format_exc()}")
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            return


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """What a process starts with: libraries read it when they are loaded."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _stop(processes: Sequence[Any], pipes: Sequence[Connection]) -> None:
    for pipe in pipes:
        pipe.close()  # a worker leaves by itself when its pipe closes
    for process in processes:
        process.join(0.2)
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _on_ray(
    make: Callable[[Any], Callable[[Any], Any]],
    argument: Any,
    jobs: Iterable[Any],
    describe: Callable[[Any], str],
    error: type[AthenaError],
) -> Generator[tuple[int, Any], None, None]:
    """The same on a Ray cluster, which may lose workers and whole machines."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:  # read at the import: without it a cluster of this machine alone listens to all the world
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as problem:
        raise MissingDependency("ray", "ray", "to work on a Ray cluster") from problem
    try:
        if not ray.is_initialized():
            if address not in ("", "auto"):
                _reach(address)
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    except (RayError, OSError, RuntimeError, ValueError) as problem:
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise error(f"The Ray cluster of RAY_ADDRESS='{address}' cannot be reached: {reason}") from problem
    remote = ray.remote(max_retries=RAY_ATTEMPTS - 1, num_cpus=1)(_done_on_ray)
    shared, run = ray.put((make, argument)), uuid.uuid4().hex
    stream = enumerate(jobs)
    open_jobs: dict[Any, tuple[int, Any]] = {}
    try:
        while True:
            # A few for each core: the driver's memory stays flat.
            for number, job in itertools.islice(stream, AHEAD * cores - len(open_jobs)):
                open_jobs[remote.remote(run, shared, job)] = number, job
            if not open_jobs:
                return
            ready, _ = ray.wait(list(open_jobs), num_returns=1)
            number, job = open_jobs.pop(ready[0])
            try:
                outcome, value = ray.get(ready[0])
            except RayTaskError as problem:  # of what cannot be sent: the job itself is guarded
                raise error(f"{describe(job)}: {problem}") from problem
            except RayError as problem:
                raise error(
                    f"The worker process of {describe(job)} died {RAY_ATTEMPTS} times "
                    f"({str(problem).strip().splitlines()[0]}). What is finished is kept."
                ) from problem
            if outcome == "error":
                raise error(f"{describe(job)}: {value}")
            yield number, value
    finally:
        for answer in open_jobs:
            ray.cancel(answer, force=True)


def _reach(address: str) -> None:
    """Raise `OSError` where nobody answers: Ray itself would end this whole process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=5.0).close()


_handler_of: dict[str, Callable[[Any], Any]] = {}  # in a worker of Ray: the handler of the run that it works for


def _done_on_ray(run: str, shared: tuple[Callable[[Any], Callable[[Any], Any]], Any], job: Any) -> tuple[str, Any]:
    """What a job gave; the handler is made once in each worker, not once for each job."""
    try:
        if run not in _handler_of:
            make, argument = shared
            _handler_of.clear()
            _handler_of[run] = make(argument)
        return "done", _handler_of[run](job)
    except AthenaError as problem:
        return "error", str(problem)
    except Exception:
        return "error", f"unexpected error in the worker:\n{traceback.format_exc()}"
