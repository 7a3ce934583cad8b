"""Steps that are done once: each result is kept with a fingerprint of what it depends on, and reuse is said aloud.

Knows nothing of robots: a step is a name, its inputs as JSON, a function that returns JSON, and files it must leave.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from athena_vla import files
from athena_vla.errors import AthenaError
from athena_vla.progress import Progress
from athena_vla.version import __version__

STEPS = "steps"  # folder of the results, in the run's folder


@dataclass(frozen=True)
class Step:
    """One finished step."""

    name: str
    fingerprint: str
    seconds: float  # of the run that did the work, earlier interrupted attempts included
    finished: str  # ISO date and time
    result: dict[str, Any]
    outputs: tuple[str, ...]  # files and folders, relative to the run's folder
    reused: bool = False


@dataclass
class Journal:
    """All steps of one run folder."""

    folder: Path
    progress: Progress  # of all steps
    total: int  # steps that will be run, for the numbering
    steps: dict[str, Step] = field(default_factory=dict)
    now: Progress = field(default_factory=Progress)  # of the step that runs

    def step(
        self,
        name: str,
        title: str,
        inputs: Mapping[str, Any],
        work: Callable[[], dict[str, Any]],
        outputs: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """The step's result: the kept one where inputs and outputs are unchanged, else that of doing the work now."""
        number = len(self.steps) + 1
        fingerprint = digest({"step": name, "version": __version__, "inputs": inputs})
        kept = self._kept(name, fingerprint)
        if kept is not None:
            self.steps[name] = kept
            self.progress.skip(name)
            what = ", ".join(kept.outputs) or "its result"
            self.progress.say(f"{number}/{self.total} {title}")
            self.say(f"reused: {what} (made {kept.finished}, {kept.seconds:.1f} s then)")
            return kept.result
        self.now = self.progress.part(name)
        whole = self.progress.state().whole
        self.progress.say(f"{number}/{self.total} {title}" + (f" ({whole})" if whole else ""))
        before = self._earlier_seconds(name, fingerprint)
        started = time.perf_counter()
        try:
            result = plain(work())
        except BaseException:
            spent = before + time.perf_counter() - started
            files.write_json(self._file(name, "partial"), {"fingerprint": fingerprint, "seconds": spent})
            raise
        missing = [o for o in outputs if not (self.folder / o).exists()]
        if missing:
            raise AthenaError(f"Step '{name}' ended without leaving {', '.join(missing)} in '{self.folder}'.")
        seconds = before + time.perf_counter() - started
        done = Step(name, fingerprint, seconds, datetime.now().isoformat(" ", "seconds"), result, outputs)
        content = {k: v for k, v in done.__dict__.items() if k not in ("name", "reused")}
        files.write_json(self._file(name), plain(content))  # in the order they were made: it is shown
        self._file(name, "partial").unlink(missing_ok=True)
        self.steps[name] = done
        return done.result

    def say(self, text: str) -> None:
        """A sentence about the step that runs."""
        self.progress.say(f"    {text}")

    @property
    def seconds(self) -> dict[str, float]:
        """Per step, of the run that did the work, and their total."""
        table = {name: round(step.seconds, 2) for name, step in self.steps.items()}
        return {**table, "total": round(sum(table.values()), 2)}

    @property
    def reused(self) -> tuple[str, ...]:
        return tuple(name for name, step in self.steps.items() if step.reused)

    def _file(self, name: str, kind: str = "") -> Path:
        return self.folder / STEPS / (f"{name}.{kind}.json" if kind else f"{name}.json")

    def _kept(self, name: str, fingerprint: str) -> Step | None:
        raw = read_json(self._file(name))
        if raw is None or raw["fingerprint"] != fingerprint:
            return None
        if not all((self.folder / o).exists() for o in raw["outputs"]):
            return None
        return Step(name=name, **{**raw, "outputs": tuple(raw["outputs"])}, reused=True)

    def _earlier_seconds(self, name: str, fingerprint: str) -> float:
        raw = read_json(self._file(name, "partial"))
        return float(raw["seconds"]) if raw is not None and raw["fingerprint"] == fingerprint else 0.0


def digest(value: Any) -> str:
    """Hash of anything that JSON can hold."""
    return files.fingerprint(plain(value))[:16]


def plain(value: Any) -> Any:
    """Numbers, texts, lists and objects only. Raises `TypeError` for anything else: nothing is turned into text."""
    return json.loads(json.dumps(value, default=_convert))


def _convert(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return dict(value.__dict__)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be kept in a step's result")


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is nothing readable: the step is then simply done again."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) else None
