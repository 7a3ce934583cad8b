"""A bundle and a backend become a policy: `act(observation) -> ActionChunk`, physical units in and out.

The only place where observations and actions cross between radians and [-1, 1]; training uses the same `encode`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import NotRequired, TypedDict

from athena_vla.bundle import Bundle, Golden
from athena_vla.dataset.normalize import Normalizer
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.engines.backends import Name, open_backend
from athena_vla.engines.onnxruntime_engine import Providers
from athena_vla.errors import BundleError
from athena_vla.gate import Gate, by_name
from athena_vla.models.contract import Engine, HostLoop, Model, ModelInput
from athena_vla.models.input_gates import check_sensitivity, count_vision_calls
from athena_vla.recordings.episode import Sample


def encode(observation: Observation, robot: Embodiment, normalizer: Normalizer) -> ModelInput:
    """One observation as the model sees it; the same function in training, evaluation and serving."""
    observation.require(robot)
    rows = observation.action_prefix
    return ModelInput(
        images=tuple(observation.images[c] for c in robot.camera_names),
        state=normalizer.encode_state(observation.state),
        instruction=observation.instruction,
        given=None if rows is None else normalizer.encode(rows, observation.state),
    )


@dataclass(frozen=True)
class Policy:
    """A model bound to its robot and statistics: its host loop, and the engine that runs its graphs."""

    robot: Embodiment
    normalizer: Normalizer
    loop: HostLoop
    engine: Engine
    name: str = ""
    seed: int = 0  # of the decode noise; families without noise ignore it

    @classmethod
    def load(
        cls,
        where: str | Path,
        backend: Name = "auto",
        threads: int = 1,
        device: str = "auto",
        providers: Providers = "auto",
    ) -> "Policy":
        """Open a bundle with a backend on a device: auto, cpu, cuda or cuda:N. `engine.taken` says what it got.

        Raises `BundleError`, `ExportError`, `DeviceError`.
        """
        return cls.of(Bundle.open(where), backend, threads, device, providers)

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        backend: Name = "auto",
        threads: int = 1,
        device: str = "auto",
        providers: Providers = "auto",
    ) -> "Policy":
        """The same of a bundle that is open."""
        loop, engine = open_backend(bundle, backend, threads, device, providers)
        return cls(bundle.robot, bundle.normalizer, loop, engine, name=bundle.path.name)

    @classmethod
    def of_model(cls, model: Model, robot: Embodiment, normalizer: Normalizer) -> "Policy":
        """A policy around a model that is still being trained."""
        return cls(robot, normalizer, model.loop, model.engine())

    @property
    def prefix(self) -> int:
        """Most rows of the action prefix an observation may carry; 0: none."""
        return self.loop.prefix

    def act(self, observation: Observation) -> ActionChunk:
        """The next `H` joint targets. Raises `InvalidObservation`."""
        return self.act_batch([observation])[0]

    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Several independent observations in one pass."""
        inputs = self.loop.collate([encode(o, self.robot, self.normalizer) for o in observations])
        noise = self.loop.noise(len(observations), np.random.default_rng(self.seed))
        unit = self.loop.decode(self.engine, inputs, noise)
        return [
            ActionChunk(
                positions=_committed(self.normalizer.decode(row, o.state), o),
                joint_names=self.robot.action_names,
                dt=1.0 / self.robot.control_hz,
                time=o.time,
            )
            for row, o in zip(unit, observations, strict=True)
        ]

    def chunks(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """[N, H, D] [rad], one observation at a time as on the robot."""
        return np.stack([self.act(o).positions for o in observations])


def _committed(positions: NDArray[np.float64], observation: Observation) -> NDArray[np.float64]:
    """The chunk with the rows that were decided before it was asked for, as they were decided."""
    rows = observation.action_prefix
    return positions if rows is None else np.concatenate([rows, positions[len(rows) :]])


def with_prefix(sample: Sample, rows: int) -> Sample:
    """The sample as the control loop asks for it while `rows` are still to be played: given, and not counted.

    At least one row that is real is left to be answered.
    """
    rows = min(rows, int(sample.valid.sum()) - 1)
    if rows < 1:
        return sample
    observation = replace(sample.observation, action_prefix=sample.chunk[:rows].astype(np.float64))
    return replace(sample, observation=observation, valid=sample.valid & (np.arange(len(sample.valid)) >= rows))


def asked(samples: Sequence[Sample], prefix: int) -> list[Observation]:
    """The observations of samples as a robot would send them: with no row committed, some, up to `prefix`, in turn."""
    counts = np.linspace(prefix, 0, len(samples)).round().astype(int).tolist()
    return [with_prefix(s, rows).observation for s, rows in zip(samples, counts, strict=True)]


def record_golden(policy: Policy, observations: Sequence[Observation]) -> Golden:
    """What the float model answers now, for every later stage to replay."""
    return Golden(tuple(observations), policy.chunks(observations))


class Deviation(TypedDict):
    """How far chunks lie from the golden ones, as manifests record it."""

    max_rad: float
    mean_rad: float
    per_joint_max_rad: dict[str, float]
    observations: NotRequired[int]  # how many of the golden ones were asked, where not all were
    outputs_max: NotRequired[dict[str, float]]  # of a merge: per graph, of its largest output


def replay(policy: Policy, golden: Golden) -> Deviation:
    """Deviation from the golden chunks in [rad]: maximum and mean, in all and per joint."""
    error = np.abs(policy.chunks(golden.observations) - golden.chunks)
    return {
        "max_rad": float(error.max()),
        "mean_rad": float(error.mean()),
        "per_joint_max_rad": dict(zip(policy.robot.action_names, error.max(axis=(0, 1)).tolist(), strict=True)),
    }


def sensitivity(policy: Policy, observations: Sequence[Observation]) -> dict[str, Gate]:
    """Whether the policy sees, listens and feels, as gates of a manifest: every stage asks it of what it wrote."""
    found = check_sensitivity(policy.act, observations, proprio=policy.loop.reads_state)
    calls = count_vision_calls(policy.loop, policy.engine)
    worst = max(calls.values(), key=lambda count: abs(count - 1), default=1)
    return by_name([*found.gates("rad"), Gate.exactly("vision_calls", worst, 1)])


def require_replay(policy: Policy, bundle: Bundle) -> Deviation:
    """Replay the golden example and refuse a bundle that no longer does what was measured when it was written.

    Raises `BundleError`. The tolerance is the recorded deviation plus what float arithmetic of another machine costs.
    """
    measured = replay(policy, bundle.golden)
    allowed = float(bundle.manifest.deviation.get("max_rad", 0.0)) + 1e-3
    if not measured["max_rad"] <= allowed:
        raise BundleError(
            f"Bundle '{bundle.path}' deviates {measured['max_rad']:.4f} rad from its golden example, "
            f"{allowed:.4f} rad were recorded: it is not the model that was measured. Export it again on this machine."
        )
    return measured
