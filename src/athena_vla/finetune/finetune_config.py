"""How to fine-tune: one frozen config, and the presets by name. Knows nothing of torch or of any model family."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from athena_vla.errors import TrainingError, UnknownName

Schedule = Literal["constant", "cosine", "linear"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Optimizer = Literal["adamw", "adamw8bit", "paged_adamw8bit"]
Resume = Literal["auto", "never"]
Select = Literal["best", "success", "last"]
Tracker = Literal["off", "offline", "online"]
Sharding = Literal["ddp", "fsdp2"]
NotFinite = Literal["refuse", "skip"]

_POSITIVE = 1e-300  # the least number that counts as more than zero
_BELOW_ONE = 0.999999
_RANGES: tuple[tuple[str, float, float], ...] = (
    *((n, 1, math.inf) for n in ("rank", "batch", "accumulation", "log_every", "keep", "threads", "processes")),
    *((n, 1, math.inf) for n in ("evaluate_samples", "select_scenes")),
    *((n, _POSITIVE, math.inf) for n in ("alpha", "learning_rate", "epochs")),
    *((n, 0, math.inf) for n in ("warmup_steps", "weight_decay", "clip_norm", "max_steps", "evaluate_every")),
    *(
        (n, 0, math.inf)
        for n in ("gpus", "max_hours", "checkpoint_every", "patience", "head_learning_rate", "state_noise", "workers")
    ),
    *((n, 0, math.inf) for n in ("augment_variants", "prefix", "language_margin", "image_size")),
    ("dropout", 0, _BELOW_ONE),
    ("ema", 0, _BELOW_ONE),
    ("augment_crop", 0.01, 1),
)

DECODER_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tune a base model on a built dataset. Every preset is a value of this class; any field can be overridden."""

    # What goes in and comes out
    model: str = "builtin:base"
    """The base: a bundle's folder, builtin:NAME, or a released checkpoint: a folder or a Hub id such as
    openvla/openvla-7b or openvla/openvla-7b@REVISION."""
    data: Path = Path("dataset")
    """A built dataset (athena data build); or, with --robot, any recording, trained on in place."""
    mix: tuple[str, ...] = ()
    """Several sets of one robot in place of `data`, each with its weight: A=1 B=0.3 draws B 0.3 times for 1.3 draws.
    Written so after --data they come here."""
    robot: str = ""
    """Robot name or TOML file, where `data` is a recording: statistics and splits are made beside it, in the user's
    cache, and its images stay where they are."""
    out: Path = Path("policy")
    """The new bundle. Logs, curves and checkpoints go to a folder beside it, named OUT.run."""
    family: str = ""
    """How actions are read out: a family by name (docs/models.md), with heads of its own on the base's body.
    "" = the bundle's own family; for a released checkpoint the one that decodes in parallel."""
    proprio: bool = True
    """The state is an input. Family openvla never reads it."""

    prefix: int = 0
    """Train to go on from the first rows of a chunk, at most so many, which the control loop then gives: those that
    it plays while the rest is computed. For families that can (docs/serving.md); 0 = off."""

    # What trains: the adapter (the heads of the robot always train in full)
    method: Literal["lora", "full", "heads"] = "lora"
    """lora, full (all weights), or heads (only the robot's own heads)."""
    rank: int = 32
    """Rank of the LoRA factors: their inner width."""
    alpha: float = 16.0
    """LoRA scale: the update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ("all-linear",)
    """Decoder layers that get adapters, by short name, or all-linear."""
    vision: bool = False
    """Train the vision towers too. Frozen, their features are computed once and cached."""
    projector: bool = False
    """Train the projector too."""
    dora: bool = False
    """DoRA: magnitude and direction apart."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4: the frozen decoder in 4 bits (QLoRA), needs bitsandbytes."""
    double_quantization: bool = True
    """nf4 only: quantise the scales too."""

    # Optimisation
    learning_rate: float = 5e-5
    """Peak learning rate of the adapter."""
    head_learning_rate: float = 0.0
    """Peak learning rate of the heads; 0 = the same."""
    schedule: Schedule = "constant"
    """After the warm-up."""
    warmup_steps: int = 100
    """Optimiser steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's, on matrices; vectors are never decayed."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 = no clipping."""
    optimizer: Optimizer = "adamw"
    """adamw8bit keeps moments in 8 bits (bitsandbytes); paged: moments move to the host where GPU memory runs short."""
    batch: int = 1
    """Samples per process and forward pass."""
    accumulation: int = 16
    """Forward passes per optimiser step."""
    epochs: float = 3.0
    """Passes over the training split, unless max_steps says otherwise."""
    max_hours: float = 0.0
    """[h] Stop after so long and write the bundle; 0 = no limit. The same command goes on from there."""
    max_steps: int = 0
    """Optimiser steps in all; 0 = as many as `epochs` need. A larger number of either extends a finished run."""
    precision: Precision = "auto"
    """Of the forward pass; auto = bf16 where the hardware has it, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass: less memory, a third more time."""
    ema: float = 0.0
    """Decay of a running average of all that trains, such as 0.999: the average is evaluated and becomes the bundle,
    training and resuming go on from the weights themselves; 0 = no average."""
    compile: bool = False
    """torch.compile the decoder layers: worth it on GPUs in long runs; on CPUs it takes a minute and gains nothing."""
    not_finite: NotFinite = "refuse"
    """A gradient that is not finite changes no weight. refuse: the run ends and names the frames; skip: the step is
    left out and counted, 25 in a row at most. In fp16 such steps are always left out: its scale is found that way."""
    seed: int = 0
    """Of everything drawn: order, augmentation, dropout, new weights."""

    # Data
    balance: bool = True
    """Draw every kind of task that recordings name equally often, however many there are of it; what names no kind is
    drawn together. The start of a run says how often each frame is drawn."""
    weight: tuple[str, ...] = ()
    """How much a recorded step counts, by what people marked: success=1 failure=0 correction=3. A correction is of its
    own frames, success and failure of an episode or of frames; what nobody marked counts once."""
    pair_instructions: bool = False
    """Follow every sample by one of the same scene told otherwise, where the set has one: episodes with the same first
    image and other instructions (athena record --twins). Half of the draws stay as they are."""
    language_margin: float = 0.0
    """Each sample's loss under another instruction is to be larger by so much: what it lacks is added to the loss. In
    units of the loss: of [-1, 1] for families that regress, nats per token for tokens. 0 = off; a step takes up to
    twice as long."""
    augment: bool = True
    """Random crop and colour of the images. With cached features: `augment_variants` fixed variants per image."""
    augment_crop: float = 0.9
    """Share of the area a crop keeps; 1 = colours only."""
    augment_variants: int = 2
    """Augmented variants per image in the feature cache, beside the plain one."""
    state_noise: float = 0.0
    """Standard deviation of the noise on the state input, in units of [-1, 1]."""
    image_size: int = 0
    """Resize every image to a square of so many pixels once, in the decode cache; augmentation then works on the small
    ones, and batches are prepared faster. 0: images as the set has them."""
    cache_features: Literal["auto", "never", "always"] = "auto"
    """Compute frozen vision features once per image. auto: where no vision weight trains and they fit the disk."""
    workers: int = 0
    """Processes that prepare batches ahead of the training process, into pinned memory where there is a GPU; 0 = none:
    enough with cached features. The batches are the same for any number."""

    # Bookkeeping
    log_every: int = 10
    """Optimiser steps between log lines."""
    evaluate_every: int = 0
    """Optimiser steps between evaluations on the validation split; 0 = once per epoch."""
    evaluate_samples: int = 512
    """At most so many validation samples per evaluation, the same ones each time."""
    checkpoint_every: int = 0
    """Optimiser steps between checkpoints, beside those that every evaluation makes; 0 = only those."""
    keep: int = 2
    """Checkpoints kept, beside the best one."""
    select: Select = "best"
    """Which weights become the bundle: least validation loss (best), most scenes solved in the embedded simulator
    (success), or the last step's."""
    select_scenes: int = 42
    """Scenes that an evaluation plays for --select success: those of seed 900, which is to be left for that."""
    patience: int = 0
    """Stop after so many evaluations without improvement; 0 = never."""
    resume: Resume = "auto"
    """auto: go on from the last checkpoint of the same config and dataset, and say so; never: start again."""
    overwrite: bool = False
    """Start anew and replace what has the name of OUT; without, a run with the same settings goes on."""
    tensorboard: bool = True
    """Write curves for TensorBoard into the run folder."""
    wandb: Tracker = "off"
    """Weights & Biases; offline needs no account."""
    trackio: bool = False
    """Write curves for Trackio, on this machine alone; `trackio show --project athena-vla` opens them."""
    progress: bool = True
    """Progress bar with remaining time."""

    # Where it runs
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a CUDA GPU where there is one."""
    threads: int = 1
    """CPU threads per process; two on busy cores are slower than one."""
    processes: int = 1
    """Processes started on this machine's CPU cores."""
    gpus: int = 0
    """Cards of this machine to train on, a process for each; 0 = one. torchrun is recognised too."""
    sharding: Sharding = "ddp"
    """Several processes: ddp copies the model, fsdp2 shards it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "weight", tuple(self.weight))
        object.__setattr__(self, "mix", tuple(self.mix))
        choices = {f.name: get_args(f.type) for f in dataclasses.fields(self) if get_args(f.type)}
        for name, known in choices.items():
            value = getattr(self, name)
            if all(isinstance(k, str) for k in known) and value not in known:
                raise UnknownName(f"value of --{name.replace('_', '-')}", value, known)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise TrainingError(f"--{name.replace('_', '-')} {_range(low, high)}, it is {value}.")
        if self.select == "success" and self.sharding == "fsdp2":
            raise TrainingError("A sharded model cannot play by itself: --select success needs --sharding ddp.")
        if self.vision and self.cache_features == "always":
            raise TrainingError("Features of vision towers that train cannot be cached; drop one of the two options.")

    @property
    def run_folder(self) -> Path:
        """Logs, curves, checkpoints."""
        return self.out.with_name(f"{self.out.name}.run")

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets to train on, as they were written."""
        return self.mix or (str(self.data),)

    def lora(self) -> dict[str, Any]:
        """The fields that decide what trains, as `models.lora.LoraSettings` takes them."""
        return {name: getattr(self, name) for name in _LORA_FIELDS}

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; goes into the bundle."""
        raw = dataclasses.asdict(self)
        del raw["overwrite"]  # of this run, not of its result
        optional = ("prefix", "weight", "mix", "ema", "gpus", "trackio", "image_size")
        for name in optional:  # without them as before they were, and hashed so
            if not raw[name]:
                del raw[name]
        if self.select != "success":
            del raw["select_scenes"]
        return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in raw.items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "FinetuneConfig":
        """Inverse of `to_dict`. Raises `UnknownName` for a field that is none."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for name in raw:
            if name not in fields:
                raise UnknownName("field of fine-tuning", name, fields)
        values: dict[str, Any] = {k: Path(v) if isinstance(fields[k].default, Path) else v for k, v in raw.items()}
        return cls(**values)

    def identity(self) -> dict[str, Any]:
        """The fields that change the numbers: a run may be resumed only with the same ones."""
        return {k: v for k, v in self.to_dict().items() if k not in NO_EFFECT}


