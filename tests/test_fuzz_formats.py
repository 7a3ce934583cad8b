"""Damaged recordings: never a traceback, a hang or gigabytes; good episodes survive bad ones."""

import json
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from athena_vla.check import CheckConfig, check
from athena_vla.recordings.episode import BrokenEpisode, Episode
from athena_vla.recordings.formats import open_recording
from fuzz_worker import drain
from recordings import clean, write

SOURCES = {
    "isaac_folder": None,
    "lerobot": "g1_locomanip_arena_v21_novideo",
    "lerobot_v3": "gr1_native_v30",
    "hdf5": "isaaclab_arena_layout_camera/derived_gr1_camera.hdf5",
    "rlds": "rlds_bridge_octo_debug",
    "motion": "humanoid_amp_npz/amp_humanoid_run.npz",
}


@pytest.fixture(params=SOURCES)
def copy(request, tmp_path):
    name = SOURCES[request.param]
    target = tmp_path / "copy"
    if name is None:
        return write(target, clean(0, length=20), clean(1, length=20))
    source = request.getfixturevalue("shared") / "data" / name
    if source.is_file():
        target = target.with_suffix(source.suffix)
        shutil.copy(source, target)
    else:
        shutil.copytree(source, target)
    return target


def files_of(path) -> list:
    return [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and f.stat().st_size)


@pytest.mark.parametrize("seed", range(6))
def test_truncated_and_flipped_files(copy, seed):
    rng = np.random.default_rng(seed)
    for file in rng.permutation(np.array(files_of(copy), object))[:3]:
        data = bytearray(file.read_bytes())
        if seed % 2:
            data = data[: int(rng.integers(0, len(data)))]
        else:
            for place in rng.integers(0, len(data), 12):
                data[place] = int(rng.integers(0, 256))
        file.write_bytes(bytes(data))
    drain(copy)


@pytest.mark.parametrize("seed", range(4))
def test_metadata_with_other_types_keys_and_sizes(copy, seed):
    rng = np.random.default_rng(seed)
    poison = [None, -1, 10**12, "", "../../etc/passwd", [], {}, [[1]], True, "x" * 10_000, float("nan")]
    if copy.is_file():
        pytest.skip("one binary file: nothing but bytes to spoil")
    for file in [f for f in files_of(copy) if f.suffix in (".json", ".jsonl")]:
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        spoiled = []
        for line in lines:
            raw = json.loads(line)
            for key in list(raw):
                if rng.random() < 0.3:
                    raw[key] = poison[int(rng.integers(len(poison)))]
                elif rng.random() < 0.1:
                    raw[f"{key}_renamed"] = raw.pop(key)
            spoiled.append(json.dumps(raw))
        file.write_text("\n".join(spoiled))
    drain(copy)


def npy(shape: tuple[int, ...], descr: str = "<f4", body: bytes = b"\0\0\0\0") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize("content", [npy((10**12, 23)), npy((3, 23), "|O"), npy((10**12,), "|O"), b"", b"\x93NUMPY"])
def test_npz_headers_that_lie_and_pickles_cost_nothing(tmp_path, content):
    root = write(tmp_path / "in", clean(0), clean(1))
    with zipfile.ZipFile(root / "episode_0000/trajectory.npz", "w") as archive:
        archive.writestr("actions.npy", content)
    episodes = list(open_recording(root).episodes())
    assert isinstance(episodes[0], BrokenEpisode)
    assert isinstance(episodes[1], Episode)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    root = write(tmp_path / "in", clean(0))
    with zipfile.ZipFile(root / "episode_0000/trajectory.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("actions.npy", npy((8 * 10**5, 23), body=bytes(4 * 23 * 8 * 10**5)))
    broken = next(open_recording(root).episodes())
    assert isinstance(broken, BrokenEpisode)
    assert "nearly nothing" in broken.reason


def test_a_record_that_announces_a_terabyte(shared, tmp_path):
    shutil.copytree(shared / "data/rlds_bridge_octo_debug", tmp_path / "set")
    file = next((tmp_path / "set").rglob("*.tfrecord*"))
    file.write_bytes(struct.pack("<QI", 10**12, 0) + file.read_bytes()[:500])
    drain(tmp_path / "set")


def test_swapped_shapes_are_named(tmp_path):
    root = write(tmp_path / "in", clean(0), clean(1))
    path = root / "episode_0000/trajectory.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "actions": arrays["actions"].T, "observations": arrays["observations"][:7]})
    report = check(CheckConfig(input=root))
    assert ("episode.unreadable", "episode_0000") in {(f.code, f.episode) for f in report.findings}
    assert report.episodes == 1


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 12))])
def test_every_format_spoiled_in_five_ways_within_bounds_of_memory_and_time(tmp_path, seed):
    """Read, checked and converted in a process that may map 4 GiB and take 20 s of its own time per case."""
    worker = Path(__file__).with_name("fuzz_worker.py")
    words = [sys.executable, str(worker), str(seed), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_file_larger_than_memory_is_read_frame_by_frame(tmp_path):
    """46 GB of pictures, of which the file holds one: described and read by a process that may map 4 GiB."""
    import h5py

    with h5py.File(tmp_path / "long.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = np.zeros((50_000, 7), np.float32)
        camera = demo.create_dataset("camera_obs/head_rgb", (50_000, 480, 640, 3), "u1", chunks=(1, 480, 640, 3))
        camera[31_000] = 77
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)\n"
        "from athena_vla.recordings.formats import open_recording\n"
        "r = open_recording(sys.argv[1]); assert r.info().frames == 50_000\n"
        "assert (r.read('demo_0').cameras['head'][31_000] == 77).all()"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "long.hdf5")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
