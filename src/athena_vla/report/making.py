"""The sections that tell how it was made: opening, data, training, and at the end provenance and what to do next."""

import platform
from typing import Any

from athena_vla.report.charts import Bar, bars, lanes, lines, smooth
from athena_vla.report.markup import card, columns, duration, facts, percent, section, table, tag, text, tile
from athena_vla.report.names import label
from athena_vla.report.source import Section, Source

STEP_NAMES = {
    "record": "Record demonstrations",
    "prepare": "Check, annotate, build",
    "train": "Fine-tune with LoRA",
    "compare": "Compare with baselines",
    "safety": "Provoke the safety filter",
    "deploy": "Merge, quantise, export",
    "bench": "Benchmark and predict",
    "serve": "Serve over a socket",
    "report": "Write this page",
}


def opening(source: Source) -> list[Section]:
    return [Section("top", "", _hero(source)), _pipeline(source)]


def sections(source: Source) -> list[Section]:
    return [data(source), training(source)]


def closing(source: Source) -> list[Section]:
    return [provenance(source), following(source)]


def _hero(source: Source) -> str:
    numbers, tiles = source.numbers, []
    trained = source.result("train")
    if source.simulated:
        tuned, untuned, safe = numbers["tuned"], numbers["untuned"], numbers["safety"]
        better = tuned["low"] > untuned["high"]
        title = (
            f"From {percent(untuned['success'])} to {percent(tuned['success'])}: a humanoid that does what it is told"
            if better
            else f"Tuned {percent(tuned['success'])}, untuned {percent(untuned['success'])}: not yet a better policy"
        )
        tiles = [
            tile(percent(tuned["success"]), f"success of the tuned policy on {tuned['n']} unseen scenes", kind="main"),
            tile(percent(untuned["success"]), "of the same model untuned"),
            tile(percent(numbers["int4"]["success"]), "with 4-bit weights in ONNX Runtime"),
            tile(
                f"{safe['violations']}",
                f"limit violations in {safe['steps']:,} commands",
                kind="good" if safe["violations"] == 0 else "bad",
            ),
        ]
        recorded = source.result("record")
        what = f"{recorded['episodes']} demonstrations were recorded, checked and built into a dataset"
    else:
        rows = numbers["open_loop"]["actors"]
        models = {"tuned", "untuned"}
        knowing_nothing = {n: r["mae_rad"] for n, r in rows.items() if n not in models and "." not in n}
        rival = min(knowing_nothing, key=lambda n: knowing_nothing[n])
        best, mine = knowing_nothing[rival], rows["tuned"]["mae_rad"]
        if mine < best:
            title = f"{percent(1 - mine / best)} less error than {label(rival)}, the best of what knows nothing"
        elif mine < rows["untuned"]["mae_rad"]:
            title = f"Better than untuned, but {label(rival)} is still closer to these recordings"
        else:
            title = "No better than the untuned model yet, on recordings it never saw"
        tiles = [
            tile(f"{rows['tuned']['mae_rad']:.3f}", "mean error of the tuned policy", unit="rad", kind="main"),
            tile(f"{rows['untuned']['mae_rad']:.3f}", "of the untuned model", unit="rad"),
            tile(f"{best:.3f}", f"of {label(rival)}, the best of what knows nothing", unit="rad"),
        ]
        built = source.result("prepare")["build"]
        what = f"{built['episodes']} recorded episodes were checked and built into a dataset"
    minutes, seconds = divmod(round(numbers["seconds"]["total"]), 60)
    tiles.append(tile(f"{minutes}:{seconds:02d}", "for all of it, on this machine's CPU", unit="min"))
    summary = trained["summary"]
    lead = (
        f"{text(what)}, a small vision-language-action model was fine-tuned for {summary['steps']} steps "
        f"({summary['trainable']:,} of {summary['total']:,} parameters), compared with what knows nothing, quantised, "
        "exported, benchmarked and bounded by a safety filter. Every number below was measured in this run; what is "
        "only predicted says so."
    )
    return (
        f'<header class="hero" id="top"><p class="eyebrow">Athena-VLA · {text(_robot(source))}</p>'
        f'<h1>{text(title)}</h1><p class="lead">{lead}</p><div class="tiles">{"".join(tiles)}</div></header>'
    )


