"""Recordings -> a dataset: prepare episodes in parallel, split, fit statistics, write a LeRobot v3.0 set + sidecar.

The result is the same, byte for byte, for any number of workers; an interrupted build goes on where it stopped.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from athena_vla import embodiment
from athena_vla.data.alignment import Alignment
from athena_vla.data.card import dataset_card
from athena_vla.data.formats import open_recording
from athena_vla.data.formats.common import read_json, read_names
from athena_vla.data.formats.lerobot_write import LeRobotV3Writer, image_feature, numbers_feature
from athena_vla.data.normalize import NormalizationMode, Normalizer, NormalizerFit
from athena_vla.data.prepare import ACTION, IMAGES, STATE, Job, prepare, read_stats, shard_path
from athena_vla.data.windows import chunks, starts
from athena_vla.embodiment import Embodiment
from athena_vla.errors import DatasetError, MissingDependency

SIDECAR = "athena.json"
SIDECAR_VERSION = 1
FEW_EPISODES = 8  # fewer are prepared in this process: starting workers takes longer
Progress = Callable[[int, int, str], None]  # done, total, what


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How recordings become a set to train on."""

    input: Path
    """The recordings, in any known format."""
    out: Path
    """Where the dataset is written; must not exist."""
    robot: str
    """Robot name or TOML file; unnamed columns are taken in this robot's joint order."""
    horizon: int = 8
    """Rows of an action chunk, at the robot's control rate."""
    stride: int = 1
    """Steps between the starts of two samples."""
    validation: float = 0.1
    """Share of episodes held out; duplicates stay together."""
    seed: int = 0
    """Decides which episodes are held out."""
    keep_failed: bool = False
    """Also train on episodes recorded with success = false."""
    strict: bool = False
    """One broken episode fails the build instead of being named and left out."""
    format: str | None = None
    """Format of the recording; found by content where not given."""
    joints: Path | None = None
    """JSON list or text file, one name per line: names of the recorded action columns."""
    joint_map: Path | None = None
    """JSON object: robot joint -> recorded column, where the names differ."""
    cameras: tuple[str, ...] = ()
    """robot_camera=recorded_camera pairs, where the names differ."""
    fps: float | None = None
    """Rate of the recording where it does not say it [Hz]."""
    camera_offset: int = 0
    """Picture t is recorded picture t + offset [frames]."""
    drop_head: int = 0
    """Frames left out at the start of each episode."""
    drop_tail: int = 0
    """Frames left out at the end of each episode."""
    image_size: tuple[int, int] | None = None
    """Height and width pictures are resized to once; recorded size where not given [px]."""
    instruction: str = ""
    """Instruction for episodes that have none; without it they count as broken."""
    normalization: NormalizationMode = "minmax"
    """Mode for all joint groups."""
    annotate: bool = True
    """Segment episodes that carry no segments by motion rules; the instruction itself never changes."""
    annotations: Path | None = None
    """Sidecar of `athena data annotate` to take segments from instead."""
    workers: int = 0
    """Processes; 0 is one per core."""
    on: Literal["here", "ray"] = "here"
    """Where episodes are prepared: local processes or a Ray cluster."""


