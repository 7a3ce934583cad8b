"""report.json with its fixed keys, and the summary on the terminal: what came out, and what to do next."""

from collections.abc import Iterable
from typing import Any

from athena_vla import files
from athena_vla.demo.journal import plain
from athena_vla.demo.run import BASELINES, Run

NEXT = """What next
  look at it             open {page}
  your own recordings    athena demo --data FOLDER     (athena data info FOLDER says what they are)
  your own training      athena data build FOLDER dataset --robot ROBOT
                         athena train --preset humanoid_default --data dataset --out policy
  openvla-7b, 24 GB GPU  athena plan --gpu rtx4090 --preset rtx4090 --model openvla/openvla-7b    (what fits)
                         athena train --preset rtx4090 --model openvla/openvla-7b --data dataset --out policy
  serve what was made    athena serve {int4}
"""


def write_report_json(run: Run) -> dict[str, Any]:
    """The numbers of this run under the keys that others rely on; those of the closed loop need a simulator."""
    steps = {name: step.result for name, step in run.journal.steps.items()}
    compared, deployed = steps["compare"], steps["deploy"]
    closed = compared["closed_loop"]
    content: dict[str, Any] = {
        "open_loop": open_loop_numbers(compared["open_loop"]),
        "bench": {n: bench_numbers(r) for n, r in steps["bench"]["records"].items()},
        "seconds": run.journal.seconds,
        "dataset_hash": steps["prepare"]["hash"],
        "seed": run.config.seed,
    }
    for name in ("int8", "int4"):
        played = deployed.get("closed_loop", {}).get(name)
        content[name] = {
            **({} if played is None else played["success"]),
            "action_error_rad_p95": deployed["action_error"][name]["p95_rad"],
        }
    if closed:
        content |= {name: closed[name]["success"] for name in ("tuned", "untuned", *BASELINES)}
        content["object_tasks"] = {n: row["object_tasks"] for n, row in {**closed, **deployed["closed_loop"]}.items()}
        content["safety"] = safety_total([*closed.values(), *deployed["closed_loop"].values()])
        content["ablations"] = {
            name: {k: closed[f"tuned.{name}"]["success"][k] for k in ("success", "n")}
            for name in ("black_image", "other_instruction")
        }
    elif "safety" in steps:
        content["safety"] = safety_total(steps["safety"]["filtered"].values())
    files.write_json(run.folder / "report.json", plain(content))
    return content


def safety_total(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Over all actors of the comparison; the hostile one, which would drown the others, stands in its own step."""
    table = list(rows)
    return {
        "steps": sum(r["commands"] for r in table),
        "violations": sum(r["violations"] for r in table),
        "interventions": sum(r["touched"] for r in table),
    }


def open_loop_numbers(table: dict[str, Any]) -> dict[str, Any]:
    """[rad] of each actor on the held-out recordings, and per joint of the policies."""
    rows = {
        name: {
            "mae_rad": e["mae"]["value"],
            "low": e["mae"]["low"],
            "high": e["mae"]["high"],
            "first_step_rad": e["first_step"]["value"],
            "p95_rad": e["p95"]["value"],
        }
        for name, e in table["actors"].items()
    }
    joints = {n: table["actors"][n]["per_joint"] for n in ("tuned", "untuned") if n in table["actors"]}
    return {
        "actors": rows,
        "per_joint_mae_rad": joints,
        "samples": table["samples"],
        "episodes": table["episodes"],
    }


def bench_numbers(record: dict[str, Any]) -> dict[str, Any]:
    """What `athena bench` measured here: whole action and stages."""
    return {
        "kind": record["summary"]["kind"],
        "whole_action": record["whole_action"],
        "stages": record["stages"],
        "actions_per_second": record["summary"]["actions_per_second"],
    }


def print_summary(run: Run, content: dict[str, Any]) -> None:
    """The numbers that matter, in plain words."""

    def rate(key: str) -> str:
        p = content[key]
        return f"{100 * p['success']:5.1f}%  [{100 * p['low']:.0f}, {100 * p['high']:.0f}]  of {p['n']} scenes"

    lines = ["", "Result"]
    if "tuned" in content:
        for key, label in (
            ("tuned", "tuned, float"),
            ("int8", "tuned, int8 ONNX"),
            ("int4", "tuned, int4 ONNX"),
            ("untuned", "untuned base"),
            ("nearest_neighbour", "nearest neighbour"),
            ("replay", "replay, blind"),
            ("mean_action", "mean action"),
            ("hold", "hold still"),
        ):
            found = content["object_tasks"][key]
            objects = f"   object tasks {100 * found['success']:3.0f}% of {found['n']}" if found else ""
            lines.append(f"  {label:<22} {rate(key)}{objects}")
        for key, label in (("black_image", "tuned, black image"), ("other_instruction", "tuned, other object")):
            a = content["ablations"][key]
            lines.append(f"  {label:<22} {100 * a['success']:5.1f}%  of {a['n']} scenes with an object")
        s = content["safety"]
        lines.append(
            f"  safety filter          {s['violations']} limit violations in {s['steps']:,} commands, "
            f"{s['interventions']:,} changed"
        )
    rows = content["open_loop"]["actors"]
    shown = ", ".join(f"{n} {rows[n]['mae_rad']:.4f}" for n in rows if "." not in n)
    lines.append(f"  open loop, mean error  {shown} rad")
    reused = run.journal.reused
    total = content["seconds"]["total"]
    lines.append(f"  time                   {total:.0f} s" + (f" (reused: {', '.join(reused)})" if reused else ""))
    run.journal.progress.say("\n".join(lines))
    page, int4 = run.folder / "report.html", run.bundle("int4")
    run.journal.progress.say("\n" + NEXT.format(page=page, int4=int4))
