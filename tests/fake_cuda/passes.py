"""Passes of the product on a card that computes nothing; each prints one line of JSON.

    python tests/fake_cuda/passes.py [NAME ...]

What fails here fails on every card: a tensor on the wrong device or of the wrong type, a wait for the card where none
is allowed, more kernels or more memory than a pass may take. Times and numbers need a real one.
"""
# The model's parts are reached by name, and a fake tensor is a tensor to no type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the helpers of the tests
sys.path.insert(0, str(Path(__file__).resolve().parent))

import card  # isort: skip  # before torch

import dataclasses
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from athena_vla import embodiment
from athena_vla.bundle import Bundle
from athena_vla.finetune import PRESETS, checkpoint
from athena_vla.models import lora
from athena_vla.models.architecture import run_torch
from athena_vla.models.lora import LoraSettings
from athena_vla.models.sizes import full_size, weightless
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.models.weights.packed_linear import CardLinear
from athena_vla.plan import DEVICES, training_memory
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig, quantize
from athena_vla.quantize.calibrate import linears, quantize_in_order, second_moment
from athena_vla.quantize.codes import clipped, compensated, nearest
from small_bundles import observations, write_base, write_finetuned

FAMILIES = ("openvla", "openvla_chunk", "openvla_oft")
KINDS: dict[str, dict[str, bool]] = {"openvla": {"tokens": True}, "openvla_chunk": {}, "openvla_oft": {"oft": True}}
LAYERS = 2  # of the full width: what a layer costs shows in two
PROMPT, BATCH = 32, 4

Facts = dict[str, Any]


def model_of(family: str, settings: LoraSettings, kind: torch.dtype) -> VisionLanguageModel:
    """Full widths, few layers, weights of a type on the card, adapters attached."""
    spec = full_size(family, action_dim=23, state_dim=23, horizon=1 if family == "openvla" else 16, cameras=1)
    text = dataclasses.replace(spec.body.text, layers=LAYERS)
    model = weightless(family, dataclasses.replace(spec, body=dataclasses.replace(spec.body, text=text)))
    model = model.to(kind).to_empty(device="cuda")
    lora.attach(model, settings)
    return model.to("cuda")


def batch_of(model: VisionLanguageModel, count: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    spec, side = model.spec, model.body_spec.towers[0].image_size
    inputs = {
        "pixel_values": torch.zeros(count, spec.cameras * model.body_spec.images.channels, side, side, device="cuda"),
        "input_ids": torch.ones(count, PROMPT, dtype=torch.int64, device="cuda"),
        "prompt_mask": torch.ones(count, PROMPT, dtype=torch.bool, device="cuda"),
        "state": torch.zeros(count, spec.state_dim, device="cuda"),
    }
    target = torch.zeros(count, spec.horizon, spec.action_dim, device="cuda")
    return inputs, target, torch.ones(count, spec.horizon, dtype=torch.bool, device="cuda")


def training(family: str, preset: str, precision: str, **changes: Any) -> Callable[[], Facts]:
    """Loss, backward pass, clipping and a step of the optimiser, at full width; the planner's memory beside it."""

    def run() -> Facts:
        config = PRESETS[preset]
        settings = dataclasses.replace(LoraSettings(**config.lora()), **{"quantization": "none", **changes})
        narrow = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
        with card.card() as watch:
            # In 16 bits the body is kept in bfloat16 whatever autocast multiplies in: released weights are.
            model = model_of(family, settings, torch.float32 if precision == "fp32" else torch.bfloat16)
            model.train()
            lora.trust_autocast(model, on=precision != "fp32")
            if config.gradient_checkpointing:
                model.checkpoint_layers()
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=True)
            inputs, target, valid = batch_of(model, BATCH)
            watch.kernels, watch.peak = 0, watch.now
            watch.waits.clear()
            with torch.autocast("cuda", narrow, enabled=precision != "fp32"):
                loss = model.loss(inputs, target, valid)
            loss.backward()
            peak, kernels = watch.peak, watch.kernels
            waits_of_the_pass = dict(watch.waits)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            without = sum(p.grad is None for p in trained)
            moments = 2 * sum(p.nbytes for p in trained)
            frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
            planned = training_memory(
                weightless(family, model.spec),
                settings,
                DEVICES["rtx4090"],
                batch=BATCH,
                checkpointing=config.gradient_checkpointing,
            )
        return {
            "kernels": kernels,
            "waits": {k: v for k, v in waits_of_the_pass.items() if v},
            "without_gradient": without,
            "frozen": len(frozen),
            "peak_gb": (peak + moments) / 1e9,
            "planned_gb": planned.total_gb - planned.overhead_gb,
        }

    return run


def small(family: str, **settings: Any) -> tuple[Path, Bundle]:
    """A bundle of seconds, written by the processor; with settings a fine-tuned one."""
    folder = Path(tempfile.mkdtemp())
    base = write_base(folder / "base", embodiment.load("athena"), **KINDS[family])
    if not settings:
        return folder, base
    return folder, write_finetuned(folder / "tuned", base, LoraSettings(rank=4, **settings))


def acting(family: str, **settings: Any) -> Callable[[], Facts]:
    """A bundle is opened on the card and acts: waits are for the actions alone."""

    def run() -> Facts:
        _, bundle = small(family, **settings)
        with card.card() as watch:
            policy = Policy.of_model(bundle.model("cuda:0"), bundle.robot, bundle.normalizer)
            homes = {str(p.device) for p in policy.engine.model.parameters()}
            frames = observations(bundle.robot, 2)
            watch.waits.clear()
            watch.kernels = 0
            chunk = policy.act(frames[0])
            return {
                "devices": sorted(homes),
                "shape": list(chunk.positions.shape),
                "waits": {k: v for k, v in watch.waits.items() if v},
                "kernels": watch.kernels,
            }

    return run


