"""The dataset card: what a set holds, in the words and the front matter the Hugging Face hub reads.

What a recording says stands in the card as the text that it is: no line, heading, link or image of its own.
"""

import re
from collections.abc import Mapping
from typing import Any

from athena_vla.check.findings import finding_from
from athena_vla.check.findings import lines as finding_lines
from athena_vla.embodiment import Embodiment
from athena_vla.recordings.notes import Note, texts_of

# What Markdown or HTML reads as more than text: marks, the beginnings of lists and rules, and what becomes a link.
MARKUP = (
    (re.compile(r"([\\`*{}\[\]()<>#|!~&]|(?<!\w)_|_(?!\w))"), r"\\\1"),
    (re.compile(r"^([-+=])"), r"\\\1"),
    (re.compile(r"^(\d+)([.])"), r"\1\\\2"),
    (re.compile(r"(?i)\b(https?|ftp|mailto|www)([:.])"), r"\1\\\2"),
)


def plain(text: object) -> str:
    """A text on one line that a card shows as it is, whatever is in it."""
    line = "".join(c for c in " ".join(str(text).split()) if c.isprintable())
    for pattern, escaped in MARKUP:
        line = pattern.sub(escaped, line)
    return line


def dataset_card(content: Mapping[str, Any], robot: Embodiment) -> str:
    """README.md of a built set, from its sidecar."""
    episodes = content["episodes"]
    frames = sum(e["length"] for e in episodes)
    said = [e["success"] for e in episodes if e["success"] is not None]
    success = f"{sum(said)} of {len(said)} marked as successes" if said else "not recorded"
    tasks: dict[str, int] = {}
    kinds: dict[str, int] = {}
    for e in episodes:
        for text in e["instructions"]:
            tasks[text] = tasks.get(text, 0) + 1
        for s in e["segments"]:
            kinds[s["kind"]] = kinds.get(s["kind"], 0) + s["stop"] - s["start"]
    held_out = sum(e["split"] == "validation" for e in episodes)
    statistics = content["normalizer"]
    ours = robot.action_columns
    delta = {j.name for j in robot.joints if j.mode == "delta"}
    rows = [
        f"| {plain(name)} | {unit} | {'delta' if name in delta else 'absolute'} | {low:.4f} | {high:.4f} | {mode} |"
        for name, unit, low, high, mode in zip(
            statistics["joint_names"],
            ours.units,
            statistics["action_low"],
            statistics["action_high"],
            statistics["modes"],
            strict=True,
        )
    ]
    shares = ", ".join(f"{plain(k)} {n / frames:.0%}" for k, n in sorted(kinds.items()))
    cameras = ", ".join(f"{plain(n)} {w}x{h}" for n, (h, w) in content["sizes"].items())
    lines = [
        "---",
        "tags: [LeRobot, robotics, athena-vla]",
        "configs:",
        "- config_name: default",
        "  data_files: data/*/*.parquet",
        "---",
        "",
        f"# {plain(robot.name)}: {len(episodes)} episodes, {frames / robot.control_hz / 3600:.2f} hours",
        "",
        f"- Content hash: `{content['hash']}`",
        f"- {frames} frames at {robot.control_hz:g} Hz; chunks of {content['horizon']}, stride {content['stride']}",
        f"- {len(episodes) - held_out} episodes to train, {held_out} held out by episode, seed {content['seed']}",
        *_provenance(content),
        f"- Success: {success}; left out: {len(content['failed'])} failed, {len(content['broken'])} broken",
        f"- Cameras: {cameras}; {content['pictures']}",
        f"- Licences found beside the recording: {'; '.join(map(plain, content['licences'])) or 'none stated'}",
        f"- Segments (share of frames): {shares or 'none'}",
        "",
        "## Instructions",
        "",
        *(f"- {plain(text)} ({count})" for text, count in sorted(tasks.items(), key=lambda p: (-p[1], p[0]))[:50]),
        "",
        "## Actions",
        "",
        f"| {'joint or channel' if robot.channels else 'joint'} | unit | mode | low | high | statistics |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        *([plain(robot.not_called_safe), ""] if robot.not_called_safe else []),
        *_repairs(content),
        "## Findings of the checks",
        "",
        *(f"- {line}" for line in finding_lines([finding_from(f) for f in content.get("findings", ())]) or ["none"]),
        "",
        "## Notes",
        "",
        *(f"- {plain(text)}" for text in texts_of([Note.from_json(n) for n in content["notes"]]) or ["none"]),
        "",
    ]
    return "\n".join(lines)


def _provenance(content: Mapping[str, Any]) -> list[str]:
    """Where the episodes come from, where that is more than one recording, and which were left out by hand."""
    lines: list[str] = []
    if content.get("recordings"):
        counts: dict[str, int] = {}
        for e in content["episodes"]:
            name = str(e["id"]).partition("/")[0]
            counts[name] = counts.get(name, 0) + 1
        lines.append(f"- Recordings: {', '.join(f'{plain(n)} ({c} episodes)' for n, c in counts.items())}")
    if content.get("excluded"):
        lines.append(f"- Left out by hand: {', '.join(map(plain, content['excluded'][:50]))}")
    return lines


def _repairs(content: Mapping[str, Any]) -> list[str]:
    fixes = content.get("fixes") or {}
    if not fixes:
        return []
    said = [f"- episode {plain(i)}: {'; '.join(map(plain, what))}" for i, what in list(fixes.items())[:50]]
    more = [f"- and {len(fixes) - 50} more episodes, in meta/athena.json"] if len(fixes) > 50 else []
    return ["## Repairs", "", "Asked for with --fix; the recording itself is unchanged.", "", *said, *more, ""]
