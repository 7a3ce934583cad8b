"""The commands `athena evaluate` and `athena compare`: configurations, and the way from them to a comparison."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from athena_vla import files
from athena_vla.bound_base import bind_base
from athena_vla.bundle import Bundle, open_base
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.comparison import Comparison, compare_all
from athena_vla.evaluate.outcomes import ResultsComparison, compare_results
from athena_vla.evaluate.results import Setup, driven_by_policy
from athena_vla.models.released.pretrained import Release
from athena_vla.progress import Progress, quiet
from athena_vla.sim.scene import Split


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How the simulator is used."""

    episodes: int = 105
    """Scenes per actor; 0 plays none and compares on recordings only."""
    split: Split = "test"
    """Which scenes: `test` holds placements and instructions that training never combines."""
    duration: float = 6.0
    """An episode without success ends after this long [s]."""
    replan_every: int = 8
    """A new chunk is asked for every this many control steps."""
    latency: float = 0.0
    """Simulated time between an observation and its answer [s]."""
    workers: int = 0
    """Processes; 0 is one per core."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One policy beside the baselines, open loop on recordings and closed loop in the simulator."""

    bundle: Path
    """The bundle to evaluate, or builtin:NAME."""
    data: Path | None = None
    """Built dataset: its validation split for open loop, its training split for the baselines."""
    out: Path = Path("runs/evaluation")
    """Where episodes and the result are kept; a second run reuses them and says so."""
    backend: str = "auto"
    """torch, onnxruntime, openvino, tensorrt, or what the bundle needs."""
    device: str = "auto"
    """Where the policy runs: auto, cpu, cuda or cuda:N."""
    ablations: bool = True
    """Also try the policy with black images and with another instruction."""
    within_reach: bool = False
    """Family openvla: also try the policy held to what the robot can reach from row to row."""
    samples: int = 400
    """Validation samples for open loop."""
    seed: int = 0
    """Decides scenes and resampling."""
    loop: Annotated[Loop, tyro.conf.arg(name="")] = Loop()
    """The simulator."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Two policies, usually untuned and tuned, beside the baselines, on the same scenes and samples.

    With --results: the policies of result files, of any program.
    """

    a: Path | None = None
    """The first bundle, builtin:NAME, or a released checkpoint (folder or Hub id); usually the untuned one."""
    b: Path | None = None
    """The second bundle; the one in question, which the others are compared with."""
    results: tuple[Path, ...] = ()
    """Files of episode results (JSON lines) instead of two bundles; nothing is played, the others are compared with
    the last one."""
    data: Path | None = None
    """Built dataset: its validation split for open loop, its training split for the baselines."""
    out: Path = Path("runs/compare")
    """Where episodes and the result are kept; a second run reuses them and says so."""
    backend_a: str = "auto"
    """Backend of the first."""
    backend_b: str = "auto"
    """Backend of the second."""
    device: str = "auto"
    """Where both run: auto, cpu, cuda or cuda:N."""
    baselines: tuple[str, ...] = ("hold", "mean_action", "nearest_neighbour", "replay")
    """Which baselines stand beside them."""
    ablations: bool = True
    """Also try both with black images and with another instruction."""
    samples: int = 400
    """Validation samples for open loop."""
    seed: int = 0
    """Decides scenes and resampling."""
    loop: Annotated[Loop, tyro.conf.arg(name="")] = Loop()
    """The simulator."""


def evaluate(config: EvaluateConfig, progress: Progress = quiet) -> Comparison:
    """Evaluate one bundle. Raises `EvaluationError`, `BundleError`."""
    policies = [ActorSpec("policy", source=str(config.bundle), backend=config.backend, device=config.device)]
    if config.within_reach:
        policies.append(dataclasses.replace(policies[0], name="within reach", within_reach=True))
    return _run(policies, ("hold", "mean_action", "nearest_neighbour", "replay"), config, progress)


