"""The commands `athena evaluate` and `athena compare`: the way from their configurations to a comparison."""

import dataclasses
from pathlib import Path
from typing import Any

from athena_vla import files
from athena_vla.bound_base import bind_base
from athena_vla.bundle import Bundle, open_base
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.comparison import Comparison, compare_all
from athena_vla.evaluate.evaluate_config import CompareConfig, EvaluateConfig, Loop
from athena_vla.evaluate.outcomes import ResultsComparison, compare_results
from athena_vla.evaluate.results import Setup, driven_by_policy
from athena_vla.models.released.pretrained import Release
from athena_vla.progress import Progress, quiet

__all__ = ["CompareConfig", "EvaluateConfig", "Loop", "compare", "compare_bundles", "evaluate"]


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
        return compare_results(config.results)
    assert config.a is not None  # the config has both, or results
    assert config.b is not None
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
        on=loop.on,
        setup=setup,
        progress=progress,
        pairs=loop.pairs,
    )
    if setup is None:
        pairs = ", and so no --pairs" if loop.pairs else ""
        reason = "as asked" if loop.episodes == 0 else f"there is no simulator of robot '{robot.name}'"
        result = dataclasses.replace(result, notes=(*result.notes, f"No closed loop was played{pairs}: {reason}."))
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