def _range(low: float, high: float) -> str:
    """Bounds in words."""
    if high == math.inf and low == 0:
        return "must not be negative"
    least = "must be a positive number" if low == _POSITIVE else f"must be at least {low:g}"
    return least if high == math.inf else f"{least} and at most {high:g}"


def parse_changes(text: str) -> dict[str, Any]:
    """`rank=8,dora=true` as fields of `FinetuneConfig`, typed as there."""
    fields = {f.name: f for f in dataclasses.fields(FinetuneConfig)}
    changes: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in fields:
            raise UnknownName("field of fine-tuning", name, fields)
        default = fields[name].default
        try:
            if isinstance(default, bool):
                changes[name] = {"true": True, "false": False}[value.lower()]
            elif isinstance(default, tuple):
                changes[name] = tuple(value.split("+"))
            else:
                changes[name] = type(default)(value)
        except (KeyError, ValueError) as error:
            raise TrainingError(f"'{part}' : {name} takes a {type(default).__name__}.") from error
    return changes


_LEFT_OUT = ("prefix", "weight", "mix", "ema", "gpus", "trackio", "pair_instructions", "language_margin")
_LORA_FIELDS = (
    "method",
    "rank",
    "alpha",
    "dropout",
    "targets",
    "vision",
    "projector",
    "dora",
    "quantization",
    "double_quantization",
)
# What changes no weight of a given step: where it lies, how it is watched, how long it runs, what of it is kept, and
# how the work is split, up to the rounding of sums. The data is compared by its hash.
NO_EFFECT = frozenset(
    {"data", "mix", "out", "model", "robot", "log_every", "tensorboard", "wandb", "trackio", "progress"}
    | {
        "epochs",
        "max_steps",
        "max_hours",
        "patience",
        "evaluate_every",
        "evaluate_samples",
        "checkpoint_every",
        "keep",
        "select",
        "select_scenes",
    }
    | {"resume", "device", "gpus", "threads", "workers", "sharding", "compile", "gradient_checkpointing", "not_finite"}
)

