"""Episode results of any program, as JSON lines: read strictly, then policies beside each other with paired tests.

One line is one episode of one policy. `scene` and `success` are needed; two policies are compared on the scenes (and
`trial`, where a scene was tried more than once) that both have. The files of `athena evaluate` are such files.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from athena_vla.errors import EvaluationError
from athena_vla.evaluate import table_text
from athena_vla.evaluate.statistics import Interval, PairedTest, Proportion, newcombe_independent, paired_test, wilson

Key = tuple[str, int]  # scene, trial
LEGEND = (
    "success: Wilson interval. +/-: episodes that only the reference, or only the row, solved; p: exact McNemar test.\n"
    "difference: reference minus row, 95% interval; paired where both have the same scenes."
)
MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Outcome:
    """What came of one episode."""

    policy: str
    scene: str
    success: bool
    trial: int = 0  # which try of this scene
    task: str = ""
    time_to_success: float | None = None  # [s]
    violations: int | None = None  # None: nobody counted

    @property
    def key(self) -> Key:
        """What is the same for the policies that are compared."""
        return self.scene, self.trial


@dataclass(frozen=True)
class OutcomeFile:
    """A file of results: its episodes, what they were made with, and the keys that nobody reads."""

    path: Path
    outcomes: tuple[Outcome, ...]
    setup: Mapping[str, Any] | None
    unread: tuple[str, ...]


@dataclass(frozen=True)
class PolicyOutcomes:
    """A row of the table."""

    policy: str
    success: Proportion
    per_task: dict[str, Proportion]
    median_time_to_success: float | None  # [s], of the successful episodes that say it
    violations: int | None  # None where an episode does not say


@dataclass(frozen=True)
class Versus:
    """The reference against one row."""

    paired: PairedTest | None  # None where no scene is common
    difference: Interval  # reference minus row
    shared: int  # episodes that both have


@dataclass(frozen=True)
class ResultsComparison:
    """Policies of result files beside each other."""

    reference: str
    rows: tuple[PolicyOutcomes, ...]
    versus: dict[str, Versus]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        head = ["results", "success [95%]", "n", "time s", "violations", f"{self.reference} +/-", "p", "difference"]
        rows = [self._row(r) for r in self.rows]
        tasks = sorted({t for r in self.rows for t in r.per_task})
        parts = [table_text.aligned(head, rows)]
        if len(tasks) > 1:
            cells = [
                [
                    r.policy,
                    *(
                        f"{table_text.proportion(r.per_task[t])} /{r.per_task[t].n}" if t in r.per_task else "-"
                        for t in tasks
                    ),
                ]
                for r in self.rows
            ]
            parts.append(table_text.aligned(["per task", *tasks], cells))
        return "\n\n".join([*parts, LEGEND, *self.notes])

    def _row(self, row: PolicyOutcomes) -> list[str]:
        versus = self.versus.get(row.policy)
        test = None if versus is None else versus.paired
        apart = None if versus is None else versus.difference
        return [
            row.policy,
            table_text.proportion(row.success),
            str(row.success.n),
            "-" if row.median_time_to_success is None else f"{row.median_time_to_success:.2f}",
            "-" if row.violations is None else str(row.violations),
            "-" if test is None else f"+{test.only_first} -{test.only_second}",
            "-" if test is None else table_text.p_value(test.exact_p),
            "-" if apart is None else table_text.difference(apart),
        ]


def compare_results(paths: Sequence[Path], reference: str = "") -> ResultsComparison:
    """Compare the policies of result files; the reference is the last one, or the one named.

    Raises `EvaluationError` for fewer than two policies, a file that is no result file, an episode given twice, or
    files whose `setup` differs.
    """
    resolved = [p.resolve() for p in paths]
    twice = [str(p) for p, n in zip(paths, map(resolved.count, resolved), strict=True) if n > 1]
    if twice:
        raise EvaluationError(f"'{twice[0]}' was given twice; name one file per policy.")
    read = [read_outcomes(p) for p in paths]
    by_policy = _by_policy(read)
    if len(by_policy) < 2:
        raise EvaluationError(
            f"Two policies are needed, {', '.join(map(repr, by_policy)) or 'none'} was found; "
            "give a second file: athena compare --results A.jsonl B.jsonl."
        )
    chosen = reference or list(by_policy)[-1]
    if chosen not in by_policy:
        raise EvaluationError(f"There is no policy '{chosen}' in these files. They hold: {', '.join(by_policy)}.")
    mine = by_policy[chosen]
    versus = {name: _versus(mine, theirs) for name, theirs in by_policy.items() if name != chosen}
    rows = tuple(_summary(name, episodes) for name, episodes in by_policy.items())
    return ResultsComparison(chosen, rows, versus, tuple(_notes(read, by_policy, versus, chosen)))


def read_outcomes(path: Path) -> OutcomeFile:
    """The episodes of a file. Raises `EvaluationError` with the line that cannot be read."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise EvaluationError(f"'{path}' has more than {MOST_BYTES >> 30} GB; it is no file of episode results.")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise EvaluationError(f"The results '{path}' cannot be read: {error.strerror}.") from error
    outcomes: list[Outcome] = []
    setup: Mapping[str, Any] | None = None
    unread: dict[str, None] = {}
    seen: dict[tuple[str, Key], int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"'{path}', line {number}"
        row = _object(line, where)
        if not outcomes and setup is None and "scene" not in row and "success" not in row:
            given = row.get("setup", {})
            if not isinstance(given, dict):
                raise EvaluationError(f"{where}: 'setup' must be an object.")
            setup = given
            continue
        outcome = _outcome(row, path.stem, where)
        before = seen.setdefault((outcome.policy, outcome.key), number)
        if before != number:
            raise EvaluationError(
                f"{where}: scene '{outcome.scene}' of '{outcome.policy}' stands in line {before} already; number "
                "repeated tries of a scene with 'trial'."
            )
        outcomes.append(outcome)
        unread.update(dict.fromkeys(k for k in row if k not in _KNOWN))
    if not outcomes:
        raise EvaluationError(f"'{path}' holds no episode: one JSON object a line with 'scene' and 'success'.")
    return OutcomeFile(path, tuple(outcomes), setup, tuple(unread))


# What `athena evaluate` writes beside these is measured by its own simulator; here it is known and not compared.
_OURS = (
    "instruction", "commands", "touched", "interventions", "interventions_by_joint", "worst_velocity",
    "worst_acceleration", "errors", "wall", "cause", "missed_by", "unit",
)  # fmt: skip
_KNOWN = {"policy", "actor", "scene", "success", "trial", "task", "time_to_success", "violations", *_OURS}


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where} is cut, or is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise EvaluationError(f"{where} is no JSON object.")
    return row


