"""A comparison as text for the terminal: fixed-width tables and the plain words. Knows numbers, plays nothing."""

from collections.abc import Callable, Mapping, Sequence

from athena_vla.evaluate.actors import ABLATIONS, Ablation
from athena_vla.evaluate.openloop import OpenLoopResult
from athena_vla.evaluate.statistics import PairedTest
from athena_vla.evaluate.summary import ActorSummary, Kept, Lost
from athena_vla.evaluate.table_text import aligned, p_value, proportion

Losses = Mapping[str, Mapping[Ablation, Lost]]
_SHORT = {"black_image": "black image", "other_instruction": "other instruction"}


def _lost(losses: Losses, name: str, cell: Callable[[Lost], str]) -> list[str]:
    """One cell per ablation; a dash where it was not tried."""
    return [cell(losses[name][a]) if a in losses.get(name, {}) else "-" for a in ABLATIONS]


def _success(lost: Lost) -> str:
    if lost.success is None or lost.success_lost is None:
        return "-"
    return f"{100 * lost.success.success:.0f}% ({-100 * lost.success_lost.value:+.0f})"


def _error(lost: Lost) -> str:
    if lost.error_added is None or lost.answer_moved is None:
        return "-"
    return f"{lost.error_added.value:+.4f} (moves {lost.answer_moved.value:.4f})"


def closed_table(
    closed: Mapping[str, ActorSummary], paired: Mapping[str, PairedTest], reference: str, losses: Losses
) -> str:
    """One row per actor. The paired columns compare the reference with the row on the same scenes."""
    rows = []
    for name, s in closed.items():
        test = paired.get(name)
        rows.append(
            [
                name,
                proportion(s.success),
                str(s.success.n),
                "-" if s.median_time_to_success is None else f"{s.median_time_to_success:.2f}",
                f"{100 * s.intervention_rate:.2f}%",
                str(s.violations),
                "-" if test is None else f"+{test.only_first} -{test.only_second}",
                "-" if test is None else p_value(test.exact_p),
                *_lost(losses, name, _success),
                f"{1000 * s.act_seconds:.1f}",
            ]
        )
    head = ["closed loop", "success [95%]", "n", "time s", "modified", "violations", f"{reference} +/-", "p"]
    return aligned([*head, *(_SHORT[a] for a in ABLATIONS), "act ms"], rows)


def task_table(closed: Mapping[str, ActorSummary]) -> str:
    tasks = sorted({t for s in closed.values() for t in s.per_task})
    rows = [
        [name, *(f"{100 * s.per_task[t].success:.0f}% /{s.per_task[t].n}" if t in s.per_task else "-" for t in tasks)]
        for name, s in closed.items()
    ]
    return aligned(["per task", *tasks], rows)


def failure_lines(closed: Mapping[str, ActorSummary]) -> list[str]:
    return [f"{name} failed: {'; '.join(map(str, s.failures))}" for name, s in closed.items() if s.failures]


def kept_table(reference: str, other: str, tasks: Mapping[str, Kept]) -> str:
    """What the reference still does of what another policy did, by task: counts of the scenes that both played."""
    whole = [sum(getattr(k, n) for k in tasks.values()) for n in ("kept", "lost", "gained", "neither")]
    rows = [[t, str(k.kept), str(k.lost), str(k.gained), str(k.neither)] for t, k in tasks.items()]
    return aligned([f"{reference} of {other}", "kept", "lost", "gained", "neither"], [*rows, ["all", *map(str, whole)]])


def open_table(result: OpenLoopResult, names: Sequence[str], losses: Losses) -> str:
    rows = []
    for name in names:
        e = result.actors[name]
        versus = e.minus_reference
        rows.append(
            [
                name,
                f"{e.mae.value:.4f} [{e.mae.low:.4f}, {e.mae.high:.4f}]",
                f"{e.first_step.value:.4f}",
                f"{e.per_horizon[-1]:.4f}",
                f"{e.p95.value:.4f}",
                f"{e.maximum:.3f}",
                "-" if versus is None else f"{versus.value:+.4f} [{versus.low:+.4f}, {versus.high:+.4f}]",
                *_lost(losses, name, _error),
            ]
        )
    head = ["open loop, rad", "MAE [95%]", "first", "last", "p95", "max", f"minus {result.reference}"]
    return aligned([*head, *(_SHORT[a] for a in ABLATIONS)], rows)


def task_error_table(result: OpenLoopResult, names: Sequence[str]) -> str:
    """Mean absolute error per task of every actor."""
    rows = [[n, *(f"{result.actors[n].per_task[t].value:.4f}" for t in result.tasks)] for n in names]
    return aligned(["per task MAE, rad", *result.tasks], rows)


def joint_table(result: OpenLoopResult, names: Sequence[str]) -> str:
    """Mean absolute error per joint and channel of a few actors; a channel names its unit."""
    named = [j if unit == "rad" else f"{j} [{unit}]" for j, unit in zip(result.joints, result.units, strict=True)]
    rows = [
        [name, *(f"{result.actors[n].per_joint[j]:.4f}" for n in names)]
        for name, j in zip(named, result.joints, strict=True)
    ]
    return aligned(["per joint MAE, rad", *names], rows)


def horizon_table(result: OpenLoopResult, names: Sequence[str]) -> str:
    rows = [
        [f"{(i + 1) * result.dt:.2f} s", *(f"{result.actors[n].per_horizon[i]:.4f}" for n in names)]
        for i in range(result.horizon)
    ]
    return aligned(["ahead", *names], rows)
