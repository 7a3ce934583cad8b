"""The check page is self-contained and its links lead somewhere; alignment is measured; a build runs on Ray."""

import re
from dataclasses import replace

import numpy as np
import pytest

from athena_vla.check import CheckConfig, check
from athena_vla.check.lags import AlignConfig, align
from athena_vla.dataset.build import BuildConfig, build
from recordings import Pixels, clean, edited, pictures, write


def test_the_page_is_self_contained_and_every_link_has_its_target(tmp_path):
    bad = clean(1)
    actions = bad.actions.copy()
    actions[10:12] = np.nan
    root = write(tmp_path / "in", clean(0), edited(bad, actions=actions, instructions=("<script>alert(1)</script>",)))
    report = check(CheckConfig(input=root, robot="toy", page=tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert report.page == tmp_path / "page.html"
    assert not re.search(r"<script|https?://|src=.(?!data:)", page)
    targets = re.findall(r'href="#([^"]+)"', page)
    assert targets
    assert all(f'id="{t}"' in page for t in targets)
    assert page.count("<svg") >= 3
    assert "number.not_finite" in page


def test_camera_and_action_delays_are_measured(tmp_path):
    episodes = []
    for i in range(4):
        episode = clean(i, length=160)
        speed = np.sin(episode.timestamps * (1.9 + 0.5 * i))[:, None] ** 2  # motion that comes and goes
        path = np.cumsum(speed, axis=0) * 0.12
        actions = (0.6 * np.sin(path * [1.0, 1.1, 0.9] + i)).astype(np.float32)
        states = np.concatenate([np.repeat(actions[:1], 3, axis=0), actions[:-3]])
        images = pictures(np.asarray(states, np.float64), i)
        late = np.concatenate([np.repeat(images[:1], 2, axis=0), images[:-2]])
        episodes.append(replace(episode, actions=actions, states=states, cameras={"front": Pixels(late)}))
    report = align(AlignConfig(input=write(tmp_path / "in", *episodes)))
    assert report.action_lag == 3
    assert report.real_fps == pytest.approx(10.0)
    assert report.camera_lag["front"] == 2
    assert report.settings["camera_offset"] == 2


def test_real_delays_agree_with_what_is_known(shared):
    report = align(AlignConfig(input=shared / "data/g1_inspire_v21", episodes=2))
    assert report.action_lag in (4, 5)
    assert report.real_fps == pytest.approx(30.0, abs=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_build_on_two_ray_workers_gives_the_same_bytes(tmp_path):
    ray = pytest.importorskip("ray")
    root = write(tmp_path / "in", *(clean(i, length=15) for i in range(6)))
    here = build(BuildConfig(input=root, out=tmp_path / "here", robot="toy", workers=1))
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        there = build(BuildConfig(input=root, out=tmp_path / "there", robot="toy", on="ray"))
    finally:
        ray.shutdown()
    assert there.hash == here.hash
    for file in sorted(f for f in (tmp_path / "here").rglob("*") if f.is_file()):
        assert (tmp_path / "there" / file.relative_to(tmp_path / "here")).read_bytes() == file.read_bytes()


def page_of(tmp_path, *episodes):
    root = write(tmp_path / "in", *episodes)
    check(CheckConfig(input=root, robot="toy", page=tmp_path / "page.html"))
    return (tmp_path / "page.html").read_text()


def heights(page, joint):
    """Of the last curve of a joint: least and most place, from the top [px]."""
    drawing = page[page.index(f'aria-label="{joint}"') :].partition("</svg>")[0]
    points = re.findall(r'points="([^"]+)"', drawing)[-1].split()
    places = [float(p.split(",")[1]) for p in points]
    return min(places), max(places), drawing


def test_joints_of_one_kind_have_one_scale(tmp_path):
    """A pixel is the same angle in every plot of the arm: the ratio of drawn heights is that of the motions."""
    episode = clean(0)
    page = page_of(tmp_path, episode)
    drawn = {n: heights(page, n) for n in ("base", "shoulder")}
    motion = dict(zip(episode.joint_names, np.ptp(episode.actions, axis=0), strict=True))
    tall = {n: high - low for n, (low, high, _) in drawn.items()}
    assert tall["base"] / tall["shoulder"] == pytest.approx(motion["base"] / motion["shoulder"], rel=0.02)
    [span] = re.findall(r"<h4>Arm <small>every plot is ([\d.]+) rad high", page)
    assert tall["base"] / 90 == pytest.approx(motion["base"] / float(span), rel=0.02)


@pytest.mark.parametrize("shift", [5.0, -5.0])
def test_a_limit_is_seen_where_the_joint_lies_wholly_beyond_it(tmp_path, shift):
    episode = clean(0)
    off = np.array([shift, 0, 0], np.float32)
    page = page_of(tmp_path, replace(episode, actions=episode.actions + off, states=episode.states + off))
    low, high, drawing = heights(page, "base")
    [limit] = [float(y) for y in re.findall(r'class="limit"[^>]*y1="([\d.]+)"', drawing)]
    assert 0 < limit < 90
    assert limit > high if shift > 0 else limit < low
    assert re.search(r"<b>base</b>[^<]*<span class=\"beyond\">limits -1.50 … 1.50", page)


def test_the_time_axis_is_in_recorded_seconds(tmp_path):
    episode = clean(0)  # 60 frames at 10 Hz
    _, _, drawing = heights(page_of(tmp_path, episode), "base")
    found = re.findall(r'<text x="([\d.]+)"[^>]*>(\d+) s</text>', drawing)
    assert [int(t) for _, t in found] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose([float(x) for x, _ in found], [520 * t / 5.9 for t in range(6)], atol=0.1)


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_telephone(tmp_path, dark):
    from browser import check_page, find_browser

    if find_browser() is None:
        pytest.skip("no Chromium")
    bad = clean(0)
    actions = bad.actions.copy()
    actions[10:12] = np.nan
    page_of(tmp_path, edited(bad, actions=actions, instructions=("a" * 300,)), clean(1))
    seen = check_page(tmp_path / "page.html", width=400, dark=dark)
    assert (seen.document_width, seen.errors, seen.unloaded, seen.dark) == (400, [], [], dark)