def packed(family: str) -> Callable[[], Facts]:
    """A quantised bundle on its codes; where Triton cannot run, by unpacking."""

    def run() -> Facts:
        folder, base = small(family)
        quantize(QuantizeConfig(base.path, folder / "q", sensitivity=False, check=False, vision_bits=8, device="cpu"))
        with card.card() as watch:
            bundle = Bundle.open(folder / "q")
            model = bundle.packed_model("cuda:0")
            policy = Policy.of_model(model, bundle.robot, bundle.normalizer)
            watch.waits.clear()
            chunk = policy.act(observations(bundle.robot, 1)[0])
            four = [m for m in model.modules() if isinstance(m, CardLinear)]
            return {
                "devices": sorted({str(t.device) for t in (*model.parameters(), *model.buffers())}),
                "shape": list(chunk.positions.shape),
                "layers": len(four),
                "waits": {k: v for k, v in watch.waits.items() if v},
            }

    return run


def quantising(method: str) -> Callable[[], Facts]:
    """Codes are chosen for every layer while a pass runs on the card."""

    def run() -> Facts:
        _, bundle = small("openvla_chunk")
        with card.card():
            policy = Policy.of_model(bundle.model("cuda:0"), bundle.robot, bundle.normalizer)
            names = [n for n in linears(policy.engine.model) if ".layers." in n]
            homes = set[str]()

            def choose(name: str, weight: Tensor, inputs: Tensor) -> Any:
                moment = second_moment(inputs)
                if method == "gptq":
                    found = compensated(weight, 4, 32, moment)
                elif method == "clip":
                    found = clipped(weight, 4, 32, moment.diagonal())
                else:
                    found = nearest(weight, 4, 32)
                homes.update({str(found.codes.device), str(found.scales.device)})
                return found

            quantize_in_order(policy, observations(bundle.robot, 2), names, choose)
        return {"devices": sorted(homes), "layers": len(names)}

    return run


def resuming() -> Facts:
    """An optimiser's state comes back to where its step reads it: counters too, where the step is fused."""
    with card.card():
        weight = nn.Parameter(torch.zeros(4, 4, device="cuda"))
        found = dict[str, list[str]]()
        for fused in (False, True):
            optimizer = torch.optim.AdamW([weight], lr=1e-3)
            optimizer.param_groups[0]["fused"] = fused
            tensors = {"w|step": torch.tensor(3.0), "w|exp_avg": torch.zeros(4, 4), "w|exp_avg_sq": torch.zeros(4, 4)}
            checkpoint.restore_optimizer(optimizer, {"w": weight}, tensors)
            found["fused" if fused else "plain"] = [t.device.type for t in optimizer.state[weight].values()]
    return found


def evaluating(family: str) -> Callable[[], Facts]:
    """The loss without gradients, and the decoding of a batch, after a training step left the model as it is."""

    def run() -> Facts:
        with card.card() as watch:
            model = model_of(family, LoraSettings(rank=8), torch.bfloat16).eval()
            inputs, target, valid = batch_of(model, 2)
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                model.loss(inputs, target, valid)
            watch.waits.clear()
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                answer = model.decode(run_torch(model), inputs, {})
            return {"shape": list(answer.shape), "waits": {k: v for k, v in watch.waits.items() if v}}

    return run


PASSES: dict[str, Callable[[], Facts]] = {
    "train openvla humanoid_default bf16": training("openvla", "humanoid_default", "bf16"),
    "train openvla rtx4090 fp16": training("openvla", "rtx4090", "fp16"),
    "train openvla humanoid_default fp32": training("openvla", "humanoid_default", "fp32"),
    "train openvla dora bf16": training("openvla", "humanoid_high_performance", "bf16"),
    "train openvla_chunk rtx4090 bf16": training("openvla_chunk", "rtx4090", "bf16"),
    "train openvla_chunk dora fp32": training("openvla_chunk", "humanoid_default", "fp32", dora=True),
    "train openvla_chunk humanoid_default fp16": training("openvla_chunk", "humanoid_default", "fp16"),
    "train openvla_oft rtx4090 bf16": training("openvla_oft", "rtx4090", "bf16"),
    "train openvla_oft humanoid_default bf16": training("openvla_oft", "humanoid_default", "bf16"),
    **{f"act {f} base": acting(f) for f in FAMILIES},
    **{f"act {f} lora": acting(f, dora=False) for f in FAMILIES},
    "act openvla_chunk dora": acting("openvla_chunk", dora=True),
    "act openvla_chunk full": acting("openvla_chunk", method="full"),
    "act openvla_oft heads": acting("openvla_oft", method="heads"),
    **{f"packed {f}": packed(f) for f in FAMILIES},
    **{f"quantise {m}": quantising(m) for m in ("gptq", "clip", "nearest")},
    **{f"evaluate {f}": evaluating(f) for f in FAMILIES},
    "resume": resuming,
}


def main(names: list[str]) -> int:
    failed = 0
    for name in names or list(PASSES):
        start = time.perf_counter()
        try:
            facts = PASSES[name]()
        except Exception as error:
            failed += 1
            place = "".join(traceback.format_tb(error.__traceback__)[-4:])
            facts = {"failed": f"{type(error).__name__}: {error}"[:600], "at": place[-900:]}
        print(json.dumps({"pass": name, "seconds": round(time.perf_counter() - start, 2), **facts}), flush=True)
    return failed


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
