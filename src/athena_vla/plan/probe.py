"""How long a training step takes on this machine: a few layers are trained for seconds, and carried on to the depth.

Layers of the model's own sizes, type, adapters and micro-batch, with weights thrown away afterwards. A model of one
decoder layer (and one block per tower, where images go through the towers) is timed, and one with more of each kind
in turn: what a layer adds, times the layers, is the step. Preparing batches is no part of it. Nothing is loaded.
"""

import dataclasses
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from athena_vla.finetune import launch
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.finetune.loop import make_optimizer
from athena_vla.models import lora
from athena_vla.models.lora import LoraSettings
from athena_vla.models.precision import multiply_natively, product_type, resolved
from athena_vla.models.sizes import without_weights
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan.activations import PROMPT, cut
from athena_vla.plan.devices import Device, measured_cpu
from athena_vla.plan.training import TrainingMemory

HERE = "here"  # name of this machine among the devices
MORE = 2  # layers or blocks that the deeper models have beyond the first: their time stands out of the noise
REPEATS = (4, 12)  # at least, at most; in between until LONG_ENOUGH
LONG_ENOUGH = 1.5  # [s] per configuration
BUDGET = 60.0  # [s] after which larger micro-batches are scaled from smaller ones


@dataclass(frozen=True)
class StepTime:
    """Parts of an optimiser step [s]."""

    forward_backward: float
    update: float  # clipping, optimiser, once per step

    def step(self, passes: float) -> float:
        return passes * self.forward_backward + self.update


class Probe:
    """Times steps of a model that may lie on the meta device; `cached`: vision features come from the cache.

    `wide`: frozen weights are in float32, otherwise in bfloat16.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        config: FinetuneConfig,
        device: torch.device,
        *,
        cached: bool,
        wide: bool,
        prompt: int = PROMPT,
        budget: float = BUDGET,
    ) -> None:
        self.model, self.config, self.device = model, config, device
        self.cached, self.wide, self.prompt, self.budget = cached, wide, prompt, budget
        self.spent = 0.0  # [s]
        self._times: dict[tuple[int, bool], StepTime] = {}
        depths = {"layers": model.body_spec.text.layers}
        if not cached:
            depths |= {str(i): t.blocks for i, t in enumerate(model.body_spec.towers)}
        self.depths = depths
        self._models: list[tuple[str, int, _Shallow]] = []

    def timed(self, rows: Sequence[TrainingMemory]) -> list[TrainingMemory]:
        """The rows that fit with a measured step time, the first row before the others, then small micro-batches.

        What the budget does not allow takes the time of the nearest smaller micro-batch, sample for sample.
        """
        first = rows[0]
        order = sorted(rows, key=lambda r: (r is not first, r.batch))
        for row in order:
            if row.fits and (row.batch, row.checkpointing) not in self._times and self._affordable(row):
                self._times[row.batch, row.checkpointing] = self.time(row.batch, checkpointing=row.checkpointing)
        return [self._with_time(r) if r.fits else r for r in rows]

    def _affordable(self, row: TrainingMemory) -> bool:
        known = [b for b, recompute in self._times if recompute == row.checkpointing]
        if not known or row.batch < min(known):
            return True
        nearest = max(b for b in known if b <= row.batch)
        once = self._times[nearest, row.checkpointing].forward_backward * row.batch / nearest
        return self.spent + once * (REPEATS[0] + 1) <= self.budget

    def _with_time(self, row: TrainingMemory) -> TrainingMemory:
        batch = max(b for b, recompute in self._times if recompute == row.checkpointing and b <= row.batch)
        seconds = self._times[batch, row.checkpointing].step(row.batch * row.accumulation / batch)
        source = "timed" if batch == row.batch else f"timed at {batch}"
        return dataclasses.replace(row, step_seconds=(seconds, seconds), time_from=source)

    def time(self, batch: int, *, checkpointing: bool, each_round: Callable[[], object] = lambda: None) -> StepTime:
        """One micro-batch through the whole depth, and one update.

        `each_round` is called in turn with the models: what the time is compared with then meets the same machine.
        """
        started = time.perf_counter()
        with launch.threads(self.config.threads):
            if not self._models:
                self._models = self._built()
            found: list[list[StepTime]] = [[] for _ in self._models]
            for _, _, model in self._models:
                model.prepare(batch, self.prompt, cached=self.cached, checkpointing=checkpointing)
                model.step()  # what is loaded and allocated at first use
            begun = time.perf_counter()
            while len(found[0]) < REPEATS[0] or (
                len(found[0]) < REPEATS[1] and time.perf_counter() - begun < LONG_ENOUGH
            ):
                for (_, _, model), times in zip(self._models, found, strict=True):  # in turn: the machine may drift
                    times.append(model.step())
                each_round()
            for _, _, model in self._models:
                model.release()
        self.spent += time.perf_counter() - started
        middle = [
            StepTime(*(statistics.median(getattr(t, f.name) for t in times) for f in dataclasses.fields(StepTime)))
            for times in found
        ]
        return StepTime(*(self._carried_on([getattr(t, f.name) for t in middle]) for f in dataclasses.fields(StepTime)))

    def _carried_on(self, seconds: Sequence[float]) -> float:
        """The shallow model's time, and for every part what one more of it adds, times how many there are beyond."""
        total = seconds[0]
        for (part, more, _), value in zip(self._models[1:], seconds[1:], strict=True):
            total += max(0.0, value - seconds[0]) / more * (self.depths[part] - 1)
        return total

    def _built(self) -> list[tuple[str, int, "_Shallow"]]:
        towers = len(self.model.body_spec.towers)

        def of(**deeper: int) -> _Shallow:
            blocks = [deeper.get(str(i), 1) for i in range(towers)]
            return _Shallow(self.model, deeper.get("layers", 1), blocks, self.config, self.device, wide=self.wide)

        more = {part: min(MORE, depth - 1) for part, depth in self.depths.items() if depth > 1}
        return [("", 0, of()), *((part, n, of(**{part: 1 + n})) for part, n in more.items())]


