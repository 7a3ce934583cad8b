"""`athena runs FOLDER`: one table over the trainings below a folder, from their run folders alone. Needs no torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla import files
from athena_vla.errors import TrainingError
from athena_vla.evaluate.table_text import aligned

CONFIG, LOG, RESULT, SUFFIX = "config.json", "log.jsonl", "result.json", ".run"
HEAD = ("run", "state", "step", "of", "loss", "validation", "error mrad", "best step", "minutes", "method", "data")


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """Where the trainings lie."""

    input: Path = Path("runs")
    """A folder with trainings below it, as OUT.run beside each bundle, or one such folder."""


@dataclass(frozen=True)
class Run:
    """One training, as far as it came."""

    name: str
    state: str  # finished | interrupted
    step: int  # the last that was logged
    max_steps: int
    loss: float | None  # of the last logged step
    validation: float | None  # the loss of the best evaluation
    error: float | None  # [rad] mean, at that evaluation
    best_step: int | None  # of that evaluation: of least loss, or of most scenes solved where it played some
    seconds: float | None  # of training; None while it is not finished
    method: str
    data: str

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `HEAD`."""
        return (
            self.name,
            self.state,
            str(self.step),
            str(self.max_steps or "-"),
            _shown(self.loss, 4),
            _shown(self.validation, 4),
            _shown(None if self.error is None else 1e3 * self.error, 1),
            "-" if self.best_step is None else str(self.best_step),
            _shown(None if self.seconds is None else self.seconds / 60, 1),
            self.method,
            self.data,
        )


@dataclass(frozen=True)
class Runs:
    """All trainings, the best validation loss first, those without one last."""

    folder: Path
    runs: tuple[Run, ...]
    unreadable: tuple[str, ...]

    def __str__(self) -> str:
        table = aligned(HEAD, [r.cells() for r in self.runs])
        return "\n".join([table, *(f"not read: {why}" for why in self.unreadable)])


def runs(config: RunsConfig) -> Runs:
    """Raises `TrainingError` where there is no training below the folder."""
    if not config.input.is_dir():
        raise TrainingError(f"There is no folder '{config.input}'.")
    folders = [config.input] if (config.input / CONFIG).is_file() else sorted(_below(config.input))
    found: list[Run] = []
    unreadable: list[str] = []
    for folder in folders:
        try:
            found.append(_run(folder, config.input))
        except (TrainingError, KeyError, TypeError, ValueError) as error:
            unreadable.append(f"'{folder}': {error}")
    if not found and not unreadable:
        raise TrainingError(f"No training lies below '{config.input}': athena train leaves OUT{SUFFIX} beside its OUT.")
    found.sort(key=lambda r: (r.validation is None, r.validation or 0.0, r.name))
    return Runs(config.input, tuple(found), tuple(unreadable))


def _below(folder: Path) -> Iterator[Path]:
    yield from (p.parent for p in folder.rglob(f"*{SUFFIX}/{CONFIG}"))


def _run(folder: Path, root: Path) -> Run:
    asked = files.read_json_object(folder / CONFIG, TrainingError)
    text = (folder / LOG).read_text() if (folder / LOG).is_file() else ""
    lines = [json.loads(x) for x in text.splitlines() if x.strip()]
    steps = [x for x in lines if "loss" in x]
    measured = [x for x in lines if isinstance(x.get("validation"), dict)]
    best = min(measured, key=_rank, default=None)
    done = files.read_json_object(folder / RESULT, TrainingError) if (folder / RESULT).is_file() else None
    loss = steps[-1]["loss"] if steps else None
    return Run(
        name=str(folder.relative_to(root)).removesuffix(SUFFIX) if folder != root else folder.stem,
        state="finished" if done is not None else "interrupted",
        step=int(done["steps"]) if done is not None else int(steps[-1]["step"]) if steps else 0,
        max_steps=int(asked.get("max_steps") or 0),
        loss=float(loss) if isinstance(loss, int | float) else None,
        validation=None if best is None else float(best["validation"]["loss"]),
        error=None if best is None else float(best["validation"]["mae_rad"]),
        best_step=None if best is None else int(best["step"]),
        seconds=None if done is None else float(done["seconds"]),
        method=str(asked.get("method", "-")),
        data=Path(str(asked.get("data", "-"))).name,
    )


def _rank(line: dict[str, Any]) -> tuple[float, float]:
    """Of an evaluation; the least is the best."""
    success = line["validation"].get("success")
    return (-success["solved"] / success["scenes"] if success else 0.0, float(line["validation"]["loss"]))


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
