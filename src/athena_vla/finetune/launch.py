"""Several processes on this machine's cores, and recognising torchrun. Knows nothing of training itself."""

import contextlib
import ctypes
import dataclasses
import json
import multiprocessing
import os
import platform
import resource
import socket
from pathlib import Path
from typing import Any

import torch

from athena_vla.errors import AthenaError, TrainingError
from athena_vla.finetune.config import FinetuneConfig


def is_distributed() -> bool:
    """Whether this process is one of several that torchrun, accelerate or `run` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run(config: FinetuneConfig) -> None:
    """Fine-tune in `config.processes` new processes over gloo; returns when all are done.

    Raises `TrainingError` with the first process's own sentence when one fails; the others are ended.
    """
    context = multiprocessing.get_context("spawn")  # a forked child of a process with threads can deadlock
    failures = context.SimpleQueue()
    port = _free_port()
    children = [
        context.Process(target=_child, args=(config, rank, port, failures), daemon=True)
        for rank in range(config.processes)
    ]
    for child in children:
        child.start()
    try:
        waiting = set(children)
        while waiting:
            for child in list(waiting):
                child.join(timeout=0.2)
                if child.exitcode is None:
                    continue
                waiting.discard(child)
                if child.exitcode != 0:
                    told = failures.get() if not failures.empty() else f"a process ended with status {child.exitcode}"
                    raise TrainingError(str(told))
    finally:
        for child in children:
            if child.is_alive():
                child.terminate()


def _child(config: FinetuneConfig, rank: int, port: int, failures: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(config.processes),
        LOCAL_WORLD_SIZE=str(config.processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS=str(config.threads),
        ACCELERATE_USE_CPU="true",
    )
    from athena_vla.finetune.stage import finetune

    try:
        finetune(dataclasses.replace(config, device="cpu"))
    except AthenaError as error:
        failures.put(str(error))
        raise SystemExit(2) from error


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory: every step needs the same again, and page faults cost a tenth of the time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def restart_peak_memory() -> None:
    """What was held before does not count as this run's peak; without a GPU the kernel is asked (Linux only)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # a container may forbid it: then the peak is the process's
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb() -> float:
    """[GB] most that was held since `restart_peak_memory`: of the GPU, or resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.is_file():
        return int(next(x for x in status.read_text().splitlines() if x.startswith("VmHWM")).split()[1]) * 1.024e-6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-6


def to_json(result: Any) -> str:
    raw = dataclasses.asdict(result)
    return json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in raw.items()}, indent=1)


def from_json(file: Path) -> dict[str, Any]:
    raw = json.loads(file.read_text())
    for name in ("bundle", "run_folder"):
        raw[name] = Path(raw[name])
    return {**raw, "notes": tuple(raw["notes"])}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
