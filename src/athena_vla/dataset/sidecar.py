"""What a LeRobot set cannot say of itself: robot, statistics, windows, splits, hash. Written beside it, read back."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from athena_vla.check.findings import Finding
from athena_vla.dataset.build_config import BuildConfig
from athena_vla.dataset.card import dataset_card
from athena_vla.dataset.episode_facts import Prepared
from athena_vla.dataset.normalize import Normalizer
from athena_vla.dataset.prepare import ACTION, IMAGES, PICTURE, STATE, read_stats, shard_path
from athena_vla.embodiment import Embodiment
from athena_vla.recordings.formats.common import read_list, read_names
from athena_vla.recordings.formats.lerobot_schema import Feature, image_feature, numbers_feature
from athena_vla.recordings.formats.lerobot_write import LeRobotV3Writer
from athena_vla.recordings.notes import Note
from athena_vla.recordings.texts import NO_TEXT, Texts, first_of_frames, said, texts_from_json

SIDECAR = "athena.json"
SIDECAR_VERSION = 1
COPIED = "stored singly, lossless copies where the recording has single pictures, else PNG"
LEFT = "left in the recording, which must stay where it is"


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


def sidecar_content(
    config: BuildConfig,
    robot: Embodiment,
    normalizer: Normalizer,
    good: Sequence[Prepared],
    held_out: set[str],
    broken: Mapping[str, str],
    failed: Mapping[str, str],
    fixed: Mapping[str, Sequence[str]],
    findings: Sequence[Finding] = (),
    clipped: Sequence[Note] = (),
) -> dict[str, Any]:
    """Everything but the frames themselves; `good` are the facts of the episodes in it."""
    notes = [*_notes(config, normalizer, good), *clipped]
    kept = ("id", "source", "length", "success", "instructions", "texts", "marks", "kind", "segments", "alignment")
    kept = (*kept, "digest", "motion")
    episodes = [
        {k: found[k] for k in kept if k in found} | {"split": "validation" if f["id"] in held_out else "train"}
        for f in good
        for found in (dict(f),)
    ]
    content: dict[str, Any] = {
        "version": SIDECAR_VERSION,
        "robot": robot.to_dict(),
        "normalizer": normalizer.to_dict(),
        "horizon": config.horizon,
        "stride": config.stride,
        "validation": config.validation,
        "seed": config.seed,
        "units": {x.name: x.unit for x in (*robot.joints, *robot.channels)},
        "pictures": LEFT if config.link else COPIED,
        "linked": _link(config) if config.link else None,
        "sizes": good[0]["sizes"],
        "licences": [line for path in config.inputs for line in _licences(path)],
        **({"recordings": [p.resolve().name for p in config.inputs]} if config.also else {}),
        **({"excluded": list(config.exclude)} if config.exclude else {}),
        "episodes": episodes,
        "broken": dict(broken),
        "failed": dict(failed),
        "fixes": {i: list(said) for i, said in fixed.items()},
        "notes": [n.to_dict() for n in notes],
        "findings": [f.to_dict() for f in findings],
    }
    content["hash"] = content_hash(content)
    return content


def _notes(config: BuildConfig, normalizer: Normalizer, good: Sequence[Prepared]) -> list[Note]:
    """What there is to know about the set, each once: choices that were made, and what is not as it might be."""
    notes: dict[Note, None] = {}
    for f in good:
        notes |= dict.fromkeys(Note.from_json(n) for n in f["notes"])
        if f["success"] is None:
            notes[Note("success.missing", "some episodes do not say whether they succeeded; they are used")] = None
        if f["length"] < config.horizon:
            short = f"episode {f['id']} has {f['length']} steps, fewer than one chunk of {config.horizon}"
            notes[Note("episode.short", short, episode=f["id"])] = None
    if normalizer.still:
        still = f"joints that hardly move: {', '.join(normalizer.still)}; their range was widened"
        notes[Note("joint.still", still, normalizer.still)] = None
    return list(notes)


def task_of_frames(facts: Prepared) -> list[str] | None:
    """The first text of each frame, where they differ within the episode."""
    spans = facts.get("texts")
    if not spans:
        return None
    return [t or NO_TEXT for t in first_of_frames(texts_from_json(spans), facts["length"])]


def write_set(folder: Path, robot: Embodiment, good: Sequence[Prepared], work: Path, content: Any) -> None:
    """The set itself: numbers and images of the prepared episodes, sidecar and card."""
    features: dict[str, Feature] = {
        STATE: numbers_feature(robot.state_names),
        ACTION: numbers_feature(robot.action_names),
    }
    if content["linked"]:
        features[PICTURE] = {"dtype": "int64", "shape": [1], "names": None}
    else:
        for camera, (height, width) in good[0]["sizes"].items():
            features[IMAGES + camera] = image_feature(height, width)
    writer = LeRobotV3Writer(folder, features, robot.control_hz, robot.name)
    for f in good:
        table = pq.read_table(shard_path(work, f["id"]))
        columns = {n: table[n] for n in table.column_names}
        per_frame = task_of_frames(f)
        writer.add(columns, f["length"], f["instructions"], read_stats(work, f["id"]), task_of_frame=per_frame)
    writer.finish()
    with open(folder / "meta" / SIDECAR, "w") as file:
        json.dump(content, file, indent=1)  # piece by piece: the whole text would be the largest thing in memory
    (folder / "README.md").write_text(dataset_card(content, robot))


def _link(config: BuildConfig) -> dict[str, Any]:
    """What it takes to open the recording again."""
    names = list(read_names(config.joints))
    said = {
        "state_joints": list(read_names(config.state_joints)),
        "articulations": list(read_list(config.articulation)),
    }
    link = {"path": str(config.input.resolve()), "format": config.format, "joints": names, "fps": config.fps}
    return link | {k: v for k, v in said.items() if v}


def _licences(path: Path) -> list[str]:
    """First lines of licence files beside the recording; nothing is assumed where there are none."""
    folder = path if path.is_dir() else path.parent
    found = sorted(f for f in folder.iterdir() if f.is_file() and f.name.upper().startswith(("LICENSE", "LICENCE")))
    heads = [next((x.strip() for x in f.read_text(errors="replace").splitlines() if x.strip()), "") for f in found]
    return [f"{f.name}: {head[:120]}" for f, head in zip(found, heads, strict=True)]


def episode_texts(entry: Mapping[str, Any]) -> Texts:
    """What may be said at each step of an episode of a set: its own spans, or one that covers it."""
    return texts_from_json(entry["texts"]) if entry.get("texts") else said(entry["instructions"], int(entry["length"]))
