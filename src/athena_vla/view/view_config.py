"""What `athena data view` is told, and what it answers; read without torch and without Rerun."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from athena_vla.errors import ViewError
from athena_vla.recordings.reading import Reading

Show = Literal["auto", "rerun", "pages"]
Checks = Literal["episodes", "recording", "none"]


@dataclass(frozen=True, kw_only=True)
class ViewConfig(Reading):
    """Which episodes are looked at, and how."""

    input: Path
    """A recording in any known format, or a built dataset."""
    out: Path = Path("runs/view")
    """Folder of the pages: index.html, and one page for each episode."""
    show: Show = "auto"
    """rerun: the Rerun viewer. pages: HTML pages in OUT. auto: Rerun where it is installed and there is a screen."""
    save: Path | None = None
    """Write for Rerun into this file (.rrd) and open no viewer; of several episodes, into FILE-EPISODE.rrd each."""
    episodes: tuple[str, ...] = ()
    """Which episodes, by their number or name; without it the first ones."""
    most: int = 20
    """How many episodes are taken where none are named."""
    robot: str | None = None
    """Robot name or TOML file, for units, limits and its body; a set and a policy bring their own."""
    model: Path | None = None
    """MJCF or URDF of the robot's body, where the robot's own description has none (needs extra sim)."""
    policy: Path | None = None
    """Bundle whose chunks are drawn over the recorded targets."""
    chunks: int = 6
    """Frames of each episode at which the policy is asked, evenly spaced."""
    device: str = "auto"
    """Where the policy runs: auto, cpu, cuda or cuda:N."""
    checks: Checks = "episodes"
    """What the findings come from. episodes: each episode by itself. recording: all of it, as athena data check does.
    A set shows what its build found."""
    annotations: Path | None = None
    """Sidecar of athena data annotate to take segments from."""
    width: int = 320
    """Images are made as wide as this at most [px]."""
    megabytes: float = 12.0
    """A page is no larger; images are left out, evenly, until it fits [MB]."""
    overwrite: bool = False
    """Replace what has the name of OUT or FILE already; it stays until the new one is whole."""

    def require(self) -> None:
        """Raises `ViewError` for what cannot be done."""
        for name, value in (("most", self.most), ("chunks", self.chunks), ("width", self.width)):
            if value < 1:
                raise ViewError(f"--{name} is {value}; it must be at least 1.")
        if not self.megabytes >= 0.2:
            raise ViewError(f"--megabytes is {self.megabytes:g}; the curves alone need 0.2.")
        if self.save is not None and self.save.suffix != ".rrd":
            raise ViewError(f"--save writes a file for Rerun; '{self.save}' does not end in .rrd.")
        if self.save is not None and self.show == "pages":
            raise ViewError("--save is for Rerun, and --show pages writes pages. Choose one of them.")


@dataclass(frozen=True)
class ViewResult:
    """What was written or opened, and what has to be said of it."""

    episodes: tuple[str, ...]
    written: tuple[Path, ...]  # the index first, where there are pages
    notes: tuple[str, ...] = ()
    left: int = 0  # episodes that were not taken

    def to_dict(self) -> dict[str, Any]:
        return {
            "episodes": list(self.episodes),
            "written": [str(p) for p in self.written],
            "notes": list(self.notes),
            "left": self.left,
        }

    def __str__(self) -> str:
        count = len(self.episodes)
        where = f": {self.written[0]}" if self.written else " in the Rerun viewer"
        more = f" and {len(self.written) - 1} more files" if len(self.written) > 1 else ""
        lines = [f"{count} episode{'' if count == 1 else 's'}{where}{more}"]
        lines += [f"{self.left} more are not shown; name them with --episodes, or raise --most"] if self.left else []
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])
