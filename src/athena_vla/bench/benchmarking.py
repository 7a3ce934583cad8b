"""The stage `bench`: a bundle timed stage by stage and as a whole, from camera frame to filtered joint command."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla import files
from athena_vla.bench import facts
from athena_vla.bench.compare import Comparison, compare
from athena_vla.bench.timing import LatencySummary, Samples, Stopwatch, deadlines
from athena_vla.bundle import Bundle
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Observation
from athena_vla.engines.backends import Name
from athena_vla.engines.deployment_config import TARGET_TOKENS, verdict
from athena_vla.engines.onnxruntime_engine import Providers
from athena_vla.errors import BundleError, UnknownName
from athena_vla.machine import peak_resident_gb
from athena_vla.models.contract import Tapped, Values
from athena_vla.models.loops.shared_loop import SINGLE_TOKEN, stage_of
from athena_vla.policy import Policy, encode


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `athena bench`."""

    bundle: Path | None = None
    """Bundle to time."""
    compare: tuple[Path, ...] = ()
    """Instead of timing: two result files to compare."""
    backend: Name = "auto"
    """What runs the graphs."""
    threads: int = 1
    """How many CPU threads compute."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    providers: Providers = "auto"
    """Of ONNX Runtime: auto is CUDA, then the processor; tensorrt builds engines at a first start, for minutes."""
    warmup: int = 20
    """Actions before timing starts, at least 10."""
    runs: int = 300
    """Timed actions, at least 100. p99 is reported from 1,000."""
    rate_hz: float = 0.0
    """Rate of the deadline test; 0 is the robot's control rate divided by the steps of a chunk that are executed."""
    executed: int = 0
    """Steps of a chunk that are executed before the next one; 0 is half of them."""
    out: Path | None = None
    """Where the result goes as JSON, raw samples included."""


@dataclass(frozen=True)
class BenchResult:
    """One benchmark: raw samples, and what may be said about them."""

    stages: tuple[Samples, ...]
    whole: Samples
    record: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        return self.record["summary"]

    def to_dict(self) -> dict[str, Any]:
        return self.record

    def __str__(self) -> str:
        s = self.record["summary"]
        lines = [f"{s['kind'].replace('_', ' ')}: {self.record['bundle']['name']} on {self.record['device']['model']}"]
        for name, row in self.record["stages"].items():
            lines.append(_row(name, row))
        lines.append(_row("whole action", self.record["whole_action"]))
        missed = self.record["deadlines"]
        lines.append(
            f"  {s['actions_per_second']:.1f} actions/s, {s['tokens_per_second']:.1f} joint targets/s "
            f"(meets {TARGET_TOKENS:.0f}/s: {s['meets_tokens_target']}, "
            f"keeps the control rate: {s['meets_control_rate']})"
        )
        if s["decode_tokens_per_second"]:
            per_token = 1e3 / s["decode_tokens_per_second"]
            lines.append(f"  decoding alone {s['decode_tokens_per_second']:.1f} tokens/s, {per_token:.2f} ms per token")
        lines.append(f"  at {missed['rate_hz']:.1f} Hz {missed['missed']} of {missed['served']} deadlines missed")
        return "\n".join(lines)


def bench(config: BenchConfig) -> BenchResult | Comparison:
    """Time a bundle, or compare two results. Raises `BundleError`, `UnknownName`."""
    if config.compare:
        return compare(config.compare)
    if config.bundle is None:
        raise BundleError("Say which bundle to time, or give two result files with --compare.")
    if config.warmup < 10 or config.runs < 100:
        raise UnknownName("length of a benchmark", f"{config.warmup} + {config.runs}", ("10 or more + 100 or more",))
    bundle = Bundle.open(config.bundle)
    started = time.perf_counter()
    policy = Policy.of(bundle, config.backend, config.threads, config.device, config.providers)
    policy.engine.limit(config.threads)
    observations = bundle.golden.observations
    first = _seconds(policy, lambda: policy.act(observations[0]))
    loaded = time.perf_counter() - started
    before = facts.device_facts()
    whole, stages, tokens = measure(policy, bundle, observations, config.warmup, config.runs)
    record = _record(config, bundle, before, whole, stages, tokens)
    record["bundle"]["taken"] = policy.engine.taken.to_dict()
    record["load_seconds"] = loaded
    record["first_action_seconds"] = first
    if config.out is not None:
        files.write_json(config.out, record, BundleError, sort_keys=True)
    return BenchResult(tuple(stages), whole, record)


