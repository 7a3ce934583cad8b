"""The steps one after the other: nothing but the public functions of the stages, and a journal between them."""

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla import files
from athena_vla.demo.demo_config import DemoConfig
from athena_vla.demo.expected import expected
from athena_vla.demo.journal import STEPS, Journal
from athena_vla.demo.run import Run
from athena_vla.errors import AthenaError, MissingDependency
from athena_vla.progress import Progress, quiet
from athena_vla.stopping import Interrupted

SIMULATED_STEPS = 9
OWN_DATA_STEPS = 7
DISK_NEEDED = 3 * 2**30  # [bytes] recordings, dataset with cached features, checkpoints, exported graphs


@dataclass(frozen=True)
class DemoResult:
    """Where everything is, and the numbers of report.json."""

    folder: Path
    page: Path
    report: dict[str, Any]
    reused: tuple[str, ...]  # steps whose earlier result was taken

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "page": str(self.page),
            "reused": list(self.reused),
            "report": self.report,
        }

    def __str__(self) -> str:
        return f"Everything is in {self.folder}; the report is {self.page}"


def demo(config: DemoConfig, progress: Progress = quiet) -> DemoResult:
    """The whole way. Interrupted, it goes on with the same command; what it reuses it says.

    Raises `AthenaError`: no disk space, no recordings, a base model that cannot be had, and whatever a stage raises.
    """
    with files.lock(config.out):
        _open_folder(config)
        return _demo(config, progress)


def _demo(config: DemoConfig, progress: Progress) -> DemoResult:
    progress.plan(expected(config))
    steps = OWN_DATA_STEPS if config.data is not None else SIMULATED_STEPS
    run = Run(config, Journal(config.out, progress, steps))
    try:
        from athena_vla.demo import deploying, learning, outcome, recording
        from athena_vla.models import precision
        from athena_vla.report import ReportConfig, report
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "?", "train,sim,export,serve", "for the demo") from error
    run.journal.say(precision.sentence(precision.training_device()))
    try:
        if config.data is None:
            recording.record(run)
        recording.prepare(run)
        learning.train(run)
        learning.compare(run)
        if config.data is None:
            learning.safety(run)
        else:
            learning.recorded_safety(run)
        deploying.deploy(run)
        deploying.measure(run)
        if config.data is None:
            deploying.serve(run)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(_kept(run.journal, str(error)), number) from error
    content = outcome.write_report_json(run)
    page = run.folder / "report.html"
    inputs = {"steps": {n: s.fingerprint for n, s in run.journal.steps.items()}}

    def work() -> dict[str, Any]:
        made = report(ReportConfig(run=run.folder))
        run.journal.say(str(made))
        return {"page": str(made.page), "bytes": made.bytes}

    run.journal.step("report", "Write the report", inputs, work, ("report.html",))
    content = outcome.write_report_json(run)  # now with the seconds of the report itself
    outcome.print_summary(run, content)
    return DemoResult(run.folder, page, content, run.journal.reused)


def _kept(journal: Journal, inside: str) -> str:
    """What an interrupted demo leaves: finished steps, and what the step that was interrupted says."""
    names = ", ".join(journal.steps)
    steps = f"finished steps are kept ({names})" if names else "no step was finished"
    return f"{steps}; {inside or 'the same command goes on from there.'}"


def _open_folder(config: DemoConfig) -> None:
    """Refuse before an hour of work a folder of something else, and what would end in a full disk."""
    out = config.out
    if config.overwrite or not is_run(out):
        files.require_free(out, overwrite=config.overwrite, what="a demo's folder", ours=is_run)
    if config.overwrite and is_run(out):
        files.discard(out)
    begun = is_run(out)
    try:
        (out / STEPS).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise AthenaError(f"'{out}' cannot be written: {error}. Choose another folder with --out.") from error
    if free < DISK_NEEDED and not begun:
        raise AthenaError(
            f"The disk of '{out}' has {free / 2**30:.1f} GB free, the demo needs {DISK_NEEDED / 2**30:.0f} GB. "
            "Make room, or choose another folder with --out."
        )


def is_run(folder: Path) -> bool:
    """Whether a demo was begun in a folder."""
    return (folder / STEPS).is_dir() or (folder / "recordings" / "recording.json").is_file()