# The user's three, exactly their numbers: learning rate 5e-5, batch 1 x accumulation 16, 3 epochs, 100 warm-up steps.
_USER = FinetuneConfig(gradient_checkpointing=True)
PRESETS: dict[str, FinetuneConfig] = {
    "humanoid_default": dataclasses.replace(
        _USER, rank=64, alpha=16, dropout=0.1, targets=(*DECODER_LINEARS, "lm_head")
    ),
    "humanoid_efficient": dataclasses.replace(
        _USER, rank=32, alpha=16, dropout=0.05, targets=("q_proj", "v_proj", "up_proj", "down_proj")
    ),
    "humanoid_high_performance": dataclasses.replace(
        _USER, rank=128, alpha=32, dropout=0.1, targets=(*DECODER_LINEARS, "embed_tokens", "lm_head"), dora=True
    ),
    # What the released fine-tuning script does: all linear layers of towers, projector and decoder, constant 5e-4.
    "openvla_reference": FinetuneConfig(
        rank=32,
        alpha=16,
        targets=("all-linear",),
        vision=True,
        projector=True,
        learning_rate=5e-4,
        warmup_steps=0,
        clip_norm=0.0,
        batch=16,
        accumulation=1,
        balance=False,
    ),
    # Predicted to fit 24 GB (athena plan); never run on that card by us.
    "rtx4090": FinetuneConfig(
        rank=32,
        alpha=32,
        targets=DECODER_LINEARS,
        projector=True,
        quantization="nf4",
        learning_rate=2e-4,
        schedule="cosine",
        batch=4,
        accumulation=4,
        gradient_checkpointing=True,
        optimizer="paged_adamw8bit",
    ),
    # Two CPU cores, four minutes: the small base that ships, frozen vision with cached features.
    "demo": FinetuneConfig(
        rank=32,
        alpha=64,
        targets=DECODER_LINEARS,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=30,
        batch=64,
        accumulation=1,
        max_steps=600,
        # A crop moves an object by up to five pixels, three centimetres on the table; the recordings vary enough.
        augment=False,
        state_noise=0.02,
        evaluate_every=300,
        select="last",
    ),
}