def _outcome(row: Mapping[str, Any], stem: str, where: str) -> Outcome:
    missing = [k for k in ("scene", "success") if k not in row]
    if missing:
        raise EvaluationError(f"{where} lacks {' and '.join(map(repr, missing))}; it has: {', '.join(row) or 'none'}.")
    if "policy" in row and "actor" in row and row["policy"] != row["actor"]:
        raise EvaluationError(f"{where} names both a policy '{row['policy']}' and an actor '{row['actor']}'.")
    scene, success = row["scene"], row["success"]
    if isinstance(scene, bool) or not isinstance(scene, str | int):
        raise EvaluationError(f"{where}: 'scene' is a name or a whole number, not {scene!r}.")
    if not isinstance(success, bool):
        raise EvaluationError(f"{where}: 'success' is true or false, not {success!r}.")
    policy, task = row.get("policy", row.get("actor", stem)), row.get("task", "")
    for name, value in (("policy", policy), ("task", task)):
        if not isinstance(value, str):
            raise EvaluationError(f"{where}: '{name}' is text, not {value!r}.")
    return Outcome(
        policy or stem,
        str(scene),
        success,
        _whole(row, "trial", where) or 0,
        task,
        _seconds(row, where),
        _whole(row, "violations", where),
    )


def _whole(row: Mapping[str, Any], name: str, where: str) -> int | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise EvaluationError(f"{where}: '{name}' is a whole number of at least 0, not {value!r}.")
    return value


