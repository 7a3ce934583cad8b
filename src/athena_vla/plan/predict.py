"""Roofline: bytes and arithmetic of every call against a device, as an interval. Predicted, never measured."""

from dataclasses import dataclass
from typing import Any

from athena_vla.gate import Gate
from athena_vla.plan.cost import Call, Cost, bytes_of, held_bytes
from athena_vla.plan.devices import Device

BITS = {"fp16": 16.0, "int8": 8.02, "int4": 4.125}  # scales included: fp16 per 128 weights, or per channel
# Calls with fewer rows than this decode single tokens.
FEW_ROWS = 8
CALL_US = (20.0, 200.0)  # [us] to hand inputs to an engine and take its outputs: common experience, not measured


@dataclass(frozen=True)
class Stage:
    """One graph of the host loop."""

    graph: str
    calls: int
    gigabytes: float  # read per call
    teraflop: float  # per call
    seconds: tuple[float, float]  # of all calls together, fast and slow end
    bound: str  # bandwidth | arithmetic | launches


@dataclass(frozen=True)
class Prediction:
    """Timing and memory of a policy on a device that was not run."""

    device: str
    label: str
    precision: str
    stages: tuple[Stage, ...]
    action_seconds: tuple[float, float]
    actions_per_second: tuple[float, float]  # chunk rows per second, slow and fast end
    tokens_per_second: tuple[float, float] | None  # single-token decoding, slow and fast end; None without such calls
    memory_gb: dict[str, float]
    memory: Gate  # [GB] held, of what the device has
    advice: tuple[str, ...]
    source: str
    mode_note: str = ""  # what others saw in slower power modes
    kind: str = "predicted"

    @property
    def fits(self) -> bool:
        return self.memory.passed

    def __str__(self) -> str:
        low, high = self.action_seconds
        lines = [f"PREDICTED, not measured: {self.label}, {self.precision}"]
        lines += [
            f"  {s.graph:<10} {s.calls:>4} x  {s.gigabytes:7.3f} GB  {s.teraflop:8.4f} TFLOP  "
            f"{s.seconds[0] * 1e3:8.1f} to {s.seconds[1] * 1e3:8.1f} ms  ({s.bound})"
            for s in self.stages
        ]
        slow, fast = self.actions_per_second
        lines.append(f"  whole action {low:.3f} to {high:.3f} s; {slow:.1f} to {fast:.1f} actions/s")
        if self.tokens_per_second:
            lines.append(f"  decoding {self.tokens_per_second[0]:.1f} to {self.tokens_per_second[1]:.1f} tokens/s")
        lines.append(f"  memory {self.memory.value:.1f} GB: {'fits' if self.fits else 'does NOT fit'}")
        lines += [f"  faster: {a}" for a in self.advice]
        lines += [f"  slower: {self.mode_note}"] if self.mode_note else []
        return "\n".join([*lines, f"  source of the shares: {self.source}"])


def predict(cost: Cost, device: Device, precision: str, bits: float = 0.0) -> Prediction:
    """Every stage by the slower of its two limits, with the device's interval of achieved shares.

    `bits` of a stored weight, where an engine keeps `precision` otherwise than `BITS` says.
    """
    bits = bits or BITS[precision]
    stages = tuple(_stage(cost, name, device, bits) for name in dict.fromkeys(c.graph for c in cost.calls))
    low = sum(s.seconds[0] for s in stages)
    high = sum(s.seconds[1] for s in stages)
    single = [c for c in cost.calls if c.tokens < FEW_ROWS and c.packed_weights]
    tokens = None
    if single:
        times = sum(c.times for c in single)
        seconds = [sum(s.seconds[i] for s in stages if s.graph in {c.graph for c in single}) for i in (0, 1)]
        tokens = (times / seconds[1], times / seconds[0])
    held = {**held_bytes(cost, bits), "system_gb": device.system_gb}
    return Prediction(
        device=device.name,
        label=device.label,
        precision=precision,
        stages=stages,
        action_seconds=(low, high),
        actions_per_second=(cost.horizon / high, cost.horizon / low),
        tokens_per_second=tokens,
        memory_gb=held,
        memory=Gate.at_most("memory", sum(held.values()), device.memory_gb, "GB"),
        advice=_advice(cost, device, stages, precision),
        source=device.source,
        mode_note=device.mode_note,
    )


