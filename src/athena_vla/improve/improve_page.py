"""The page of the rounds: one self-contained HTML file. Reads results, computes nothing that is a result."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from athena_vla import files
from athena_vla.errors import TrainingError
from athena_vla.improve.round_result import RoundResult


def write_page(path: Path, rounds: tuple[RoundResult, ...], notes: tuple[str, ...], policy: str) -> Path:
    """Raises `TrainingError` where it cannot be written."""
    environment = Environment(
        loader=PackageLoader("athena_vla.improve"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("improve.html").render(rounds=rounds, notes=notes, policy=policy)
    return files.write_text(path, page, TrainingError)
