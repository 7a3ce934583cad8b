"""What a recording says is shown as text: on the check page and on the dataset card nothing of it is obeyed."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from athena_vla.check.checking import CheckConfig, check
from athena_vla.dataset.card import plain
from athena_vla.recordings.episode import Segment
from recordings import clean, write

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_nothing_in_a_recording_becomes_a_part_of_the_check_page(tmp_path) -> None:
    episode = replace(clean(0), segments=(Segment(0, 20, EVIL, EVIL, "human", 1.0),))
    root = write(tmp_path / "in", episode)
    check(CheckConfig(input=root, robot="toy", page=tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not {t for t, _ in tags.found} & {"script", "iframe", "object", "link", "base", "form"}
    assert not [a for _, attributes in tags.found for a in attributes if a.startswith("on")]
    assert all((a.get("src") or "").startswith("data:image/jpeg") for t, a in tags.found if t == "img")
    assert EVIL in "".join(tags.texts)  # and it is all shown


@pytest.mark.parametrize(
    "text",
    [
        "wave\n---\n# injected heading ![x](http://127.0.0.1:9/track)",
        "</details><script>alert(1)</script>",
        "a | b | c",
        "[click](javascript:alert(1))",
        "**bold** _em_ `code` ~~gone~~ <b>html</b> &lt;",
        "1. a list",
        "- another",
        "see www.example.com or HTTPS://example.com",
        "\u202eright to left\u0000 and a null",
    ],
)
def test_a_card_shows_a_text_as_it_is(text: str) -> None:
    shown = plain(text)
    assert "\n" not in shown
    # Every mark stands behind a backslash, and taking those away gives the text back.
    assert not re.search(r"(?<!\\)[`*\[\]()<>#|!~&]", shown)
    assert not re.search(r"(?i)(https?|www)[:.]", shown)
    assert not re.match(r"[-+=]|\d+\.", shown)
    assert re.sub(r"\\(.)", r"\1", shown) == "".join(c for c in " ".join(text.split()) if c.isprintable())
    assert plain("left_knee 0.5") == "left_knee 0.5"
