"""What the sections on running it show: the cost of fewer bits, latency here and predicted, the socket."""

from collections.abc import Sequence
from dataclasses import dataclass

from athena_vla.gate import Gate
from athena_vla.report.charts import Bar
from athena_vla.report.figures import percent, significant, span
from athena_vla.report.names import joint_label
from athena_vla.report.source import Result, Source

PRECISIONS = ("float", "int8", "int4")


@dataclass(frozen=True)
class Precision:
    """Sizes, deviation in radians, success and gates for float, int8 and int4."""

    precision_head: Sequence[str] = ()
    precision_rows: Sequence[Sequence[str]] = ()
    precision_note: str = ""
    int4_rows: Sequence[Bar] = ()
    parity: Sequence[Sequence[str]] = ()
    gate_head: Sequence[str] = ()
    gate_rows: Sequence[Sequence[str]] = ()


def precision(source: Source) -> Precision:
    deployed = source.result("deploy")
    if not deployed:
        return Precision()
    played = {**deployed.get("closed_loop", {}), "float": source.result("compare")["closed_loop"].get("tuned")}
    rows = []
    for name in PRECISIONS:
        exported, error = deployed["export"][name], deployed["action_error"][name]
        made, success = deployed["quantize"].get(name), played.get(name)
        golden = exported["deviation"].get("max_rad")
        rows.append(
            [
                f"{name}, ONNX",
                f"{exported['bytes'] / 1e6:.1f} MB",
                "32" if made is None else f"{made['mean_bits']:.2f}",
                *(significant(1000 * error[k]) for k in ("mean_rad", "p95_rad", "max_rad")),
                "" if golden is None else f"{golden:.1e}",
                "" if success is None else percent(success["success"]["success"]) + ("*" if name == "float" else ""),
            ]
        )
    head = ["", "on disk", "bits", "mean, mrad", "p95, mrad", "max, mrad", "golden, rad", "success"]
    note = (
        "Errors: difference of the exported model's chunks from the float model's, on held-out recordings. Bits: mean "
        "of the quantised weights, scales included. Golden: largest deviation in the replay that every bundle carries."
    )
    if source.simulated:
        note += " * the success of the float model was measured with the PyTorch engine."
    else:
        head, rows = head[:-1], [r[:-1] for r in rows]
    graphs = deployed["export"]["float"]["graphs"].items()
    worst = sorted(deployed["action_error"]["int4"]["per_joint_p95"].items(), key=lambda x: -x[1])[:8]
    gate_head, gate_rows = gate_table(deployed.get("gates", {}))
    return Precision(
        precision_head=head,
        precision_rows=rows,
        precision_note=note,
        int4_rows=[Bar(joint_label(j), e, significant(1000 * e), aside=source.milli(j)) for j, e in worst],
        parity=[
            [graph, f"{entry['parity']['max_abs']:.1e}"]
            for graph, entry in graphs
            if isinstance(entry.get("parity"), dict) and "max_abs" in entry["parity"]
        ],
        gate_head=gate_head,
        gate_rows=gate_rows,
    )


def gate_table(reports: Result) -> tuple[list[str], list[list[str]]]:
    """Every gate of every quantised bundle: the limit with its direction, then value and outcome of each."""
    tables = [{n: Gate.from_dict(n, raw) for n, raw in report["gates"].items()} for report in reports.values()]
    rows = []
    for name in dict.fromkeys(n for table in tables for n in table):
        first = next(table[name] for table in tables if name in table)
        row = [first.label, f"{first.sign} {significant(first.limit)} {first.unit}".strip()]
        for table in tables:
            gate = table.get(name)
            row += ["", ""] if gate is None else [significant(gate.value), "passed" if gate.passed else "FAILED"]
        rows.append(row)
    return ["gate", "limit", *(h for name in reports for h in (name, ""))], rows


@dataclass(frozen=True)
class Measured:
    """Stage by stage as measured here."""

    processor: str
    stages: dict[str, float]  # [ms]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Predicted:
    """The full-size model on the robot's computer."""

    label: str
    rows: Sequence[Bar]
    facts: Sequence[tuple[str, object]]


@dataclass(frozen=True)
class Latency:
    """Both, or nothing where this run has no benchmark."""

    latency: Measured | None = None
    predicted: Predicted | None = None


def latency(source: Source) -> Latency:
    result = source.result("bench")
    if not result:
        return Latency()
    record = result["records"]["int4"]
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
    stages = {n: s["p50_ms"] for n, s in record["stages"].items()}
    return Latency(Measured(record["device"].get("model", "this processor"), stages, rows), _plan(result["predicted"]))


def _plan(plan: Result) -> Predicted:
    p = plan["prediction"]
    low, high = p["action_seconds"]
    slow, fast = p["actions_per_second"]
    memory = sum(p["memory_gb"].values())
    rows = [
        Bar(
            s["graph"],
            1000 * s["seconds"][1],
            span(1000 * s["seconds"][0], 1000 * s["seconds"][1], "ms"),
            kind="predicted",
            detail=("once" if s["calls"] == 1 else f"{s['calls']} times") + f", bound by {s['bound']}",
        )
        for s in p["stages"]
    ]
    return Predicted(
        p["label"],
        rows,
        [
            ("model", f"{plan['parameters'] / 1e9:.2f} billion parameters, {p['precision']}"),
            ("whole action chunk", f"{low:.2f} to {high:.2f} s"),
            ("actions per second", f"{slow:.1f} to {fast:.1f}"),
            ("memory", f"{memory:.1f} GB: {'fits' if p['fits'] else 'does not fit'}"),
            ("from", p["source"]),
        ],
    )


@dataclass(frozen=True)
class Served:
    """The episode over the socket."""

    served: Result | None = None
    served_facts: Sequence[tuple[str, object]] = ()


def served(source: Source) -> Served:
    result = source.result("serve")
    if not result:
        return Served()
    median, slow = 1000 * result["median_seconds"], 1000 * result["p95_seconds"]
    return Served(
        result,
        [
            ("instruction", f"“{result['instruction']}”"),
            ("questions over the socket", result["asked"]),
            ("round trip", f"{median:.1f} ms median, {slow:.1f} ms p95"),
            ("commands", f"{result['commands']:,}, of which the filter changed {result['touched']:,}"),
            ("limit violations", result["violations"]),
            ("bundle the server told", result["server"].get("bundle_hash", "")),
        ],
    )
