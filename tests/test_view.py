"""Pages of `athena data view` against the recorded files, which h5py and pyarrow read and never our readers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from athena_vla import cli, embodiment
from athena_vla.check.findings import finding
from athena_vla.dataset import build
from athena_vla.dataset.build import BuildConfig
from athena_vla.errors import AthenaError, RecordingError, UnknownName, ViewError
from athena_vla.recordings.streams import Clock, Stream
from athena_vla.view import ViewConfig, view
from athena_vla.view.column_plots import plot_groups
from athena_vla.view.recorded_timeline import timeline_of
from recordings import clean, edited, write
from view_pages import JOINTS, LENGTH, RATE, Page, demonstrations, strokes


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return demonstrations(tmp_path_factory.mktemp("view") / "demos.hdf5")


@pytest.fixture(scope="module")
def page(file, tmp_path_factory) -> Page:
    out = tmp_path_factory.mktemp("pages") / "out"
    done = view(ViewConfig(input=file, out=out, show="pages", robot="toy", fps=RATE))
    assert done.episodes == ("demo_0", "demo_1")
    assert sorted(p.name for p in out.iterdir()) == ["0000-demo_0.html", "0001-demo_1.html", "index.html"]
    return Page.read(out / "0001-demo_1.html")


def test_times_values_and_images_are_those_of_the_file(file, page):
    with h5py.File(file) as raw:
        actions, states = raw["data/demo_1/actions"][()], raw["data/demo_1/obs/robot0_joint_pos"][()]
    np.testing.assert_allclose(page.data["times"], np.arange(LENGTH) / RATE, rtol=1e-4)
    for k, name in enumerate(JOINTS):
        np.testing.assert_allclose(page.column(name, "target"), actions[:, k], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(page.column(name, "state"), states[:, k], rtol=1e-4, atol=1e-6)
    assert page.data["cameras"][0]["frames"] == list(range(LENGTH))
    for frame in (0, 7, LENGTH - 1):
        assert page.grey(0, frame) == pytest.approx(5 * frame, abs=2)


def test_curves_and_limits_lie_where_the_numbers_are(file, page):
    """Two points of a drawing give its scale; every other point, and both limits, must keep to it."""
    with h5py.File(file) as raw:
        target = raw["data/demo_1/actions"][:, 0]
    drawing = page.plot("base")
    [line] = strokes(drawing, "target")
    np.testing.assert_allclose(line[:, 0], np.arange(LENGTH) / LENGTH * 520, atol=0.06)
    slope, height = np.polyfit(target, line[:, 1], 1)
    assert slope < 0
    np.testing.assert_allclose(line[:, 1], slope * target + height, atol=0.06)
    places = [float(y) for y in drawing.split('class="limit"')[1:] for y in [y.split('y1="')[1].split('"')[0]]]
    np.testing.assert_allclose(places, [slope * -1.5 + height, slope * 1.5 + height], atol=0.5)
    shift = [float(x) for x in drawing.split('data-whole="matrix(')[1].split(")")[0].split()]
    seen = [shift[3] * y + shift[5] for y in places]
    assert 90 > seen[0] > seen[1] > 0  # the whole range brings both limits into sight


def test_nothing_is_fetched_and_nothing_recorded_becomes_markup(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    write(tmp_path / "rec", edited(clean(0), instructions=(evil,)))
    view(ViewConfig(input=tmp_path / "rec", out=tmp_path / "out", show="pages"))
    for path in (tmp_path / "out").iterdir():
        text = path.read_text()
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "default-src 'none'" in text
        assert "http://" not in text
        assert "https://" not in text
    assert Page.read(next((tmp_path / "out").glob("0000*"))).text.count("<script") == 3


def test_a_page_keeps_its_size_and_says_what_is_left_out(tmp_path):
    path = tmp_path / "noise.hdf5"
    demonstrations(path, count=1, length=60, size=(240, 320))
    with h5py.File(path, "a") as raw:
        noise = np.random.default_rng(0).integers(0, 256, (60, 240, 320, 3), dtype=np.uint8)
        noise[:, :120] = (4 * np.arange(60, dtype=np.uint8))[:, None, None, None]
        raw["data/demo_0/obs/front_image"][...] = noise
    view(ViewConfig(input=path, out=tmp_path / "out", show="pages", fps=RATE, megabytes=0.5, checks="none"))
    [written] = (tmp_path / "out").glob("0000*")
    page = Page.read(written)
    assert 250_000 < written.stat().st_size <= 500_000
    frames = page.data["cameras"][0]["frames"]
    assert 2 < len(frames) < 60
    assert len(set(np.diff(frames))) == 1
    assert f"{len(frames)} of 60 images are on this page" in page.text
    assert len(page.data["times"]) == 60  # curves and slider lose nothing
    with pytest.raises(ViewError, match="alone need 0.2"):
        view(ViewConfig(input=path, out=tmp_path / "small", fps=RATE, megabytes=0.01))


def test_what_is_no_number_is_a_gap(tmp_path, toy):
    episode = clean(0)
    actions = episode.actions.copy()
    actions[10:12, 0] = np.nan
    timeline = timeline_of(replace(episode, actions=actions), toy, (), ())
    plot = next(p for g in plot_groups(timeline) for p in g.plots if p.name == "base")
    targets = [line.points.split() for line in plot.lines if line.kind == "target"]
    assert [len(t) for t in targets] == [10, 48]
    write(tmp_path / "rec", replace(episode, actions=actions))
    view(ViewConfig(input=tmp_path / "rec", out=tmp_path / "out", show="pages", robot="toy"))
    [written] = (tmp_path / "out").glob("0000*")
    assert np.isnan(Page.read(written).column("base", "target")[10:12]).all()


def test_a_spike_survives_in_a_long_curve(toy):
    episode = clean(0, length=20_000)
    states = episode.states.copy()
    states[12_345, 1] = 9.0
    timeline = timeline_of(replace(episode, states=states), toy, (), ())
    plot = next(p for g in plot_groups(timeline) for p in g.plots if p.name == "shoulder")
    [line] = [line.points for line in plot.lines if line.kind == "state"]
    points = np.array([[float(v) for v in p.split(",")] for p in line.split()])
    assert len(points) < 3_000
    top = points[points[:, 1].argmin()]
    assert top[0] == pytest.approx(12_345 / 20_000 * 520, abs=0.1)
    assert plot.is_beyond


def test_streams_keep_their_own_clock_and_spans_their_seconds(toy):
    """A force at 50 Hz beside joints at 10 Hz; a finding of frames 20 to 30 lies from 2 to 3 s."""
    clock = Clock(100.0 + np.arange(300) / 50, 50.0)
    stamps = 100.0 + np.arange(60) / 10
    force = Stream(np.sin(np.arange(300))[:, None], clock)
    episode = edited(clean(0), timestamps=stamps, streams={"force": force})
    found = [finding("joint.jump", "It jumps.", episode.id, (20, 30)), finding("clock.missing", "None.", None)]
    timeline = timeline_of(episode, toy, (), found)
    column = next(c for c in timeline.columns if c.name == "force")
    assert column.state is not None
    np.testing.assert_allclose(column.state.times, np.arange(300) / 50, atol=1e-9)
    [span] = timeline.spans_of("finding")
    assert (span.start, span.end, span.label, span.severity) == (2.0, pytest.approx(3.0), "joint.jump", "warning")
    assert [r.code for r in timeline.remarks] == ["clock.missing"]
    [text] = timeline.spans_of("text")
    assert (text.start, text.end) == (0.0, pytest.approx(6.0))


def test_a_set_shows_what_is_trained_on_under_the_names_of_its_recording(file, tmp_path):
    options = {"robot": "toy", "fps": RATE, "validation": 0.5, "instruction": "touch"}
    build.build(BuildConfig(input=file, out=tmp_path / "set", allow=("camera.uniform",), **options))
    view(ViewConfig(input=tmp_path / "set", out=tmp_path / "out", show="pages", episodes=("demo_1",)))
    [written] = (tmp_path / "out").glob("0000*")
    page = Page.read(written)
    rows = pq.read_table(next((tmp_path / "set" / "data").rglob("*.parquet"))).to_pydict()
    mine = [i for i, e in enumerate(rows["episode_index"]) if e == 1]
    assert page.data["id"] == "demo_1"
    np.testing.assert_allclose(page.data["times"], [rows["timestamp"][i] for i in mine], atol=1e-4)
    for k, name in enumerate(JOINTS):
        np.testing.assert_allclose(page.column(name, "target"), [rows["action"][i][k] for i in mine], rtol=1e-4)
        state = [rows["observation.state"][i][k] for i in mine]
        np.testing.assert_allclose(page.column(name, "state"), state, rtol=1e-4)
    assert len(page.data["cameras"][0]["images"]) == len(mine) == LENGTH
    assert page.shared["build"][:6] == ["athena", "data", "build", "RECORDING", "OUT", "--robot"]


def test_findings_of_a_linked_set_lie_at_its_own_steps(tmp_path, toy):
    """Recorded at 30 Hz and built for 10 Hz: recorded frames 60 to 90 are steps 20 to 30; images stay there."""
    episode = clean(0, length=150, fps=30.0)
    states = episode.states.copy()
    states[60:90, 0] = 1.45
    states[60:90:2, 0] = 1.3  # back and forth by 0.15 rad in every frame
    write(tmp_path / "rec", replace(episode, states=states), clean(1, length=150, fps=30.0))
    build.build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="toy", link=True, validation=0.5))
    sidecar = json.loads((tmp_path / "set" / "meta" / "athena.json").read_text())
    from athena_vla.dataset.dataset import Dataset
    from athena_vla.view.viewed import ViewedSet

    raw = finding("joint.jump", "It jumps.", "episode_0000", (60, 90)).to_dict()
    seen = ViewedSet(Dataset(tmp_path / "set", {**sidecar, "findings": [raw]}))
    shown = seen.read("episode_0000")
    [found] = seen.findings(shown)
    assert found.frames == (20, 30)
    np.testing.assert_array_equal(shown.cameras["front"][20], episode.cameras["front"][60])


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"episodes": ("7",)}, UnknownName, r"There is no episode in '.*' '7'.*demo_0, demo_1"),
        ({"most": 0}, ViewError, "--most is 0"),
        ({"save": Path("a.bag")}, ViewError, "does not end in .rrd"),
        ({"save": Path("a.rrd"), "show": "pages"}, ViewError, "Choose one"),
        ({"robot": "todler"}, UnknownName, "robot 'todler'"),
        ({"model": Path("gone.xml")}, ViewError, "no MJCF or URDF at 'gone.xml'"),
        ({"input": Path(__file__)}, RecordingError, "test_view.py"),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(file, tmp_path, given, error, said):
    asked = {"input": file, "out": tmp_path / "out", "fps": RATE, "show": "pages", **given}
    if "save" in given:
        asked["show"] = given.get("show", "auto")
    with pytest.raises(error, match=said):
        view(ViewConfig(**asked))
    assert not (tmp_path / "out").exists()


def test_without_rerun_its_extra_is_named_and_pages_are_written(file, tmp_path, monkeypatch, capsys):
    from athena_vla.view import viewing

    monkeypatch.setattr(viewing, "find_spec", lambda name: None)
    with pytest.raises(AthenaError, match=r"'rerun-sdk' is not installed.*view"):
        view(ViewConfig(input=file, fps=RATE, save=tmp_path / "a.rrd"))
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "view", str(file), "--fps", "10", "--out", str(tmp_path / "out"), "--json"])
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["written"][0] == str(tmp_path / "out" / "index.html")


def test_an_episode_that_cannot_be_read_costs_the_others_nothing(tmp_path):
    write(tmp_path / "rec", clean(0), clean(1), clean(2))
    (tmp_path / "rec" / "episode_0001" / "trajectory.npz").write_bytes(b"no archive")
    done = view(ViewConfig(input=tmp_path / "rec", out=tmp_path / "out", show="pages"))
    assert done.episodes == ("episode_0000", "episode_0002")
    assert "cannot be read" in (tmp_path / "out" / "0001-episode_0001.html").read_text()
    assert any("episode_0001 is not shown" in n for n in done.notes)


def test_pages_are_replaced_only_where_they_are_ours(file, tmp_path):
    config = ViewConfig(input=file, out=tmp_path / "out", show="pages", fps=RATE, most=1, checks="none")
    assert view(config).left == 1
    with pytest.raises(ViewError, match="--overwrite"):
        view(config)
    view(replace(config, overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ViewError):
        view(replace(config, out=tmp_path / "mine", overwrite=True))
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_looking_needs_no_torch(file, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from athena_vla.view import ViewConfig, view\n"
        f"view(ViewConfig(input=__import__('pathlib').Path({str(file)!r}), fps=10.0, show='pages', "
        f"out=__import__('pathlib').Path({str(tmp_path / 'out')!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_robots_file_knows_its_limits(file, tmp_path):
    """A robot by file: its own limits are drawn."""
    text = (Path(embodiment.__file__).parent / "robots" / "toy.toml").read_text().replace("upper = 1.5", "upper = 1.25")
    (tmp_path / "mine.toml").write_text(text)
    view(
        ViewConfig(input=file, out=tmp_path / "out", show="pages", fps=RATE, most=1, robot=str(tmp_path / "mine.toml"))
    )
    [written] = (tmp_path / "out").glob("0000*")
    assert "limits -1.5 … 1.25" in Page.read(written).text