def _seconds(row: Mapping[str, Any], where: str) -> float | None:
    value = row.get("time_to_success")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise EvaluationError(f"{where}: 'time_to_success' is a number of seconds, not {value!r}.")
    return float(value)


def _by_policy(read: Sequence[OutcomeFile]) -> dict[str, dict[Key, Outcome]]:
    found: dict[str, dict[Key, Outcome]] = {}
    origin: dict[str, Path] = {}
    for one, other in pairwise([f for f in read if f.setup is not None]):
        if one.setup != other.setup:
            differ = sorted(
                k for k in {*(one.setup or {}), *(other.setup or {})}
                if (one.setup or {}).get(k) != (other.setup or {}).get(k)
            )  # fmt: skip
            raise EvaluationError(
                f"'{one.path}' and '{other.path}' were made with other setups ({', '.join(differ)}): "
                "their scenes are not the same ones."
            )
    for file in read:
        for outcome in file.outcomes:
            if origin.setdefault(outcome.policy, file.path) != file.path:
                raise EvaluationError(
                    f"A policy '{outcome.policy}' stands in '{origin[outcome.policy]}' and in '{file.path}'; give "
                    "each a name of its own in 'policy', or leave it out: then the file's name is taken."
                )
            found.setdefault(outcome.policy, {})[outcome.key] = outcome
    return found


def _summary(policy: str, episodes: Mapping[Key, Outcome]) -> PolicyOutcomes:
    rows = list(episodes.values())
    times = sorted(o.time_to_success for o in rows if o.success and o.time_to_success is not None)
    counted = [o.violations for o in rows if o.violations is not None]
    middle = len(times) // 2
    median = None if not times else (times[middle] if len(times) % 2 else (times[middle - 1] + times[middle]) / 2)
    return PolicyOutcomes(
        policy,
        _share(rows),
        {t: _share([o for o in rows if o.task == t]) for t in sorted({o.task for o in rows if o.task})},
        median,
        sum(counted) if len(counted) == len(rows) else None,
    )


def _share(rows: Sequence[Outcome]) -> Proportion:
    return wilson(sum(o.success for o in rows), len(rows))


def _versus(mine: Mapping[Key, Outcome], theirs: Mapping[Key, Outcome]) -> Versus:
    common = sorted(set(mine) & set(theirs))
    if common:
        test = paired_test([mine[k].success for k in common], [theirs[k].success for k in common])
        return Versus(test, test.difference, len(common))
    one, two = _share(list(mine.values())), _share(list(theirs.values()))
    return Versus(None, newcombe_independent(round(one.success * one.n), one.n, round(two.success * two.n), two.n), 0)


def _notes(
    read: Sequence[OutcomeFile],
    by_policy: Mapping[str, Mapping[Key, Outcome]],
    versus: Mapping[str, Versus],
    reference: str,
) -> list[str]:
    notes = [f"'{f.path}': not read: {', '.join(f.unread)}." for f in read if f.unread]
    mine = by_policy[reference]
    for name, v in versus.items():
        theirs = by_policy[name]
        if not v.shared:
            notes.append(f"'{reference}' and '{name}' share no scene: their difference is that of two samples.")
        elif v.shared < max(len(mine), len(theirs)):
            notes.append(
                f"'{reference}' and '{name}' share {v.shared} of {len(mine)} and {len(theirs)} episodes; the paired "
                "columns are of these."
            )
    if len(versus) > 1:
        notes.append(f"{len(versus)} tests were made; their p are not adjusted for that.")
    if any(n > 1 for episodes in by_policy.values() for n in Counter(s for s, _ in episodes).values()):
        notes.append("Scenes were tried more than once: tries of one scene are alike, so intervals are too narrow.")
    known = [f for f in read if f.setup is not None]
    if known and len(known) < len(read):
        notes.append("Not every file says its 'setup': whether scenes of one name are the same was not checked.")
    return notes
