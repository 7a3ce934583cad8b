"""The sections that answer whether it works: films, success, tasks, looking and listening, errors, safety."""

from typing import Any

from athena_vla.report.charts import Bar, bars, lines
from athena_vla.report.markup import Heat, card, columns, facts, percent, section, significant, table, tag, text
from athena_vla.report.names import DETAILS, label
from athena_vla.report.safety_section import safety
from athena_vla.report.source import Section, Source


def sections(source: Source) -> list[Section]:
    return [films(source), success(source), attention(source), open_loop(source), safety(source)]


def films(source: Source) -> Section:
    """The tuned and the untuned model in the same scene, side by side."""
    shown = source.result("compare").get("films", [])
    parts = []
    for entry in shown:
        figures = "".join(_film(source, entry, name) for name in ("untuned", "tuned"))
        parts.append(card(f"“{entry['instruction']}”", f'<div class="pair">{figures}</div>'))
    body = section(
        "episodes",
        "Episodes",
        "The same scene, before and after",
        "Placements and combinations that training never showed. Left in each picture the scene from outside, right "
        "what the robot's head camera sees. Chosen by rule: the first scenes in which only the tuned model succeeds, "
        "and the first in which it fails.",
        *parts,
    )
    return Section("episodes", "Episodes", body if shown else "")


def _film(source: Source, entry: dict[str, Any], name: str) -> str:
    film = entry[name]
    width, height = film["size"]
    outcome = tag("succeeded") if film["success"] else tag("did not succeed", "warn")
    moving, still = source.picture(film["file"]), source.picture(film["still"])
    said = text(f"{label(name)}: {entry['instruction']}, {'succeeded' if film['success'] else 'did not succeed'}")
    return (
        f'<figure><picture><source srcset="{still}" media="(prefers-reduced-motion: reduce)">'
        f'<img src="{moving}" width="{width}" height="{height}" alt="{said}"></picture>'
        f"<figcaption><strong>{text(label(name))}</strong> {outcome} {film['seconds']:.1f} s</figcaption></figure>"
    )


def success(source: Source) -> Section:
    """Bars with Wilson intervals, paired tests, and the table per task."""
    if not source.simulated:
        return Section("success", "", "")
    compared, deployed = source.result("compare"), source.result("deploy")
    closed = {**compared["closed_loop"], **deployed.get("closed_loop", {})}
    order = [n for n in ("tuned", "int8", "int4", "untuned", "nearest_neighbour", "replay") if n in closed]
    order += [n for n in ("mean_action", "hold") if n in closed]
    rows = []
    for name in order:
        p = closed[name]["success"]
        kind = "accent" if name in ("tuned", "int8", "int4") else ""
        rows.append(
            Bar(
                label(name),
                p["success"],
                percent(p["success"]),
                p["low"],
                p["high"],
                DETAILS.get(name, ""),
                f"{round(p['success'] * p['n'])}/{p['n']}",
                kind,
            )
        )
    n = closed["tuned"]["success"]["n"]
    chart = card(
        "Success in the closed loop",
        bars(rows, full=1.0),
        note=f"{n} scenes, the same for every row. Whiskers: 95% Wilson intervals.",
    )
    tasks = sorted({t for name in order for t in closed[name]["per_task"]})
    per_task = [
        [label(name), *(_share(closed[name]["per_task"].get(t)) for t in tasks)]
        for name in order
        if name not in ("hold",)
    ]
    grid = card("Per task", table(["", *tasks], per_task), note="Successes of scenes.")
    tests = [_test(label(name), test) for name, test in compared["paired"].items() if "." not in name]
    tests += [_test(label(n), _mirrored(t)) for n, t in deployed.get("paired", {}).items()]
    paired = card(
        "Paired with the tuned model, scene by scene",
        table(["", "only tuned", "only it", "both", "difference", "exact p"], tests),
        note="Exact McNemar test on the scenes where the two disagree; difference with Newcombe's paired 95% interval.",
    )
    times = [
        [label(n), _seconds(closed[n]["median_time_to_success"]), f"{1000 * closed[n]['act_seconds']:.1f} ms"]
        for n in order
        if n not in ("hold", "mean_action")
    ]
    speed = card(
        "How fast",
        table(["", "time to success", "one answer, measured here"], times),
        note="Median time on the robot's clock, of successful episodes. Answers were timed inside busy workers.",
    )
    notes = "".join(f'<p class="note">{text(x)}</p>' for x in compared["notes"])
    body = section(
        "success",
        "Evidence",
        "Does it do what it is told?",
        "The deployed control loop with the deployed safety filter, in scenes whose placements and combinations of "
        "verb, colour and shape were held out.",
        chart,
        grid,
        paired,
        columns(speed, card("What “untuned” means here", notes)) if notes else speed,
    )
    return Section("success", "Success", body)


