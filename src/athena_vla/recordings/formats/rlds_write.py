"""Writes RLDS/TFDS tfrecord sets without TensorFlow: one record per episode, features.json and dataset_info.json.

float64, which a float_list would round, is stored as bytes (TFDS encoding "bytes"), so numbers keep their bits.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats.common import are_placeholders
from athena_vla.recordings.formats.lerobot_rows import encoded, row_streams, sidecar_entry
from athena_vla.recordings.formats.rlds import SIDECAR
from athena_vla.recordings.formats.tfrecord import build_example, write_record
from athena_vla.recordings.texts import first_of_frames

TENSOR = "tensorflow_datasets.core.features.tensor_feature.Tensor"
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


class RLDSWriter:
    """Appends episodes to the train split; the two JSON files, which make it a set, come last."""

    def __init__(self, folder: Path, first: Episode, name: str) -> None:
        self.folder = folder
        self.name = name
        self.first = first
        self.lengths = 0
        self.bytes = 0
        self.entries: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.shard = folder / f"{name}-train.tfrecord-00000-of-00001"
        self._file = open(self.shard, "wb")  # noqa: SIM115 open while episodes come
        self._steps = _step_features(first)

    def add(self, episode: Episode) -> None:
        length = len(episode)
        flags = np.zeros((3, length), np.int64)
        flags[0, 0] = flags[1, -1] = 1
        flags[2, -1] = int(episode.success is not False)
        reward = np.zeros(length, np.float32)
        reward[-1] = 1.0 if episode.success else 0.0
        features: dict[str, Any] = {
            "steps/is_first": flags[0],
            "steps/is_last": flags[1],
            "steps/is_terminal": flags[2],
            "steps/reward": reward,
            "steps/discount": np.ones(length, np.float32),
            "steps/language_instruction": [t.encode() for t in first_of_frames(episode.texts, length)],
            "episode_metadata/file_path": [episode.source.encode()],
        }
        arrays = {"action": episode.actions, "observation/state": episode.states}
        arrays["observation/timestamp"] = episode.timestamps
        arrays |= {f"observation/{k.replace('/', '.')}": v for k, v in row_streams(episode).items()}
        for key, values in arrays.items():
            if key in self._steps:
                features[f"steps/{key}"] = _numbers(values)
        for camera, stream in episode.cameras.items():
            features[f"steps/observation/{camera}"] = [encoded(stream, i) for i in range(length)]
        data = build_example(features)
        write_record(self._file, data)
        self.entries[f"train_{self.lengths:05d}"] = sidecar_entry(episode)
        self.lengths += 1
        self.bytes += len(data)

    def finish(self) -> None:
        self._file.close()
        steps: dict[str, Any] = {"sequence": {"feature": _tree(self._steps), "length": "-1"}}
        steps["pythonClassName"] = "tensorflow_datasets.core.features.dataset_feature.Dataset"
        metadata = _tree({"file_path": _text()})
        features = {"steps": steps, "episode_metadata": metadata}
        (self.folder / "features.json").write_text(
            json.dumps({"pythonClassName": DICT, "featuresDict": {"features": features}}, indent=1)
        )
        first = self.first
        sidecar = {
            "fps": first.fps,
            "robot": first.origin.robot,
            "joint_names": None if are_placeholders(first.joint_names) else list(first.joint_names),
            "state_names": None if are_placeholders(first.state_names) else list(first.state_names),
            "episodes": self.entries,
        }
        (self.folder / SIDECAR).write_text(json.dumps(sidecar, indent=1))
        info = {
            "name": self.name,
            "version": self.folder.name,
            "fileFormat": "tfrecord",
            "moduleName": f"{self.name}.{self.name}_dataset_builder",
            "releaseNotes": {self.folder.name: "Converted by athena data convert."},
            "splits": [
                {
                    "name": "train",
                    "numBytes": str(self.bytes),
                    "shardLengths": [str(self.lengths)],
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                }
            ],
        }
        (self.folder / "dataset_info.json").write_text(json.dumps(info, indent=1))

    def abandon(self) -> None:
        self._file.close()


def _numbers(values: np.ndarray[Any, Any]) -> Any:
    if values.dtype == np.float32 or values.dtype.kind in "iub":
        return values.reshape(-1)
    return [np.ascontiguousarray(row).astype(values.dtype.newbyteorder("<")).tobytes() for row in values]


def _step_features(episode: Episode) -> dict[str, Any]:
    scalars = {"reward": "float32", "discount": "float32", "is_first": "bool", "is_last": "bool", "is_terminal": "bool"}
    found: dict[str, Any] = {k: _tensor((), t) for k, t in scalars.items()}
    found["language_instruction"] = _text()
    if episode.joint_names:
        found["action"] = _tensor(episode.actions.shape[1:], str(episode.actions.dtype))
    if episode.state_names:
        found["observation/state"] = _tensor(episode.states.shape[1:], str(episode.states.dtype))
    found["observation/timestamp"] = _tensor((), "float64")
    for name, values in row_streams(episode).items():
        if values.dtype.kind in "fiub":
            found[f"observation/{name.replace('/', '.')}"] = _tensor(values.shape[1:], str(values.dtype))
    for camera in episode.cameras:
        image = encoded(episode.cameras[camera], 0)
        kind = "png" if image[:4] == b"\x89PNG" else "jpeg"
        found[f"observation/{camera}"] = {
            "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
            "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8", "encodingFormat": kind},
        }
    return found


def _tensor(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    exact = dtype == "float32" or not dtype.startswith("float")
    tensor = {
        "shape": {"dimensions": [str(n) for n in shape]},
        "dtype": dtype,
        "encoding": "none" if exact else "bytes",
    }
    return {"pythonClassName": TENSOR, "tensor": tensor}


def _text() -> dict[str, Any]:
    return {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}


def _tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        place = nested
        *folders, name = path.split("/")
        for folder in folders:
            place = place.setdefault(folder, {"pythonClassName": DICT, "featuresDict": {"features": {}}})[
                "featuresDict"
            ]["features"]
        place[name] = leaf
    return {"pythonClassName": DICT, "featuresDict": {"features": nested}}
