"""Documentation is executed: every bash and python block of README.md and docs/ runs on the demo's results.

A block fenced as ```text is prose. `make` lines are checked against the Makefile instead of being run again, and
lines that only set a clone up (git, cd, pip) are passed over, by name, below.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    *(REPOSITORY / n for n in ("README.md", "CONTRIBUTING.md", "AGENTS.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
SETS_UP_A_CLONE = ("git", "cd", "pip", "source", "python3")
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(language, body) for language, body in BLOCK.findall(page.read_text()) if language in ("bash", "python")]


def commands(body: str) -> list[list[str]]:
    joined = body.replace("\\\n", " ")
    return [w for line in joined.splitlines() if (w := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone after `make demo`: runs/demo holds a copy of the demo's results."""
    results = Path(os.environ.get("ATHENA_DEMO", REPOSITORY / "runs" / "demo")).absolute()
    if not (results / "report.json").is_file():
        pytest.skip(f"no demo results at {results}; `make demo` writes them")
    folder = tmp_path_factory.mktemp("docs")
    (folder / "runs").mkdir()
    shutil.copytree(results, folder / "runs" / "demo", symlinks=True)
    for name in ("docs", "examples", "scripts"):
        if (REPOSITORY / name).exists():
            (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.mark.demo
@pytest.mark.timeout(1200)  # a page is up to a dozen commands, each of which starts Python anew
@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_page_runs(page: Path, workplace: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    for language, body in blocks(page):
        if language == "python":
            run([sys.executable, "-c", body], body, workplace, environment)
            continue
        for words in commands(body):
            if words[0] == "make" or words[0] in SETS_UP_A_CLONE:
                continue
            assert words[0] == "athena", (
                f"{page.name}: '{shlex.join(words)}' is not a command of ours; fence it as text"
            )
            run(words, shlex.join(words), workplace, environment)


def run(words: list[str], text: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{text}\n--- stdout\n{done.stdout[-2000:]}\n--- stderr\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_make_targets_and_links_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    text = page.read_text()
    for language, body in blocks(page):
        if language == "bash":
            wanted = {w[1] for w in commands(body) if w[0] == "make" and len(w) > 1 and "=" not in w[1]}
            assert wanted <= targets, f"{page.name} names make targets that do not exist: {sorted(wanted - targets)}"
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"


def test_every_benchmark_has_a_row() -> None:
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    scripts = {p.name for p in (REPOSITORY / "benchmarks").glob("bench_*.py")}
    assert set(re.findall(r"^\| `(bench_\w+\.py)` \|", page, re.M)) == scripts


def test_the_trees_are_true() -> None:
    """The file tree in the README has one line for every file, taken from its docstring."""
    script = REPOSITORY / "scripts" / "file_list.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_speaks_of_one_machine() -> None:
    """No machine paths in what is committed."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout
    homes = "|".join(("work", "root", r"home/\w+"))
    pattern = re.compile(rf"[\"'\s=(]/({homes})/")
    wrong = []
    for name in listed.splitlines():
        path = REPOSITORY / name
        if path.suffix in {".py", ".md", ".toml", ".json", ".txt", ""} and path.is_file():
            hits = pattern.findall(path.read_text(errors="ignore"))
            wrong += [f"{name}: {h}" for h in hits]
    assert not wrong
