"""Jobs that end as their name says: for the tests of the pool here and of Ray."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from athena_vla.errors import SimulationError


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