def step_seconds(bytes_read: float, device: Device) -> tuple[float, float]:
    """Fast and slow end of one bandwidth-bound pass."""
    low, high = device.bandwidth_share
    return bytes_read / (device.bandwidth_gbs * 1e9 * high), bytes_read / (device.bandwidth_gbs * 1e9 * low)


def pass_seconds(flops: float, device: Device) -> tuple[float, float]:
    """Fast and slow end of one pass bound by arithmetic in fp16."""
    low, high = device.compute_share
    return flops / (device.fp16_tflops * 1e12 * high), flops / (device.fp16_tflops * 1e12 * low)


def launch_seconds(call: Call, device: Device) -> tuple[float, float]:
    """The least one call can take: handing it over, and every kernel; at the fast end all but products are fused."""
    kernels = (call.products * device.kernel_us[0], call.kernels * device.kernel_us[1])
    return (CALL_US[0] + kernels[0]) * 1e-6, (CALL_US[1] + kernels[1]) * 1e-6


def _stage(cost: Cost, graph: str, device: Device, bits: float) -> Stage:
    calls = [c for c in cost.calls if c.graph == graph]
    low = high = moved = flops = 0.0
    waited = {"bandwidth": 0.0, "arithmetic": 0.0, "launches": 0.0}  # [s] of the slow end, by what it waits for
    for call in calls:
        memory = step_seconds(bytes_of(call, bits), device)
        arithmetic = pass_seconds(call.flops, device)
        floor = launch_seconds(call, device)
        low += call.times * max(memory[0], arithmetic[0], floor[0])
        slow, bound = max((memory[1], "bandwidth"), (arithmetic[1], "arithmetic"), (floor[1], "launches"))
        high += call.times * slow
        waited[bound] += call.times * slow
        moved += call.times * bytes_of(call, bits)
        flops += call.times * call.flops
    times = sum(c.times for c in calls)
    return Stage(
        graph=graph,
        calls=times,
        gigabytes=moved / times / 1e9,
        teraflop=flops / times / 1e12,
        seconds=(low, high),
        bound=max(waited, key=lambda name: waited[name]),
    )


def _advice(cost: Cost, device: Device, stages: tuple[Stage, ...], precision: str) -> tuple[str, ...]:
    """What would be faster, with the limit it would move."""
    found = []
    worst = max(stages, key=lambda s: s.seconds[1])
    if worst.calls > 1 and worst.bound == "bandwidth":
        found.append(
            f"{worst.calls} single-token calls take {worst.seconds[1]:.2f} s; a family that answers a chunk in one "
            "pass reads the weights once"
        )
        if precision != "int4":
            found.append("4-bit weights: decoding is bound by bytes per token")
    if worst.bound == "arithmetic" and worst.calls == 1:
        gain = device.int8_tops / device.fp16_tflops
        found.append(
            f"'{worst.graph}' is bound by arithmetic: 4-bit weights save memory, not time; int8 activations could take "
            f"up to {gain:.1f}x less, a shorter prompt or fewer patches help in proportion"
        )
    if cost.horizon < 16:
        found.append(f"a longer chunk than {cost.horizon} steps adds little time per action in one pass")
    return tuple(found)


def as_dict(prediction: Prediction) -> dict[str, Any]:
    memory = {"memory": prediction.memory.to_dict(), "fits": prediction.fits}
    return prediction.__dict__ | memory | {"stages": [s.__dict__ for s in prediction.stages]}
