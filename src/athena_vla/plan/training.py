"""Will a fine-tuning fit into a GPU's memory, how long will a step take, and which micro-batch to take. Predicted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from athena_vla.errors import ModelError
from athena_vla.gate import Gate
from athena_vla.models import lora
from athena_vla.models.lora import LoraSettings
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan.activations import StepCost
from athena_vla.plan.devices import Device
from athena_vla.plan.step_time import step_work

NF4_BITS = 4.127  # per weight with double quantisation; 4.5 without
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2.1, "paged_adamw8bit": 2.1}  # per trained parameter
FRAGMENTATION = 1.08  # allocator slack seen in practice on long runs
GRAPH_GB = 1.0  # CUDA context, libraries, workspaces
BATCHES = (32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class TrainingMemory:
    """Peak memory of one GPU, in parts [GB], and the time of an optimiser step [s]."""

    batch: int
    accumulation: int
    checkpointing: bool
    weights_gb: float
    states_gb: float  # trained parameters, gradients, optimiser
    activations_gb: float
    overhead_gb: float
    trainable: int
    limit_gb: float
    step_seconds: tuple[float, float]
    bound: str = ""  # what the roofline's slow end waits for: arithmetic, bytes or launches
    time_from: str = "roofline"  # or "timed": a few layers on this machine, carried on to the depth
    kind: str = "predicted"

    @property
    def allocated_gb(self) -> float:
        """What torch itself reports as its peak (`torch.cuda.max_memory_allocated`)."""
        return self.weights_gb + self.states_gb + self.activations_gb

    @property
    def total_gb(self) -> float:
        """What the driver reports: with slack between blocks, CUDA's context and libraries."""
        return self.allocated_gb * FRAGMENTATION + self.overhead_gb

    @property
    def memory(self) -> Gate:
        return Gate.at_most("memory", self.total_gb, self.limit_gb, "GB")

    @property
    def fits(self) -> bool:
        return self.memory.passed

    def cells(self) -> tuple[str, ...]:
        fast, slow = self.step_seconds
        return (
            f"{self.batch} x {self.accumulation}",
            "yes" if self.checkpointing else "no",
            f"{self.weights_gb:.3g}",
            f"{self.states_gb:.3g}",
            f"{self.activations_gb:.3g}",
            f"{self.total_gb:.1f}",
            "yes" if self.fits else "NO",
            f"{fast:.2f}-{slow:.2f}" if fast < slow else f"{fast:.2f}",
            self.time_from,
        )


HEADER = ("batch", "recompute", "weights", "trained", "activations", "peak GB", "fits", "s/step", "time from")
Rows = Sequence[TrainingMemory]

TIMED = (
    "timed: a few layers of this very shape were trained on this machine just now, their time carried on to all layers"
)


