"""Where the episodes of a build are prepared: in this process, in local processes, or on a Ray cluster."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal

from athena_vla.dataset.prepare import Job, prepare
from athena_vla.errors import DatasetError, MissingDependency

FEW_EPISODES = 8  # fewer are prepared in this process: starting workers takes longer
Place = Literal["here", "ray"]


def run_jobs(job: Job, ids: Sequence[str], on: Place, processes: int) -> Iterator[dict[str, Any]]:
    """Facts of all episodes, in the order of `ids`, wherever they are prepared; 0 `processes` are one per core."""
    if on == "ray":
        yield from _on_ray(job, ids)
        return
    workers = min(processes or os.cpu_count() or 1, len(ids))
    if workers == 1 or (len(ids) < FEW_EPISODES and processes == 0):
        for episode_id in ids:
            yield prepare(job, episode_id)
        return
    # spawn: a forked child of a process with threads (torch, arrow) can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        size = max(1, min(16, len(ids) // (4 * workers)))
        try:
            yield from pool.map(prepare, [job] * len(ids), ids, chunksize=size)
        except BrokenProcessPool as error:
            raise DatasetError(
                "A worker process ended before its episodes were done: out of memory, or a script that builds without "
                "an `if __name__ == '__main__':` guard. What is finished is kept; try again, or with workers=1."
            ) from error


def _on_ray(job: Job, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        import ray
    except ImportError as error:
        raise MissingDependency("ray", "ray", "to build on a Ray cluster") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    shared = ray.put(job)
    remote = ray.remote(prepare)
    # A bounded number in flight keeps the driver's memory flat for any number of episodes.
    in_flight = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = [remote.remote(shared, i) for i in ids[:in_flight]]
    for next_one in range(len(ids)):
        yield ray.get(waiting[next_one])
        waiting[next_one] = None
        if len(waiting) < len(ids):
            waiting.append(remote.remote(shared, ids[len(waiting)]))
