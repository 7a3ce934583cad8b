"""What every format shares: options, guarded reading, natural order, still images, and npz files that cannot lie.

Knows no format. Nothing here unpickles, and nothing allocates on the word of a header alone.
"""

import contextlib
import functools
import io
import json
import math
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from athena_vla.embodiment import known_robots, load
from athena_vla.errors import AthenaError, LfsPointer, RecordingError
from athena_vla.recordings.action_terms import ActionTerms
from athena_vla.recordings.episode import BrokenEpisode, Episode, Image, RecordingInfo
from athena_vla.recordings.notes import Note

MAX_ARRAY_BYTES = 8 * 2**30  # one array of one episode; more is a damaged header or a file to split first
MAX_JSON_BYTES = 256 * 2**20
DEPTH_NAME = re.compile(r"(?:^|[_/.-])depth(?:$|[_/.-])|distance_to", re.IGNORECASE)
LFS_MARK = b"version https://git-lfs"
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Names Replicator gives to images that are not camera images.
NOT_RGB = re.compile(r"segmentation|normals|depth|distance_to|instance|motion_vectors|occlusion|bounding_box|skeleton")


@dataclass(frozen=True)
class OpenOptions:
    """What the user asserts about a recording that does not say it itself; () and None mean: nothing asserted."""

    joints: tuple[str, ...] = ()  # names of the action columns, in the recorder's order
    fps: float | None = None  # [Hz]
    state_joints: tuple[str, ...] = ()  # names of the state columns, in the recorder's order
    articulations: tuple[str, ...] = ()  # which of several recorded robots or parts are meant, in this order
    topics: Path | None = None  # TOML that says which topic of a bag is what
    terms: ActionTerms | None = None  # what an environment makes of recorded actions


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turn whatever a library raises on damaged bytes into one sentence about the file."""
    try:
        yield
    except AthenaError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0:1]
        raise RecordingError(f"{what} cannot be read: {type(error).__name__}: {(reason or [''])[0][:300]}") from error


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which frame 10000 comes after 9999 and demo_10 after demo_2."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in parts if p)


def is_lfs_pointer(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(LFS_MARK)) == LFS_MARK


def refuse_lfs(path: Path) -> None:
    if path.is_file() and is_lfs_pointer(path):
        raise LfsPointer(path)


def read_json(path: Path) -> Any:
    """The parsed file. Raises `RecordingError` for a missing, huge or malformed one."""
    if not path.is_file():
        raise RecordingError(f"There is no file '{path}'.")
    refuse_lfs(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise RecordingError(f"'{path}' is larger than {MAX_JSON_BYTES // 2**20} MiB; that is no metadata file.")
    with guarded(f"'{path}'"):
        return json.loads(path.read_text(encoding="utf-8"))


def read_json_object(path: Path) -> dict[str, Any]:
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise RecordingError(f"'{path}' holds a {type(raw).__name__}, expected an object {{...}}.")
    return raw


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise RecordingError(f"There is no file '{path}'.")
    refuse_lfs(path)
    with guarded(f"'{path}'"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for row in rows:
        if not isinstance(row, dict):
            raise RecordingError(f"'{path}' holds a line that is not an object: {str(row)[:80]}")
    return rows


def read_names(path: Path | None) -> tuple[str, ...]:
    """Column names from a JSON list, a text file with one name per line, or the columns of a robot that is named.

    A robot's columns are those of its commands: its joints, then its commanded channels.
    """
    if path is None:
        return ()
    if path.suffix == ".toml" or (str(path) in known_robots() and not path.exists()):
        return load(path).command_names
    if path.suffix == ".json":
        names = read_json(path)
    elif path.is_file():
        names = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    else:
        robots = ", ".join(known_robots())
        raise RecordingError(f"There is no joint list '{path}'. A file with one name per line, or a robot: {robots}.")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise RecordingError(f"'{path}' is not a list of joint names.")
    return tuple(names)


def read_list(text: str) -> tuple[str, ...]:
    """The names in `left_arm,right_arm`."""
    return tuple(n.strip() for n in text.split(",") if n.strip())


@functools.lru_cache(maxsize=64)
def ask_for_names(width: int) -> str:
    """What to do about `width` columns without names, with the known robots that have as many joints."""
    fits = [r for r in known_robots() if len(load(r).joints) == width and not load(r).channels]
    known = f", or a known robot with {width} joints: {', '.join(f'--joints {r}' for r in fits)}" if fits else ""
    return f"name them with --joints FILE{known}"


def inside(root: Path, relative: str, what: str) -> Path:
    """`root / relative`, refused where metadata points outside the recording."""
    path = root / relative
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise RecordingError(f"{what} points outside the recording: '{relative}'.")
    return path


def npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Array name -> (shape, dtype), read from the headers alone and checked against the archive's own sizes."""
    refuse_lfs(path)
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    with guarded(f"'{path}'"), zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            name = entry.filename.removesuffix(".npy")
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                if version == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
            if dtype.hasobject:
                raise RecordingError(f"'{path}': array '{name}' holds pickled objects; save plain numbers instead.")
            claimed = math.prod(shape) * dtype.itemsize
            if claimed > entry.file_size or claimed > MAX_ARRAY_BYTES:
                raise RecordingError(
                    f"'{path}': array '{name}' claims shape {list(shape)} ({claimed} bytes), the archive holds "
                    f"{entry.file_size}."
                )
            # Deflate cannot exceed about 1030:1; anything near it is a bomb, not a trajectory.
            if entry.file_size > 64 * 2**20 and entry.file_size > 500 * max(entry.compress_size, 1):
                raise RecordingError(
                    f"'{path}': array '{name}' unpacks to {entry.file_size} bytes from nearly nothing."
                )
            found[name] = (shape, dtype)
    return found


