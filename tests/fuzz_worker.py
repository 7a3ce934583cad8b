"""Spoils small recordings of every format and does with them all that a user can, within bounds of memory and time.

Run in a process of its own: `fuzz_worker.py SEED FOLDER`. Ends with 1 and a traceback where anything but one of our own
errors comes out, where a case takes too long, or where something half-written stands at a target.
"""

import contextlib
import json
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from athena_vla.check import CheckConfig, check
from athena_vla.errors import AthenaError
from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.episode import BrokenEpisode, Episode
from athena_vla.recordings.formats import open_recording
from foreign import FOREIGN, build

MEMORY = 4 * 2**30  # [bytes] of address space: the libraries alone map about two
SECONDS = 20  # per case
POISON: tuple[Any, ...] = (
    None, -1, 0, 10**12, 1e308, float("nan"), "", "../../../etc/passwd", "/etc/passwd", [], {}, [[1], [2, 3]], True,
    "x" * 5000,
)  # fmt: skip
TARGETS = ("lerobot_v3", "lerobot_v21", "rlds", "isaac_folder")


def files(path: Path, *suffixes: str) -> list[Path]:
    found = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return [f for f in found if not suffixes or f.suffix in suffixes]


def truncate(path: Path, rng: random.Random) -> None:
    file = rng.choice(files(path))
    file.write_bytes(file.read_bytes()[: rng.randrange(max(file.stat().st_size, 1))])


def flip(path: Path, rng: random.Random) -> None:
    file = rng.choice(files(path))
    data = bytearray(file.read_bytes())
    for _ in range(min(12, len(data))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    file.write_bytes(bytes(data))


def lose(path: Path, rng: random.Random) -> None:
    file = rng.choice(files(path))
    if file != path:
        file.unlink()
    if rng.random() < 0.3 and file != path:
        file.mkdir()  # a folder where a file should be


def poison(path: Path, rng: random.Random) -> None:
    """Other values, renamed keys, and JSON nested beyond any parser's patience."""
    chosen = files(path, ".json", ".jsonl")
    if not chosen:
        flip(path, rng)
        return
    file = rng.choice(chosen)
    if rng.random() < 0.1:
        file.write_text("[" * 100_000)
        return
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    file.write_text("\n".join(json.dumps(_spoiled(json.loads(x), rng)) for x in lines))


def _spoiled(value: Any, rng: random.Random) -> Any:
    if rng.random() < 0.06:
        return rng.choice(POISON)
    if isinstance(value, dict):
        return {k + "_" * (rng.random() < 0.04): _spoiled(v, rng) for k, v in value.items()}
    return [_spoiled(v, rng) for v in value] if isinstance(value, list) and len(value) < 50 else value


def reshape(path: Path, rng: random.Random) -> None:
    """Arrays of other shapes and kinds: transposed, cut, objects that need pickle, text, and 10^12 rows of nothing."""
    changes: tuple[Callable[[Any], Any], ...] = (
        lambda a: a.T, lambda a: a[:3], lambda a: a[:0], lambda a: np.array([{"a": 1}, None], dtype=object),
        lambda a: np.array(["text"] * 3), lambda a: np.zeros(a.shape, complex), lambda a: np.float32(1.0),
        lambda a: np.full(a.shape, np.nan),
    )  # fmt: skip
    change = rng.choice(changes)
    if npz := files(path, ".npz"):
        file = rng.choice(npz)
        with np.load(file) as loaded:
            arrays = dict(loaded)
        name = rng.choice(sorted(arrays))
        np.savez(file, **{**arrays, name: change(np.atleast_1d(arrays[name]))})  # pyright: ignore[reportArgumentType]
        return
    if not (hdf5 := files(path, ".hdf5")):
        truncate(path, rng)
        return
    with h5py.File(hdf5[0], "a") as file:
        names: list[str] = []
        file.visititems(lambda n, i: names.append(n) if isinstance(i, h5py.Dataset) else None)
        name = rng.choice(names)
        values = file[name][()]  # pyright: ignore[reportIndexIssue]
        del file[name]
        kind = rng.randrange(4)
        if kind == 0:
            file.create_dataset(name, (10**12, 23), "f4", chunks=(1024, 23))
        elif kind == 1:
            file[name] = h5py.ExternalLink("/etc/passwd", "x")
        elif kind == 2:
            file[name] = b"text"
        else:
            changed = np.asarray(change(np.atleast_1d(values)))
            file[name] = changed if changed.dtype.kind in "fiubc" else b"text"


def drain(path: Path) -> None:
    """Do with a recording all that reading can do; only our own errors may come out."""
    with contextlib.suppress(AthenaError):
        recording = open_recording(path)
        with contextlib.suppress(AthenaError):
            recording.info()
        for item in recording.episodes():
            assert isinstance(item, Episode | BrokenEpisode)
            for stream in item.cameras.values() if isinstance(item, Episode) else ():
                for frame in (0, len(stream) - 1):
                    with contextlib.suppress(AthenaError):
                        assert stream[frame].dtype == np.uint8


def everything(path: Path, out: Path, target: Any) -> None:
    """All that reading, checking and converting do; only our own errors may come out."""
    drain(path)
    report = check(CheckConfig(input=path))
    assert report.exit_status in (0, 1, 2)
    assert report.exit_status != 2 or report.findings
    try:
        result = convert(ConvertConfig(input=path, out=out, to=target))
    except AthenaError:
        assert not out.exists(), "a conversion failed and left something at its target"
    else:
        again = open_recording(out)
        assert len(again.ids()) == result.episodes, "what was written does not hold what was said"
        for episode_id in again.ids():
            again.read(episode_id)
    assert not [p for p in out.parent.iterdir() if p.name.startswith(f".{out.name}")], "temporary files are left"


def main(seed: int, folder: Path) -> int:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def too_long(*_: object) -> None:
        raise TimeoutError(f"a case took more than {SECONDS} s")

    signal.signal(signal.SIGVTALRM, too_long)  # of its own time: a busy machine is no fault
    failed = 0
    for name in FOREIGN:
        clean = build(name, folder / f"clean {name}")
        for spoil in (truncate, flip, lose, poison, reshape):
            rng = random.Random(f"{seed} {name} {spoil.__name__}")
            case = folder / f"{name} {spoil.__name__}"
            case.mkdir()
            path = case / clean.name
            (shutil.copy if clean.is_file() else shutil.copytree)(clean, path)
            spoil(path, rng)
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            try:
                everything(path, case / "out", rng.choice(TARGETS))
            except BaseException:
                failed += 1
                print(f"--- seed {seed}: {name}, {spoil.__name__}", file=sys.stderr)
                traceback.print_exc()
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            shutil.rmtree(case)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
