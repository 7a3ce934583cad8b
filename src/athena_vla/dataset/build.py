"""Recordings -> a dataset: prepare episodes in parallel, split, fit statistics, write a LeRobot v3.0 set + sidecar.

The result is the same, byte for byte, for any number of workers; an interrupted build goes on where it stopped.
"""

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

import athena_vla.embodiment as embodiment
from athena_vla import files
from athena_vla.check.admission import require_admissible
from athena_vla.check.checking import merged, of_recording
from athena_vla.check.findings import finding_from
from athena_vla.dataset.build_config import BuildConfig, BuildResult
from athena_vla.dataset.episode_facts import Facts, Prepared
from athena_vla.dataset.learned_limits import with_learned_limits
from athena_vla.dataset.normalize import Normalizer, NormalizerFit
from athena_vla.dataset.prepare import ACTION, STATE, Job, preparer, read_windows, shard_path
from athena_vla.dataset.sidecar import SIDECAR, SIDECAR_VERSION, episode_texts, sidecar_content, write_set
from athena_vla.dataset.windows import samples_of
from athena_vla.dataset.within_limits import within_limits
from athena_vla.embodiment import Embodiment
from athena_vla.errors import DatasetError
from athena_vla.files.cleaning import user_cache
from athena_vla.files.resume import PartialResults
from athena_vla.jobs import ordered, run_jobs
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.notes import Note
from athena_vla.recordings.overlaps import groups
from athena_vla.recordings.reading import Reading
from athena_vla.recordings.several import chosen

CHANGE_NO_EPISODE = (  # options that do not change how an episode is prepared
    "out", "stride", "validation", "strict", "normalization", "workers", "on", "allow", "overwrite", "exclude",
)  # fmt: skip
FEW_EPISODES = 8  # fewer are prepared in this process: starting workers takes longer

__all__ = ["BuildConfig", "BuildResult", "build", "linked_set", "split"]


def build(config: BuildConfig, progress: Progress = quiet) -> BuildResult:
    """Build the dataset. Raises `DatasetError` or `RecordingError`; nothing is left at `out` unless it is whole."""
    robot = embodiment.load(config.robot)
    config.require()
    if config.dry_run:
        config = replace(config, link=True)  # numbers and checks alone: no image is copied
    if not config.link and config.image_size is None:
        smaller = "--image-size makes the images smaller, --link leaves them in the recording."
        files.require_room(config.out, files.size_of(config.inputs), "The set", DatasetError, otherwise=smaller)
    with files.claim(
        config.out,
        overwrite=config.overwrite,
        what="a built dataset",
        ours=lambda out: (out / "meta" / SIDECAR).is_file(),
        reads=config.input,
        error=DatasetError,
    ):
        return _build(config, robot, progress)


def _build(config: BuildConfig, robot: Embodiment, progress: Progress) -> BuildResult:
    recording = config.open(*config.inputs)
    ids = chosen(recording.ids(), config.exclude)
    if not ids:
        raise DatasetError(f"'{config.input}' holds no episodes{' but excluded ones' if config.exclude else ''}.")
    parts = PartialResults(config.out, _resume_key(config, robot), DatasetError)
    work = parts.folder
    reused = sum(1 for _ in work.glob("*.json"))
    job = Job(
        inputs=tuple(map(str, config.inputs)),
        reading=Reading(**{f.name: getattr(config, f.name) for f in fields(Reading)}),
        robot=robot.to_dict(),
        alignment=config.alignment(),
        image_size=config.image_size,
        keep_failed=config.keep_failed,
        fix=config.fix,
        link=config.link,
        annotate=config.annotate,
        annotations=str(config.annotations or ""),
        segment_texts=config.segment_texts,
        seed=config.seed,
        fallback_instruction=config.instruction,
        horizon=config.horizon,
        work=str(work),
    )
    all_facts: list[Facts] = []
    few = len(ids) < FEW_EPISODES and config.workers == 0
    workers = 1 if few else min(config.workers or os.cpu_count() or 1, len(ids))
    prepared = run_jobs(
        preparer, job, ids, workers=workers, place=config.on, describe="episode {}".format, error=DatasetError
    )
    with contextlib.closing(prepared):
        for facts in ordered(prepared):
            all_facts.append(facts)
            progress(len(all_facts), len(ids), "preparing episodes", facts["id"])
    broken = {f["id"]: f["reason"] for f in all_facts if f["status"] == "broken"}
    failed = {f["id"]: f["reason"] for f in all_facts if f["status"] == "failed"}
    good = [f for f in all_facts if f["status"] == "ok"]
    twins = _twins(good) if "drop-duplicates" in config.fix else {}
    good = [f for f in good if f["id"] not in twins]
    fixed = {f["id"]: f["fixes"] for f in good if f["fixes"]} | {i: [said] for i, said in twins.items()}
    if broken and config.strict:
        raise DatasetError(f"{len(broken)} of {len(ids)} episodes are broken (--strict): {_first(broken)}")
    if not good:
        what = f"{len(broken)} broken, {len(failed)} recorded as failures (--keep-failed uses them)"
        raise DatasetError(
            f"Not one of the {len(ids)} episodes in '{config.input}' can be used: {what}. {_first(broken)}"
        )
    usable = {f["id"] for f in good}
    whole = [f for f in of_recording(recording.whole_notes()) if f.episode is None or f.episode in usable]
    findings = tuple(merged([*whole, *(finding_from(raw) for f in good for raw in f["findings"])], len(good)))
    try:
        require_admissible(findings, robot, config.allow)
    except DatasetError:
        parts.remove()
        raise
    _require_one_shape(good)
    held_out = split(good, config.validation, config.seed, groups({f["id"]: read_windows(work, f["id"]) for f in good}))
    robot = with_learned_limits(robot, (_numbers(work, f) for f in good if f["id"] not in held_out))
    normalizer, clipped = within_limits(_fit(robot, good, held_out, work, config), robot)
    content = sidecar_content(config, robot, normalizer, good, held_out, broken, failed, fixed, findings, clipped)
    if not config.dry_run:
        progress(len(ids), len(ids), "writing the set")
        with files.whole_folder(config.out, DatasetError) as made:
            write_set(made, robot, good, work, content)
    parts.remove()
    samples = sum(len(s) for f in good for _, s in samples_of(episode_texts(f), f["length"], config.stride))
    return BuildResult(
        path=config.out,
        hash=content["hash"],
        episodes=len(good),
        frames=sum(f["length"] for f in good),
        samples=samples,
        train_episodes=tuple(f["id"] for f in good if f["id"] not in held_out),
        validation_episodes=tuple(f["id"] for f in good if f["id"] in held_out),
        broken=broken,
        failed=failed,
        notes=tuple(Note.from_json(n) for n in content["notes"]),
        reused=reused,
        fixed=fixed,
        findings=findings,
        dry_run=config.dry_run,
    )


