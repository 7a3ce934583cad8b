"""One run of the demo: its configuration, its folders, its journal. Every step is a function of this."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from athena_vla.bundle import open_base
from athena_vla.demo.demo_config import DemoConfig
from athena_vla.demo.journal import Journal
from athena_vla.evaluate.results import Setup

BASELINES = ("hold", "mean_action", "nearest_neighbour", "replay")  # what knows nothing, and what only repeats


@dataclass(frozen=True)
class Run:
    """Where everything of one run lies; nothing outside `folder` is written."""

    config: DemoConfig
    journal: Journal

    @property
    def folder(self) -> Path:
        return self.config.out

    @property
    def recordings(self) -> Path:
        """The simulator's, or the user's own, which are only read."""
        return self.config.data or self.folder / "recordings"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def media(self) -> Path:
        return self.folder / "media"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    def bundle(self, name: str) -> Path:
        """A bundle of this run: tuned, merged, int8, int4, and their exports."""
        return self.folder / "bundles" / name

    @property
    def workers(self) -> int:
        return self.config.workers or os.cpu_count() or 1

    @property
    def setup(self) -> Setup:
        return Setup()

    def result(self, step: str) -> dict:
        return self.journal.steps[step].result


def hash_of(model: str | Path) -> str:
    """Of a bundle or a released checkpoint."""
    return open_base(model).hash


@contextmanager
def quiet_threads() -> Iterator[None]:
    """One compute thread for what runs in this process: two on two busy cores are slower, and change the numbers."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