def npz_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The named arrays that exist, read without pickle."""
    headers = npz_headers(path)
    with guarded(f"'{path}'"), np.load(path, allow_pickle=False) as archive:
        return {n: archive[n] for n in names if n in headers}


def save_arrays(file: IO[bytes] | Path, arrays: Mapping[str, NDArray[Any]], *, compressed: bool = False) -> None:
    """Write an npz of plain arrays. Raises `RecordingError` for objects, which would be pickled.

    `numpy.savez(allow_pickle=False)` does the same from numpy 2.1 on; before, it writes an array of that name.
    """
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise RecordingError(f"Array '{name}' holds objects; only numbers and texts are written.")
    write = np.savez_compressed if compressed else np.savez
    write(file, **dict(arrays))  # pyright: ignore[reportArgumentType]


def decode_image(data: bytes, what: str) -> Image:
    """RGB pixels of an encoded image; alpha and palettes are flattened to RGB."""
    with guarded(what), PillowImage.open(io.BytesIO(data)) as picture:
        if picture.width * picture.height > 2**26:
            raise RecordingError(f"{what} claims {picture.width}x{picture.height} pixels; that is no camera frame.")
        if picture.mode in DEEP_MODES:
            raise RecordingError(f"{what} holds more than 8 bits a pixel: it is a depth image, not colour.")
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def is_depth_image(data: bytes | Path) -> bool:
    """True for an encoded image with more than 8 bits a pixel, such as depth in millimetres; its header says so."""
    try:
        with PillowImage.open(data if isinstance(data, Path) else io.BytesIO(data)) as picture:
            return picture.mode in DEEP_MODES
    except (OSError, ValueError, SyntaxError):
        return False  # damaged: reading it says so


def image_size(data: bytes | Path, what: str) -> tuple[int, int]:
    """(height, width) from the header alone."""
    with guarded(what), PillowImage.open(data if isinstance(data, Path) else io.BytesIO(data)) as picture:
        return picture.height, picture.width


class StillFrames(ABC):
    """Frames that are stored as single encoded images, so that a writer may copy their bytes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encoded(self, index: int, /) -> bytes:
        """The stored PNG or JPEG. Raises `RecordingError`."""

    @abstractmethod
    def describe(self, index: int, /) -> str:
        """What to call this frame in a message."""

    def __getitem__(self, index: int, /) -> Image:
        return decode_image(self.encoded(index), self.describe(index))


@dataclass(frozen=True)
class ImageFiles(StillFrames):
    """One image file per frame; None where the numbering says that a file is missing."""

    files: tuple[Path | None, ...]
    where: str
    first: int = 0  # number in the name of the first file

    def __len__(self) -> int:
        return len(self.files)

    def for_rows(self, rows: int) -> "ImageFiles":
        """The same images, with the places of a lost head where the last number says that there was one.

        Recorders count from 0 or from 1: images 25..119 of 120 rows, or 26..120, belong to the last 95.
        """
        last = self.first + len(self.files) - 1
        lost = self.first - (last - (rows - 1)) if last in (rows - 1, rows) else 0
        if self.first <= 1 or lost <= 0 or len(self.files) >= rows:
            return self
        return replace(self, files=(*[None] * lost, *self.files), first=self.first - lost)

    def describe(self, index: int, /) -> str:
        return f"frame {index} of {self.where}"

    def encoded(self, index: int, /) -> bytes:
        path = self.files[index]
        if path is None:
            raise RecordingError(f"Frame {index} is missing in {self.where}.")
        refuse_lfs(path)
        with guarded(f"'{path}'"):
            return path.read_bytes()


def image_files(folder: Path) -> ImageFiles:
    """The camera images of a folder in numeric order; a gap in the numbering keeps its place as a missing frame.

    Pairing by number and not by rank: an image the recorder lost must not shift all that follow.
    """
    names = [
        e.name for e in os.scandir(folder) if e.name.lower().endswith(IMAGE_SUFFIXES) and not NOT_RGB.search(e.name)
    ]
    names.sort(key=natural_key)
    numbers = [re.findall(r"\d+", Path(n).stem) for n in names]
    prefixes = {re.sub(r"\d+$", "", Path(n).stem) for n in names}
    if not names or len(prefixes) > 1 or not all(numbers):
        return ImageFiles(tuple(folder / n for n in names), f"'{folder}'")
    last = [int(n[-1]) for n in numbers]
    span = last[-1] - last[0] + 1
    if span > 4 * len(names) + 100:  # numbered by time stamp or simulation step, not by frame
        return ImageFiles(tuple(folder / n for n in names), f"'{folder}'")
    start = last[0]  # recorders count from 0 or from 1; see `for_rows` for a lost head
    places: list[Path | None] = [None] * (last[-1] - start + 1)
    for number, name in zip(last, names, strict=True):
        if places[number - start] is not None:
            raise RecordingError(f"'{folder}' has two images with number {number}.")
        places[number - start] = folder / name
    return ImageFiles(tuple(places), f"'{folder}'", start)


