"""What a run left, as the sections of the page ask for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla.report.embedded_media import data_uri


@dataclass(frozen=True)
class Section:
    """One part of the page; without a body it is left out, with a short name it is in the list of contents."""

    anchor: str
    short: str
    body: str


@dataclass(frozen=True)
class Source:
    """Results of the steps that were done."""

    folder: Path
    steps: dict[str, dict[str, Any]]
    numbers: dict[str, Any]  # report.json

    def result(self, step: str) -> dict[str, Any]:
        """Of a step; {} where it was not part of this run."""
        return self.steps.get(step, {}).get("result", {})

    @property
    def simulated(self) -> bool:
        """Whether there was a closed loop."""
        return bool(self.result("compare")["closed_loop"])

    @property
    def title(self) -> str:
        robot = self.result("deploy").get("robot", "athena") if self.steps.get("deploy") else "athena"
        return f"Athena-VLA report: {robot}"

    def picture(self, name: str) -> str:
        """A file of the media folder as a data URI."""
        return data_uri(self.folder / "media" / name)
