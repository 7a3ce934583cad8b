"""Which number types this machine multiplies natively: what is said against what products take."""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportCallIssue=false, reportOperatorIssue=false

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from athena_vla import doctor
from athena_vla.finetune import FinetuneConfig, launch
from athena_vla.models import precision

# Prints what is said of this process's processor, and [s] of the fastest product in either type.
PROBE = """
import json, time, torch
from athena_vla.models import precision
def seconds(kind):
    a = torch.randn(512, 512).to(kind)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        torch.nn.functional.linear(a, a)
        times.append(time.perf_counter() - start)
    return min(times)
torch.set_num_threads(1)
taken = {"bf16": seconds(torch.bfloat16), "fp32": seconds(torch.float32)}
print(json.dumps({"native": precision.native_bf16(), "fastest": precision.fastest(),
                  "sentence": precision.sentence(), "seconds": taken}))
"""


def asked(limit: str) -> dict:
    environment = {k: v for k, v in os.environ.items() if k not in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")}
    environment |= {"ONEDNN_MAX_CPU_ISA": limit} if limit else {}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("limit", ["", "AVX2", "avx512_core", "AVX512_CORE_VNNI", "AVX512_CORE_BF16"])
def test_what_is_said_is_what_is_fast(limit: str) -> None:
    """Native products in bfloat16 take half of float32's time, emulated ones from three times to fifty times it."""
    if limit and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("oneDNN's limit names instruction sets of x86")
    said = asked(limit)
    faster = said["seconds"]["bf16"] < said["seconds"]["fp32"]
    assert said["native"] == faster, said
    assert said["fastest"] == ("bf16" if faster else "fp32")
    assert ("natively" in said["sentence"]) == faster


@pytest.mark.parametrize(
    ("capability", "name"),
    [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 7), "bf16"), ((12, 0), "bf16")],
)
def test_a_card_is_asked_for_its_compute_capability(monkeypatch, capability, name) -> None:
    """Not `torch.cuda.is_bf16_supported`, which counts emulation."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place=None: capability)
    assert precision.fastest("cuda") == precision.resolved("auto", "cuda:1") == name
    assert precision.product_type("cuda") == precision.TYPES[name]
    assert f"compute capability {capability[0]}.{capability[1]}" in precision.sentence("cuda")
    assert precision.resolved("fp32", "cuda") == "fp32", "what was asked for stays"


@pytest.mark.parametrize("native", [True, False])
def test_training_takes_what_is_native(monkeypatch, native: bool) -> None:
    monkeypatch.setattr(precision, "native_bf16", lambda device="cpu": native)
    config = launch.with_precision(FinetuneConfig(device="cpu"))
    assert config.precision == ("bf16" if native else "fp32")
    with launch.one_accelerator(config) as accelerator:
        assert accelerator.mixed_precision == ("bf16" if native else "no")
    assert launch.with_precision(FinetuneConfig(device="cpu", precision="bf16")).precision == "bf16"


def test_layers_in_emulated_16_bits_multiply_in_float32(monkeypatch) -> None:
    """The oracle is the product of the stored weight in float32; parameters stay in 16 bits."""
    monkeypatch.setattr(precision, "native_bf16", lambda device="cpu": False)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8, bias=False)).bfloat16()
    narrow = nn.Linear(64, 32)
    precision.multiply_natively(nn.Sequential(model, narrow), "cpu")
    assert "forward" not in vars(narrow), "a layer in float32 stays as it is"
    x = torch.randn(5, 64).bfloat16()
    first = model[0]
    expected = (x.float() @ first.weight.float().T + first.bias.float()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = first(x)
    assert torch.equal(y, expected)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    x.requires_grad_()
    model(x).float().sum().backward()
    assert x.grad is not None
    slope = (model[1].weight.float().sum(0)).bfloat16().float() @ first.weight.float()
    assert torch.allclose(x.grad.float(), slope.expand(5, -1), rtol=2**-6, atol=2**-8)


def test_doctor_says_it() -> None:
    check = doctor.precision(doctor.attempted(doctor.SHARED["precision"], timeout=120))
    assert check.found == f"trains in {precision.fastest()}: {precision.sentence()}"


@pytest.mark.demo
def test_the_demo_trained_in_what_is_native() -> None:
    """`make test-capped` runs a demo with oneDNN limited to AVX2 and asks this under the same limit."""
    run = Path(os.environ.get("ATHENA_DEMO", "runs/demo"))
    manifest = json.loads((run / "bundles" / "tuned" / "manifest.json").read_text())
    assert manifest["config"]["precision"] == precision.fastest(precision.training_device())
    if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2" and not torch.cuda.is_available():
        assert manifest["config"]["precision"] == "fp32"
