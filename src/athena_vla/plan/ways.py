"""The same policy by other engines, and what could answer sooner: each a row of the plan of a Jetson. Predicted.

Published figures check the rows (tests/test_plan_ways.py); none of them was used to set a share.
"""

from dataclasses import dataclass, replace

from athena_vla.models.architecture import Architecture
from athena_vla.models.sizes import weightless
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan import cost
from athena_vla.plan.cost import Cost
from athena_vla.plan.devices import Device
from athena_vla.plan.predict import BITS, predict
from athena_vla.plan.whole_run import between

LLAMA_BITS = {"fp16": 16.0, "int8": 8.5, "int4": 4.5}  # a scale of 16 bits for every 32 weights
# Of what TensorRT reaches on the same board, in decoding and in a pass of a few hundred rows: assumed.
LLAMA_BANDWIDTH, LLAMA_ARITHMETIC = (0.50, 0.75), (0.50, 0.75)
SMALL = {"width": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "mlp_width": 8192}  # Llama-3.2-1B's decoder


@dataclass(frozen=True)
class Way:
    """One other way to run or to build the policy."""

    name: str
    action_seconds: tuple[float, float]  # fast and slow end
    tokens_per_second: tuple[float, float] | None  # decoding token by token, slow and fast end
    note: str = ""

    def __str__(self) -> str:
        fast, slow = self.action_seconds
        said = f"  {self.name}: one action {between(fast * 1e3, slow * 1e3)} ms"
        if self.tokens_per_second is not None:
            said += f", decoding {between(*self.tokens_per_second)} tokens/s"
        return said + (f"; {self.note}" if self.note else "")


def llama_cpp(device: Device) -> Device:
    """The device as llama.cpp's kernels use it."""
    bandwidth, arithmetic = device.bandwidth_share, device.compute_share
    return replace(
        device,
        bandwidth_share=(bandwidth[0] * LLAMA_BANDWIDTH[0], bandwidth[1] * LLAMA_BANDWIDTH[1]),
        compute_share=(arithmetic[0] * LLAMA_ARITHMETIC[0], arithmetic[1] * LLAMA_ARITHMETIC[1]),
    )


def ways(model: Architecture, counted: Cost, device: Device, precision: str) -> tuple[Way, ...]:
    """Rows for a Jetson; none for other devices and for models without a language model."""
    if not device.jetson or not isinstance(model, VisionLanguageModel):
        return ()
    found = [_way("by llama.cpp", counted, llama_cpp(device), precision, LLAMA_BITS[precision], LLAMA_NOTE)]
    # Integer products of both operands: the whole pass at the rate of int8.
    eight = replace(device, fp16_tflops=device.int8_tops)
    found.append(_way("W8A8 in place of 4-bit weights", counted, eight, "int8", BITS["int8"], W8A8_NOTE))
    text = model.body_spec.text
    half = _with(model, layers=max(1, text.layers // 2))
    found.append(_way(f"{text.layers // 2} of {text.layers} layers", half, device, precision, BITS[precision]))
    found.append(_way(f"{text.layers // 2} of {text.layers} layers, W8A8", half, eight, "int8", BITS["int8"]))
    if text.width > SMALL["width"]:
        small = _with(model, **SMALL)
        found.append(_way("a decoder of 1B parameters", small, device, precision, BITS[precision], "trained anew"))
    return tuple(found)


LLAMA_NOTE = "vision runs beside it in ONNX Runtime, which needs its CUDA build for this time"
W8A8_NOTE = "activations in 8 bits have to pass the gates; no exporter of ours writes them"


def _way(name: str, counted: Cost, device: Device, precision: str, bits: float, note: str = "") -> Way:
    made = predict(counted, device, precision, bits)
    note = note if made.fits else f"does NOT fit ({made.memory.value:.1f} GB)"
    return Way(name, made.action_seconds, made.tokens_per_second, note)


def _with(model: VisionLanguageModel, **changes: int) -> Cost:
    """The cost of the same policy on a decoder of other sizes."""
    spec = model.spec
    body = replace(model.body_spec, text=replace(model.body_spec.text, **changes))
    return cost.count(weightless(model.family, replace(spec, body=body)))
