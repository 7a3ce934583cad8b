"""What devices can do: memory, bandwidth, dense arithmetic, and the share of it that real engines have reached.

Every number has a source. The headline TOPS of Jetson modules are sparse INT8 and include the DLAs, which no language
model uses: the figures here are dense and of the GPU alone. Knows no models.
"""

from dataclasses import dataclass, replace

from athena_vla.errors import UnknownName


@dataclass(frozen=True)
class PowerMode:
    """What a slower mode of a Jetson leaves: clocks of GPU and memory as its maker states them. Never run by us."""

    name: str
    label: str
    bandwidth_gbs: float
    fp16_tflops: float  # dense
    int8_tops: float  # dense


@dataclass(frozen=True)
class Device:
    """One accelerator in its fastest power mode; shares are intervals seen in published measurements."""

    name: str
    label: str
    memory_gb: float  # what a process can have at most
    system_gb: float  # of it taken by system, CUDA context and engine
    bandwidth_gbs: float
    fp16_tflops: float  # dense
    int8_tops: float  # dense
    bandwidth_share: tuple[float, float]  # of the bandwidth in single-token decoding
    compute_share: tuple[float, float]  # of fp16_tflops in a pass over a few hundred tokens
    formats: tuple[str, ...]  # weight formats with fast kernels
    sm: int  # compute capability, 0 for CPUs
    source: str
    jetson: bool = False
    modes: tuple[PowerMode, ...] = ()  # slower ones that have published clocks
    mode_note: str = ""  # what others saw in a slower mode
    kernel_us: tuple[float, float] = (2.0, 8.0)  # [us] a kernel takes at least, replayed; see `KERNELS`
    host_us: tuple[float, float] = (8.0, 25.0)  # [us] of Python and driver for a kernel that is not replayed


_SLOWER = (
    "MAXN on an AGX Orin 64GB gave 2.5 to 2.9 actions/s of a 4-bit openvla-7b, 30 W 0.9 (jetson-containers#617); MLC "
    "gave 42.9 to 47 tokens/s, and 19.3 in a wrong mode (jetson-containers#412)"
)

KERNELS = (
    "a kernel's least time and the host's time to start one are common experience; only the H200's were bounded by "
    "measurement (benchmarks/gpu_deploy.json: 5.9 us a kernel in a replayed graph of one row, of layers as they "
    "are written; benchmarks/train_gpu.json: 35 to 50 us of a virtual machine's core for each kernel of a "
    "training step)"
)

_EDGE = "TensorRT Edge-LLM v0.9 performance page (INT4 AWQ; Qwen3 1.7B to 8B; Qwen3-VL-8B, 292 tokens)"

_SHEET = "vendor's data sheet (16-bit products summed in 32 bits); shares are common experience, not a measurement"


def _card(
    name: str,
    label: str,
    memory: float,
    bandwidth: float,
    fp16: float,
    int8: float,
    *,
    sm: int,
    more: tuple[str, ...] = (),
    shares: tuple[tuple[float, float], tuple[float, float]] = ((0.40, 0.80), (0.35, 0.60)),
) -> Device:
    """A card by its data sheet: [GB], [GB/s], [TFLOP/s], [TOP/s]; shares of bandwidth and arithmetic."""
    return Device(
        name,
        label,
        memory_gb=memory,
        system_gb=1.0,
        bandwidth_gbs=bandwidth,
        fp16_tflops=fp16,
        int8_tops=int8,
        bandwidth_share=shares[0],
        compute_share=shares[1],
        formats=("fp16", "int8", "int4", *more),
        sm=sm,
        source=_SHEET,
    )


DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        Device(
            "jetson-orin-nx-16gb",
            "Jetson Orin NX 16GB, MAXN_SUPER",
            memory_gb=15.3,
            system_gb=3.0,
            bandwidth_gbs=102.4,
            fp16_tflops=19.2,
            int8_tops=38.4,
            bandwidth_share=(0.78, 0.92),
            compute_share=(0.40, 0.50),
            formats=("fp16", "int8", "int4"),
            sm=87,
            source=f"{_EDGE}: 19.0 tok/s for Qwen3-8B, 462 ms prefill; memory seen under JetPack 6.2: vla.cpp",
            jetson=True,
            modes=(PowerMode("standard", "without Super, GPU at 918 MHz", 102.4, 15.0, 30.0),),
            mode_note=_SLOWER,
        ),
        Device(
            "jetson-orin-nano-8gb",
            "Jetson Orin Nano 8GB Super",
            memory_gb=6.5,
            system_gb=1.5,
            bandwidth_gbs=102.0,
            fp16_tflops=16.7,
            int8_tops=33.0,
            bandwidth_share=(0.75, 0.95),
            compute_share=(0.35, 0.50),
            formats=("fp16", "int8", "int4"),
            sm=87,
            source="NVIDIA blog on Orin Nano Super: MLC INT4, Llama-3.1-8B 19.1 tok/s",
            jetson=True,
            modes=(PowerMode("standard", "without Super, GPU at 625 MHz", 68.0, 10.0, 20.0),),
            mode_note=_SLOWER,
        ),
        Device(
            "jetson-agx-orin-64gb",
            "Jetson AGX Orin 64GB, MAXN",
            memory_gb=61.0,
            system_gb=3.0,
            bandwidth_gbs=204.8,
            fp16_tflops=42.6,
            int8_tops=85.0,
            bandwidth_share=(0.64, 0.87),
            compute_share=(0.38, 0.46),
            formats=("fp16", "int8", "int4"),
            sm=87,
            source=f"{_EDGE}: 32.5 tok/s, 225 ms prefill; MLC Llama-2-7B 42.9-47 tok/s (jetson-containers#412)",
            jetson=True,
            mode_note=_SLOWER,
        ),
        Device(
            "jetson-agx-orin-32gb",
            "Jetson AGX Orin 32GB, MAXN",
            memory_gb=30.0,
            system_gb=3.0,
            bandwidth_gbs=204.8,
            fp16_tflops=27.0,
            int8_tops=53.0,
            bandwidth_share=(0.64, 0.87),
            compute_share=(0.38, 0.46),
            formats=("fp16", "int8", "int4"),
            sm=87,
            source="NVIDIA's brief (1792 cores at 0.93 GHz); shares are those of the 64GB module, memory by its ratio",
            jetson=True,
            mode_note=_SLOWER,
        ),
        Device(
            "jetson-thor",
            "Jetson Thor T5000 (INT4)",
            memory_gb=122.0,
            system_gb=4.0,
            bandwidth_gbs=273.0,
            fp16_tflops=125.0,
            int8_tops=250.0,
            bandwidth_share=(0.75, 0.90),
            compute_share=(0.18, 0.25),
            formats=("fp16", "int8", "int4", "fp8", "nvfp4"),
            sm=110,
            source=f"{_EDGE}: 49.3 tok/s, 156 ms prefill; peak arithmetic uncertain",
            jetson=True,
        ),
        _card("rtx4090", "GeForce RTX 4090 24GB", 24.0, 1008.0, 165.0, 661.0, sm=89, more=("fp8",)),
        _card("rtx3090", "GeForce RTX 3090 24GB", 24.0, 936.0, 71.0, 284.0, sm=86),
        _card("rtx4080", "GeForce RTX 4080 16GB", 16.0, 716.8, 97.5, 390.0, sm=89, more=("fp8",)),
        _card("rtx5090", "GeForce RTX 5090 32GB", 32.0, 1792.0, 209.5, 838.0, sm=120, more=("fp8", "nvfp4")),
        _card("rtx-a6000", "RTX A6000 48GB", 48.0, 768.0, 154.8, 309.7, sm=86),
        _card("l4", "L4 24GB", 24.0, 300.0, 121.0, 242.0, sm=89, more=("fp8",)),
        _card(
            "h100",
            "H100 SXM 80GB",
            80.0,
            3350.0,
            989.0,
            1979.0,
            sm=90,
            more=("fp8",),
            shares=((0.25, 0.60), (0.25, 0.55)),
        ),
        _card("a100-80gb", "A100 SXM 80GB", 80.0, 2039.0, 312.0, 624.0, sm=80, shares=((0.30, 0.70), (0.30, 0.55))),
        Device(
            "h200",
            "H200 141GB",
            memory_gb=141.0,
            system_gb=1.0,
            bandwidth_gbs=4800.0,
            fp16_tflops=989.0,
            int8_tops=1979.0,
            bandwidth_share=(0.15, 0.75),
            compute_share=(0.25, 0.55),
            formats=("fp16", "int8", "int4", "fp8"),
            sm=90,
            source="benchmarks/gpu_deploy.json: 0.64 of the bandwidth decoding in bf16, 0.24 in 4 bits; a pass at 0.37",
            host_us=(30.0, 55.0),
        ),
    )
}


def in_mode(device: Device, mode: str) -> Device:
    """The device in a slower power mode; "" is its fastest one. Raises `UnknownName`."""
    if not mode:
        return device
    found = next((m for m in device.modes if m.name == mode), None)
    if found is None:
        raise UnknownName(f"power mode of {device.name}", mode, [m.name for m in device.modes])
    name = device.label.partition(",")[0].removesuffix(" Super")
    return replace(
        device,
        label=f"{name}, {found.label}",
        bandwidth_gbs=found.bandwidth_gbs,
        fp16_tflops=found.fp16_tflops,
        int8_tops=found.int8_tops,
    )


def measured_cpu(bandwidth_gbs: float, tflops: float, memory_gb: float) -> Device:
    """A processor from two probes of it: the best read bandwidth, and the best matrix product in the native type.

    The shares are those of int4 decoders on two kinds of server core, two each, so they are fitted and no prediction of
    these. The lowest: virtual cores shared with others, in whole steps with all that is not weights, and kernels
    without matrix units.
    """
    return Device(
        "cpu",
        "this processor",
        memory_gb=memory_gb,
        system_gb=0.5,
        bandwidth_gbs=bandwidth_gbs,
        fp16_tflops=tflops,
        int8_tops=tflops,
        bandwidth_share=(0.35, 0.90),
        compute_share=(0.25, 0.95),
        formats=("int8", "int4"),
        sm=0,
        source="benchmarks/7b_cpu.json, and the same shapes on another server: measured here",
    )
