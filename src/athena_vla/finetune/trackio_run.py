"""A run in Trackio's own store on this machine. Nothing goes over a network, and nothing to standard output."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from athena_vla.errors import MissingDependency, TrainingError
from athena_vla.finetune.finetune_config import FinetuneConfig

PROJECT = "athena-vla"
# What would make Trackio send a run somewhere.
_AWAY = (
    *("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL"),
    "SPACE_REPO_NAME",
)


def opened(config: FinetuneConfig) -> Any:
    """The module `trackio`, with this run open. A run of the same name goes on.

    Raises `MissingDependency`, and `TrainingError` where the environment would send the run away.
    """
    away = [name for name in _AWAY if os.environ.get(name)]
    if away:
        raise TrainingError(
            f"--trackio keeps runs on this machine, and {', '.join(away)} would send them away. Unset it, or leave "
            "--trackio out."
        )
    try:
        import trackio
    except ImportError as error:
        raise MissingDependency("trackio", "trackio", "for --trackio") from error
    with _by_itself():
        trackio.init(
            project=PROJECT,
            name=config.out.name,
            config=config.to_dict(),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    return trackio


def close(trackio: Any) -> None:
    """Wait until everything is stored."""
    with _by_itself():
        trackio.finish()


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
    """Inside, the Hub is not asked who the user is, and what Trackio prints goes to standard error."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