@dataclass(frozen=True)
class BuildResult:
    """What was built; `broken` and `failed` map episode ids to the reason they were left out."""

    path: Path
    hash: str
    episodes: int
    frames: int
    samples: int
    train_episodes: tuple[str, ...]
    validation_episodes: tuple[str, ...]
    broken: Mapping[str, str]
    failed: Mapping[str, str]
    notes: tuple[str, ...]
    reused: int = 0  # episodes taken from an interrupted build

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.episodes} episodes, {self.frames} frames, {self.samples} samples "
            f"({self.samples / max(self.episodes, 1):.1f} per episode), hash {self.hash[:16]}",
            f"train {len(self.train_episodes)}, validation {len(self.validation_episodes)} episodes",
        ]
        lines += [f"{self.reused} episodes taken over from an interrupted build"] if self.reused else []
        lines += [f"failed {i}: {reason}" for i, reason in list(self.failed.items())[:10]]
        lines += [f"broken {i}: {reason}" for i, reason in self.broken.items()]
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def build(config: BuildConfig, progress: Progress | None = None) -> BuildResult:
    """Build the dataset. Raises `DatasetError` or `RecordingError`; nothing is left at `out` unless it is whole."""
    report = progress or (lambda done, total, what: None)
    robot = embodiment.load(config.robot)
    _require(config)
    recording = open_recording(config.input, format=config.format, joints=read_names(config.joints), fps=config.fps)
    ids = recording.ids()
    if not ids:
        raise DatasetError(f"'{config.input}' holds no episodes.")
    partial = config.out.with_name(f".{config.out.name}.partial")
    work = partial / "episodes"
    key = _resume_key(config, robot)
    if partial.exists() and (not (partial / "key").is_file() or (partial / "key").read_text() != key):
        shutil.rmtree(partial)
    work.mkdir(parents=True, exist_ok=True)
    (partial / "key").write_text(key)
    reused = sum(1 for _ in work.glob("*.json"))
    job = Job(
        input=str(config.input),
        format=config.format,
        joints=read_names(config.joints),
        fps=config.fps,
        robot=robot.to_dict(),
        alignment=_alignment(config),
        image_size=config.image_size,
        keep_failed=config.keep_failed,
        annotate=config.annotate,
        annotations=str(config.annotations or ""),
        seed=config.seed,
        fallback_instruction=config.instruction,
        work=str(work),
    )
    all_facts: list[dict[str, Any]] = []
    for facts in run_jobs(job, ids, config):
        all_facts.append(facts)
        report(len(all_facts), len(ids), facts["id"])
    broken = {f["id"]: f["reason"] for f in all_facts if f["status"] == "broken"}
    failed = {f["id"]: f["reason"] for f in all_facts if f["status"] == "failed"}
    good = [f for f in all_facts if f["status"] == "ok"]
    if broken and config.strict:
        raise DatasetError(f"{len(broken)} of {len(ids)} episodes are broken (--strict): {_first(broken)}")
    if not good:
        what = f"{len(broken)} broken, {len(failed)} recorded as failures (--keep-failed uses them)"
        raise DatasetError(
            f"Not one of the {len(ids)} episodes in '{config.input}' can be used: {what}. {_first(broken)}"
        )
    _require_one_shape(good)
    held_out = split(good, config.validation, config.seed)
    normalizer = _fit(robot, good, held_out, work, config)
    content = _sidecar(config, robot, normalizer, good, held_out, broken, failed)
    report(len(ids), len(ids), "writing the set")
    made = partial / "set"
    shutil.rmtree(made, ignore_errors=True)
    _write(made, robot, good, work, content)
    made.rename(config.out)
    shutil.rmtree(partial)
    samples = sum(len(starts(f["length"], config.stride)) * len(f["instructions"]) for f in good)
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
        notes=tuple(content["notes"]),
        reused=reused,
    )


def run_jobs(job: Job, ids: Sequence[str], config: BuildConfig) -> Iterator[dict[str, Any]]:
    """Facts of all episodes, in the order of `ids`, wherever they are prepared."""
    if config.on == "ray":
        yield from _on_ray(job, ids)
        return
    workers = min(config.workers or os.cpu_count() or 1, len(ids))
    if workers == 1 or (len(ids) < FEW_EPISODES and config.workers == 0):
        for episode_id in ids:
            yield prepare(job, episode_id)
        return
    # spawn: a forked child of a process with threads (torch, arrow) can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        size = max(1, min(16, len(ids) // (4 * workers)))
        yield from pool.map(prepare, [job] * len(ids), ids, chunksize=size)


