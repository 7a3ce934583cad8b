"""The report: a run folder in, one self-contained HTML page out. Reads results, computes nothing that is a result."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from athena_vla import files
from athena_vla.errors import EvaluationError
from athena_vla.report import charts, deploying_evidence, evidence, figures, making, names
from athena_vla.report.source import Result, Section, Source
from athena_vla.version import __version__

# Template (and anchor), its name in the list of contents, and what fills it; in the order of the page.
SECTIONS: tuple[tuple[str, str, Callable[[Source], object]], ...] = (
    ("episodes", "Episodes", lambda source: {"films": source.result("compare").get("films", [])}),
    ("success", "Success", evidence.success),
    ("attention", "Looks and listens", evidence.attention),
    ("errors", "Errors", evidence.errors),
    ("safety", "Safety", evidence.safety),
    ("data", "Data", making.data),
    ("training", "Training", making.training),
    ("precision", "Precision", deploying_evidence.precision),
    ("latency", "Latency", deploying_evidence.latency),
    ("served", "Served", deploying_evidence.served),
    ("limits", "Limits", lambda source: {"not_shown": making.not_shown(source)}),
    ("provenance", "Provenance", making.provenance),
    ("next", "What next", lambda source: {"int4_bundle": shlex.quote(str(source.folder / "bundles" / "int4"))}),
)


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
    """Write the page by rename. Raises `EvaluationError` for a folder that is no run or whose images are gone."""
    source = load(config.run)
    templates = environment(source)
    shown = [Section(name, short, _rendered(templates, name, view(source))) for name, short, view in SECTIONS]
    page = templates.get_template("page.html").render(
        title=f"Athena-VLA report: {source.robot}",
        style=Markup((resources.files("athena_vla.report") / "page.css").read_text()),
        opening=_rendered(templates, "opening", making.opening(source)),
        shown=[s for s in shown if s.body],
        version=__version__,
    )
    out = config.out or config.run / "report.html"
    files.write_text(out, page, EvaluationError)
    return ReportResult(out, len(page.encode()))


def environment(source: Source) -> Environment:
    """The templates with their filters. Whatever is not `Markup` is escaped; an unknown name is an error."""
    templates = Environment(
        loader=PackageLoader("athena_vla.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "duration": figures.duration,
        "extent": charts.extent,
        "label": names.label,
        "picture": source.picture,
        "series": charts.series,
        "share": charts.share,
        "span": charts.width,
        "step_name": names.step_name,
    }
    templates.tests["heat"] = lambda cell: isinstance(cell, charts.Heat)
    return templates


def _rendered(templates: Environment, name: str, view: object) -> Markup:
    """One section; empty where its template shows nothing."""
    values = view if isinstance(view, dict) else vars(view)
    return Markup(templates.get_template(f"{name}.html").render(**values).strip())


def load(folder: Path) -> Source:
    """Everything the page shows. Raises `EvaluationError`."""
    steps: dict[str, Result] = {}
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