class _Shallow:
    """A model of few layers with random weights, set up as the training loop sets one up, and its optimiser."""

    def __init__(
        self,
        like: VisionLanguageModel,
        layers: int,
        blocks: Sequence[int],
        config: FinetuneConfig,
        device: torch.device,
        *,
        wide: bool,
    ) -> None:
        with without_weights():
            model = type(like)(cut(like, layers, blocks), like.tokenizer_files())
        model = model.to(torch.float32 if wide else torch.bfloat16).to_empty(device=device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.02) if parameter.ndim >= 2 else parameter.fill_(1.0)
        lora.attach(model, LoraSettings(**config.lora()))
        model.train()
        multiply_natively(model, device)
        self.model, self.device = model, device
        self.config = dataclasses.replace(config, precision=resolved(config.precision, device))
        self.narrow = self.config.precision != "fp32"
        lora.trust_autocast(model, on=self.narrow)
        lora.fuse_forward(model, on=device.type == "cpu")
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(model, self.parameters, config)
        self.batch: tuple[Any, ...] = ()

    def prepare(self, count: int, prompt: int, *, cached: bool, checkpointing: bool) -> None:
        self.model.checkpoint_layers(on=checkpointing)
        self.batch = random_batch(self.model, count, prompt, self.device, cached=cached)

    def release(self) -> None:
        self.batch = ()

    def step(self) -> StepTime:
        started = self._clock()
        with torch.autocast(self.device.type, self._kind(), enabled=self.narrow):
            loss = self.model.loss(*self.batch)
        loss.backward()
        between = self._clock()
        if self.config.clip_norm > 0:
            float(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepTime(between - started, self._clock() - between)

    def _kind(self) -> torch.dtype:
        return torch.float16 if self.config.precision == "fp16" else torch.bfloat16

    def _clock(self) -> float:
        """[s] a CPU's own time, as training reports it there: others' work does not count."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def random_batch(
    model: VisionLanguageModel, count: int, prompt: int, device: torch.device, *, cached: bool
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Inputs, target and valid rows of the right shapes; numbers do not matter to time."""
    spec, body = model.spec, model.body_spec
    inputs = {
        "input_ids": torch.randint(3, 100, (count, prompt), device=device),
        "prompt_mask": torch.ones(count, prompt, dtype=torch.bool, device=device),
        "state": torch.zeros(count, spec.state_dim, device=device),
    }
    if cached:
        inputs["patches"] = torch.randn(count, spec.cameras * body.patches, body.text.width, device=device)
    else:
        side, channels = body.towers[0].image_size, spec.cameras * body.images.channels
        inputs["pixel_values"] = torch.randn(count, channels, side, side, device=device)
    target = torch.rand(count, spec.horizon, spec.action_dim, device=device) * 2 - 1
    return inputs, target, torch.ones(count, spec.horizon, dtype=torch.bool, device=device)


def here() -> tuple[Device, torch.device]:
    """This machine's GPU, or its processor: memory as it is now, arithmetic by a product of matrices."""
    if torch.cuda.is_available():
        place = torch.device("cuda")
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        memory, name = found.total_memory / 1e9, found.name
    else:
        place = torch.device("cpu")
        lines = Path("/proc/meminfo").read_text().splitlines()
        memory = int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]) * 1.024e-6
        name = "its processor, with the memory that is free now"
    device = measured_cpu(0.0, _dense_tflops(place), memory)
    return dataclasses.replace(device, name=HERE, label=f"this machine: {name}"), place


def is_here(name: str) -> bool:
    """Whether a device of the table is this machine's GPU: all parts of its name are words of the driver's, which names
    no other model of it (an L40S is no L4, a laptop's 4090 none of a desktop).
    """
    if not torch.cuda.is_available():
        return False
    driver = re.sub(r"[\s-]+", " ", torch.cuda.get_device_name().lower())
    if re.search(r"\b(super|ti|laptop|max q|d)\b", driver):
        return False
    parts = [re.sub(r"(?<=[a-z])(?=\d)", " ?", part) for part in name.split("-")]
    return all(re.search(rf"\b{part}\b", driver) for part in parts)


def _dense_tflops(place: torch.device) -> float:
    """[TFLOP/s] the best of a few products in the type that is native: what a roofline may divide by."""
    a = torch.randn(1024, 1024, device=place, dtype=product_type(place))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        float((a @ a)[0, 0])
        seconds.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(seconds) / 1e12
