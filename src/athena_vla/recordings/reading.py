"""What is said about a recording on the command line because the recording does not say it itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from athena_vla.recordings.action_terms import ActionTerms, read_terms
from athena_vla.recordings.episode import Recording
from athena_vla.recordings.formats import open_with
from athena_vla.recordings.formats.common import OpenOptions, read_list, read_names
from athena_vla.recordings.next_state import NextState
from athena_vla.recordings.several import joined

Targets = Literal["recorded", "next-state"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a recording is read; the options of every command that opens one."""

    format: str | None = None
    """Format of the recording; found by content where not given."""
    joints: Path | None = None
    """Names of the recorded action columns: a JSON list, a text file, or a robot whose joints they are."""
    state_joints: Path | None = None
    """Names of the recorded state columns, as for --joints; for files that name neither."""
    articulation: str = ""
    """Which recorded robot is meant where a file holds several, or its parts in order: left_arm,right_arm."""
    fps: float | None = None
    """Rate of the recording where it does not say it [Hz]."""
    env_config: Path | None = None
    """env.yaml that Isaac Lab wrote beside a run (params/env.yaml): names, scale and offset of its action terms."""
    topics: Path | None = None
    """TOML that says which topic of a ROS 2 bag is what; athena data info prints the guess to start from."""
    targets: Targets = "recorded"
    """recorded: the actions are the targets. next-state: the next joint positions are, for actions of another kind."""

    def open(self, *paths: str | Path) -> Recording:
        """One recording, or several as one. Raises `RecordingError`."""
        terms: ActionTerms | None = read_terms(self.env_config) if self.env_config else None
        options = OpenOptions(
            joints=read_names(self.joints),
            fps=self.fps or (terms.rate if terms else None),
            state_joints=read_names(self.state_joints),
            articulations=read_list(self.articulation),
            topics=self.topics,
            terms=terms if self.targets == "recorded" else None,
        )
        recording = joined([Path(p) for p in paths], lambda p: open_with(p, options, self.format))
        return NextState(recording) if self.targets == "next-state" else recording