def attention(source: Source) -> Section:
    """Success and answers without eyes, and with other words."""
    compared = source.result("compare")
    closed, table_ = compared["closed_loop"], compared["open_loop"]
    names = [n for n in ("tuned", "tuned.black_image", "tuned.other_instruction") if n in (closed or table_["actors"])]
    if len(names) < 2:
        return Section("attention", "", "")
    parts = []
    if closed:
        with_object = list(closed["tuned.black_image"]["per_task"])
        wins = [closed["tuned"]["per_task"][t] for t in with_object]
        n = sum(w["n"] for w in wins)
        seeing = sum(round(w["success"] * w["n"]) for w in wins) / max(n, 1)
        rows = [Bar("as it is", seeing, percent(seeing), kind="accent", detail="the same scenes")]
        for name in names[1:]:
            p = closed[name]["success"]
            rows.append(
                Bar(label(name).removeprefix("tuned, "), p["success"], percent(p["success"]), p["low"], p["high"])
            )
        parts.append(
            card(
                "Success on the original goal",
                bars(rows, full=1.0, goal=0.35),
                note=f"{n} scenes with an object to find. Dashed: at most 35% may be left. “Other instruction” names "
                "another object that stands in the scene; the original one still counts.",
            )
        )
    if table_:
        rows = [
            Bar(
                label(n).removeprefix("tuned, "),
                table_["actors"][n]["change"]["value"],
                f"{significant(1000 * table_['actors'][n]['change']['value'])} mrad",
                table_["actors"][n]["change"]["low"] if table_["episodes"] > 1 else None,
                table_["actors"][n]["change"]["high"] if table_["episodes"] > 1 else None,
            )
            for n in names[1:]
            if table_["actors"].get(n, {}).get("change")
        ]
        if rows:
            parts.append(
                card(
                    "How far the answer moves",
                    bars(rows),
                    note="Mean absolute change of the chunk on held-out recordings. A policy that does not look or "
                    "listen would show 0.",
                )
            )
    body = section(
        "attention",
        "Evidence",
        "Does it look, and does it listen?",
        "A policy can reach a fair score by ignoring picture or words. So both are taken away in turn.",
        columns(*parts),
    )
    return Section("attention", "Looks and listens", body if parts else "")


def open_loop(source: Source) -> Section:
    """Errors on held-out recordings per actor, horizon step and joint."""
    result = source.result("compare")["open_loop"]
    actors = result["actors"]
    plain = [n for n in actors if "." not in n]
    order = sorted(plain, key=lambda n: actors[n]["mae"]["value"])
    several = result["episodes"] > 1  # one episode says nothing about the spread between episodes
    rows = [
        Bar(
            label(n),
            actors[n]["mae"]["value"],
            f"{actors[n]['mae']['value']:.4f}",
            actors[n]["mae"]["low"] if several else None,
            actors[n]["mae"]["high"] if several else None,
            kind="accent" if n == "tuned" else "",
        )
        for n in order
    ]
    spread = "95% bootstrap intervals over episodes, not frames." if several else "A single episode gives no interval."
    total = card(
        "Mean absolute error, rad",
        bars(rows),
        note=f"{result['samples']} samples of held-out episodes ({result['episodes']}). {spread} Open loop ranks "
        "policies only roughly: judge by the closed loop.",
    )
    ahead = {label(n): [((i + 1) * result["dt"], e) for i, e in enumerate(actors[n]["per_horizon"])] for n in order[:6]}
    horizon = card("Error over the chunk", lines(ahead, x_label="seconds ahead", y_label="rad"))
    joints = actors["tuned"]["per_joint"]
    largest = max(max(joints.values()), 1e-9)
    per_joint = [
        Bar(j.replace("_", " "), e, f"{1000 * e:.1f}", kind="accent", aside="mrad", group=_group(j))
        for j, e in joints.items()
    ]
    smooth = facts(
        [
            ("second difference, recorded", f"{1000 * result['recorded_roughness']:.2f} mrad"),
            ("second difference, tuned", f"{1000 * actors['tuned']['roughness']:.2f} mrad"),
            (
                "overlapping chunks disagree by",
                "" if actors["tuned"]["seam"] is None else f"{1000 * actors['tuned']['seam']:.2f} mrad",
            ),
            ("95% of errors below", f"{actors['tuned']['p95']['value']:.3f} rad"),
            ("largest error", f"{actors['tuned']['maximum']:.3f} rad"),
        ]
    )
    body = section(
        "errors",
        "Evidence",
        "How far from the demonstrations?",
        "Predicted chunks against what was recorded, on episodes that training never saw.",
        columns(total, horizon),
        columns(
            card("Tuned, per joint", bars(per_joint, full=largest * 1.05, fine=True)),
            card("Tuned, smoothness and extremes", smooth),
        ),
    )
    return Section("errors", "Errors", body)


def _group(joint: str) -> str:
    for group, words in (
        ("legs", ("hip", "knee", "ankle")),
        ("arms", ("shoulder", "elbow", "wrist")),
        ("torso and head", ("waist", "torso", "neck", "head")),
    ):
        if any(w in joint for w in words):
            return group
    return "other joints"


def _share(p: dict[str, Any] | None) -> str | Heat:
    if p is None:
        return ""
    return Heat(f"{round(p['success'] * p['n'])}/{p['n']}", p["success"])


def _test(name: str, t: dict[str, Any]) -> list[str]:
    d = t["difference"]
    return [
        name,
        str(t["only_first"]),
        str(t["only_second"]),
        str(t["both"]),
        f"{100 * d['value']:+.0f} [{100 * d['low']:+.0f}, {100 * d['high']:+.0f}]",
        "<0.001" if t["exact_p"] < 0.001 else significant(t["exact_p"], 2),
    ]


def _mirrored(t: dict[str, Any]) -> dict[str, Any]:
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
