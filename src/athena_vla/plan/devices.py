"""What devices can do: memory, bandwidth, dense arithmetic, and the share of it that real engines have reached.

Every number has a source. The headline TOPS of Jetson modules are sparse INT8 and include the DLAs, which no language
model uses: the figures here are dense and of the GPU alone. Knows no models.
"""

from dataclasses import dataclass


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


_EDGE = "TensorRT Edge-LLM v0.9 performance page (INT4 AWQ; Qwen3 1.7B to 8B; Qwen3-VL-8B, 292 tokens)"

_SHEET = "vendor's data sheet (16-bit products summed in 32 bits); shares are common experience, not a measurement"

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
        Device(
            "rtx4090",
            "GeForce RTX 4090 24GB",
            memory_gb=24.0,
            system_gb=1.0,
            bandwidth_gbs=1008.0,
            fp16_tflops=165.0,
            int8_tops=661.0,
            bandwidth_share=(0.40, 0.80),
            compute_share=(0.35, 0.60),
            formats=("fp16", "int8", "int4", "fp8"),
            sm=89,
            source=_SHEET,
        ),
        Device(
            "rtx3090",
            "GeForce RTX 3090 24GB",
            memory_gb=24.0,
            system_gb=1.0,
            bandwidth_gbs=936.0,
            fp16_tflops=71.0,
            int8_tops=284.0,
            bandwidth_share=(0.40, 0.80),
            compute_share=(0.35, 0.60),
            formats=("fp16", "int8", "int4"),
            sm=86,
            source=_SHEET,
        ),
        Device(
            "rtx4080",
            "GeForce RTX 4080 16GB",
            memory_gb=16.0,
            system_gb=1.0,
            bandwidth_gbs=716.8,
            fp16_tflops=97.5,
            int8_tops=390.0,
            bandwidth_share=(0.40, 0.80),
            compute_share=(0.35, 0.60),
            formats=("fp16", "int8", "int4", "fp8"),
            sm=89,
            source=_SHEET,
        ),
        Device(
            "rtx5090",
            "GeForce RTX 5090 32GB",
            memory_gb=32.0,
            system_gb=1.0,
            bandwidth_gbs=1792.0,
            fp16_tflops=209.5,
            int8_tops=838.0,
            bandwidth_share=(0.40, 0.80),
            compute_share=(0.35, 0.60),
            formats=("fp16", "int8", "int4", "fp8", "nvfp4"),
            sm=120,
            source=_SHEET,
        ),
        Device(
            "rtx-a6000",
            "RTX A6000 48GB",
            memory_gb=48.0,
            system_gb=1.0,
            bandwidth_gbs=768.0,
            fp16_tflops=154.8,
            int8_tops=309.7,
            bandwidth_share=(0.40, 0.80),
            compute_share=(0.35, 0.60),
            formats=("fp16", "int8", "int4"),
            sm=86,
            source=_SHEET,
        ),
        Device(
            "l4",
            "L4 24GB",
            memory_gb=24.0,
            system_gb=1.0,
            bandwidth_gbs=300.0,
            fp16_tflops=121.0,
            int8_tops=242.0,
            bandwidth_share=(0.40, 0.80),
            compute_share=(0.35, 0.60),
            formats=("fp16", "int8", "int4", "fp8"),
            sm=89,
            source=_SHEET,
        ),
        Device(
            "h100",
            "H100 SXM 80GB",
            memory_gb=80.0,
            system_gb=1.0,
            bandwidth_gbs=3350.0,
            fp16_tflops=989.0,
            int8_tops=1979.0,
            bandwidth_share=(0.25, 0.60),
            compute_share=(0.25, 0.55),
            formats=("fp16", "int8", "int4", "fp8"),
            sm=90,
            source=_SHEET,
        ),
        Device(
            "a100-80gb",
            "A100 SXM 80GB",
            memory_gb=80.0,
            system_gb=1.0,
            bandwidth_gbs=2039.0,
            fp16_tflops=312.0,
            int8_tops=624.0,
            bandwidth_share=(0.30, 0.70),
            compute_share=(0.30, 0.55),
            formats=("fp16", "int8", "int4"),
            sm=80,
            source=_SHEET,
        ),
        Device(
            "h200",
            "H200 141GB",
            memory_gb=141.0,
            system_gb=1.0,
            bandwidth_gbs=4800.0,
            fp16_tflops=989.0,
            int8_tops=1979.0,
            bandwidth_share=(0.15, 0.60),
            compute_share=(0.25, 0.55),
            formats=("fp16", "int8", "int4", "fp8"),
            sm=90,
            source="benchmarks/gpu_deploy.json: 0.43 of the bandwidth decoding in bf16, 0.16 in 4 bits; a pass at 0.34",
        ),
    )
}


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
