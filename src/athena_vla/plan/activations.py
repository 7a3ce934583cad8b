"""What one training step holds at its peak, and its arithmetic: traced on tensors without memory.

Three and four decoder layers are run forward and backward through the very code that trains, with fake tensors; every
block that would be allocated is counted while it lives, so gradients and passing temporaries are in. The pass is cut
into phases. The peak of each is linear in layers and in samples, and is carried on; the largest counts. A straight
line through whole peaks would lie above, because another phase holds the peak of small batches. Knows no devices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from athena_vla.models import lora
from athena_vla.models.loops.shared_loop import VlaSpec
from athena_vla.models.lora import LoraSettings
from athena_vla.models.parallel import ParallelModel
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan.like_a_card import as_on_a_card
from athena_vla.plan.live_blocks import Live, phases

PROMPT = 32  # tokens of a usual instruction
_FEW, _MORE = 3, 4  # decoder layers that are traced
_BATCHES = (1, 32)  # samples that are traced


class StepCost:
    """Of one forward and backward pass of a model; patches come from the cache, so vision is no part of it.

    The model may lie on the meta device and is not changed. `on_cpu`: as the loop runs on CPUs (fused adapters,
    attention weights kept); `wide`: weights in float32, as small models have them on CPUs.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        settings: LoraSettings,
        *,
        on_cpu: bool = False,
        wide: bool | None = None,
        precision: str = "bf16",
        prompt: int = PROMPT,
    ) -> None:
        # 4-bit weights are frozen: what is kept for the backward pass is the same as above 16-bit ones.
        self.settings = dataclasses.replace(settings, quantization="none")
        self.model, self.on_cpu, self.precision, self.prompt = model, on_cpu, precision, prompt
        self.wide = (on_cpu or precision == "fp32") if wide is None else wide
        self._mode = FakeTensorMode()
        self._models = {n: self._prepared(n) for n in (_FEW, _MORE)}
        self._traces: dict[tuple[int, int, bool], Live] = {}

    def flops(self, layers: int, batch: int, *, checkpointing: bool) -> float:
        """Of products of matrices: what is computed again is in, and what does not depend on samples (DoRA's norms)."""
        return self._carried_on(lambda trace: trace.flops, layers, batch, checkpointing)

    def launches(self, layers: int, *, checkpointing: bool) -> float:
        """Kernels that the host starts, whatever the batch."""
        return self._carried_on(lambda trace: trace.launches, layers, _BATCHES[0], checkpointing)

    def launches_of_a_layer(self, *, checkpointing: bool) -> float:
        return self.launches(1, checkpointing=checkpointing) - self.launches(0, checkpointing=checkpointing)

    def weight_traffic(self, layers: int, *, checkpointing: bool) -> float:
        """[bytes] moved once per pass whatever the batch, beside products: casts of adapters, DoRA's norms."""
        return max(0.0, self._carried_on(lambda trace: trace.moved, layers, 0, checkpointing))

    def peak(self, layers: int, batch: int, *, checkpointing: bool, again: bool = False) -> float:
        """[bytes] held at most beside weights and moments, gradients of adapters included.

        `again`: of the second and later micro-batches of a step, when gradients of all that trains are there already.
        """
        few, many = (self._peaks(n, batch, checkpointing) for n in (_FEW, _MORE))
        whole = {
            name: [a + (b - a) / (_MORE - _FEW) * (layers - _FEW) for a, b in zip(few[name], many[name], strict=True)]
            for name in few
        }
        gradients = self.gradients(layers)
        if again:
            return gradients + max(rest for _, rest in whole.values())
        return max(gradients, *(all_of_it for all_of_it, _ in whole.values()))

    def gradients(self, layers: int) -> float:
        """[bytes] of the gradients of all that trains, which are in float32."""
        one, two = (4.0 * lora.count(self._models[n]).trainable for n in (_FEW, _MORE))
        return one + (two - one) / (_MORE - _FEW) * (layers - _FEW)

    def _peaks(self, layers: int, batch: int, checkpointing: bool) -> dict[str, tuple[float, float]]:
        """Of each phase: with the gradients of a first pass, and without any."""
        small, large = (self._trace(layers, b, checkpointing).peaks for b in _BATCHES)

        def at(name: str, which: int) -> float:
            slope = (large[name][which] - small[name][which]) / (_BATCHES[1] - _BATCHES[0])
            return small[name][which] + slope * (batch - _BATCHES[0])

        return {name: (at(name, 0), at(name, 1)) for name in small}

    def _carried_on(self, of: "Callable[[Live], float]", layers: int, batch: int, checkpointing: bool) -> float:
        """What is linear in layers and in samples."""

        def at(n: int) -> float:
            small, large = (of(self._trace(n, b, checkpointing)) for b in _BATCHES)
            return small + (large - small) / (_BATCHES[1] - _BATCHES[0]) * (batch - _BATCHES[0])

        return at(_FEW) + (at(_MORE) - at(_FEW)) / (_MORE - _FEW) * (layers - _FEW)

    def _trace(self, layers: int, batch: int, checkpointing: bool) -> "Live":
        key = (layers, batch, checkpointing)
        if key not in self._traces:
            model = self._models[layers]
            model.checkpoint_layers(on=checkpointing)
            live = Live(model, self._counts(batch))
            with self._mode, torch.device("cpu"), live, phases(model, live):
                self._pass(model, batch)
            model.zero_grad(set_to_none=True)
            self._traces[key] = live
        return self._traces[key]

    def _counts(self, batch: int) -> Callable[[Tensor], bool]:
        """GPUs' attention kernels keep no [rows, rows] weights; the code for CPUs does."""
        spec = self.model.body_spec
        rows = {self.model.spec.cameras * spec.patches + self.prompt + answer_rows(self.model) + n for n in (0, 1)}
        heads = (spec.text.heads, batch * spec.text.heads)

        def counts(tensor: Tensor) -> bool:
            shape = tensor.shape
            return self.on_cpu or not (len(shape) >= 3 and shape[-1] in rows and shape[-3] in heads)

        return counts

    def _prepared(self, layers: int) -> VisionLanguageModel:
        """A copy with few layers, as the loop sets it up, on tensors that have no memory but say they are on a CPU."""
        spec = cut(self.model, layers, [1] * len(self.model.body_spec.towers))  # towers: not traced, patches are given
        with torch.device("meta"):
            model = type(self.model)(spec, self.model.tokenizer_files())
            if not self.wide:
                model.to(torch.bfloat16)
            lora.attach(model, self.settings)
        with self._mode, torch.device("cpu"):  # the meta device itself has no autocast
            for module in model.modules():
                for name, p in module._parameters.items():
                    if p is not None:
                        fake = torch.empty(p.shape, dtype=p.dtype)
                        module._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
        model.train()
        lora.trust_autocast(model, on=self.precision != "fp32")
        lora.fuse_forward(model, on=self.on_cpu)
        if not self.on_cpu:
            as_on_a_card(model)
        return model

    def _pass(self, model: VisionLanguageModel, batch: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision != "fp32"):
            loss = _loss(model, batch, self.prompt)
        loss.backward()


def cut(model: VisionLanguageModel, layers: int, blocks: Sequence[int]) -> VlaSpec:
    """The model's specification with fewer decoder layers, and fewer blocks in each of its towers."""
    spec = cast(VlaSpec, model.spec)
    text = dataclasses.replace(spec.body.text, layers=layers)
    towers = tuple(dataclasses.replace(t, blocks=n) for t, n in zip(spec.body.towers, blocks, strict=True))
    return dataclasses.replace(spec, body=dataclasses.replace(spec.body, text=text, towers=towers))


def answer_rows(model: VisionLanguageModel) -> int:
    """Rows of the sequence that stand for actions."""
    return model.action_tokens if isinstance(model, ParallelModel) else model.spec.horizon * model.spec.action_dim


def _loss(model: VisionLanguageModel, batch: int, prompt: int) -> Tensor:
    spec, text = model.spec, model.body_spec.text
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
