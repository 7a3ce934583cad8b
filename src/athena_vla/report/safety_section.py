"""The section on limits: violations behind the safety filter, and what the filter had to do."""

from athena_vla.report.charts import Bar, bars
from athena_vla.report.markup import Heat, card, columns, section, table, tile
from athena_vla.report.names import label
from athena_vla.report.source import Section, Source


def safety(source: Source) -> Section:
    """Violations behind the filter, and what it had to do."""
    result = source.result("safety")
    if not result:
        return Section("safety", "", "")
    closed = {**source.result("compare")["closed_loop"], **source.result("deploy").get("closed_loop", {})}
    rows, numbers = {**closed, "hostile": result["hostile"]}, source.numbers["safety"]
    body_rows = [
        [
            label(n),
            f"{r['commands']:,}",
            Heat(f"{100 * r['intervention_rate']:.2f}%", r["intervention_rate"]),
            f"{100 * r['worst_velocity']:.0f}%",
            f"{100 * r['worst_acceleration']:.0f}%",
            str(r["violations"]),
        ]
        for n, r in rows.items()
    ]
    grid = card(
        "Every command of every actor",
        table(["", "commands", "changed", "top velocity", "top acceleration", "violations"], body_rows),
        note="Velocity and acceleration as a share of each joint's limit, taken from the commands behind the filter "
        "by code that shares nothing with it. “Random jumps” asks for up to three times the range.",
    )
    hostile = result["hostile"]["interventions"]
    tuned = closed["tuned"]["interventions"]
    kinds = sorted(set(hostile) | set(tuned))
    by_kind = table(
        ["kind", "tuned", "random jumps"], [[k, f"{tuned.get(k, 0):,}", f"{hostile.get(k, 0):,}"] for k in kinds]
    )
    joints: dict[str, int] = {}
    for counts in closed["tuned"]["interventions_by_joint"].values():
        for joint, count in counts.items():
            joints[joint] = joints.get(joint, 0) + count
    top = sorted(joints.items(), key=lambda x: -x[1])[:8]
    busiest = (
        bars([Bar(j.replace("_", " "), c, f"{c:,}") for j, c in top], fine=True)
        if top
        else '<p class="note">The filter never had to change a command of the tuned policy.</p>'
    )
    tiles = (
        '<div class="tiles">'
        + tile(
            f"{numbers['violations']:,}",
            "limit violations behind the filter",
            kind="good" if numbers["violations"] == 0 else "bad",
        )
        + tile(f"{numbers['steps']:,}", "motor commands of policies and baselines")
        + tile(f"{100 * closed['tuned']['intervention_rate']:.2f}%", "of the tuned policy's commands changed")
        + "</div>"
    )
    body = section(
        "safety",
        "Evidence",
        "Is it bounded?",
        "The filter is the last thing before the motor: position, velocity and acceleration of every joint, at the "
        "motor rate, whatever the policy says.",
        tiles,
        grid,
        columns(card("Interventions by kind", by_kind), card("Tuned, by joint", busiest)),
    )
    return Section("safety", "Safety", body)
