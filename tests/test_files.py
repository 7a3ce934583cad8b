"""Whole files and folders: whatever fails or is killed, the name holds the old or the new, and can be written again."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from athena_vla import files
from athena_vla.errors import AthenaError, BundleError
from athena_vla.files import faults, whole

OLD, NEW = {"a": b"old" * 50, "in/b": b"old"}, {"a": b"new" * 90, "in/b": b"n", "in/deep/c": b"new"}


def fill(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def content(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def refusal(work: Callable[[], object]) -> str:
    """The sentence that the work ends with; empty where it succeeds. Any other error passes."""
    try:
        work()
    except AthenaError as error:
        return str(error)
    return ""


def replace(path: Path) -> None:
    with files.whole_folder(path) as folder:
        fill(folder, NEW)


@pytest.fixture(params=["exchange", "two steps"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to replace a folder: that of Linux, and that of file systems that cannot exchange names."""
    if request.param == "two steps":
        monkeypatch.setattr(whole, "_exchange", lambda one, two: False)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("before", [None, OLD])
def test_every_file_operation_of_a_folder_fails_once(tmp_path: Path, before: dict[str, bytes] | None) -> None:
    at = 0
    while True:
        at += 1
        root = tmp_path / str(at)
        path = root / "out"
        root.mkdir()
        if before is not None:
            path.mkdir()
            fill(path, before)
        with faults.failing(at, root) as fault:
            said = refusal(lambda path=path: replace(path))
        if not fault.hit:
            break
        assert not said or (str(path) in said and "No space left" in said)
        assert (content(path) if path.exists() else None) in (before, NEW), fault.hit
        replace(path)
        assert content(path) == NEW
        assert [f.name for f in root.iterdir()] == ["out"], fault.hit
    assert at > 10  # three files, three folders, their syncs and the rename


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from athena_vla import files
    from athena_vla.files import whole
    from test_files import replace
    if sys.argv[2] == "two steps":
        whole._exchange = lambda one, two: False
    with files.lock(Path(sys.argv[1])):
        replace(Path(sys.argv[1]))
    """
)


def killed(path: Path, at: int, way: str) -> bool:
    """Whether the writer was killed at its operation `at`."""
    environment = {**os.environ, faults.VARIABLE: f"kill:{at}:{path.parent}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run([sys.executable, "-c", WRITER, str(path), way], env=environment, check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "two steps"])
def test_killed_at_every_file_operation(tmp_path: Path, way: str) -> None:
    at, named = 0, 0
    while True:
        at += 1
        path = tmp_path / str(at) / "out"
        path.mkdir(parents=True)
        fill(path, OLD)
        if not killed(path, at, way):
            break
        named += len(files.leftovers(path))
        files.settle(path)
        assert content(path) in (OLD, NEW)
        assert files.leftovers(path) == []
        with files.lock(path):
            replace(path)
        assert content(path) == NEW
        assert [f.name for f in path.parent.iterdir()] == ["out"]
    assert at > 10
    assert named > 5


def test_a_file_is_written_whole_with_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_json(tmp_path / "new" / "a.json", {"b": [1, 2.5, None]})
        replace(tmp_path / "folder")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "a.json").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
    assert files.read_json(tmp_path / "new" / "a.json") == {"b": [1, 2.5, None]}


def test_every_file_operation_of_a_file_fails_once(tmp_path: Path) -> None:
    path, at = tmp_path / "a.json", 0
    files.write_json(path, "old")
    while True:
        at += 1
        with faults.failing(at, tmp_path) as fault:
            said = refusal(lambda: files.write_json(path, "new", BundleError))
        if not fault.hit:
            break
        assert not said or "No space left" in said
        assert files.read_json(path) in ("old", "new")
        assert [f.name for f in tmp_path.iterdir() if f != path] == [] or "remove" in fault.hit
        files.write_json(path, "old")
        assert list(tmp_path.iterdir()) == [path]
    assert at > 4


def test_an_error_in_the_stage_leaves_the_old_and_passes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    fill(path, OLD)

    def broken() -> None:
        with files.whole_folder(path) as folder:
            fill(folder, NEW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert content(path) == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_about_the_name_is_not_called_a_failed_write(tmp_path: Path) -> None:
    def reading() -> None:
        with files.whole_folder(tmp_path / "out"):
            (tmp_path / "input").read_bytes()

    with pytest.raises(FileNotFoundError):
        reading()


def test_a_leftover_that_is_being_written_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with files.whole_folder(path) as one:
        fill(one, OLD)
        assert files.leftovers(path) == []
        with files.whole_folder(path) as two:
            assert one != two
            fill(two, NEW)
        assert content(path) == NEW
        assert content(one) == OLD
    assert content(path) == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_one_name_leave_one_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    threads = [
        threading.Thread(target=lambda i=i: [files.write_json(path, [i] * 500) for _ in range(8)]) for i in "xyz"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.read_json(path) in [[i] * 500 for i in "xyz"]
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_are_named_with_their_size_and_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "out"
    (tmp_path / ".out.writing").mkdir()
    (tmp_path / ".out.writing" / "half").write_bytes(b"x" * 2_500_000)
    (tmp_path / ".out.writing-3").write_bytes(b"y" * 100)
    (tmp_path / ".out.yaml").write_text("the user's own")
    (tmp_path / ".out.old").mkdir()
    fill(tmp_path / ".out.old", OLD)
    assert [f"{x}" for x in files.leftovers(path)][1:] == [
        f"'{tmp_path / '.out.writing'}' (2.5 MB)",
        f"'{tmp_path / '.out.writing-3'}' (0.0 MB)",
    ]
    files.settle(path)
    assert content(path) == OLD  # nothing had the name: the replacement was killed half-way
    assert sorted(f.name for f in tmp_path.iterdir()) == [".out.yaml", "out"]
    assert f"removed what an interrupted run left: '{tmp_path / '.out.writing'}' (2.5 MB)" in caplog.text


def test_one_rule_for_an_out_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def free(overwrite: bool = False) -> None:
        files.require_free(
            path, overwrite=overwrite, what="a set", ours=lambda p: (p / "a").is_file(), error=BundleError
        )

    free()
    path.mkdir()
    free()
    (path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="exists and is not a set"):
            free(overwrite)
    (path / "a").touch()
    with pytest.raises(BundleError, match="exists already.* --overwrite"):
        free()
    free(overwrite=True)


def test_json_is_read_with_sentences(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    for text, says in (
        (b"{", "is not a JSON file"),
        (b"\xff\xfe{", "is not a JSON file"),
        (b"[1]", "not a JSON object"),
    ):
        bad.write_bytes(text)
        with pytest.raises(BundleError, match=says):
            files.read_json_object(bad, BundleError)
    with pytest.raises(BundleError, match="There is no file"):
        files.read_json(tmp_path / "none.json", BundleError)


def test_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the SHA-256 of FIPS 180-2, appendix B.1
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
    fill(tmp_path / "one", OLD)
    fill(tmp_path / "two", dict(reversed(OLD.items())))
    assert files.sha256(tmp_path / "one") == files.sha256(tmp_path / "two")
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "c")
    assert files.sha256(tmp_path / "one") != files.sha256(tmp_path / "two")
    assert files.fingerprint({"a": 1, "b": [2]}) == files.fingerprint({"b": [2], "a": 1})


HOLDER = "import sys, time\nfrom pathlib import Path\nfrom athena_vla import files\n"
HOLDER += "with files.lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


def holder(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_a_dead_ones_lock_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with holder(path) as process:
        try:
            with pytest.raises(BundleError, match=rf"process {process.pid}, started \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"):
                files.lock(path, BundleError).__enter__()
        finally:
            process.kill()
    assert (tmp_path / ".out.lock").is_file()
    with files.lock(path), files.lock(path):  # a stage inside a stage is one run
        note = json.loads((tmp_path / ".out.lock").read_text())
        assert note["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_locked_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="could not be written"):
        files.lock(tmp_path / "file" / "out", BundleError).__enter__()
    with files.lock(tmp_path / "file"):
        pass


def test_the_lock_fails_with_a_sentence_and_is_not_kept(tmp_path: Path) -> None:
    with faults.failing(1, tmp_path), pytest.raises(BundleError, match="No space left"):
        files.lock(tmp_path / "out", BundleError).__enter__()
    with files.lock(tmp_path / "out"):
        pass