def _robot(source: Source) -> str:
    joints = len(source.result("compare")["open_loop"]["joints"])
    return f"{source.result('train').get('robot', 'athena')}, {joints} joints"


def _pipeline(source: Source) -> Section:
    seconds = source.numbers["seconds"]
    items = "".join(
        f"<li><em>{text(STEP_NAMES.get(n, n))}</em><time>{duration(s)}</time></li>"
        for n, s in seconds.items()
        if n != "total"
    )
    note = "Seconds of the run that did the work, also where a later run reused it."
    return Section(
        "steps",
        "",
        f'<section style="padding-top:26px">{card("", f"<ol class=steps>{items}</ol>", note=note)}</section>',
    )


def data(source: Source) -> Section:
    """Contact sheets, findings, and one annotated timeline."""
    prepared, recorded = source.result("prepare"), source.result("record")
    sheets = recorded.get("sheets") or prepared.get("sheets", [])
    strips = "".join(_sheet(source, s) for s in sheets)
    built, checked = prepared["build"], prepared["check"]
    tally = facts(
        [
            ("recorded", f"{recorded['episodes']} episodes, {recorded['frames']:,} frames" if recorded else ""),
            ("recording speed", f"{recorded['frames_per_second']:.0f} frames/s" if recorded else ""),
            ("made to fail", recorded.get("failed_on_purpose", "")),
            ("training episodes", len(built["train_episodes"])),
            ("held out", f"{len(built['validation_episodes'])} episodes, never trained on"),
            ("left out as failures", len(built["failed"])),
            ("left out as broken", len(built["broken"])),
            ("samples", f"{built['samples']:,}"),
        ]
    )
    findings = [[f["code"], f["severity"], str(f["count"])] for f in checked["findings"]]
    found = table(["finding", "severity", "times"], findings) if findings else "<p>Nothing was found.</p>"
    parts = (
        [card("Recordings, start to end", f'<div class="columns" style="margin:0">{strips}</div>')] if strips else []
    )
    parts.append(columns(card("What was built", tally), card("What the checks found", found)))
    parts.append(_timeline(source, prepared["timeline"]))
    body = section(
        "data",
        "How it was made",
        "The demonstrations",
        "Each strip is one episode; failures are recorded too, named, and not trained on.",
        *parts,
    )
    return Section("data", "Data", body)


def _sheet(source: Source, sheet: dict[str, Any]) -> str:
    width, height = sheet["size"]
    outcome = {True: tag("success"), False: tag("failure", "warn"), None: ""}[sheet["success"]]
    return (
        f'<figure><img src="{source.picture(sheet["file"])}" width="{width}" height="{height}" loading="lazy" '
        f'alt="{text("frames of: " + sheet["instruction"])}"><figcaption>“{text(sheet["instruction"])}” {outcome} '
        f"{sheet['seconds']:.1f} s</figcaption></figure>"
    )


def _timeline(source: Source, timeline: dict[str, Any]) -> str:
    kinds: dict[str, int] = {}
    rows = {
        name: [(p["start"], p["stop"], p["text"] or p["kind"], kinds.setdefault(p["kind"], len(kinds))) for p in pieces]
        for name, pieces in timeline["rows"].items()
    }
    picture = ""
    if "frames" in timeline:
        width, height = timeline["frames"]["size"]
        picture = (
            f'<img src="{source.picture(timeline["frames"]["file"])}" width="{width}" height="{height}" '
            f'style="width:100%;margin-bottom:10px" alt="frames of episode {text(timeline["episode"])}">'
        )
    drawn = lanes(rows, timeline["seconds"]) if rows else '<p class="note">No segment was found in this episode.</p>'
    return card(
        f"Annotated: “{timeline['instruction']}”",
        picture,
        drawn,
        note=f"Episode {text(timeline['episode'])}, {timeline['seconds']:.1f} s. Segments lie in a file of their own, "
        "with their source; the recorded instruction is never replaced.",
    )


