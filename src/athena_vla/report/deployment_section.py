"""The sections about running it: what precision costs, latency measured here, the device predicted, the socket."""

from typing import Any

from athena_vla.report.charts import Bar, bars, stack
from athena_vla.report.markup import card, columns, facts, percent, section, significant, table, tag, text
from athena_vla.report.source import Section, Source

PRECISIONS = ("float", "int8", "int4")


def sections(source: Source) -> list[Section]:
    return [precision(source), latency(source), served(source)]


def precision(source: Source) -> Section:
    """Sizes, deviation in radians, and success, for float, int8 and int4."""
    deployed = source.result("deploy")
    if not deployed:
        return Section("precision", "", "")
    closed, compared = deployed.get("closed_loop", {}), source.result("compare")["closed_loop"]
    rows = []
    for name in PRECISIONS:
        exported, error = deployed["export"][name], deployed["action_error"][name]
        made = deployed["quantize"].get(name)
        played = closed.get(name) or (compared.get("tuned") if name == "float" else None)
        rows.append(
            [
                f"{name}, ONNX",
                f"{exported['bytes'] / 1e6:.1f} MB",
                "32" if made is None else f"{made['mean_bits']:.2f}",
                f"{significant(1000 * error['mean_rad'])}",
                f"{significant(1000 * error['p95_rad'])}",
                f"{significant(1000 * error['max_rad'])}",
                f"{exported['deviation'].get('max_rad', float('nan')):.1e}",
                "" if played is None else percent(played["success"]["success"]) + ("*" if name == "float" else ""),
            ]
        )
    head = ["", "on disk", "bits", "mean, mrad", "p95, mrad", "max, mrad", "golden, rad", "success"]
    if not closed:
        head, rows = head[:-1], [r[:-1] for r in rows]
    note = (
        "Errors: difference of the exported model's chunks from the float model's, on held-out recordings. Bits: mean "
        "of the quantised weights, scales included. Golden: largest deviation in the replay that every bundle carries."
    )
    if closed:
        note += " * the success of the float model was measured with the PyTorch backend."
    parity = [
        [graph, f"{entry['parity'].get('max_abs', float('nan')):.1e}"]
        for graph, entry in deployed["export"]["float"]["graphs"].items()
        if isinstance(entry.get("parity"), dict)
    ]
    same = ""
    if parity:
        same = card("float graphs, ONNX Runtime against PyTorch", table(["graph", "largest difference"], parity))
    far = deployed["action_error"]["int4"]["per_joint_p95"]
    worst = sorted(far.items(), key=lambda x: -x[1])[:8]
    joints = card(
        "int4, the joints that move most",
        bars([Bar(j.replace("_", " "), e, f"{significant(1000 * e)}", aside="mrad") for j, e in worst], fine=True),
        note="95% of chunk entries differ by less.",
    )
    body = section(
        "precision",
        "Deployment",
        "What fewer bits cost",
        "Judged by what the joints do, not by perplexity: in radians, and in success on the same scenes.",
        card("", table(head, rows), note=note),
        columns(joints, same) if same else joints,
        _gates(deployed.get("gates", {})),
    )
    return Section("precision", "Precision", body)


def _gates(reports: dict[str, Any]) -> str:
    """Every gate of every quantised bundle: value, limit, outcome."""
    names = list(dict.fromkeys(n for report in reports.values() for n in report["gates"]))
    if not names:
        return ""
    rows = []
    for name in names:
        row = [name.replace("_", " ")]
        for report in reports.values():
            gate = report["gates"].get(name)
            row += ["", ""] if gate is None else [significant(gate["value"]), "passed" if gate["passed"] else "FAILED"]
        limit = next(r["gates"][name]["limit"] for r in reports.values() if name in r["gates"])
        rows.append([*row, significant(limit)])
    head = ["gate", *(h for name in reports for h in (name, "")), "limit"]
    note = "Against the float model on held-out recordings. A bundle that fails one is marked, and not served."
    return card("Gates", table(head, rows), note=note)


def latency(source: Source) -> Section:
    """Stage by stage as measured here, and the device as predicted."""
    result = source.result("bench")
    if not result:
        return Section("latency", "", "")
    measured = tag("measured here")
    record = result["records"]["int4"]
    stages = {n: s["p50_ms"] for n, s in record["stages"].items()}
    rows = [
        [
            n,
            f"{r['whole_action']['p50_ms']:.2f}",
            f"{r['whole_action']['p95_ms']:.2f}",
            f"{r['summary']['chunks_per_second']:.0f}",
            f"{r['summary']['actions_per_second']:,.0f}",
            f"{r['summary']['tokens_per_second']:,.0f}",
        ]
        for n, r in result["records"].items()
    ]
    here = card(
        "",
        f"<h3>One action chunk, int4, median {measured}</h3>",
        stack(stages, "ms"),
        note=f"From camera frame to filtered joint command, one CPU thread, {text(record['device'].get('model', ''))}.",
    )
    speeds = card(
        "",
        f"<h3>All precisions {measured}</h3>",
        table(["", "p50, ms", "p95, ms", "chunks/s", "actions/s", "joint targets/s"], rows),
        note="An action is one row of a chunk. The small model of this run, not the 7B one.",
    )
    body = section(
        "latency",
        "Deployment",
        "How fast, here and there",
        "Measured on this machine with the small model; predicted for the full-size model on the robot's computer.",
        columns(here, speeds),
        _predicted(result["predicted"]),
    )
    return Section("latency", "Latency", body)


def _predicted(plan: dict[str, Any]) -> str:
    p = plan["prediction"]
    label = tag("predicted, not measured", "predicted")
    rows = [
        Bar(
            s["graph"],
            1000 * s["seconds"][1],
            f"{1000 * s['seconds'][0]:.0f} to {1000 * s['seconds'][1]:.0f}",
            aside="ms",
            kind="predicted",
            detail=f"{s['calls']} × , bound by {s['bound']}",
        )
        for s in p["stages"]
    ]
    low, high = p["action_seconds"]
    slow, fast = p["actions_per_second"]
    memory = sum(p["memory_gb"].values())
    what = facts(
        [
            ("model", f"{plan['parameters'] / 1e9:.2f} billion parameters, {p['precision']}"),
            ("whole action chunk", f"{low:.2f} to {high:.2f} s"),
            ("actions per second", f"{slow:.1f} to {fast:.1f}"),
            ("memory", f"{memory:.1f} GB: {'fits' if p['fits'] else 'does not fit'}"),
            ("from", p["source"]),
        ]
    )
    return card("", f"<h3>{text(p['label'])} {label}</h3>", columns(bars(rows), what))


def served(source: Source) -> Section:
    """The episode over the socket."""
    result = source.result("serve")
    if not result:
        return Section("served", "", "")
    outcome = tag("succeeded") if result["success"] else tag("did not succeed", "warn")
    what = facts(
        [
            ("instruction", f"“{result['instruction']}”"),
            ("questions over the socket", result["asked"]),
            (
                "round trip",
                f"{1000 * result['median_seconds']:.1f} ms median, {1000 * result['p95_seconds']:.1f} ms p95",
            ),
            ("commands", f"{result['commands']:,}, of which the filter changed {result['touched']:,}"),
            ("limit violations", result["violations"]),
            ("bundle the server told", result["server"].get("bundle_hash", "")),
        ]
    )
    body = section(
        "served",
        "Deployment",
        "Over a socket",
        "The int4 policy in a process of its own, asked by the simulated robot through the network client, behind the "
        "safety filter: what a robot's computer would run.",
        card("", f"<h3>One episode {outcome}</h3>", what),
    )
    return Section("served", "Served", body)