def measure(
    policy: Policy, bundle: Bundle, observations: tuple[Observation, ...], warmup: int, runs: int
) -> tuple[Samples, list[Samples], int]:
    """Whole actions without instruments, then stage by stage; also how many single-token calls one action makes."""
    whole: list[float] = []
    command = _command(policy)
    for i in range(warmup + runs):
        seconds = _seconds(policy, lambda i=i: command(observations[i % len(observations)]))
        if i >= warmup:
            whole.append(seconds)
    watch, calls = Stopwatch(), 0

    def run(name: str, values: Values) -> Values:
        nonlocal calls
        stage = stage_of(name, values)
        calls += stage == SINGLE_TOKEN
        policy.engine.wait()
        start = time.perf_counter()
        outputs = policy.engine.run(name, values)
        policy.engine.wait()
        watch.add(stage, time.perf_counter() - start)
        return outputs

    timed = dataclasses.replace(policy, engine=Tapped(policy.engine, run))
    safety = _filter(policy)
    for i in range(runs):
        calls = 0
        _staged(timed, safety, observations[i % len(observations)], watch)
        watch.finish_action()
    return Samples("whole action", tuple(whole)), watch.samples(), calls


def _staged(policy: Policy, safety: SafetyFilter, observation: Observation, watch: Stopwatch) -> None:
    """One action with a clock between its stages; graphs are timed inside `run`."""
    start = time.perf_counter()
    inputs = policy.loop.collate([encode(observation, policy.robot, policy.normalizer)])
    watch.add("preprocess", time.perf_counter() - start)
    noise = policy.loop.noise(1, np.random.default_rng(policy.seed))
    unit = policy.loop.decode(policy.engine, inputs, noise)
    start = time.perf_counter()
    chunk = policy.normalizer.decode(unit[0], observation.state)
    watch.add("un-normalise", time.perf_counter() - start)
    start = time.perf_counter()
    _filtered(policy, safety, observation, chunk)
    watch.add("safety", time.perf_counter() - start)


def _command(policy: Policy) -> Callable[[Observation], Any]:
    """Frame to the first filtered joint command."""
    safety = _filter(policy)

    def act(observation: Observation) -> Any:
        return _filtered(policy, safety, observation, policy.act(observation).positions)

    return act


def _filtered(policy: Policy, safety: SafetyFilter, observation: Observation, chunk: Any) -> Any:
    target = policy.robot.command_of(np.array(observation.state, dtype=np.float64))
    standing = target.copy()
    target[policy.robot.action_index] = chunk[0]
    safety.reset(np.clip(standing, safety.columns.lower, safety.columns.upper))
    return safety.step(target, 1.0 / policy.robot.command_hz)


def _filter(policy: Policy) -> SafetyFilter:
    return SafetyFilter(policy.robot)


def _record(
    config: BenchConfig, bundle: Bundle, device: dict[str, Any], whole: Samples, stages: list[Samples], tokens: int
) -> dict[str, Any]:
    robot, horizon = bundle.robot, bundle.spec.horizon
    executed = config.executed or max(1, horizon // 2)
    rate = config.rate_hz or robot.control_hz / executed
    total = float(np.median(whole.seconds))
    summary: dict[str, Any] = {
        "kind": "measured_on_device" if device["is_jetson"] else "measured_here",
        "action_ms": total * 1e3,
        "actions_per_second": horizon / total,
        "chunks_per_second": 1.0 / total,
        # One joint target of one step is one token of the autoregressive family: the user's tokens/s for every family.
        "tokens_per_second": horizon * bundle.spec.action_dim / total,
        "decode_tokens_per_second": _decode_rate(stages, tokens),
    }
    summary |= verdict(summary, robot.control_hz)
    return {
        "format": 1,
        "summary": summary,
        "bundle": {
            "name": bundle.path.name,
            "hash": bundle.hash,
            "stage": bundle.manifest.stage,
            "family": bundle.manifest.family,
            "robot": robot.name,
            "horizon": horizon,
            "action_dim": bundle.spec.action_dim,
            "backend": config.backend,
            "threads": config.threads,
            "precision": bundle.manifest.stage_info.get("precision", "float32"),
            "weights": bundle.manifest.stage_info.get("weights", {}),
        },
        "device": device | {"temperature_after_c": facts.temperatures(), "peak_memory_gb": peak_resident_gb()},
        "whole_action": whole.summary(),
        "stages": {s.name: s.summary() for s in stages},
        "deadlines": deadlines(whole.seconds, rate),
        "warmup": config.warmup,
        "samples_s": {"whole action": list(whole.seconds)} | {s.name: list(s.seconds) for s in stages},
    }


def _decode_rate(stages: list[Samples], tokens: int) -> float | None:
    """Single-token decoding alone; None for families that answer in one pass."""
    step = [s for s in stages if s.name == SINGLE_TOKEN]
    return tokens / float(np.median(step[0].seconds)) if step and tokens else None


def _seconds(policy: Policy, call: Callable[[], Any]) -> float:
    policy.engine.wait()
    start = time.perf_counter()
    call()
    policy.engine.wait()
    return time.perf_counter() - start


def _row(name: str, row: LatencySummary) -> str:
    p99 = "p99 n/a" if row["p99_ms"] is None else f"p99 {row['p99_ms']:8.2f}"
    return f"  {name:<14} p50 {row['p50_ms']:8.2f} ms  p95 {row['p95_ms']:8.2f}  {p99}  (n={row['n']})"