def linked_set(path: Path, robot: str, horizon: int = 8) -> Path:
    """A set that trains on a recording in place: built once beside nothing of the user's, then found again.

    It lies in the user's cache ($XDG_CACHE_HOME/athena/sets) under a name that changes with the recording, the robot
    and the horizon; all other choices are those of a build without options.
    """
    root = user_cache() / "athena" / "sets"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        root = Path(tempfile.gettempdir()) / "athena-sets"
        root.mkdir(parents=True, exist_ok=True)
    config = BuildConfig(input=path, out=root / "unnamed", robot=robot, horizon=horizon, link=True)
    if not path.exists():
        raise DatasetError(f"There is nothing at '{path}'.")
    key = f"{_resume_key(config, embodiment.load(robot))}|{horizon}"
    out = root / f"{path.resolve().name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    with files.lock(out, DatasetError, wait=True):
        if not out.exists():
            build(replace(config, out=out))
    return out


def _twins(good: Sequence[Prepared]) -> dict[str, str]:
    """Episode -> what to say of it, for every episode whose motion an earlier one has."""
    first: dict[str, str] = {}
    return {
        f["id"]: f"dropped: a duplicate of {twin}"
        for f in good
        if (twin := first.setdefault(f["motion"], f["id"])) != f["id"]
    }


def split(facts: Sequence[Prepared], share: float, seed: int, together: Mapping[str, str]) -> set[str]:
    """Ids of the validation episodes: whole episodes, those that share a piece of motion always on the same side.

    `together` names for each episode the first of those that it shares motion with.
    """
    motion = {f["id"]: f["motion"] for f in facts}
    members: dict[str, list[str]] = {}
    for f in facts:
        members.setdefault(motion[together[f["id"]]], []).append(f["id"])
    order = sorted(members, key=lambda g: hashlib.sha256(f"{seed}|{g}".encode()).digest())
    wanted = 0 if share <= 0 or len(members) < 2 else min(max(1, round(share * len(facts))), len(facts) - 1)
    held_out: set[str] = set()
    for group in order[:-1]:
        if len(held_out) >= wanted:
            break
        held_out |= set(members[group])
    return held_out


def _require_one_shape(good: Sequence[Prepared]) -> None:
    sizes = good[0]["sizes"]
    for f in good:
        if f["sizes"] != sizes:
            raise DatasetError(
                f"Episodes {good[0]['id']} and {f['id']} have images of different size ({sizes} and {f['sizes']}). "
                "Bring them to one with --image-size HEIGHT WIDTH."
            )


def _resume_key(config: BuildConfig, robot: Embodiment) -> str:
    """Changes when an episode prepared earlier could differ from one prepared now."""
    digest = hashlib.sha256()
    roots: list[Iterable[tuple[str, list[str], list[str]]]] = [
        [(str(p.parent), [], [p.name])] if p.is_file() else os.walk(p) for p in config.inputs
    ]
    for root, folders, names in itertools.chain.from_iterable(roots):
        folders.sort()
        for name in sorted(names):
            status = os.stat(os.path.join(root, name))
            digest.update(f"{root}|{name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    settings = {k: str(v) for k, v in vars(config).items() if k not in CHANGE_NO_EPISODE}
    digest.update(json.dumps([SIDECAR_VERSION, "windows", robot.to_dict(), settings], sort_keys=True).encode())
    return digest.hexdigest()


def _fit(
    robot: Embodiment, good: Sequence[Prepared], held_out: set[str], work: Path, config: BuildConfig
) -> Normalizer:
    fit = NormalizerFit(robot, config.normalization)
    for f in good:
        if f["id"] in held_out:
            continue
        states, actions = _numbers(work, f)
        fit.add_episode(states, actions, config.horizon, config.stride)
    return fit.finish()


def _numbers(work: Path, facts: Prepared) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """States `[T, S]` and actions `[T, D]` of one prepared episode."""
    table = pq.read_table(shard_path(work, facts["id"]), columns=[STATE, ACTION])
    states, actions = (
        table[c].combine_chunks().flatten().to_numpy().reshape(facts["length"], -1) for c in (STATE, ACTION)
    )
    return states, actions


def _first(reasons: Mapping[str, str]) -> str:
    return next((f"{k}: {v}" for k, v in reasons.items()), "")
