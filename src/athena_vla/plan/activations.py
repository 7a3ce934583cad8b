"""What one training step keeps for its backward pass, and its arithmetic: traced on tensors without memory.

Two and three decoder layers are run through the very code that trains, with fake tensors; the difference is one layer.
Knows no devices.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from athena_vla.models import lora
from athena_vla.models.lora import LoraSettings
from athena_vla.models.parallel import ParallelModel
from athena_vla.models.vla import VisionLanguageModel

PROMPT = 32  # tokens of a usual instruction


@dataclass(frozen=True)
class Traced:
    """Of one model: what it keeps per sample, what it keeps however many samples, and its arithmetic per sample."""

    per_sample: float  # [bytes]
    fixed: float  # [bytes] copies of weights in another type, sums of weights and adapters
    flops: float


@dataclass(frozen=True)
class StepCost:
    """Of one forward and backward pass; linear in layers and samples."""

    layer: Traced  # one decoder layer
    rest: Traced  # everything else, and what the last layer saves by computing the answer's rows only
    boundary_bytes: float  # the input of one layer, all that is kept of it with checkpointing

    def kept(self, layers: int, batch: int, *, checkpointing: bool) -> float:
        """Bytes at the end of the forward pass, and while one layer is computed again."""
        whole = 1 if checkpointing else layers
        boundaries = self.boundary_bytes * layers if checkpointing else 0.0
        per_sample = self.layer.per_sample * whole + boundaries + max(0.0, self.rest.per_sample)
        return batch * per_sample + self.layer.fixed * whole + max(0.0, self.rest.fixed)

    def flops(self, layers: int, batch: int, *, checkpointing: bool) -> float:
        """A layer that is computed again costs its forward pass twice: a third more."""
        return batch * (self.layer.flops * layers * (4 / 3 if checkpointing else 1) + self.rest.flops)


def step_cost(
    model: VisionLanguageModel,
    settings: LoraSettings,
    *,
    on_cpu: bool = False,
    precision: str = "bf16",
    prompt: int = PROMPT,
) -> StepCost:
    """Trace the model's loss with cached patches; the model itself may lie on the meta device and is not changed.

    `on_cpu`: as the loop runs on CPUs (float32 weights, fused adapters, attention weights kept).
    """
    # 4-bit weights are frozen: what is kept for the backward pass is the same as above 16-bit ones.
    plain = dataclasses.replace(settings, quantization="none")
    two, three = (_trace(_shrunk(model, n), plain, on_cpu, precision, prompt) for n in (2, 3))
    layer = Traced(three.per_sample - two.per_sample, three.fixed - two.fixed, three.flops - two.flops)
    rest = Traced(two.per_sample - 2 * layer.per_sample, two.fixed - 2 * layer.fixed, two.flops - 2 * layer.flops)
    tokens = model.spec.cameras * model.body_spec.patches + prompt + answer_rows(model)
    width = 4 if precision == "fp32" or on_cpu else 2
    return StepCost(layer, rest, float(tokens * model.body_spec.text.width * width))


def answer_rows(model: VisionLanguageModel) -> int:
    """Rows of the sequence that stand for actions."""
    return model.action_tokens if isinstance(model, ParallelModel) else model.spec.horizon * model.spec.action_dim


def _shrunk(model: VisionLanguageModel, layers: int) -> VisionLanguageModel:
    """A copy with few layers and without memory."""
    spec = cast(Any, model.spec)
    body = dataclasses.replace(spec.body, text=dataclasses.replace(spec.body.text, layers=layers))
    with torch.device("meta"):
        return type(model)(dataclasses.replace(spec, body=body), model.tokenizer_files())


def _trace(model: VisionLanguageModel, settings: LoraSettings, on_cpu: bool, precision: str, prompt: int) -> Traced:
    """One sample, forward and backward."""
    narrow = not on_cpu and precision != "fp32"
    if narrow:
        model.to(torch.bfloat16)
    lora.attach(model, settings)
    with FakeTensorMode(), torch.device("cpu"):
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    fake = torch.empty(p.shape, dtype=p.dtype)
                    module._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
        model.train()
        lora.trust_autocast(model, on=precision != "fp32")
        lora.fuse_forward(model, on=on_cpu)
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        shapes = {tuple(p.shape) for p in model.parameters()}
        weights = shapes | {s[::-1] for s in shapes}
        kept: dict[int, tuple[Any, int, bool]] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            # GPUs' attention kernels keep no [rows, rows] weights; the code for CPUs does.
            quadratic = tensor.ndim == 4 and min(tensor.shape[-2:]) > prompt and tensor.shape[-1] != _head(model)
            if storage._cdata not in own and (on_cpu or not quadratic):
                kept[storage._cdata] = (storage, storage.nbytes(), tuple(tensor.shape) in weights)
            return tensor

        counter = FlopCounterMode(display=False)
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")
        with counter:
            with mixed, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
                loss = _loss(model, prompt)
            per_sample, fixed = (float(sum(n for _, n, w in kept.values() if w is which)) for which in (False, True))
            loss.backward()
    return Traced(per_sample, fixed, float(counter.get_total_flops()))


def _head(model: VisionLanguageModel) -> int:
    return model.body_spec.text.head_width


def _loss(model: VisionLanguageModel, prompt: int) -> Tensor:
    spec, text, batch = model.spec, model.body_spec.text, 1
    inputs = {
        "patches": torch.empty(batch, spec.cameras * model.body_spec.patches, text.width),
        "input_ids": torch.zeros(batch, prompt, dtype=torch.int64),
        "prompt_mask": torch.ones(batch, prompt, dtype=torch.bool),
        "state": torch.empty(batch, spec.state_dim),
    }
    if model.reads_tokens:  # the loss itself makes token ids on the host, which fake tensors have not
        tokens = torch.zeros(batch, answer_rows(model), dtype=torch.int64)
        logits = cast(Any, model).answer_logits(inputs, tokens).float()
        return logits.log_softmax(-1).mean()
    target = torch.zeros(batch, spec.horizon, spec.action_dim)
    return model.loss(inputs, target, torch.ones(batch, spec.horizon, dtype=torch.bool))