def compare(config: CompareConfig, progress: Progress = quiet) -> Comparison | ResultsComparison:
    """Compare two bundles, or with `results` what files say of any policies.

    An untuned base of another robot is bound to the dataset's robot first, and labelled so. Raises `EvaluationError`,
    `BundleError`.
    """
    if config.results:
        if config.a is not None or config.data is not None:
            raise EvaluationError(
                "--results compares files and plays nothing: give either files, or two bundles (and --data)."
            )
        return compare_results(config.results)
    if config.a is None or config.b is None:
        raise EvaluationError(
            "Two policies are needed: athena compare A B, or athena compare --results A.jsonl B.jsonl."
        )
    return compare_bundles(config, config.a, config.b, progress)


def compare_bundles(config: CompareConfig, one: Path, two: Path, progress: Progress = quiet) -> Comparison:
    """Compare two bundles beside the baselines. Raises `EvaluationError`, `BundleError`."""
    dataset = None if config.data is None else Dataset.open(config.data)
    first = _bound(one, two, dataset, config.out / "untuned", config.seed)
    a, b = _names(first, two)
    policies = [
        ActorSpec(b, source=str(two), backend=config.backend_b, device=config.device),
        ActorSpec(a, source=str(first), backend=config.backend_a, device=config.device),
    ]
    return _run(policies, config.baselines, config, progress)


def _run(
    policies: list[ActorSpec], baselines: tuple[str, ...], config: EvaluateConfig | CompareConfig, progress: Progress
) -> Comparison:
    robot = Bundle.open(policies[0].source).robot
    dataset = None if config.data is None else Dataset.open(config.data)
    if dataset is not None and dataset.robot.hash != robot.hash:
        raise EvaluationError(
            f"'{policies[0].source}' drives '{robot.name}' ({robot.hash}), the dataset '{config.data}' holds motions "
            f"of '{dataset.robot.name}' ({dataset.robot.hash}). Fine-tune on this dataset first, or give another."
        )
    loop = config.loop
    setup = None
    if loop.episodes > 0 and robot.mjcf:
        setup = Setup(
            robot=robot.name,
            split=loop.split,
            duration=loop.duration,
            replan_every=loop.replan_every,
            latency=loop.latency,
            owners=driven_by_policy(robot),
        )
    if setup is None and dataset is None:
        raise EvaluationError(
            f"There is nothing to evaluate on: robot '{robot.name}' has no simulator here (or --episodes 0), and "
            "no --data was given. Give a dataset built from its recordings."
        )
    result = compare_all(
        policies,
        reference=policies[0].name,
        out=config.out,
        dataset=dataset,
        baselines=baselines,
        ablate=[p.name for p in policies] if config.ablations else (),
        episodes=loop.episodes,
        samples=config.samples,
        seed=config.seed,
        workers=loop.workers,
        setup=setup,
        progress=progress,
    )
    if setup is None:
        reason = "as asked" if loop.episodes == 0 else f"there is no simulator of robot '{robot.name}'"
        result = dataclasses.replace(result, notes=(*result.notes, f"No closed loop was played: {reason}."))
    save(result, config.out / "comparison.json")
    return result


def save(result: Comparison, path: Path) -> None:
    """The comparison as JSON. Raises `EvaluationError` where it cannot be written."""
    files.write_json(path, result.to_dict(), EvaluationError, sort_keys=True, default=_plain)


def _bound(where: Path, tuned: Path, dataset: Dataset | None, out: Path, seed: int) -> Path:
    """The first side of a comparison as a bundle that can act on the dataset's robot."""
    base = open_base(where)
    if isinstance(base, Release):
        if dataset is None:
            raise EvaluationError(
                f"'{where}' is a released checkpoint, which knows no joint of this robot; give --data, so that it can "
                "be bound to the robot and its statistics."
            )
        return bind_base(base, dataset, out, seed, family=Bundle.open(tuned, verify=False).manifest.family)
    if dataset is None or base.robot.hash == dataset.robot.hash or base.manifest.stage != "base":
        return where
    return bind_base(base, dataset, out, seed)


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Short names of two bundles: untuned and tuned where that is what they are, else their folders' names."""
    stages = [Bundle.open(p, verify=False).manifest.stage for p in (a, b)]
    if stages[0] == "base" and stages[1] != "base":
        return "untuned", "tuned"
    one, two = (str(p).replace("builtin:", "").rstrip("/").rpartition("/")[2] for p in (a, b))
    return (one, two) if one != two else (f"{one}-a", f"{two}-b")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value)} is not JSON")
