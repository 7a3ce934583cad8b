"""The pages of `athena data view` in a real browser: slider, keys, flags, and the command that they become."""

import shlex
from pathlib import Path

import pytest

from athena_vla.cli import COMMANDS
from athena_vla.cli.arguments import parse
from athena_vla.dataset import build
from athena_vla.view import ViewConfig, view
from browser import check_page, find_browser, tab
from recordings import clean, edited, write
from view_pages import RATE, demonstrations

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium: make browser")
GREY = """(async () => {
  const image = document.querySelector('img[data-camera]');
  await image.decode();
  const canvas = document.createElement('canvas');
  const pen = canvas.getContext('2d');
  pen.drawImage(image, 0, 0);
  return pen.getImageData(3, 3, 1, 1).data[0];
})()"""
STEP = "Number(document.getElementById('slider').value)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    file = demonstrations(folder / "it's a demo.hdf5", count=3)
    view(ViewConfig(input=file, out=folder / "out", show="pages", robot="toy", fps=RATE))
    return folder / "out"


def press(reader, key: str, modifiers: int = 0) -> None:
    reader.call("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=modifiers)
    reader.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)


def test_slider_keys_and_play_move_the_image_with_the_numbers(pages):
    with tab(width=1000) as reader:
        reader.open(pages / "0001-demo_1.html")
        assert reader.ask(GREY) == pytest.approx(0, abs=2)
        reader.ask("(() => { const s = document.getElementById('slider'); s.value = 20; "
                   "s.dispatchEvent(new Event('input')); })()")  # fmt: skip
        assert reader.ask(GREY) == pytest.approx(100, abs=2)
        assert reader.ask("document.getElementById('now').textContent") == "2.00 s, frame 20"
        press(reader, "ArrowRight")
        press(reader, "ArrowRight", modifiers=8)
        assert reader.ask(STEP) == 31
        assert reader.ask(GREY) == pytest.approx(155, abs=2)
        press(reader, "ArrowLeft")
        assert reader.ask(STEP) == 30
        value = reader.ask("JSON.parse(document.getElementById('data').textContent).columns[0].target[30]")
        shown = reader.ask("document.querySelector('.value[data-column=\"0\"]').textContent")
        assert float(shown.split("target ")[1].split(",")[0]) == pytest.approx(value, rel=1e-3)
        cursor = reader.ask("Number(document.querySelector('.cursor').getAttribute('x1'))")
        assert cursor == pytest.approx(30 / 40 * 520, abs=0.1)
        reader.ask("document.getElementById('play').click()")
        reader.wait_until(f"{STEP} >= 33")
        reader.wait_until("document.getElementById('play').textContent === 'play'")
        assert reader.ask(STEP) == 39
        assert reader.errors == []


def test_flags_become_the_exclude_of_a_build(pages):
    """Set on a page, kept on the index, and read by the parser of the command itself."""
    with tab(width=1000) as reader:
        reader.open(pages / "0001-demo_1.html")
        press(reader, "f")
        assert reader.ask("document.querySelector('button[data-flag]').textContent") == "flagged"
        reader.ask("document.querySelector('a[data-page=\"0002-demo_2.html\"]').click()")
        reader.wait_until("document.title.startsWith('Episode demo_2') && document.readyState === 'complete'")
        reader.ask("document.querySelector('button[data-flag]').click()")
        reader.ask("document.querySelector('a[data-page=\"index.html\"]').click()")
        reader.wait_until("document.querySelectorAll('tr.flagged').length === 2")
        words = shlex.split(reader.ask("document.querySelector('.command').textContent"))
        assert words[:3] == ["athena", "data", "build"]
        config = parse("data build", COMMANDS["data build"], build, words[3:])
        assert config.exclude == ("demo_1", "demo_2")
        assert (config.input.name, config.robot, config.fps) == ("it's a demo.hdf5", "toy", RATE)
        reader.ask("history.back()")  # an older page shows, and changes, what was flagged since
        reader.wait_until("document.title.startsWith('Episode demo_2') && document.readyState === 'complete'")
        reader.wait_until("document.querySelector('.count').textContent === '2'")
        reader.ask("history.back()")
        reader.wait_until("document.title.startsWith('Episode demo_1') && document.readyState === 'complete'")
        reader.wait_until("document.querySelector('.count').textContent === '2'")
        reader.ask("document.querySelector('a[data-page=\"index.html\"]').click()")
        reader.wait_until("document.querySelectorAll('tr.flagged').length === 2")
        reader.ask("document.querySelector('button[data-flag=\"demo_1\"]').click()")
        assert reader.ask("document.querySelector('.command').textContent").endswith("--exclude demo_2")
        assert reader.errors == []


def test_flags_travel_with_links_where_the_browser_keeps_nothing(pages):
    with tab(width=1000) as reader:
        reader.call("Page.enable")
        broken = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('none') }})"
        reader.call("Page.addScriptToEvaluateOnNewDocument", source=broken)
        reader.open(pages / "0000-demo_0.html")
        press(reader, "f")
        reader.ask("document.querySelector('a[data-page=\"index.html\"]').click()")
        reader.wait_until("document.querySelectorAll('tr.flagged').length === 1")
        assert reader.errors == []


@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_a_telephone(tmp_path, dark):
    long = edited(clean(0), instructions=("a" * 300,))
    write(tmp_path / ("r" * 60), long, clean(1))
    view(ViewConfig(input=tmp_path / ("r" * 60), out=tmp_path / "out", show="pages", robot="toy"))
    for path in sorted((tmp_path / "out").iterdir()):
        seen = check_page(path, width=400, dark=dark)
        assert (seen.document_width, seen.errors, seen.unloaded, seen.dark) == (400, [], [], dark)
