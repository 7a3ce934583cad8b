"""What a run left, as the sections of the page ask for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla.report.embedded_media import data_uri

Result = dict[str, Any]  # one step's result as its file holds it


@dataclass(frozen=True)
class Section:
    """One rendered part of the page; without a body it is left out, with a short name it is in the list of contents."""

    anchor: str
    short: str
    body: str


@dataclass(frozen=True)
class Source:
    """Results of the steps that were done."""

    folder: Path
    steps: Mapping[str, Result]
    numbers: Result  # report.json

    def result(self, step: str) -> Result:
        """Of a step; {} where it was not part of this run."""
        return self.steps.get(step, {}).get("result", {})

    @property
    def simulated(self) -> bool:
        """Whether there was a closed loop."""
        return bool(self.closed)

    @property
    def closed(self) -> Result:
        """Closed-loop summaries of policies, baselines and quantised policies by name."""
        return {**self.result("compare")["closed_loop"], **self.result("deploy").get("closed_loop", {})}

    @property
    def robot(self) -> str:
        """The robot's name, as training wrote it; runs of older versions were the demo's own."""
        return str(self.result("train").get("robot", "athena"))

    def milli(self, name: str) -> str:
        """The thousandth of a joint's or channel's unit, as errors are shown: mrad, mm, mrad/s."""
        table = self.result("compare")["open_loop"] or {}
        unit = dict(zip(table.get("joints", ()), table.get("units", ()), strict=False)).get(name, "rad")
        return "thousandths" if unit == "1" else f"m{unit}"

    def picture(self, name: str) -> str:
        """A file of the media folder as a data URI."""
        return data_uri(self.folder / "media" / name)
