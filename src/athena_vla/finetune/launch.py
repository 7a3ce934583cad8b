"""Where a run runs: device, precision, threads, memory, several processes, torchrun. Knows nothing of training."""

import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import platform
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, KwargsHandler

from athena_vla.errors import AthenaError, TrainingError
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.machine import peak_resident_gb
from athena_vla.models import precision as precisions
from athena_vla.stopping import Stop, until_asked

PATIENCE = timedelta(hours=12)  # of processes that wait for one of them


def is_distributed() -> bool:
    """Whether this process is one of several that torchrun, accelerate or `run` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run(config: FinetuneConfig, train: Callable[[FinetuneConfig], object]) -> None:
    """Run `train`, a function of a module, in new processes; returns when all are done.

    `config.gpus` of them with a card each over NCCL (never run by us), else `config.processes` on the processor over
    gloo. Raises `TrainingError` with the first process's own sentence when one fails, and ends the others, and
    `Interrupted` with theirs when they were asked to stop.
    """
    count = max(config.gpus, config.processes)
    context = multiprocessing.get_context("spawn")  # a forked child of a process with threads can deadlock
    failures = context.SimpleQueue()
    port = _free_port()
    children = [
        context.Process(target=_child, args=(config, train, rank, count, port, failures), daemon=True)
        for rank in range(count)
    ]
    for child in children:
        child.start()
    try:
        with until_asked("after the step that the processes are at") as stop:
            passed_on = False
            waiting = set(children)
            while waiting:
                if stop.asked and not passed_on:
                    passed_on = True
                    for child in waiting:
                        child.terminate()  # SIGTERM, which asks them in turn
                for child in list(waiting):
                    child.join(timeout=0.2)
                    if child.exitcode is None:
                        continue
                    waiting.discard(child)
                    if child.exitcode != 0 and not (stop.asked and waiting):  # the others write a checkpoint
                        raise _failure(failures, child.exitcode, stop)
    finally:
        for child in children:
            if child.is_alive():
                child.terminate()


def _failure(failures: Any, status: int, stop: Stop) -> BaseException:
    """What a process said before it ended with a status."""
    kind, told = failures.get() if not failures.empty() else ("failed", f"a process ended with status {status}")
    return stop.interrupted(told) if kind == "interrupted" else TrainingError(told)


def _child(
    config: FinetuneConfig,
    train: Callable[[FinetuneConfig], object],
    rank: int,
    count: int,
    port: int,
    failures: Any,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS=str(config.threads),
        **({} if config.gpus else {"ACCELERATE_USE_CPU": "true"}),
    )
    try:
        train(dataclasses.replace(config, device="cuda" if config.gpus else "cpu"))
    except AthenaError as error:
        failures.put(("failed", str(error)))
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        failures.put(("interrupted", str(error)))
        raise SystemExit(130) from error


def require_cards(config: FinetuneConfig) -> None:
    """Raises `TrainingError` where more cards are asked for than torch sees."""
    if not config.gpus:
        return
    if config.device == "cpu" or config.processes > 1:
        raise TrainingError("--gpus takes a card for each process; leave --device and --processes out.")
    if config.gpus > (seen := torch.cuda.device_count()):
        raise TrainingError(f"--gpus {config.gpus} was asked for, and torch sees {seen}. Ask athena doctor.")


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
    return peak_resident_gb()


def uses_cpu(config: FinetuneConfig) -> bool:
    """Raises `TrainingError` where a GPU is asked for and there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "--device cuda was asked for, but torch sees no GPU. Use --device cpu, or ask athena doctor."
        )
    return (precisions.training_device() if config.device == "auto" else config.device) == "cpu"


def with_precision(config: FinetuneConfig) -> FinetuneConfig:
    """The configuration with a precision that this machine has, in the place of auto. Raises `TrainingError`."""
    cpu = uses_cpu(config)
    if config.precision == "fp16" and cpu:
        raise TrainingError("fp16 cannot be trained on a CPU; use --precision bf16 or fp32.")
    return dataclasses.replace(config, precision=precisions.resolved(config.precision, "cpu" if cpu else "cuda"))


@contextlib.contextmanager
def one_accelerator(config: FinetuneConfig) -> Iterator[Accelerator]:
    """accelerate keeps its state per process: it is cleared, so that runs in one process do not see each other."""
    AcceleratorState._reset_state(True)
    # One process may compute what the others wait for, such as the features of all images: for hours.
    patient: list[KwargsHandler] = [InitProcessGroupKwargs(timeout=PATIENCE)] if is_distributed() else []
    accelerator = Accelerator(
        cpu=uses_cpu(config),
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        kwargs_handlers=patient,
    )
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        if not is_distributed():
            AcceleratorState._reset_state(True)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unused_cards(device: torch.device, processes: int) -> str:
    """A sentence where a run of one process leaves cards idle; empty where none is."""
    cards = torch.cuda.device_count() if device.type == "cuda" and processes == 1 else 1
    if cards == 1:
        return ""
    return f"This machine shows {cards} cards and the run uses one of them; --gpus {cards} uses all."
