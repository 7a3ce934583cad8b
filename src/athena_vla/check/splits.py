"""Train/validation leakage: the same motion on both sides of a split the recording declares."""

from collections.abc import Iterator, Mapping
from typing import Any

from athena_vla.check.findings import Finding, finding
from athena_vla.recordings.episode import Recording
from athena_vla.recordings.formats.lerobot import LeRobot
from athena_vla.recordings.formats.rlds import RLDS
from athena_vla.recordings.formats.robomimic_hdf5 import RobomimicHDF5

TRAIN = ("train",)


def check_leakage(recording: Recording, digests: Mapping[str, str]) -> Iterator[Finding]:
    """One finding per pair of declared splits that share a motion."""
    splits = declared_splits(recording)
    trained = {digests[i]: i for name, ids in splits.items() if name in TRAIN for i in ids if i in digests}
    for name, ids in splits.items():
        if name in TRAIN:
            continue
        shared = [(i, trained[digests[i]]) for i in ids if i in digests and digests[i] in trained]
        if shared:
            mine, twin = shared[0]
            message = f"{len(shared)} episodes of split '{name}' repeat training episodes (episode {mine} is {twin})."
            yield finding("split.leakage", message, mine)


def declared_splits(recording: Recording) -> dict[str, list[str]]:
    """Split name -> episode ids, from whatever the format says about splits."""
    if isinstance(recording, LeRobot):
        if recording.meta.sidecar:
            found: dict[str, list[str]] = {}
            for index, episode in recording.meta.sidecar.items():
                found.setdefault(str(episode.get("split", "train")), []).append(str(index))
            return found
        return _ranges(recording.meta.raw.get("splits"), recording.ids())
    if isinstance(recording, RLDS):
        found = {}
        for episode_id in recording.ids():
            found.setdefault(episode_id.rsplit("_", 1)[0], []).append(episode_id)
        return found
    return {k: list(v) for k, v in recording.masks().items()} if isinstance(recording, RobomimicHDF5) else {}


def _ranges(splits: Any, ids: tuple[str, ...]) -> dict[str, list[str]]:
    if not isinstance(splits, Mapping):
        return {}
    found: dict[str, list[str]] = {}
    for name, span in splits.items():
        start, _, stop = str(span).partition(":")
        if start.isdigit() and stop.isdigit():
            found[str(name)] = [i for i in ids if int(start) <= int(i) < int(stop)]
    return found
