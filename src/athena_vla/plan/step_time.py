"""How long an optimiser step takes: arithmetic, the bytes of weights that are unpacked or normed, and launches.

The larger of two times counts: what the card needs, and what the host needs to start every kernel. Predicted.
"""

from dataclasses import dataclass

from athena_vla.models import lora
from athena_vla.models.lora import LoraSettings
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan.activations import StepCost
from athena_vla.plan.devices import Device

SHARE = (0.35, 0.60)  # of dense 16-bit arithmetic that training of this size reaches; an assumption, not measured by us
# Bytes for each 4-bit weight that is unpacked: half a byte and its scale are read, and two bytes are written.
_UNPACKED = 4.127 / 8 + 2.0
_UNPACK_LAUNCHES = 5  # the scales of scales, their mean, the codes, a copy of the result
_BLOCK_LAUNCHES = 20  # forward pass of a tower's block
_UPDATE_BYTES = 28  # of each trained parameter: weight, gradient and two moments are read, three of them written


@dataclass(frozen=True)
class StepWork:
    """Of one micro-batch, and of one update."""

    flops: float
    traffic: float  # [bytes] beside products, whatever the batch: weights unpacked (NF4) and normed (DoRA)
    launches: float
    update: float  # [bytes] once per step

    def seconds(self, device: Device, accumulation: int) -> tuple[float, float]:
        """Fast and slow end of a step of that many micro-batches."""
        fast, slow = ((accumulation * max(busy, host) + update) for busy, host, update in self._ends(device))
        return fast, slow

    def bound(self, device: Device) -> str:
        """What the slow end waits for."""
        busy, host, _ = self._ends(device)[1]
        if host > busy:
            return "launches"
        return "arithmetic" if busy < 2 * self.flops / (device.fp16_tflops * 1e12 * SHARE[0]) else "bytes"

    def _ends(self, device: Device) -> tuple[tuple[float, float, float], ...]:
        """For the fast and the slow end [s]: the card's time, the host's, and that of the update."""
        ends = []
        for end, share in enumerate((SHARE[1], SHARE[0])):
            # Processors have no known bandwidth here: their steps are timed, not predicted.
            rate = device.bandwidth_gbs * 1e9 * device.bandwidth_share[1 - end]
            moved, update = (b / rate if rate else 0.0 for b in (self.traffic, self.update))
            busy = self.flops / (device.fp16_tflops * 1e12 * share) + moved
            ends.append((busy, self.launches * device.host_us[end] * 1e-6, update))
        return tuple(ends)


def step_work(
    model: VisionLanguageModel,
    settings: LoraSettings,
    cost: StepCost,
    quantized: int,
    *,
    batch: int,
    checkpointing: bool,
    cached: bool,
    trainable: int,
) -> StepWork:
    """What a micro-batch costs; `quantized` weights are in 4 bits."""
    layers = model.body_spec.text.layers
    flops = cost.flops(layers, batch, checkpointing=checkpointing)
    traffic = cost.weight_traffic(layers, checkpointing=checkpointing)
    launches = cost.launches(layers, checkpointing=checkpointing)
    if quantized:
        forward = (2 if settings.dora else 1) * (2 if checkpointing else 1)  # DoRA unpacks once more, for its norm
        times = forward + 1  # and once in the backward pass
        traffic += times * quantized * _UNPACKED
        launches += times * _UNPACK_LAUNCHES * len(lora.four_bit_paths(model))
    if not cached:
        flops += batch * vision_flops(model, settings)
        blocks = sum(t.blocks for t in model.body_spec.towers)
        # Blocks that train have adapters and a backward pass, as the decoder's layers have.
        launches += blocks * (cost.launches_of_a_layer(checkpointing=False) if settings.vision else _BLOCK_LAUNCHES)
    return StepWork(flops, traffic, launches, float(_UPDATE_BYTES * trainable))


def vision_flops(model: VisionLanguageModel, settings: LoraSettings) -> float:
    """Of one sample: two operations per weight and row, three times that where the towers train."""
    once = 0.0
    for tower in model.body_spec.towers:
        rows = model.spec.cameras * (tower.patches + 5)
        once += 2.0 * rows * tower.blocks * (4 * tower.width**2 + 2 * tower.width * tower.mlp_width)
    return once * (3 if settings.vision else 1)
