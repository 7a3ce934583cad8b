"""How recordings become a set to train on, and what came of it. Values only; the work is done in `build`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from athena_vla.check.findings import RULES, Finding
from athena_vla.check.findings import lines as finding_lines
from athena_vla.dataset.normalize import NormalizationMode
from athena_vla.errors import DatasetError, UnknownName
from athena_vla.jobs import Place
from athena_vla.recordings.alignment import Alignment
from athena_vla.recordings.fixes import FIXES
from athena_vla.recordings.formats.common import read_json
from athena_vla.recordings.notes import Note
from athena_vla.recordings.reading import Reading


@dataclass(frozen=True, kw_only=True)
class BuildConfig(Reading):
    """How recordings become a set to train on."""

    input: Path
    """The recordings, in any known format."""
    out: Path
    """Where the dataset is written."""
    also: tuple[Path, ...] = ()
    """More recordings of the same robot, as one set: athena data build A B C OUT."""
    exclude: tuple[str, ...] = ()
    """Episodes that are left out, by their number or name; RECORDING/EPISODE where there are several recordings."""
    robot: str
    """Robot name or TOML file; unnamed columns are taken in this robot's joint order."""
    horizon: int = 8
    """Rows of an action chunk, at the robot's control rate."""
    stride: int = 1
    """Steps between the starts of two samples."""
    validation: float = 0.1
    """Share of episodes held out; duplicates stay together."""
    seed: int = 0
    """Decides which episodes are held out."""
    keep_failed: bool = False
    """Also train on episodes recorded with success = false."""
    strict: bool = False
    """One broken episode fails the build instead of being named and left out."""
    joint_map: Path | None = None
    """JSON object: robot joint -> recorded column, where the names differ."""
    cameras: tuple[str, ...] = ()
    """robot_camera=recorded_camera pairs, where the names differ."""
    camera_offset: int = 0
    """Image t is recorded image t + offset [frames]."""
    drop_head: int = 0
    """Frames left out at the start of each episode."""
    drop_tail: int = 0
    """Frames left out at the end of each episode."""
    image_size: tuple[int, int] | None = None
    """Height and width images are resized to once; recorded size where not given [px]."""
    instruction: str = ""
    """Instruction for episodes that have none; without it they count as broken."""
    normalization: NormalizationMode = "minmax"
    """Mode for all joint groups."""
    fix: tuple[str, ...] = ()
    """Explicit repairs, recorded in the set: trim-idle, drop-failed, drop-duplicates, drop-first-frame."""
    allow: tuple[str, ...] = ()
    """Codes of findings that do not stop the build; without them errors and actions that are no targets do."""
    dry_run: bool = False
    """Say what would be built, and write nothing."""
    link: bool = False
    """Leave the images in the recording: the set holds numbers and says where each image is found."""
    annotate: bool = True
    """Segment episodes that carry no segments by motion rules; the instruction itself never changes."""
    segment_texts: bool = False
    """A frame's segment is one more way of saying its task: beside one instruction, half of the samples carry it."""
    annotations: Path | None = None
    """Sidecar of `athena data annotate` to take segments from instead."""
    workers: int = 0
    """Processes; 0 is one per core."""
    on: Place = "here"
    """Where episodes are prepared: local processes or a Ray cluster."""
    overwrite: bool = False
    """Replace what has the name of OUT already; it stays until the new one is whole."""

    def require(self) -> None:
        """Raises `DatasetError`, `UnknownName` for what cannot be built."""
        for name, value, least in (
            ("horizon", self.horizon, 1),
            ("stride", self.stride, 1),
            ("workers", self.workers, 0),
        ):
            if value < least:
                raise DatasetError(f"{name} is {value}; it must be at least {least}.")
        if self.link and self.also:
            raise DatasetError("--link points at one recording; of several, build a set of their images.")
        if self.link and self.topics:
            raise DatasetError("--link opens the bag again without --topics; build a set of its images instead.")
        if not 0 <= self.validation < 1:
            raise DatasetError(f"validation is {self.validation}; it is a share of the episodes in [0, 1).")
        for code in self.allow:
            if code not in RULES:
                raise UnknownName("code of a finding", code, RULES)
        for name in self.fix:
            if name not in FIXES:
                raise UnknownName("fix", name, FIXES)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All recordings, in their order."""
        return (self.input, *self.also)

    def alignment(self) -> Alignment:
        """How streams come onto one clock. Raises `DatasetError` for maps that are none."""
        joint_map = read_json(self.joint_map) if self.joint_map else {}
        if not isinstance(joint_map, dict):
            raise DatasetError(f"'{self.joint_map}' is not a JSON object of robot joint or channel -> recorded column.")
        pairs = [c.partition("=") for c in self.cameras]
        if any(not (a and b) for a, _, b in pairs):
            raise DatasetError(f"--cameras takes robot_camera=recorded_camera, not {self.cameras}.")
        return Alignment(
            camera_offset=self.camera_offset,
            drop_head=self.drop_head,
            drop_tail=self.drop_tail,
            joint_map={str(k): str(v) for k, v in joint_map.items()},
            camera_map={a: b for a, _, b in pairs},
            fps=self.fps,
        )


@dataclass(frozen=True)
class BuildResult:
    """What was built; `broken` and `failed` map episode ids to the reason they were left out."""

    path: Path
    hash: str
    episodes: int
    frames: int
    samples: int
    train_episodes: tuple[str, ...]
    validation_episodes: tuple[str, ...]
    broken: Mapping[str, str]
    failed: Mapping[str, str]
    notes: tuple[Note, ...]
    reused: int = 0  # episodes taken from an interrupted build
    fixed: Mapping[str, Sequence[str]] = field(default_factory=dict)  # episode -> repairs that were asked for
    findings: tuple[Finding, ...] = ()  # of the checks that ran along
    dry_run: bool = False

    def __str__(self) -> str:
        what = f"{self.path}, not written (--dry-run)" if self.dry_run else str(self.path)
        lines = [
            f"{what}: {self.episodes} episodes, {self.frames} frames, {self.samples} samples "
            f"({self.samples / max(self.episodes, 1):.1f} per episode), hash {self.hash[:16]}",
            f"train {len(self.train_episodes)}, validation {len(self.validation_episodes)} episodes",
        ]
        lines += [f"{self.reused} episodes taken over from an interrupted build"] if self.reused else []
        lines += [f"fixed {i}: {'; '.join(said)}" for i, said in list(self.fixed.items())[:10]]
        lines += [f"failed {i}: {reason}" for i, reason in list(self.failed.items())[:10]]
        lines += [f"broken {i}: {reason}" for i, reason in self.broken.items()]
        lines += finding_lines(self.findings)
        return "\n".join([*lines, *(f"note: {n.text}" for n in self.notes)])