def _on_ray(job: Job, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        import ray
    except ImportError as error:
        raise MissingDependency("ray", "ray", "to build on a Ray cluster") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    shared = ray.put(job)
    remote = ray.remote(prepare)
    # A bounded number in flight keeps the driver's memory flat for any number of episodes.
    in_flight = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = [remote.remote(shared, i) for i in ids[:in_flight]]
    for next_one in range(len(ids)):
        yield ray.get(waiting[next_one])
        waiting[next_one] = None
        if len(waiting) < len(ids):
            waiting.append(remote.remote(shared, ids[len(waiting)]))


def split(facts: Sequence[Mapping[str, Any]], share: float, seed: int) -> set[str]:
    """Ids of the validation episodes: whole episodes, duplicates of one motion always on the same side."""
    groups: dict[str, list[str]] = {}
    for f in facts:
        groups.setdefault(f["motion"], []).append(f["id"])
    order = sorted(groups, key=lambda g: hashlib.sha256(f"{seed}|{g}".encode()).digest())
    wanted = 0 if share <= 0 or len(groups) < 2 else min(max(1, round(share * len(facts))), len(facts) - 1)
    held_out: set[str] = set()
    for group in order[:-1]:
        if len(held_out) >= wanted:
            break
        held_out |= set(groups[group])
    return held_out


def content_hash(sidecar: Mapping[str, Any]) -> str:
    """Hash of what the set teaches: episodes, robot, windows, splits and statistics; not where it came from."""
    said = {
        "version": sidecar["version"],
        "robot": sidecar["robot"],
        "normalizer": sidecar["normalizer"],
        "horizon": sidecar["horizon"],
        "stride": sidecar["stride"],
        "episodes": [(e["digest"], e["split"]) for e in sidecar["episodes"]],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _alignment(config: BuildConfig) -> Alignment:
    joint_map = read_json(config.joint_map) if config.joint_map else {}
    if not isinstance(joint_map, dict):
        raise DatasetError(f"'{config.joint_map}' is not a JSON object of robot joint -> recorded column.")
    pairs = [c.partition("=") for c in config.cameras]
    if any(not (a and b) for a, _, b in pairs):
        raise DatasetError(f"--cameras takes robot_camera=recorded_camera, not {config.cameras}.")
    return Alignment(
        camera_offset=config.camera_offset,
        drop_head=config.drop_head,
        drop_tail=config.drop_tail,
        joint_map={str(k): str(v) for k, v in joint_map.items()},
        camera_map={a: b for a, _, b in pairs},
        fps=config.fps,
    )


def _require(config: BuildConfig) -> None:
    if config.out.exists():
        raise DatasetError(f"'{config.out}' exists already. Remove it or choose another place.")
    for name, value, least in (
        ("horizon", config.horizon, 1),
        ("stride", config.stride, 1),
        ("workers", config.workers, 0),
    ):
        if value < least:
            raise DatasetError(f"{name} is {value}; it must be at least {least}.")
    if not 0 <= config.validation < 1:
        raise DatasetError(f"validation is {config.validation}; it is a share of the episodes in [0, 1).")


def _require_one_shape(good: Sequence[Mapping[str, Any]]) -> None:
    sizes = good[0]["sizes"]
    for f in good:
        if f["sizes"] != sizes:
            raise DatasetError(
                f"Episodes {good[0]['id']} and {f['id']} have pictures of different size ({sizes} and {f['sizes']}). "
                "Bring them to one with --image-size HEIGHT WIDTH."
            )


def _resume_key(config: BuildConfig, robot: Embodiment) -> str:
    """Changes when an episode prepared earlier could differ from one prepared now."""
    files = []
    roots: Iterable[tuple[str, list[str], list[str]]] = os.walk(config.input)
    if config.input.is_file():
        roots = [(str(config.input.parent), [], [config.input.name])]
    for root, _, names in roots:
        for name in names:
            status = os.stat(os.path.join(root, name))
            files.append((os.path.join(root, name), status.st_size, status.st_mtime_ns))
    settings = {
        k: str(v)
        for k, v in vars(config).items()
        if k not in ("out", "horizon", "stride", "validation", "strict", "normalization", "workers", "on")
    }
    text = json.dumps([SIDECAR_VERSION, robot.to_dict(), settings, sorted(files)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _fit(
    robot: Embodiment, good: Sequence[Mapping[str, Any]], held_out: set[str], work: Path, config: BuildConfig
) -> Normalizer:
    fit = NormalizerFit(robot, config.normalization)
    for f in good:
        if f["id"] in held_out:
            continue
        table = pq.read_table(shard_path(work, f["id"]), columns=[STATE, ACTION])
        states, actions = (
            table[c].combine_chunks().flatten().to_numpy().reshape(f["length"], -1) for c in (STATE, ACTION)
        )
        first = starts(f["length"], config.stride)
        windows, valid = chunks(actions, first, config.horizon)
        fit.add(windows, states[first], valid)
    return fit.finish()


def _sidecar(
    config: BuildConfig,
    robot: Embodiment,
    normalizer: Normalizer,
    good: Sequence[Mapping[str, Any]],
    held_out: set[str],
    broken: Mapping[str, str],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    notes: dict[str, None] = {}
    for f in good:
        notes |= dict.fromkeys(f["alignment"]["notes"])
        if f["success"] is None:
            notes["some episodes do not say whether they succeeded; they are used"] = None
        if f["length"] < config.horizon:
            notes[f"episode {f['id']} has {f['length']} steps, fewer than one chunk of {config.horizon}"] = None
    if normalizer.still:
        notes[f"joints that hardly move: {', '.join(normalizer.still)}; their range was widened"] = None
    kept = ("id", "source", "length", "success", "instructions", "kind", "segments", "alignment", "digest", "motion")
    episodes = [{k: f[k] for k in kept} | {"split": "validation" if f["id"] in held_out else "train"} for f in good]
    content: dict[str, Any] = {
        "version": SIDECAR_VERSION,
        "robot": robot.to_dict(),
        "normalizer": normalizer.to_dict(),
        "horizon": config.horizon,
        "stride": config.stride,
        "validation": config.validation,
        "seed": config.seed,
        "units": {j.name: j.unit for j in robot.joints},
        "pictures": "stored singly, lossless copies where the recording has single pictures, else PNG",
        "sizes": good[0]["sizes"],
        "licences": _licences(config.input),
        "episodes": episodes,
        "broken": dict(broken),
        "failed": dict(failed),
        "notes": list(notes),
    }
    content["hash"] = content_hash(content)
    return content


def _write(folder: Path, robot: Embodiment, good: Sequence[Mapping[str, Any]], work: Path, content: Any) -> None:
    features: dict[str, dict[str, Any]] = {
        STATE: numbers_feature(robot.joint_names),
        ACTION: numbers_feature(robot.action_joints),
    }
    for camera, (height, width) in good[0]["sizes"].items():
        features[IMAGES + camera] = image_feature(height, width)
    writer = LeRobotV3Writer(folder, features, robot.control_hz, robot.name)
    for f in good:
        table = pq.read_table(shard_path(work, f["id"]))
        writer.add({n: table[n] for n in table.column_names}, f["length"], f["instructions"], read_stats(work, f["id"]))
    writer.finish()
    (folder / "meta" / SIDECAR).write_text(json.dumps(content, indent=1))
    (folder / "README.md").write_text(dataset_card(content, robot))


def _licences(path: Path) -> list[str]:
    """First lines of licence files beside the recording; nothing is assumed where there are none."""
    folder = path if path.is_dir() else path.parent
    found = sorted(f for f in folder.iterdir() if f.is_file() and f.name.upper().startswith(("LICENSE", "LICENCE")))
    heads = [next((x.strip() for x in f.read_text(errors="replace").splitlines() if x.strip()), "") for f in found]
    return [f"{f.name}: {head[:120]}" for f, head in zip(found, heads, strict=True)]


def _first(reasons: Mapping[str, str]) -> str:
    return next((f"{k}: {v}" for k, v in reasons.items()), "")