def colour_only(cameras: Mapping[str, StillFrames], episode: str, notes: list[Note]) -> dict[str, StillFrames]:
    """The cameras whose images are colour; a stream of depth, by its name or its first image, is noted."""
    kept: dict[str, StillFrames] = {}
    for name, stream in cameras.items():
        if DEPTH_NAME.search(name) or _first_is_depth(stream):
            notes.append(depth_note(name, episode))
        else:
            kept[name] = stream
    return kept


def depth_note(name: str, episode: str = "") -> Note:
    """What to say of a stream of depth: to a policy that sees colour it is white, or black."""
    return Note("camera.depth", f"'{name}' holds depth, not colour, and is left out", (name,), episode)


def _first_is_depth(stream: StillFrames) -> bool:
    for index in range(min(len(stream), 5)):
        try:
            return is_depth_image(stream.encoded(index))
        except RecordingError:
            continue  # a lost frame says nothing
    return False


def unused(names: Iterable[str], what: str, episode: str = "") -> list[Note]:
    """A note that names what a reader found and did not take; none where there is nothing."""
    left = tuple(sorted(names))
    said = f"{len(left)} recorded {what} are not read: {', '.join(left)}"
    return [Note("stream.unused", said, left, episode)] if left else []


def broken_note(episode: BrokenEpisode) -> Note:
    """What to say of an episode that cannot be read."""
    return Note("episode.broken", f"{episode.id} cannot be read: {episode.reason}", episode=episode.id)


class BaseRecording(ABC):
    """A recording on disk; a format implements `info`, `ids` and `read`."""

    format = ""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        self.path = path
        self.options = options

    @abstractmethod
    def info(self) -> RecordingInfo: ...

    @abstractmethod
    def ids(self) -> tuple[str, ...]: ...

    def whole_notes(self) -> tuple[Note, ...]:
        """What opening the recording said of it as a whole; costs no reading of episodes."""
        return ()

    @abstractmethod
    def read(self, episode_id: str, /) -> Episode: ...

    def episodes(self) -> Iterator[Episode | BrokenEpisode]:
        for episode_id in self.ids():
            try:
                yield self.read(episode_id)
            except AthenaError as error:
                yield BrokenEpisode(episode_id, f"{self.format}:{self.path}#{episode_id}", str(error), error.code)

    def names(self, kind: str, width: int, recorded: Sequence[str] | None) -> tuple[str, ...]:
        """Column names: recorded, else asserted by the user, else placeholders that no robot has.

        Raises `RecordingError` for names that are not as many as there are columns.
        """
        if recorded is not None:
            if len(recorded) != width:
                names = ", ".join(map(str, recorded))
                raise RecordingError(f"'{self.path}': {width} {kind} columns have {len(recorded)} names: {names}.")
            return tuple(str(n) for n in recorded)
        if kind == "action" and self.options.joints:
            if len(self.options.joints) != width:
                raise RecordingError(
                    f"'{self.path}': {width} {kind} columns, but --joints names {len(self.options.joints)}: "
                    f"{', '.join(self.options.joints)}."
                )
            return self.options.joints
        if kind == "state" and self.options.state_joints and width:
            if len(self.options.state_joints) != width:
                raise RecordingError(
                    f"'{self.path}': {width} state columns, but --state-joints names {len(self.options.state_joints)}."
                )
            return self.options.state_joints
        return tuple(f"{kind}_{i:02d}" for i in range(width))


def are_placeholders(names: Sequence[str]) -> bool:
    """True where the recording did not name its columns."""
    return bool(names) and all(re.fullmatch(r"(action|state)_\d\d+|motor_\d+", n) for n in names)


def text_list(value: Any) -> list[str]:
    """The strings in a string or a list of strings, without repetitions or blanks."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return list(dict.fromkeys(v.strip() for v in values if isinstance(v, str) and v.strip()))


def optional_bool(value: Any) -> bool | None:
    return bool(value) if isinstance(value, bool | np.bool_) or value in (0, 1) else None


YES, NO = ("true", "yes", "success", "successful", "succeeded", "1"), ("false", "no", "failure", "failed", "fail", "0")


def success_of(value: Any) -> bool | None:
    """A success flag however it is stored: a flag, a text such as "failure", or one of them per step; None: unsaid."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in YES else False if word in NO else None
    if isinstance(value, list | tuple | np.ndarray):
        said = [found for v in np.asarray(value).reshape(-1).tolist() if (found := success_of(v)) is not None]
        return any(said) if said else None
    if isinstance(value, float):
        return bool(value) if value in (0.0, 1.0) else None
    return optional_bool(value)
