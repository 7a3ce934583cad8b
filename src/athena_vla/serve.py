"""The serve stage: a bundle becomes a policy server that opens its port only after the policy has shown what it does.

Protocols, limits and clients live in `wire`; this file only binds them to a bundle.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from athena_vla.bundle import Bundle
from athena_vla.constrained import WithinReach
from athena_vla.engines.backends import Name
from athena_vla.engines.onnxruntime_engine import Providers
from athena_vla.errors import BundleError
from athena_vla.gate import failed
from athena_vla.models.input_gates import require_sensitive, require_vision_runs_once
from athena_vla.policy import Deviation, Policy, require_replay
from athena_vla.wire.serve_config import ServeConfig
from athena_vla.wire.server import PolicyServer
from athena_vla.wire.server import serve as serve_until_interrupted


@dataclass(frozen=True)
class ServeBundleConfig:
    """Serve a bundle over openpi's websocket, OpenVLA's `/act`, `/healthz`, `/metrics` and `/metadata` on one port.

    Other hosts than loopback need a token, which is read from the environment variable ATHENA_TOKEN.
    """

    bundle: str
    """Folder of the bundle, or `builtin:NAME`."""
    backend: Name = "auto"
    """auto, torch, onnxruntime, openvino or tensorrt."""
    threads: int = 1
    """Compute threads of the backend."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    providers: Providers = "auto"
    """Of ONNX Runtime: auto is CUDA, then the processor; tensorrt builds engines at a first start, for minutes."""
    within_reach: bool = False
    """Family openvla: choose only what the robot can reach within a control step of the row before."""
    server: ServeConfig = field(default_factory=ServeConfig)
    """Address, TLS files, and limits of size, rate and time."""


@dataclass(frozen=True)
class ServeResult:
    """Printed after a graceful shutdown."""

    address: str

    def __str__(self) -> str:
        return f"Served on {self.address}; shut down."


def open_policy(
    where: str | Path,
    backend: Name = "auto",
    threads: int = 1,
    device: str = "auto",
    providers: Providers = "auto",
) -> tuple[Policy, dict[str, Any]]:
    """A policy that may be served, and what clients are told about it.

    Raises `BundleError` for a bundle that is marked as failed or no longer replays its golden example, `BlindPolicy`
    for one whose actions do not depend on image, instruction or (where it is used) state.
    """
    bundle = Bundle.open(where)
    not_passed = [g.name for g in failed(bundle.manifest.gates.values())]
    if not_passed:
        raise BundleError(
            f"Bundle '{bundle.path}' is marked as failed by its gates {not_passed} and is not served; "
            "its manifest.json has the figures. Quantise it less, or train it longer."
        )
    policy = Policy.of(bundle, backend, threads, device, providers)
    policy.engine.limit(threads)
    deviation = require_replay(policy, bundle)
    if bundle.manifest.stage != "base":  # the generic base has never been taught this robot's tasks
        require_sensitive(policy.act, bundle.golden.observations, proprio=policy.loop.reads_state)
    require_vision_runs_once(policy.loop, policy.engine, f"Bundle '{bundle.path}'")
    told = {"prefix": policy.prefix, "taken": policy.engine.taken.to_dict()}
    return policy, {**metadata(bundle, backend, deviation), **told}


def metadata(bundle: Bundle, backend: Name, deviation: Deviation) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle_hash": bundle.hash,
        "parent_hash": manifest.parent_hash,
        "dataset_hash": manifest.dataset_hash,
        "robot_hash": bundle.robot.hash,
        "family": manifest.family,
        "stage": manifest.stage,
        "backend": backend,
        "horizon": bundle.spec.horizon,
        "replay_max_rad": deviation["max_rad"],
        "tools": manifest.tools,
    }


def serve(config: ServeBundleConfig) -> ServeResult:
    """Serve until interrupted, then shut down gracefully."""
    policy, told = open_policy(config.bundle, config.backend, config.threads, config.device, config.providers)
    actor = WithinReach(policy) if config.within_reach else policy
    address = ""

    def ready(where: str) -> None:
        nonlocal address
        address = where
        print(f"athena: serving {policy.name} ({told['stage']}, {policy.engine.taken}) on {where}", flush=True)
        if policy.robot.not_called_safe:
            print(f"athena: {policy.robot.not_called_safe}", flush=True)
        if policy_server.gr00t_port:
            print(f"athena: GR00T's protocol on tcp://{config.server.host}:{policy_server.gr00t_port}", flush=True)

    told = {**told, "within_reach": config.within_reach}
    policy_server = PolicyServer(actor, policy.robot, config.server, metadata=told)
    serve_until_interrupted(policy_server, ready)
    return ServeResult(address)
