"""A set, opened for training: random access to samples, splits by episode, decoded frames in a memory map.

Knows nothing of models. Numbers and images come from the files of a LeRobot v3.0 set; what that format cannot say
(robot, statistics, splits, hash) comes from its sidecar meta/athena.json. Images may lie in the set or still in the
recording it was built from.
"""

import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from athena_vla import files
from athena_vla.check.findings import Finding, finding_from
from athena_vla.check.findings import lines as finding_lines
from athena_vla.dataset.build import BuildConfig, BuildResult, build, linked_set
from athena_vla.dataset.image_store import PictureStore
from athena_vla.dataset.normalize import Normalizer
from athena_vla.dataset.prepare import ACTION, PICTURE, STATE, resize
from athena_vla.dataset.sidecar import SIDECAR, SIDECAR_VERSION, content_hash, episode_texts
from athena_vla.dataset.windows import chunk_rows, samples_of
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.errors import DatasetError
from athena_vla.recordings.episode import Image, Sample
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.formats.common import guarded, read_json_object
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.notes import Note, texts_of
from athena_vla.recordings.texts import Texts, alternatives_at, first_of_frames

__all__ = ["BuildConfig", "BuildResult", "Dataset", "build"]

CACHE = ".cache"
DISK_SHARE = 0.5  # of the free disk that decoded images may take; beyond it they are decoded when asked for


