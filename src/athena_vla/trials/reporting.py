"""The end of trials: names are opened, results counted, and a page written that shows how they came about."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from athena_vla import files
from athena_vla.errors import EvaluationError
from athena_vla.evaluate import table_text
from athena_vla.evaluate.outcomes import ResultsComparison, compare_results
from athena_vla.trials.counting import evidence, reason_to_end
from athena_vla.trials.drawing import Plan, Sealed, read
from athena_vla.trials.trial_log import Entry, TrialLog

OUTCOMES, PAGE = "outcomes.jsonl", "report.html"


@dataclass(frozen=True)
class Beside:
    """What happened around the trials of one policy and is no success or failure."""

    policy: str
    invalid: int
    emergencies: int
    corrected: int


@dataclass(frozen=True)
class TrialReport:
    """What the trials say."""

    comparison: ResultsComparison
    beside: tuple[Beside, ...]
    ended_by: str
    planned: int
    made: int
    hash: str
    evidence: float
    page: Path
    outcomes: Path

    def to_dict(self) -> dict[str, Any]:
        return {
            **{k: v for k, v in self.__dict__.items() if k not in ("comparison", "beside", "page", "outcomes")},
            "comparison": self.comparison.to_dict(),
            "beside": [b.__dict__ for b in self.beside],
            "page": str(self.page),
            "outcomes": str(self.outcomes),
        }

    def __str__(self) -> str:
        rows = [[b.policy, str(b.invalid), str(b.emergencies), str(b.corrected)] for b in self.beside]
        return "\n\n".join(
            [
                str(self.comparison),
                table_text.aligned(["beside", "invalid", "emergency stops", "corrected"], rows),
                self.how,
                f"Page: {self.page}\nResults, for athena compare --results: {self.outcomes}",
            ]
        )

    @property
    def how(self) -> str:
        """How the trials came about, in words."""
        words = (
            f"{self.made} of {self.planned} trials, order {self.hash[:12]} drawn beforehand; ended because "
            f"{self.ended_by}. Evidence that the policies differ: {self.evidence:.3g} to 1, valid at any stop."
        )
        if self.made < self.planned:
            words += " The trials ended early: intervals and p assume a number of trials that was fixed beforehand."
        return words


def report_trials(folder: Path, *, now: bool = False) -> TrialReport:
    """Open the names, write the page. With `now` unfinished trials end here, and no trial is added any more.

    Raises `EvaluationError` where trials are unfinished, or a file was edited.
    """
    with files.lock(folder / "trials", EvaluationError):
        plan, sealed = read(folder)
        log = TrialLog(folder, plan.hash)
        why = reason_to_end(plan, log)
        judged = log.verdicts()
        if not why and not now:
            raise EvaluationError(
                f"{len(judged)} of {len(plan.order)} trials have a verdict; names stay hidden until the end. Go on: "
                f"athena trials run '{folder}'. Or end them for good with --now."
            )
        if not judged:
            raise EvaluationError("No trial has a verdict; there is nothing to report.")
        if not log.ended:
            log.add(Entry("ended", notes=why or "the operator ended them"))
        return _report(folder, plan, sealed, log)


def _report(folder: Path, plan: Plan, sealed: Sealed, log: TrialLog) -> TrialReport:
    judged = log.verdicts()
    rows = []
    for trial in plan.order:
        if trial.number in judged:
            entry = judged[trial.number]
            task = plan.scene(trial.scene).task
            rows.append(
                {
                    "policy": sealed.names[trial.slot],
                    "scene": trial.scene,
                    "trial": trial.round,
                    "success": bool(entry.success),
                    **({"task": task} if task else {}),
                }
            )
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    outcomes = files.write_text(folder / OUTCOMES, lines, EvaluationError)
    names = {t.number: sealed.names[t.slot] for t in plan.order}
    invalid, stops, corrected = (
        Counter(names[n] for n in numbers)
        for numbers in (
            [e.trial for e in log.entries if e.event == "invalid"],
            [n for n, e in judged.items() if e.emergency],
            [e.trial for e in log.entries if e.event == "corrected"],
        )
    )
    beside = tuple(Beside(n, invalid[n], stops[n], corrected[n]) for n in sealed.names.values())
    ended = next(e.notes for e in log.entries if e.event == "ended")
    report = TrialReport(
        compare_results(
            [outcomes], next(n for n in reversed(tuple(sealed.places)) if n in {r["policy"] for r in rows})
        ),
        beside,
        ended,
        len(plan.order),
        len(judged),
        plan.hash,
        evidence(plan, log),
        folder / PAGE,
        outcomes,
    )
    environment = Environment(
        loader=PackageLoader("athena_vla.trials"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(report=report, plan=plan, log=log, judged=judged, names=names)
    files.write_text(folder / PAGE, page, EvaluationError)
    return report
