"""What one training step holds at its peak, and its arithmetic: traced on tensors without memory.

Two and three decoder layers are run forward and backward through the very code that trains, with fake tensors; every
block that would be allocated is counted while it lives, so gradients and passing temporaries are in. What depends on
the number of layers is carried on in a straight line. Knows no devices.
"""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from athena_vla.models import lora
from athena_vla.models.loops.shared_loop import VlaSpec
from athena_vla.models.lora import LoraSettings
from athena_vla.models.parallel import ParallelModel
from athena_vla.models.vla import VisionLanguageModel

PROMPT = 32  # tokens of a usual instruction
_FEW, _MORE = 2, 3  # decoder layers that are traced
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
        self._traces: dict[tuple[int, int, bool], _Live] = {}
        one, two = (self._flops(n) for n in (_FEW, _MORE))
        self.layer_flops = (two - one) / (_MORE - _FEW)
        self.rest_flops = one - _FEW * self.layer_flops

    def flops(self, layers: int, batch: int, *, checkpointing: bool) -> float:
        """A layer that is computed again costs its forward pass twice: a third more."""
        return batch * (self.layer_flops * layers * (4 / 3 if checkpointing else 1) + self.rest_flops)

    def peak(self, layers: int, batch: int, *, checkpointing: bool) -> float:
        """[bytes] held at most beside weights and moments, gradients included, when none were there before.

        What holds the peak may change between the traced batches; the straight line then lies above.
        """

        def of(n: int) -> float:
            small, large = (self._trace(n, b, checkpointing).peak for b in _BATCHES)
            return small + (large - small) / (_BATCHES[1] - _BATCHES[0]) * (batch - _BATCHES[0])

        return of(_FEW) + (of(_MORE) - of(_FEW)) / (_MORE - _FEW) * (layers - _FEW)

    def _flops(self, layers: int) -> float:
        counter = FlopCounterMode(display=False)
        with self._mode, torch.device("cpu"), counter:
            self._pass(self._models[layers], 1)
        self._models[layers].zero_grad(set_to_none=True)
        return float(counter.get_total_flops())

    def _trace(self, layers: int, batch: int, checkpointing: bool) -> "_Live":
        key = (layers, batch, checkpointing)
        if key not in self._traces:
            model = self._models[layers]
            model.checkpoint_layers(on=checkpointing)
            live = _Live(model, self._counts(batch))
            with self._mode, torch.device("cpu"), live:
                self._pass(model, batch)
            model.zero_grad(set_to_none=True)
            self._traces[key] = live
        return self._traces[key]

    def _counts(self, batch: int) -> Callable[[Tensor], bool]:
        """GPUs' attention kernels keep no [rows, rows] weights; the code for CPUs does."""
        spec = self.model.body_spec
        rows = self.model.spec.cameras * spec.patches + self.prompt + answer_rows(self.model)
        heads = (spec.text.heads, batch * spec.text.heads)

        def counts(tensor: Tensor) -> bool:
            shape = tensor.shape
            return self.on_cpu or not (len(shape) >= 3 and shape[-1] == rows and shape[-3] in heads)

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
        return model

    def _pass(self, model: VisionLanguageModel, batch: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision != "fp32"):
            loss = _loss(model, batch, self.prompt)
        loss.backward()


class _Live(TorchDispatchMode):
    """Adds up the blocks that operations make, and takes them off when nothing refers to them any more."""

    def __init__(self, model: nn.Module, counts: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.now = self.peak = 0  # [bytes]
        self.counts = counts
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return made

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.weights or key in self.sizes or not self.counts(tensor):
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


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
