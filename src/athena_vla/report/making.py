"""What the sections on how it was made show: opening with its verdict, data, training, provenance."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from athena_vla.report.charts import Bar, Chart, line_chart, smooth
from athena_vla.report.figures import mrad, percent
from athena_vla.report.names import joint_label, label
from athena_vla.report.source import Result, Source


@dataclass(frozen=True)
class Tile:
    """One large number with its caption."""

    number: str
    caption: str
    unit: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Verdict:
    """One of the three questions, answered from the numbers of this run."""

    question: str
    mark: str  # yes, no, predicted
    kind: str
    answer: str


@dataclass(frozen=True)
class Opening:
    """The headline, the large numbers and the verdict."""

    robot: str
    joints: Sequence[str]
    headline: str
    made_from: str
    summary: Result
    tiles: Sequence[Tile]
    verdicts: Sequence[Verdict]
    spent: Result


def opening(source: Source) -> Opening:
    headline, made_from, tiles = _simulated(source) if source.simulated else _recorded(source)
    minutes, seconds = divmod(round(source.numbers["seconds"]["total"]), 60)
    tiles.append(Tile(f"{minutes}:{seconds:02d}", "for all of it, on this machine's CPU", "min"))
    return Opening(
        robot=source.robot,
        joints=source.result("compare")["open_loop"]["joints"],
        headline=headline,
        made_from=made_from,
        summary=source.result("train")["summary"],
        tiles=tiles,
        verdicts=[_quality(source), _device(source), _bounded(source)],
        spent=source.numbers["seconds"],
    )


def _simulated(source: Source) -> tuple[str, str, list[Tile]]:
    numbers, closed = source.numbers, source.closed
    tuned, untuned, int4 = numbers["tuned"], numbers["untuned"], numbers["int4"]
    better = tuned["low"] > untuned["high"]
    headline = (
        f"From {percent(untuned['success'])} to {percent(tuned['success'])}: a robot that does what it is told"
        if better
        else f"Tuned {percent(tuned['success'])}, untuned {percent(untuned['success'])}: not yet a better policy"
    )
    tiles = []
    objects = closed["tuned"].get("object_tasks")
    if objects:
        caption = f"of {objects['n']} scenes with an unseen combination of verb and object"
        tiles.append(Tile(percent(objects["success"]), caption, kind="main"))
    safe = numbers["safety"]
    tiles += [
        Tile(percent(tuned["success"]), f"of all {tuned['n']} unseen scenes", kind="" if objects else "main"),
        Tile(percent(untuned["success"]), "of the same model untuned"),
        Tile(percent(int4["success"]), "with 4-bit weights in ONNX Runtime"),
        Tile(
            f"{safe['violations']:,}",
            f"limit violations in {safe['steps']:,} commands",
            kind="good" if safe["violations"] == 0 else "bad",
        ),
    ]
    recorded = source.result("record")
    return headline, f"{recorded['episodes']} demonstrations were recorded, checked and built into a dataset", tiles


def _recorded(source: Source) -> tuple[str, str, list[Tile]]:
    rows = source.numbers["open_loop"]["actors"]
    rival, best = _rival(rows)
    mine, base = rows["tuned"]["mae_rad"], rows["untuned"]["mae_rad"]
    if mine < best:
        headline = f"{percent(1 - mine / best)} less error than {label(rival)}, the best of what knows nothing"
    elif mine < base:
        headline = f"Better than untuned, but {label(rival)} is still closer to these recordings"
    else:
        headline = "No better than the untuned model yet, on recordings it never saw"
    tiles = [
        Tile(f"{mine:.3f}", "mean error of the tuned policy", "rad", "main"),
        Tile(f"{base:.3f}", "of the untuned model", "rad"),
        Tile(f"{best:.3f}", f"of {label(rival)}, the best of what knows nothing", "rad"),
    ]
    built = source.result("prepare")["build"]
    return headline, f"{built['episodes']} recorded episodes were checked and built into a dataset", tiles


def _rival(rows: Result) -> tuple[str, float]:
    """The best actor that knows nothing, and its error [rad]."""
    others = {n: r["mae_rad"] for n, r in rows.items() if n not in ("tuned", "untuned") and "." not in n}
    best = min(others, key=lambda n: others[n])
    return best, others[best]


def _quality(source: Source) -> Verdict:
    question = "Is it better than the untuned policy?"
    if source.simulated:
        tuned, untuned = source.numbers["tuned"], source.numbers["untuned"]
        better = tuned["low"] > untuned["high"]
        words = "do not overlap" if better else "overlap"
        answer = (
            f"{percent(tuned['success'])} against {percent(untuned['success'])} of {tuned['n']} scenes; "
            f"the 95% intervals {words}."
        )
    else:
        actors = source.result("compare")["open_loop"]["actors"]
        tuned, untuned = actors["tuned"]["mae"], actors["untuned"]["mae"]
        better = tuned["high"] < untuned["low"]
        answer = f"Error {tuned['value']:.4f} rad against {untuned['value']:.4f} rad on held-out recordings."
    return Verdict(question, "yes" if better else "not shown", "" if better else "warn", answer)


def _device(source: Source) -> Verdict:
    question = "Does it fit the robot's computer?"
    plan = source.result("bench").get("predicted")
    if not plan:
        return Verdict(question, "not asked", "plain", "No device was planned for in this run.")
    p = plan["prediction"]
    low, high = p["action_seconds"]
    fits = "fits" if p["fits"] else "does not fit"
    memory = sum(p["memory_gb"].values())
    answer = f"{p['label']}: {memory:.1f} GB {fits}, {low:.2f} to {high:.2f} s for a chunk of the full-size model."
    return Verdict(question, "predicted", "predicted", answer)


def _bounded(source: Source) -> Verdict:
    question = "Does it stay within the robot's limits?"
    safe = source.numbers.get("safety")
    if not safe:
        return Verdict(question, "not asked", "plain", "The safety filter was not provoked in this run.")
    good = safe["violations"] == 0
    answer = f"{safe['violations']:,} violations in {safe['steps']:,} commands behind the safety filter."
    return Verdict(question, "yes" if good else "no", "" if good else "warn", answer)


@dataclass(frozen=True)
class Data:
    """Recordings, what was built of them, findings, and one annotated episode."""

    sheets: Sequence[Result]
    tally: Sequence[tuple[str, object]]
    findings: Sequence[Sequence[str]]
    timeline: Result
    timeline_rows: dict[str, list[Result]]


def data(source: Source) -> Data:
    prepared, recorded = source.result("prepare"), source.result("record")
    built, timeline = prepared["build"], prepared["timeline"]
    numbers: dict[str, int] = {}
    rows = {
        name: [{**p, "number": numbers.setdefault(p["kind"], len(numbers))} for p in pieces]
        for name, pieces in timeline["rows"].items()
    }
    return Data(
        sheets=recorded.get("sheets") or prepared.get("sheets", []),
        tally=[
            ("recorded", f"{recorded['episodes']} episodes, {recorded['frames']:,} frames" if recorded else ""),
            ("recording speed", f"{recorded['frames_per_second']:.0f} frames/s" if recorded else ""),
            ("made to fail", recorded.get("failed_on_purpose", "")),
            ("training episodes", len(built["train_episodes"])),
            ("held out", f"{len(built['validation_episodes'])} episodes, never trained on"),
            ("left out as failures", len(built["failed"])),
            ("left out as broken", len(built["broken"])),
            ("samples", f"{built['samples']:,}"),
        ],
        findings=[[f["code"], f["severity"], str(f["count"])] for f in prepared["check"]["findings"]],
        timeline=timeline,
        timeline_rows=rows,
    )


@dataclass(frozen=True)
class Training:
    """Loss curves and what was trained."""

    loss_chart: Chart | None
    trained_facts: Sequence[tuple[str, object]]
    hardest: Sequence[Bar]


def training(source: Source) -> Training:
    trained = source.result("train")
    curves, summary = trained["curves"], trained["summary"]
    raw = [(x, y) for x, y in curves["train"]]
    named = {"training": smooth(raw, max(1, len(raw) // 20))}
    if curves["validation"]:
        named["validation"] = [(x, y) for x, y in curves["validation"]]
    colours = {"training": "var(--s1)", "validation": "var(--s2)"}
    chart = line_chart(named, x_label="optimiser steps", y_label="loss", colours=colours, log=True, faint=raw)
    share = 100 * summary["trainable"] / summary["total"]
    validation = summary["validation"]
    worst = sorted(validation.get("per_joint_rad", {}).items(), key=lambda x: -x[1])[:8]
    return Training(
        loss_chart=chart,
        trained_facts=[
            ("base", trained["base"]),
            ("trained parameters", f"{summary['trainable']:,} of {summary['total']:,} ({share:.2f}%)"),
            ("steps", f"{summary['steps']} of {trained['batch']} samples"),
            ("speed", f"{summary['samples_per_second']:.0f} samples/s, measured here"),
            ("validation error", f"{validation['mae_rad']:.4f} rad" if validation else ""),
        ],
        hardest=[Bar(joint_label(j), e, mrad(e), aside=source.milli(j)) for j, e in worst],
    )


@dataclass(frozen=True)
class Provenance:
    """Hashes, machine, versions."""

    hashes: Sequence[tuple[str, object]]
    machine: Sequence[tuple[str, object]]


def provenance(source: Source) -> Provenance:
    trained = source.result("train")
    record = next(iter(source.result("bench").get("records", {}).values()), {})
    device = record.get("device", {})
    return Provenance(
        hashes=[
            ("dataset", source.numbers["dataset_hash"]),
            ("base model", trained["base_hash"]),
            ("tuned", trained["hash"]),
            *((f"exported, {n}", e["hash"]) for n, e in source.result("deploy").get("export", {}).items()),
            ("seed", source.numbers["seed"]),
        ],
        machine=[
            ("processor", device.get("model", platform.processor())),
            ("cores", device.get("cores", "")),
            ("memory", f"{device['memory_gb']:.0f} GB" if "memory_gb" in device else ""),
            ("system", device.get("system", "")),
            *sorted(device.get("versions", {}).items()),
        ],
    )


def not_shown(source: Source) -> list[str]:
    """What a reader might take from the page and should not."""
    sentences = [
        "One training seed: another seed gives another policy. The intervals cover the scenes, not the training.",
        "The model of this run has two million parameters. Nothing here was measured with a model of 7 billion.",
        "Figures for other devices are predicted. No Jetson and no GPU took part in this run.",
    ]
    if source.simulated:
        sentences += [
            "The robot, its camera and its objects are simulated, with light, textures and friction of our choosing.",
            "Tasks without an object hold out only the wording: a replayed demonstration solves them.",
            "The filter bounds joint commands. It does not know of balance, contact or people.",
        ]
    else:
        sentences += [
            "Nothing moved: errors are distances to recorded motions, not success.",
            "Held-out episodes come from the same recordings, with the same robot, room and operator.",
            "The filter was given chunks that start from recorded poses; a moving robot reaches other poses.",
        ]
    return sentences
