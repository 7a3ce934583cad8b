"""Steps 1 and 2: demonstrations, recorded here or the user's own, become a checked, annotated, built dataset."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import athena_vla.embodiment as embodiment
from athena_vla.annotate.annotating import AnnotateConfig, annotate
from athena_vla.annotate.motion import motion_segments
from athena_vla.check import CheckConfig, Finding, check
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.demo.expected import PREPARING
from athena_vla.demo.journal import plain
from athena_vla.demo.report_images import Sheet, contact_sheets, frame_strip
from athena_vla.demo.run import Run
from athena_vla.errors import RecordingError
from athena_vla.recordings.annotations import read_annotations
from athena_vla.recordings.formats import open_recording

SHEETS = 7  # one per task family
EXAMPLES_PER_CODE = 3  # findings shown in the report for each kind of defect


def record(run: Run) -> dict[str, Any]:
    """Record demonstrations in the simulator, a few of which fail on purpose."""
    from athena_vla.sim.record import RecordConfig, record

    settings = {"episodes": run.config.recording_count, "seed": run.config.seed}

    def work() -> dict[str, Any]:
        config = RecordConfig(
            out=run.recordings, episodes=settings["episodes"], seed=settings["seed"], workers=run.workers
        )
        result = record(config, run.journal.now)
        if result.reused:
            run.journal.say(f"reused {result.reused} finished episodes of an interrupted recording")
        run.journal.say(
            f"{result.episodes} episodes, {result.frames:,} frames, {result.frames_per_second:.0f} frames/s; "
            f"{result.successes} succeed, {result.failed_on_purpose} were made to fail"
        )
        return {**plain(result), "sheets": sheets(run)}

    title = f"Record {settings['episodes']} demonstrations of the 23-joint athena in the simulator"
    return run.journal.step("record", title, settings, work, ("recordings",))


def sheets(run: Run) -> list[Sheet]:
    """Strips of frames, one recording of each kind of task."""
    recording = open_recording(run.recordings)
    return contact_sheets(recording, run.media, SHEETS, lambda e: str(e.truth.task["family"]) if e.truth else e.id)


def prepare(run: Run) -> dict[str, Any]:
    """Check, annotate and build. The recordings themselves are never changed."""
    own = run.config.data is not None
    source = run.recordings
    inputs: dict[str, Any] = {"robot": run.config.robot, "seed": run.config.seed}
    inputs["source"] = _identity(source) if own else run.journal.steps["record"].fingerprint
    validation = 0.5 if own and len(open_recording(source).ids()) < 10 else 0.1

    def work() -> dict[str, Any]:
        now = run.journal.now
        now.plan(PREPARING)
        checked = check(CheckConfig(input=source, robot=run.config.robot), now.part("check"))
        severities = Counter(f.severity for f in checked.findings)
        run.journal.say(
            f"checked {checked.episodes} episodes, {checked.frames:,} frames: "
            + (", ".join(f"{n} {s}s" for s, n in sorted(severities.items())) or "nothing found")
        )
        sidecar = run.folder / "annotations.json"
        annotated = annotate(AnnotateConfig(input=source, out=sidecar, robot=run.config.robot), now.part("annotate"))
        kinds = ", ".join(f"{k} {100 * v:.0f}%" for k, v in annotated.kinds.items())
        run.journal.say(f"annotated {annotated.segments} segments: {kinds or 'none'}")
        built = build(
            BuildConfig(
                input=source,
                out=run.dataset,
                robot=run.config.robot,
                validation=validation,
                seed=run.config.seed,
                workers=run.workers,
                overwrite=True,
            ),
            now.part("build"),
        )
        run.journal.say(
            f"dataset {built.hash}: {built.samples:,} samples from {len(built.train_episodes)} episodes, "
            f"{len(built.validation_episodes)} episodes held out, {len(built.failed)} failures and "
            f"{len(built.broken)} broken ones left out"
        )
        return {
            "hash": built.hash,
            "check": {
                "episodes": checked.episodes,
                "frames": checked.frames,
                "severities": dict(severities),
                "findings": _examples(checked.findings),
            },
            "build": plain(built),
            "annotation": {"segments": annotated.segments, "kinds": annotated.kinds, "sources": annotated.sources},
            "timeline": timeline(run, sidecar),
            **({"sheets": sheets(run)} if own else {}),
        }

    return run.journal.step("prepare", "Check, annotate and build the dataset", inputs, work, ("dataset",))


def timeline(run: Run, sidecar: Path) -> dict[str, Any]:
    """One episode with its frames, the segments of the sidecar, and beside them what motion rules alone would say."""
    recording = open_recording(run.recordings)
    annotated = read_annotations(sidecar)
    episode_id = next((i for i, found in annotated.items() if len(found) > 1), recording.ids()[0])
    episode = recording.read(episode_id)
    rows: dict[str, list[dict[str, Any]]] = {}
    found = annotated.get(episode_id, ())
    motion = motion_segments(episode, embodiment.load(run.config.robot))
    for s in (*found, *(m for m in motion if all(m.source != f.source for f in found))):
        row = rows.setdefault(s.source, [])
        row.append({"start": s.start / episode.fps, "stop": s.stop / episode.fps, "kind": s.kind, "text": s.text})
    return {
        "episode": episode_id,
        "instruction": episode.instructions[0] if episode.instructions else "",
        "seconds": len(episode) / episode.fps,
        "rows": rows,
        **({"frames": frame_strip(episode, run.media)} if episode.cameras else {}),
    }


def _examples(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """For each code its count and its first messages."""
    by_code: dict[str, list[Finding]] = {}
    for f in findings:
        by_code.setdefault(f.code, []).append(f)
    return [
        {
            "code": code,
            "severity": found[0].severity,
            "count": len(found),
            "messages": [f.message for f in found[:EXAMPLES_PER_CODE]],
        }
        for code, found in by_code.items()
    ]


def _identity(folder: Path) -> list[list[Any]]:
    """Names, sizes and times of all files: what the step depends on without reading gigabytes."""
    if not folder.is_dir():
        raise RecordingError(f"There is no folder '{folder}'. Give the folder that holds your recordings with --data.")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