@dataclass(frozen=True)
class TrainingPlan:
    """Every micro-batch with and without recomputing, what is chosen, and what to change where nothing fits."""

    device: str
    rows: tuple[TrainingMemory, ...]
    asked: TrainingMemory  # the preset as it is
    chosen: TrainingMemory | None
    advice: tuple[str, ...]
    kind: str = "predicted"

    def __str__(self) -> str:
        lines = [HEADER, *(r.cells() for r in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
        table = ["  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        asked = self.asked
        fits = "fits" if asked.fits else "does NOT fit"
        said = (
            f"as asked ({asked.batch} x {asked.accumulation}): {asked.total_gb:.1f} of {asked.limit_gb:.0f} GB: "
            f"{fits}; {asked.trainable:,} parameters train"
        )
        best = "nothing fits"
        if self.chosen is not None:
            c = self.chosen
            recompute = "--gradient-checkpointing" if c.checkpointing else "--no-gradient-checkpointing"
            best = f"take: --batch {c.batch} --accumulation {c.accumulation} {recompute}"
        return "\n".join(
            [
                f"PREDICTED, not measured: training on {self.device}",
                *table,
                *([TIMED] if any(r.time_from != "roofline" for r in self.rows) else []),
                said,
                best,
                *(f"change: {a}" for a in self.advice),
            ]
        )

    @property
    def remedy(self) -> str:
        """What to do where memory ran out, in half a sentence."""
        if self.chosen is None:
            return "; or ".join(self.advice)
        c = self.chosen
        recompute = " --gradient-checkpointing" if c.checkpointing else ""
        return f"--batch {c.batch} --accumulation {c.accumulation}{recompute} (predicted peak {c.total_gb:.1f} GB)"


def training_plan(
    model: VisionLanguageModel,
    settings: LoraSettings,
    device: Device,
    *,
    batch: int,
    accumulation: int,
    checkpointing: bool,
    optimizer: str = "adamw",
    shards: int = 1,
    cached: bool = False,
    cost: StepCost | None = None,
    retime: Callable[[Rows], Rows] = lambda rows: rows,
) -> TrainingPlan:
    """All ways to make the same optimiser step (batch x accumulation samples), the fastest that fits, and advice.

    `cost` is the model's trace, made here where it is not given; `retime` puts measured times into rows, of which the
    first is the one asked for. Raises `ModelError`.
    """
    whole = batch * accumulation
    cost = cost or StepCost(model, settings)

    def row(b: int, recompute: bool) -> TrainingMemory:
        return training_memory(
            model,
            settings,
            device,
            cost,
            batch=b,
            accumulation=max(1, whole // b),
            checkpointing=recompute,
            optimizer=optimizer,
            shards=shards,
            cached=cached,
        )

    sizes = sorted({batch, *(b for b in BATCHES if b <= whole and whole % b == 0)}, reverse=True)
    asked, *rows = retime([row(batch, checkpointing), *(row(b, again) for again in (False, True) for b in sizes)])
    fitting = [r for r in rows if r.fits]
    chosen = min(fitting, key=lambda r: (r.step_seconds[1], -r.batch), default=None)
    advice = () if asked.fits else _advice(settings, optimizer, asked, chosen, shards)
    return TrainingPlan(device.label, tuple(rows), asked, chosen, advice)


def _advice(
    settings: LoraSettings, optimizer: str, asked: TrainingMemory, chosen: TrainingMemory | None, shards: int
) -> tuple[str, ...]:
    """What to change, the largest saving first."""
    changes: list[tuple[float, str]] = []
    if settings.method == "full":
        changes.append((asked.states_gb, "--method lora: adapters instead of all weights"))
    elif settings.quantization == "none":
        changes.append((asked.weights_gb * 0.65, "--quantization nf4: the frozen decoder in 4 bits (QLoRA)"))
    if not asked.checkpointing:
        changes.append((asked.activations_gb * 0.7, "--gradient-checkpointing"))
    if asked.batch > 1:
        changes.append(
            (asked.activations_gb * 0.5, f"--batch {asked.batch // 2} --accumulation {asked.accumulation * 2}")
        )
    if "embed_tokens" in settings.targets or "lm_head" in settings.targets or settings.rank > 64:
        changes.append((asked.states_gb * 0.5, f"--rank {max(8, settings.rank // 2)}, or fewer --targets"))
    if optimizer == "adamw":
        changes.append((asked.trainable * 6 / 1e9, "--optimizer adamw8bit"))
    if shards == 1:
        changes.append(((asked.weights_gb + asked.states_gb) * 0.5, "two cards with torchrun and --sharding fsdp2"))
    if chosen is not None:
        return (f"the line above fits; or {sorted(changes, reverse=True)[0][1]}",)
    return tuple(f"{text} (saves about {saved:.1f} GB)" for saved, text in sorted(changes, reverse=True))


def training_memory(
    model: VisionLanguageModel,
    settings: LoraSettings,
    device: Device,
    cost: StepCost | None = None,
    *,
    batch: int = 1,
    accumulation: int = 1,
    checkpointing: bool = True,
    optimizer: str = "adamw",
    shards: int = 1,
    cached: bool = False,
) -> TrainingMemory:
    """Peak memory per GPU for a model on the meta device; `shards` > 1 splits weights and states (FSDP).

    `cached`: vision features come from the cache, so that no step runs the towers. `cost` is the model's trace, made
    here where it is not given.
    """
    if optimizer not in MOMENT_BYTES:
        raise ModelError(f"No optimiser '{optimizer}' is known here; known: {', '.join(MOMENT_BYTES)}.")
    text, layers = model.body_spec.text, model.body_spec.text.layers
    cost = cost or StepCost(model, settings)
    total = sum(p.numel() for p in model.parameters())
    trainable = trainable_parameters(model, settings)
    frozen = 0 if settings.method == "full" else total
    quantized = 0
    if settings.quantization == "nf4":
        quantized = sum(model.get_parameter(f"{p}.weight").numel() for p in lora.four_bit_paths(model))
    bits = NF4_BITS if settings.double_quantization else 4.5
    weights = (frozen - quantized) * (4 if cost.wide else 2) + quantized * bits / 8
    activations = cost.peak(layers, batch, checkpointing=checkpointing, again=accumulation > 1)
    activations -= cost.gradients(layers)  # they stand in the states
    if quantized:  # one matrix at a time is unpacked
        activations += text.width * text.mlp_width * 2
    if not cached:
        seen = batch * vision_bytes(model, trained=settings.vision)
        # Frozen towers are done, and their blocks free, before the decoder begins.
        activations = activations + seen if settings.vision else max(activations, seen)
    work = step_work(
        model, settings, cost, quantized, batch=batch, checkpointing=checkpointing, cached=cached, trainable=trainable
    )
    return TrainingMemory(
        batch=batch,
        accumulation=accumulation,
        checkpointing=checkpointing,
        weights_gb=weights / shards / 1e9,
        states_gb=trainable * (8 + MOMENT_BYTES[optimizer]) / shards / 1e9,
        activations_gb=activations / 1e9,
        overhead_gb=GRAPH_GB,
        trainable=trainable,
        limit_gb=device.memory_gb,
        step_seconds=work.seconds(device, accumulation),
        bound=work.bound(device),
    )


def vision_bytes(model: VisionLanguageModel, *, trained: bool) -> float:
    """Of one sample: frozen towers hold two blocks at a time, trained ones keep all; only the decoder recomputes."""
    kept = 0.0
    for tower in model.body_spec.towers:
        rows = model.spec.cameras * (tower.patches + 5)
        kept += rows * (10 * tower.width + 2 * tower.mlp_width) * 2 * (tower.blocks if trained else 2)
    return kept


def trainable_parameters(model: VisionLanguageModel, settings: LoraSettings) -> int:
    """Exactly what `lora.attach` would train, counted without attaching."""
    heads = {id(p): p.numel() for path in model.head_modules() for p in model.get_submodule(path).parameters()}
    if settings.method == "heads":
        return sum(heads.values())
    if settings.method == "full":
        return lora.count(model).total
    total = sum(heads.values())
    for path in model.lora_modules(settings.targets, vision=settings.vision, projector=settings.projector):
        module = model.get_submodule(path)
        weight = module.weight
        rows, columns = int(weight.shape[0]), int(weight.shape[1])  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
        total += settings.rank * (rows + columns) + (rows if settings.dora else 0)
    return total
