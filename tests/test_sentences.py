"""Pages are read by people who are learning: one idea a sentence, counted in words.

Paragraphs and items of lists are counted. Code blocks, tables, headings and comments are not. A span of code is one
word; of a link its text counts. Sentences with code, and those that lead to what follows, may be shorter.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST, MOST_MEAN, LEAST = 35, 17.0, 4  # words of a sentence; the mean and the least are of paragraphs

SAMPLE = """# A heading of many words that does not count at all here

One two three `four with spaces` five. Six [seven eight](a/b.md) nine ten? Eleven
twelve thirteen fourteen (0.5 to 1.5) **seventeen**.

| a table | does not count. |
|---|---|

```text
Nor does code. Not at all.
```

- An item is short. It has
  two sentences.
- Another item.

<!-- Not this. -->
"""


def blocks(text: str) -> tuple[list[str], list[str]]:
    """Paragraphs and items of lists, each on one line."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"^```.*?^```\s*$", "", text, flags=re.M | re.S)
    paragraphs, items = [], []
    for part in re.split(r"\n\s*\n", text):
        open_: list[str] = []
        home = paragraphs
        for line in [*part.splitlines(), "|"]:
            item = re.match(r"\s*(?:[-*]|\d+\.) (.+)", line)
            if item or re.match(r"#|\||!\[|    \S", line):
                if open_:
                    home.append(" ".join(open_))
                open_, home = ([item[1]], items) if item else ([], paragraphs)
            elif line.strip():
                open_.append(line.strip().removeprefix("> "))
    return paragraphs, items


def sentences(line: str) -> list[str]:
    line = re.sub(r"`[^`]*`", "Code", line)
    line = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line)
    line = re.sub(r"[*_]{1,2}", "", line)
    return re.split(r"(?<=[.!?])[)\"]?\s+(?=[A-Z0-9\"'(])", line)


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def test_the_counter_counts() -> None:
    paragraphs, items = blocks(SAMPLE)
    assert [[words(s) for s in sentences(p)] for p in paragraphs] == [[5, 5, 8]]
    assert [[words(s) for s in sentences(i)] for i in items] == [[4, 4], [2]]


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_sentences_are_short_and_whole(page: Path) -> None:
    paragraphs, items = blocks(page.read_text())
    prose = [s for p in paragraphs for s in sentences(p)]
    wrong = [f"{words(s)} words: {s}" for s in (*prose, *(s for i in items for s in sentences(i))) if words(s) > MOST]
    wrong += [f"only {words(s)} words: {s}" for s in prose if words(s) < LEAST and "Code" not in s and s[-1] != ":"]
    assert not wrong, "\n".join(wrong)
    mean = sum(map(words, prose)) / max(1, len(prose))
    assert mean <= MOST_MEAN, f"the mean sentence has {mean:.1f} words, at most {MOST_MEAN:g}"
