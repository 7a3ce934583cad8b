"""The report: a run folder in, one self-contained HTML page out. Reads results, computes nothing that is a result."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from athena_vla.errors import EvaluationError
from athena_vla.report import deployment_section as deployment
from athena_vla.report import embedded_media as media
from athena_vla.report import evidence, making
from athena_vla.report.markup import text
from athena_vla.report.source import Source
from athena_vla.version import __version__


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make the page of a run."""

    run: Path = Path("runs/demo")
    """Folder of a run: steps/, media/, report.json."""
    out: Path | None = None
    """Where the page goes; report.html in the run's folder where not given."""


@dataclass(frozen=True)
class ReportResult:
    """The page."""

    page: Path
    bytes: int

    def __str__(self) -> str:
        return f"report of {self.bytes / 1e6:.1f} MB: {self.page}"


def report(config: ReportConfig) -> ReportResult:
    """Write the page by rename. Raises `EvaluationError` for a folder that is no run or whose pictures are gone."""
    source = load(config.run)
    sections = [
        *making.opening(source),
        *evidence.sections(source),
        *making.sections(source),
        *deployment.sections(source),
        *making.closing(source),
    ]
    shown = [s for s in sections if s.body]
    links = "".join(f'<a href="#{s.anchor}">{text(s.short)}</a>' for s in shown if s.short)
    first, rest = shown[0], shown[1:]
    style = (resources.files("athena_vla.report") / "page.css").read_text()
    page = PAGE.format(
        title=text(source.title),
        style=style,
        hero=first.body,
        links=links,
        body="\n".join(s.body for s in rest),
        version=__version__,
    )
    out = config.out or config.run / "report.html"
    media.write(out, page.encode())
    return ReportResult(out, len(page.encode()))


def load(folder: Path) -> Source:
    """Everything the page shows. Raises `EvaluationError`."""
    steps: dict[str, dict[str, Any]] = {}
    for file in sorted((folder / "steps").glob("*.json")):
        if file.name.endswith(".partial.json"):
            continue
        try:
            raw = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise EvaluationError(f"'{file}' cannot be read: {error}. Run the same command again.") from error
        steps[file.stem] = raw
    if "compare" not in steps:
        raise EvaluationError(f"'{folder}' holds no finished comparison: there is nothing to report. See athena demo.")
    numbers = folder / "report.json"
    if not numbers.is_file():
        raise EvaluationError(f"'{folder}' has no report.json; run athena demo --out {folder} to its end.")
    return Source(folder, steps, json.loads(numbers.read_text()))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{hero}
<nav class="toc" aria-label="Sections">{links}</nav>
{body}
<footer>Made by athena-vla {version}. This page is one file and loads nothing from anywhere.</footer>
</main>
</body>
</html>
"""
