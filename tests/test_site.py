"""The documentation site: built without a warning, read from disk in a real browser, by its tabs and by its search."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABS = ("Home", "Tutorials", "How-to", "Reference", "Explanation", "Measurements", "Project")
FETCHES = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=["'](?:https?:)?//[^"']+["'][^>]*>""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site") / "out"
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def build(settings: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """As `make site` does it. Never with --quiet: warnings that are not printed are not counted either."""
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(settings), "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=settings.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("broken", ["[gone](nothing.md)", "[gone](api.md#nowhere)"])
def test_a_broken_link_fails(tmp_path: Path, broken: str) -> None:
    pytest.importorskip("material")
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "site_hook.py", tmp_path / "scripts")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    page = tmp_path / "docs" / "roadmap.md"
    page.write_text(f"{page.read_text()}\n{broken}\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "out")
    assert done.returncode != 0
    assert broken.partition("(")[2][:-1] in done.stderr


def test_every_page_is_in_the_site_and_nothing_is_fetched(site: Path) -> None:
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")}
    written = {p.relative_to(site) for p in site.rglob("*.html")} - {Path("404.html")}
    assert written == pages | {Path("changelog.html"), Path("contributing.html")}
    fetched = {str(p): found for p in site.rglob("*.html") if (found := fetches(p.read_text()))}
    assert not fetched
    sheets = {
        str(p): found for p in site.rglob("*.css") if (found := re.findall(r"url\((?:https?:)?//[^)]+", p.read_text()))
    }
    assert not sheets


def fetches(html: str) -> list[str]:
    """What a page would load from elsewhere; the address that it gives of itself is not loaded."""
    return [tag for tag in FETCHES.findall(html) if 'rel="canonical"' not in tag]


def test_what_is_fetched_is_seen() -> None:
    assert fetches('<script src="https://unpkg.com/iframe-worker/shim"></script>')
    assert fetches('<link rel="stylesheet" href="//fonts.googleapis.com/css">')
    assert not fetches('<a href="https://arxiv.org">LoRA</a><script src="assets/x.js"></script>')


def test_a_reader_follows_the_tabs_and_finds_an_option_by_search(site: Path) -> None:
    from browser import find_browser, tab

    if not find_browser():
        pytest.skip("no Chromium: make browser")
    tabs = "[...document.querySelectorAll('.md-tabs__link')]"
    results = "[...document.querySelectorAll('.md-search-result__link')]"
    with tab(width=1400) as reader:
        reader.open(site / "index.html")
        assert reader.ask(f"{tabs}.map(a => a.innerText.trim()).join()") == ",".join(TABS)
        for name in TABS[1:]:
            reader.ask(f"{tabs}.find(a => a.innerText.trim() === '{name}').click()")
            reader.wait_until(
                "document.readyState === 'complete'"
                f" && document.querySelector('.md-tabs__item--active')?.innerText.trim() === '{name}'"
            )
        reader.write(".md-search__input", "heartbeat")
        reader.wait_until(
            f"{results}.some(a => a.href.includes('reference/commands.html') && a.href.endsWith('#athena-drive'))"
        )
        reader.ask(f"{results}.find(a => a.href.includes('#athena-drive')).click()")
        reader.wait_until(
            "document.readyState === 'complete' && document.querySelector('h1')?.innerText.startsWith('Commands')"
        )
        assert reader.ask("location.hash") == "#athena-drive"
        assert reader.errors == []