class Dataset:
    """Samples of a built set; index it with any integer below `len()`.

    `train` and `validation` hold sample indices. `kinds` says of each sample the kind of task, or its first
    instruction where no kind is named; `named_kinds`, for balanced drawing, "" there. `marks` are those of each
    episode.
    """

    def __init__(self, path: Path, sidecar: Mapping[str, Any]) -> None:
        self.path = path
        self._said = {k: sidecar.get(k) or {} for k in ("broken", "failed", "findings", "notes")}
        self.robot = Embodiment.from_dict(sidecar["robot"])
        self.normalizer = Normalizer.from_dict(sidecar["normalizer"]).require(self.robot)
        self.hash = str(sidecar["hash"])
        self.horizon = int(sidecar["horizon"])
        self.stride = int(sidecar["stride"])
        self.cameras = self.robot.camera_names
        self.episodes: tuple[Mapping[str, Any], ...] = tuple(sidecar["episodes"])
        lengths = np.array([e["length"] for e in self.episodes], dtype=np.intp)
        self._first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.intp)  # [E + 1] first frame of each episode
        self._files = sorted((path / "data").glob("chunk-*/file-*.parquet"))
        self._linked: Mapping[str, Any] | None = sidecar.get("linked")
        self._sizes: dict[str, tuple[int, int]] = {c: (int(h), int(w)) for c, (h, w) in sidecar["sizes"].items()}
        self._texts = tuple(episode_texts(e) for e in self.episodes)
        self.marks = tuple(Marks.from_dict({"success": e["success"], **(e.get("marks") or {})}) for e in self.episodes)
        self._states, self._actions, self._picture = self._numbers()
        self._frames: dict[str, NDArray[np.uint8]] = {}
        self._store: PictureStore | None = None
        self._index_samples()

    @classmethod
    def open(cls, path: str | Path, robot: str = "", horizon: int = 8) -> "Dataset":
        """A built set; or, where `robot` is named, any recording, trained on in place (see `linked_set`).

        Raises `DatasetError` for a set that is not there, not ours, edited, or incomplete.
        """
        path = Path(path)
        if not (path / "meta" / SIDECAR).is_file():
            if robot:
                return cls.open(linked_set(path, robot, horizon))
            if not path.exists():
                build = f"athena data build RECORDING {path} --robot ROBOT"
                raise DatasetError(f"There is no dataset at '{path}'. Name one with --data, or build one: {build}.")
            raise DatasetError(
                f"'{path}' is not a built dataset: it has no meta/{SIDECAR}. Build one with: athena data build {path} "
                "OUT --robot ROBOT; or train on the recording in place by naming the robot: --robot ROBOT."
            )
        sidecar = read_json_object(path / "meta" / SIDECAR)
        if sidecar.get("version") != SIDECAR_VERSION:
            raise DatasetError(
                f"'{path}' was built as version {sidecar.get('version')} of the sidecar, this package reads "
                f"{SIDECAR_VERSION}. Build it again."
            )
        with guarded(f"'{path / 'meta' / SIDECAR}'"):
            if content_hash(sidecar) != sidecar["hash"]:
                raise DatasetError(f"'{path / 'meta' / SIDECAR}' was edited: its hash does not match. Build it again.")
            return cls(path, sidecar)

    def __len__(self) -> int:
        return len(self._sample_frame)

    @property
    def told(self) -> list[str]:
        """What its build had to say: episodes left out, findings of the checks, and notes, a line each."""
        said = self._said
        lines = [f"episode {i} is left out, it is broken: {why}" for i, why in dict(said["broken"]).items()]
        lines += [f"episode {i} is left out: {why}" for i, why in dict(said["failed"]).items()]
        lines += finding_lines(self.findings)
        return [*lines, *(f"note: {t}" for t in texts_of([Note.from_json(n) for n in said["notes"]]))]

    @property
    def findings(self) -> list[Finding]:
        """What the checks of its build found; frames are those of the recording."""
        return [finding_from(f) for f in self._said["findings"]]

    def numbers(self, episode: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """States `[T, S]` and actions `[T, D]` of an episode, in the robot's units."""
        begin, end = int(self._first[episode]), int(self._first[episode + 1])
        return self._states[begin:end], self._actions[begin:end]

    def __getitem__(self, index: int) -> Sample:
        frame = int(self._sample_frame[index])
        number = int(self._sample_episode[index])
        episode = self.episodes[number]
        rows, valid = chunk_rows(np.array([frame], np.intp), np.array([self._first[number + 1]], np.intp), self.horizon)
        within = frame - int(self._first[number])
        observation = Observation(
            images={camera: self._image(camera, frame) for camera in self.cameras},
            state=self._states[frame].copy(),
            instruction=self.instruction(index),
            time=within / self.robot.control_hz,
        )
        return Sample(
            observation=observation,
            chunk=self._actions[rows[0]],
            valid=valid[0],
            episode=str(episode["id"]),
            frame=within,
            kind="validation" if episode["split"] == "validation" else "train",
        )

    def texts(self, episode: int) -> tuple[str, ...]:
        """Every text of an episode that a sample may carry, once."""
        return tuple(dict.fromkeys(t for span in self._texts[episode] for t in span.alternatives))

    def spans(self, episode: int) -> Texts:
        """What is said in an episode, by its frames."""
        return self._texts[episode]

    def instruction(self, index: int) -> str:
        """What a sample is told; its images are not read."""
        number = int(self._sample_episode[index])
        within = int(self._sample_frame[index] - self._first[number])
        return alternatives_at(self._texts[number], within)[int(self._sample_text[index])]

    @property
    def episode_of_sample(self) -> NDArray[np.intp]:
        """Number of the episode that each sample is of."""
        return self._sample_episode

    @property
    def frame_of_sample(self) -> NDArray[np.intp]:
        """Number of the frame that each sample shows; samples of one frame differ in their words."""
        return self._sample_frame

    def training_numbers(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """States `[T, S]` and actions `[T, D]` of each episode of the training split: what statistics rest on."""
        for number, episode in enumerate(self.episodes):
            if episode["split"] != "validation":
                yield self.numbers(number)

    def cache_frames(self, size: tuple[int, int] | None = None) -> None:
        """Decode every image once into a memory map beside the set, resized to `size` (height, width) if given.

        One file for each camera and size, built whole or not at all. A second call, and any other process, finds it and
        only opens it: workers and ranks that come while it is built wait, so that each image is decoded once.
        """
        for camera in self.cameras:
            path, shape = self._cache_file(camera, size)
            if not path.is_file():
                with files.lock(path, DatasetError, wait=True):
                    if not path.is_file():
                        self._decode_all(camera, path, shape, size)
            frames = np.load(path, mmap_mode="r", allow_pickle=False)
            if frames.shape != shape or frames.dtype != np.uint8:
                raise DatasetError(f"'{path}' does not belong to this set: remove it, it is made again.")
            self._frames[camera] = frames

    def prepare_frames(self) -> None:
        """Decode the images before workers are started, where the disk has room; each of them then opens the file."""
        if self._cache_fits:
            self.cache_frames()

    def frames(self, camera: str) -> Iterator[Image]:
        """All images of one camera in order, decoded one by one."""
        lengths = [int(e["length"]) for e in self.episodes]
        for image in self.store.in_order(camera, lengths):
            yield self._sized(image, camera)

    @property
    def store(self) -> PictureStore:
        """The images where they are stored; opened when first needed. Raises `RecordingError` where they are gone."""
        if self._store is None:
            count = len(self.episodes)
            if self._linked is None:
                ids = [str(i) for i in range(count)]
                steps: list[NDArray[np.int64] | None] = [None] * count
                cameras: list[Mapping[str, str]] = [{}] * count
                recording = open_recording(self.path, format="lerobot")
            else:
                ids = [str(e["id"]) for e in self.episodes]
                cameras = [e["alignment"]["cameras"] for e in self.episodes]
                assert self._picture is not None
                steps = [self._picture[a:b] for a, b in itertools.pairwise(self._first)]
                link = self._linked
                recording = open_recording(
                    link["path"],
                    format=link["format"],
                    joints=tuple(link["joints"]),
                    fps=link["fps"],
                    state_joints=tuple(link.get("state_joints", ())),
                    articulations=tuple(link.get("articulations", ())),
                )
            self._store = PictureStore(recording, ids, cameras, steps)
        return self._store

    def _decode_all(self, camera: str, path: Path, shape: tuple[int, ...], size: tuple[int, int] | None) -> None:
        with files.whole_file(path, DatasetError) as temporary:
            frames = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            count = 0
            whole = self._cache_file(camera, None)[0]  # decoded for another size already
            decoded = np.load(whole, mmap_mode="r", allow_pickle=False) if whole.is_file() else self.frames(camera)
            for image in decoded:
                frames[count] = image if size is None or image.shape[:2] == size else resize(image, size)
                count += 1
            if count != shape[0]:
                raise DatasetError(f"'{self.path}' holds {count} images of '{camera}' for {shape[0]} frames.")
            frames.flush()
            del frames

    def _image(self, camera: str, frame: int) -> Image:
        if camera not in self._frames and self._cache_fits:
            self.cache_frames()
        if camera in self._frames:
            return np.array(self._frames[camera][frame])
        episode = int(np.searchsorted(self._first, frame, side="right")) - 1
        image = self.store.image(camera, episode, frame - int(self._first[episode]))
        return np.array(self._sized(image, camera))

    @functools.cached_property
    def _cache_fits(self) -> bool:
        """True where decoded images of all cameras are there already, or leave most of the disk free."""
        files = [self._cache_file(camera, None) for camera in self.cameras]
        needed = sum(int(np.prod(shape)) for path, shape in files if not path.is_file())
        return needed <= DISK_SHARE * shutil.disk_usage(self._cache_folder()).free

    def _cache_file(self, camera: str, size: tuple[int, int] | None) -> tuple[Path, tuple[int, ...]]:
        height, width = size or self._sizes[camera]
        path = self._cache_folder() / f"frames-{camera}-{height}x{width}.npy"
        return path, (int(self._first[-1]), height, width, 3)

    def _sized(self, image: Image, camera: str) -> Image:
        """Linked images come as they were recorded."""
        return image if image.shape[:2] == self._sizes[camera] else resize(image, self._sizes[camera])

    def _cache_folder(self) -> Path:
        folder = self.path / CACHE
        try:
            folder.mkdir(exist_ok=True)
        except OSError:  # a read-only set: the cache goes where this user may write
            folder = Path(tempfile.gettempdir()) / f"athena-{self.hash[:16]}"
            folder.mkdir(exist_ok=True)
        return folder

    def _numbers(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64] | None]:
        """States `[F, S]`, actions `[F, D]`, and in a linked set the recorded frame `[F]`, of all frames."""
        total = int(self._first[-1])
        states = np.zeros((total, self.robot.state_dim), np.float32)
        actions = np.zeros((total, self.robot.action_dim), np.float32)
        picture = np.zeros(total, np.int64) if self._linked is not None else None
        columns = [STATE, ACTION] + ([PICTURE] if picture is not None else [])
        done = 0
        for file in self._files:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=65536, columns=columns):
                stop = done + len(batch)
                if stop > total:
                    raise DatasetError(f"'{self.path}' holds more than the {total} frames its sidecar names.")
                for target, name in ((states, STATE), (actions, ACTION)):
                    target[done:stop] = batch.column(name).flatten().to_numpy().reshape(len(batch), -1)
                if picture is not None:
                    picture[done:stop] = batch.column(PICTURE).to_numpy()
                done = stop
        if done != total:
            raise DatasetError(f"'{self.path}' holds {done} frames, its sidecar names {total}. Build it again.")
        return states, actions, picture

    def _index_samples(self) -> None:
        frames, episodes, texts = [], [], []
        for number, episode in enumerate(self.episodes):
            for text, first in samples_of(self._texts[number], int(episode["length"]), self.stride):
                frames.append(first + self._first[number])
                episodes.append(np.full(len(first), number, np.intp))
                texts.append(np.full(len(first), text, np.intp))
        self._sample_frame = np.concatenate(frames)
        self._sample_episode = np.concatenate(episodes)
        self._sample_text = np.concatenate(texts)
        held_out = np.array([e["split"] == "validation" for e in self.episodes])
        is_validation = held_out[self._sample_episode]
        self.train: NDArray[np.intp] = np.flatnonzero(~is_validation)
        self.validation: NDArray[np.intp] = np.flatnonzero(is_validation)
        named = [str(e["kind"] or "") for e in self.episodes]
        kinds: list[list[str]] = []  # of each frame of each episode
        for name, episode, spans in zip(named, self.episodes, self._texts, strict=True):
            length = int(episode["length"])
            kinds.append([name] * length if name else first_of_frames(spans, length))
        within = self._sample_frame - self._first[self._sample_episode]
        self.kinds: tuple[str, ...] = tuple(kinds[i][k] for i, k in zip(self._sample_episode, within, strict=True))
        self.named_kinds: tuple[str, ...] = tuple(named[i] for i in self._sample_episode)