def training(source: Source) -> Section:
    """Loss curves and what was trained."""
    trained = source.result("train")
    curves, summary = trained["curves"], trained["summary"]
    raw = [(x, y) for x, y in curves["train"]]
    series = {"training": smooth(raw, max(1, len(raw) // 20))}
    if curves["validation"]:
        series["validation"] = [(x, y) for x, y in curves["validation"]]
    chart = card("Loss", lines(series, x_label="optimiser steps", y_label="loss", log=True, faint=raw))
    share = 100 * summary["trainable"] / summary["total"]
    what = facts(
        [
            ("base", trained["base"]),
            ("trained parameters", f"{summary['trainable']:,} of {summary['total']:,} ({share:.2f}%)"),
            ("steps", f"{summary['steps']} of {trained['batch']} samples"),
            ("speed", f"{summary['samples_per_second']:.0f} samples/s, measured here"),
            ("validation error", f"{summary['validation']['mae_rad']:.4f} rad" if summary["validation"] else ""),
        ]
    )
    errors = summary["validation"].get("per_joint_rad", {})
    worst = sorted(errors.items(), key=lambda x: -x[1])[:8]
    joints = bars([Bar(j.replace("_", " "), e, f"{1000 * e:.1f}", aside="mrad") for j, e in worst], fine=True)
    body = section(
        "training",
        "How it was made",
        "The fine-tuning",
        "",
        columns(chart, card("What was trained", what)),
        card("Validation error, the joints that are hardest", joints) if worst else "",
    )
    return Section("training", "Training", body)


def provenance(source: Source) -> Section:
    """Hashes, versions, seed, machine."""
    deployed, trained = source.result("deploy"), source.result("train")
    record = next(iter(source.result("bench").get("records", {}).values()), {})
    device = record.get("device", {})
    hashes = facts(
        [
            ("dataset", source.numbers["dataset_hash"]),
            ("base model", trained["base_hash"]),
            ("tuned", trained["hash"]),
            *((f"exported, {n}", e["hash"]) for n, e in deployed.get("export", {}).items()),
            ("seed", source.numbers["seed"]),
        ],
        mono=True,
    )
    machine = facts(
        [
            ("processor", device.get("model", platform.processor())),
            ("cores", device.get("cores", "")),
            ("memory", f"{device['memory_gb']:.0f} GB" if "memory_gb" in device else ""),
            *sorted(source.steps["train"].get("result", {}).get("tools", {}).items()),
        ]
    )
    body = section(
        "provenance",
        "How it was made",
        "Provenance",
        "Every artefact names its parent by hash: dataset, statistics, adapter, merged, quantised and exported model.",
        columns(card("Hashes", hashes), card("Machine and versions", machine)),
    )
    return Section("provenance", "Provenance", body)


def following(source: Source) -> Section:
    """Commands to go on with."""
    folder = source.folder
    commands = (
        "# your own recordings, in any of the known formats\n"
        "athena data info FOLDER\n"
        "athena demo --data FOLDER --robot ROBOT\n\n"
        "# openvla-7b on a 24 GB GPU\n"
        "athena plan --gpu rtx4090\n"
        "athena train --preset rtx4090 --model openvla/openvla-7b --data DATASET --out POLICY\n\n"
        "# serve what this run made, then drive a robot with it behind the safety filter\n"
        f"athena serve {folder / 'bundles' / 'int4'}"
    )
    body = section("next", "Go on", "What next", "", card("", f"<pre>{text(commands)}</pre>"))
    return Section("next", "What next", body)
