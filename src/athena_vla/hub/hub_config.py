"""What `athena push` and `athena pull` are told; read without torch and without the Hub's client."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Wanted = Literal["auto", "bundle", "adapter", "dataset"]
RepoType = Literal["model", "dataset"]
WantedType = Literal["auto", "model", "dataset"]


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Settings of `athena push`. Who you are comes from `hf auth login` or HF_TOKEN, never from an option."""

    input: Path
    """A bundle, a built dataset, or the run folder of a fine-tuning."""
    repo: str
    """Name on the Hub: owner/name. It is made where it does not exist."""
    kind: Wanted = "auto"
    """What is published. auto: what INPUT is, of a run folder its adapter; adapter: of a fine-tuned bundle the
    LoRA adapter alone, in the layout that plain peft reads."""
    step: int = 0
    """Of a run folder: which checkpoint; 0 = the one with the least validation loss, or the newest."""
    license: str = ""
    """Licence of what is published, as the Hub spells it: mit, apache-2.0, cc-by-4.0; or unknown. Needed where it does
    not follow from a known base."""
    data_license: str = ""
    """Licence of the data a policy was trained on, for its card."""
    base_model: str = ""
    """Hub id of the base, where the bundle knows it by a folder of this machine only."""
    trained_on: str = ""
    """Hub id of the dataset a policy was trained on, for its card."""
    bench: Path | None = None
    """Result of `athena bench --out FILE` on this bundle, for its card."""
    compare: Path | None = None
    """Result of `athena compare` with this bundle in it: its folder or comparison.json, for the card."""
    private: bool = False
    """Only you and those you name can see the repository; counts when it is made."""
    revision: str = "main"
    """Branch that is written; it is made where it does not exist."""
    message: str = ""
    """Message of the commit."""
    allow_paths: bool = False
    """Publish a file although it holds paths of this machine that cannot be taken out."""
    dry_run: bool = False
    """Show files, sizes and the card; nothing is sent, and no network is needed."""


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """Settings of `athena pull`."""

    repo: str
    """Name on the Hub: owner/name."""
    out: Path
    """Where it goes."""
    type: WantedType = "auto"
    """Kind of repository on the Hub; auto asks for both."""
    revision: str = "main"
    """Branch, tag or commit."""
    base: str = ""
    """Of a fine-tuned bundle whose base was another bundle: where that base lies on this machine."""
    most: float = 100.0
    """Refuse what is larger [GB]."""
    overwrite: bool = False
    """Replace what has the name of OUT already; it stays until the new one is whole."""
