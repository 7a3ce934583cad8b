"""What the sections on success, attention, errors and limits show, computed from the comparison's results."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from athena_vla.evaluate.failures import CAUSES, SHORT, UNSAID, amount, amounts
from athena_vla.report.charts import Bar, Chart, Heat, line_chart
from athena_vla.report.figures import mrad, p_value, percent, points, significant
from athena_vla.report.names import COLOURS, OURS, REASONS, joint_label, label
from athena_vla.report.source import Result, Source

LOST = 12  # failures of the tuned policy that are listed
ORDER = ("tuned", "int8", "int4", "untuned", "nearest_neighbour", "replay", "mean_action", "hold")
WITHOUT = ("tuned", "tuned.black_image", "tuned.other_instruction")


@dataclass(frozen=True)
class Success:
    """Success in the closed loop, object tasks apart from those that hold out only wording."""

    simulated: bool
    success_rows: Sequence[Bar] = ()
    all_scenes: int = 0
    object_rows: Sequence[Bar] = ()
    object_scenes: int = 0
    tasks: Sequence[str] = ()
    per_task: Sequence[Sequence[str | Heat]] = ()
    reasons: Sequence[tuple[str, str]] = ()
    paired: Sequence[Sequence[str]] = ()
    times: Sequence[Sequence[str]] = ()
    causes: Sequence[str] = ()
    by_cause: Sequence[Sequence[str]] = ()
    lost: Sequence[Sequence[str]] = ()
    lost_more: int = 0
    notes: Sequence[str] = ()


def success(source: Source) -> Success:
    if not source.simulated:
        return Success(False)
    closed, compared = source.closed, source.result("compare")
    order = [n for n in ORDER if n in closed]
    tasks = sorted({t for name in order for t in closed[name]["per_task"]})
    paired = [_test(label(n), t) for n, t in compared["paired"].items() if "." not in n]
    paired += [_test(label(n), _mirrored(t)) for n, t in source.result("deploy").get("paired", {}).items()]
    objects = {n: closed[n].get("object_tasks") for n in order}
    failures = {n: {f["cause"]: f for f in closed[n].get("failures", ())} for n in order}
    causes = [c for c in (*CAUSES, UNSAID) if any(c in found for found in failures.values())]
    lost = [_lost(f["cause"], e) for f in failures["tuned"].values() for e in f["episodes"]]
    return Success(
        simulated=True,
        success_rows=[_bar(n, closed[n]["success"]) for n in order],
        all_scenes=closed["tuned"]["success"]["n"],
        object_rows=[_bar(n, p) for n, p in objects.items() if p],
        object_scenes=(objects["tuned"] or {}).get("n", 0),
        tasks=tasks,
        per_task=[[label(n), *(_task(closed[n]["per_task"].get(t)) for t in tasks)] for n in order if n != "hold"],
        reasons=[(label(n), REASONS[n]) for n in order],
        paired=paired,
        times=[
            [label(n), _seconds(closed[n]["median_time_to_success"])] for n in order if n not in ("hold", "mean_action")
        ],
        causes=causes,
        by_cause=[[label(n), *(_count(found.get(c)) for c in causes)] for n, found in failures.items() if causes],
        lost=lost[:LOST],
        lost_more=max(len(lost) - LOST, 0),
        notes=compared["notes"],
    )


@dataclass(frozen=True)
class Attention:
    """What is left without eyes, and with another instruction."""

    kept_rows: Sequence[Bar] = ()
    kept_scenes: int = 0
    change_rows: Sequence[Bar] = ()


def attention(source: Source) -> Attention:
    compared = source.result("compare")
    closed, table = compared["closed_loop"], compared["open_loop"]
    names = [n for n in WITHOUT if n in (closed or table["actors"])]
    if len(names) < 2:
        return Attention()
    kept, scenes = [], 0
    if closed:
        wins = [closed["tuned"]["per_task"][t] for t in closed["tuned.black_image"]["per_task"]]
        scenes = sum(w["n"] for w in wins)
        seeing = sum(round(w["success"] * w["n"]) for w in wins) / max(scenes, 1)
        kept = [Bar("as it is", seeing, percent(seeing), kind="accent", detail="the same scenes")]
        for name in names[1:]:
            p = closed[name]["success"]
            kept.append(Bar(_ablation(name), p["success"], percent(p["success"]), p["low"], p["high"]))
    several = table["episodes"] > 1
    changed = []
    for name in names[1:]:
        change = table["actors"].get(name, {}).get("change")
        if change:
            bounds = (change["low"], change["high"]) if several else (None, None)
            changed.append(
                Bar(_ablation(name), change["value"], f"{significant(1000 * change['value'])} mrad", *bounds)
            )
    return Attention(kept, scenes, changed)


@dataclass(frozen=True)
class Errors:
    """Errors on held-out recordings, per actor, step ahead and joint."""

    error_rows: Sequence[Bar]
    error_note: str
    horizon_chart: Chart | None
    joint_rows: Sequence[Bar]
    smoothness: Sequence[tuple[str, str]]


def errors(source: Source) -> Errors:
    result = source.result("compare")["open_loop"]
    actors = result["actors"]
    order = sorted((n for n in actors if "." not in n), key=lambda n: actors[n]["mae"]["value"])
    several = result["episodes"] > 1  # one episode says nothing about the spread between episodes
    rows = []
    for n in order:
        mae = actors[n]["mae"]
        bounds = (mae["low"], mae["high"]) if several else (None, None)
        kind = "accent" if n == "tuned" else ""
        rows.append(Bar(label(n), mae["value"], f"{mae['value']:.4f}", *bounds, kind=kind))
    spread = "95% bootstrap intervals over episodes, not frames." if several else "A single episode gives no interval."
    ahead = {label(n): [((i + 1) * result["dt"], e) for i, e in enumerate(actors[n]["per_horizon"])] for n in order[:6]}
    tuned = actors["tuned"]
    seam = tuned["seam"]
    return Errors(
        error_rows=rows,
        error_note=f"{result['samples']} samples of {result['episodes']} held-out "
        f"{'episode' if result['episodes'] == 1 else 'episodes'}. {spread} "
        "Open loop ranks policies only roughly: judge by the closed loop.",
        horizon_chart=line_chart(
            ahead,
            x_label="seconds ahead",
            y_label="rad",
            colours={label(n): COLOURS.get(n, "var(--s6)") for n in order},
        ),
        joint_rows=[
            Bar(joint_label(j), e, mrad(e), kind="accent", aside=source.milli(j), group=_group(j, source.milli(j)))
            for j, e in tuned["per_joint"].items()
        ],
        smoothness=[
            ("second difference, recorded", f"{1000 * result['recorded_roughness']:.2f} mrad"),
            ("second difference, tuned", f"{1000 * tuned['roughness']:.2f} mrad"),
            ("overlapping chunks disagree by", "" if seam is None else f"{1000 * seam:.2f} mrad"),
            ("95% of errors below", f"{tuned['p95']['value']:.3f} rad"),
            ("largest error", f"{tuned['maximum']:.3f} rad"),
        ],
    )


@dataclass(frozen=True)
class Safety:
    """Violations behind the filter, and what the filter had to do."""

    filtered: Result | None = None
    violations: int = 0
    commands: int = 0
    commanded_by: str = ""
    safety_note: str = ""
    filter_rows: Sequence[Sequence[str | Heat]] = ()
    kinds: Sequence[Sequence[str]] = ()
    busiest: Sequence[Bar] = field(default_factory=tuple)


def _safety_note(source: Source, not_called_safe: str) -> str:
    said = "" if source.simulated else " The robot was not simulated: each chunk starts from a recorded pose."
    return said + (f" {not_called_safe}" if not_called_safe else "")


def safety(source: Source) -> Safety:
    result = source.result("safety")
    if not result:
        return Safety()
    # Where nothing was simulated, the chunks of held-out recordings went through the filter instead.
    rows = {**(source.closed or result["filtered"]), "hostile": result["hostile"]}
    tuned, hostile = rows["tuned"], rows["hostile"]
    joints: dict[str, int] = {}
    for counts in tuned["interventions_by_joint"].values():
        for joint, count in counts.items():
            joints[joint] = joints.get(joint, 0) + count
    numbers = source.numbers["safety"]
    kinds = sorted(set(hostile["interventions"]) | set(tuned["interventions"]))
    return Safety(
        filtered=rows,
        violations=numbers["violations"],
        commands=numbers["steps"],
        commanded_by="policies and baselines" if source.simulated else "the policy, on held-out recordings",
        safety_note=_safety_note(source, result.get("not_called_safe", "")),
        filter_rows=[
            [
                label(n),
                f"{r['commands']:,}",
                Heat(f"{100 * r['intervention_rate']:.2f}%", r["intervention_rate"]),
                percent(r["worst_velocity"]),
                percent(r["worst_acceleration"]),
                f"{r['violations']:,}",
            ]
            for n, r in rows.items()
        ],
        kinds=[[k, f"{tuned['interventions'].get(k, 0):,}", f"{hostile['interventions'].get(k, 0):,}"] for k in kinds],
        busiest=[Bar(joint_label(j), c, f"{c:,}") for j, c in sorted(joints.items(), key=lambda x: -x[1])[:8]],
    )


def _bar(name: str, p: Result) -> Bar:
    counted = f"{round(p['success'] * p['n'])}/{p['n']}"
    kind = "accent" if name in OURS else ""
    return Bar(label(name), p["success"], percent(p["success"]), p["low"], p["high"], aside=counted, kind=kind)


def _count(found: Result | None) -> str:
    """How many failures of a cause, and by how much in the middle."""
    if found is None:
        return "0"
    missed = ", ".join(amounts(found["missed"]))
    return f"{found['count']}" + (f" (by {missed})" if missed else "")


def _lost(why: str, episode: Result) -> list[str]:
    missed = amount(episode["missed_by"], episode["unit"]) if why == SHORT else ""
    return [why, f"“{episode['instruction']}”", missed, str(episode["scene"])]


def _ablation(name: str) -> str:
    return label(name).removeprefix("tuned, ")


def _task(p: Result | None) -> str | Heat:
    return "" if p is None else Heat(f"{round(p['success'] * p['n'])}/{p['n']}", p["success"])


def _test(name: str, t: Result) -> list[str]:
    d = t["difference"]
    difference = f"{points(d['value'])} [{points(d['low'])}, {points(d['high'])}]"
    return [name, str(t["only_first"]), str(t["only_second"]), str(t["both"]), difference, p_value(t["exact_p"])]


def _mirrored(t: Result) -> Result:
    """A test of it against the tuned model, told from the tuned model's side."""
    d = t["difference"]
    return {
        **t,
        "only_first": t["only_second"],
        "only_second": t["only_first"],
        "difference": {"value": -d["value"], "low": -d["high"], "high": -d["low"]},
    }


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _group(joint: str, unit: str) -> str:
    if unit != "mrad":
        return f"channels, {unit}"
    for group, words in (
        ("legs", ("hip", "knee", "ankle")),
        ("arms", ("shoulder", "elbow", "wrist")),
        ("torso and head", ("waist", "torso", "neck", "head")),
    ):
        if any(w in joint for w in words):
            return group
    return "other joints"
