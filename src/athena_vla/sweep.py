"""Several presets or ranks on the same data and seeds: what quality costs, with intervals, as a table and a plot.

Chains the stages that exist (fine-tune, closed loop) and compares; knows nothing of how either works.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from athena_vla import files
from athena_vla.bundle import Bundle
from athena_vla.errors import TrainingError, UnknownName
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.closedloop import ClosedLoopConfig, closed_loop
from athena_vla.evaluate.results import Setup
from athena_vla.evaluate.statistics import PairedTest, Proportion, paired_test, wilson
from athena_vla.evaluate.training_by_success import PRESETS, FinetuneConfig, FinetuneResult, finetune
from athena_vla.finetune.finetune_config import parse_changes
from athena_vla.finetune.launch import with_precision
from athena_vla.finetune.result import FILE, result_of
from athena_vla.finetune.sweep_config import SweepConfig
from athena_vla.progress import Progress, quiet


@dataclass(frozen=True)
class SweepRow:
    """One configuration, all seeds together."""

    name: str
    trainable: int
    steps: int
    step_seconds: float  # [s] per optimiser step, mean over seeds; on a CPU of its time, not of the clock
    samples_per_second: float
    peak_memory_gb: float  # [GB] while it trained, the largest of all seeds
    validation_loss: tuple[float, ...]  # per seed
    mae_rad: tuple[float, ...]  # [rad] per seed
    per_joint_rad: Mapping[str, float]  # [rad] open loop, mean over seeds
    success: Proportion | None  # closed loop, episodes of all seeds together
    solved: tuple[tuple[bool, ...], ...] = ()  # per seed and scene: every row plays the same scenes
    against_first: PairedTest | None = None  # the first row counts as first; scenes of all seeds together

    def cells(self) -> tuple[str, ...]:
        success = "-"
        if self.success is not None:
            s = self.success
            success = f"{100 * s.success:.0f}% ({100 * s.low:.0f}-{100 * s.high:.0f}), n = {s.n}"
        return (
            self.name,
            f"{self.trainable:,}",
            f"{self.steps}",
            f"{self.step_seconds:.3f}",
            f"{self.samples_per_second:.0f}",
            f"{self.peak_memory_gb:.2f}",
            _spread(self.validation_loss, 4),
            _spread(self.mae_rad, 4),
            success,
            difference(self.against_first),
        )


HEADER = (
    *("row", "trainable", "steps", "s/step", "samples/s", "peak GB"),
    *("validation loss", "error [rad]", "success (95% Wilson)", "minus the first row (paired 95%)"),
)


def difference(test: PairedTest | None) -> str:
    """A row's success minus the first row's, in points, with the paired interval."""
    if test is None:
        return "-"
    d = test.difference  # of the first row minus this one
    chance = "p < 0.001" if test.mid_p < 0.001 else f"p = {test.mid_p:.3f}"
    return f"{-100 * d.value:+.1f} ({-100 * d.high:+.1f} to {-100 * d.low:+.1f}), {chance}"


@dataclass(frozen=True)
class SweepResult:
    """The table; `str` prints it."""

    rows: tuple[SweepRow, ...]
    out: Path

    def __str__(self) -> str:
        lines = [HEADER, *(r.cells() for r in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*text, f"table and plot: {self.out}"])


def sweep(config: SweepConfig, progress: Progress = quiet) -> SweepResult:
    """Train every row and seed, evaluate, write table and plot; finished runs are reused and named.

    Raises `TrainingError`, `UnknownName`.
    """
    wanted = rows_of(config)
    config.out.mkdir(parents=True, exist_ok=True)
    progress.plan({f"{name} {seed}": 1.0 for name in wanted for seed in config.seeds})
    rows = [_row(name, base, config, progress) for name, base in wanted.items()]
    result = SweepResult(compared(rows), config.out)
    _write(result)
    return result


def rows_of(config: SweepConfig) -> dict[str, FinetuneConfig]:
    """Row name -> its configuration. Raises `UnknownName` for a preset or field, `TrainingError` for a bad value."""
    if not config.presets or not config.seeds:
        raise TrainingError("A sweep needs at least one preset and one seed.")
    rows: dict[str, FinetuneConfig] = {}
    for preset in config.presets:
        if preset not in PRESETS:
            raise UnknownName("preset", preset, PRESETS)
        for variant in config.variants or ("",):
            changes = parse_changes(variant)
            base = dataclasses.replace(PRESETS[preset], data=config.data, model=config.model, **changes)
            if config.max_steps:
                steps = config.max_steps
                base = dataclasses.replace(base, max_steps=steps, evaluate_every=min(base.evaluate_every, steps))
            rows[f"{preset} {variant}".strip()] = base
    return rows


def compared(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """Every row after the first with its paired test against it, on the scenes and seeds that both have."""
    first, *others = rows
    return (first, *(dataclasses.replace(r, against_first=_paired(first, r)) for r in others))


def _paired(one: SweepRow, two: SweepRow) -> PairedTest | None:
    pairs = [(a, b) for x, y in zip(one.solved, two.solved, strict=False) for a, b in zip(x, y, strict=True)]
    return paired_test([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None


def _row(name: str, base: FinetuneConfig, config: SweepConfig, progress: Progress) -> SweepRow:
    folder = config.out / name.replace(" ", "-").replace(",", "-").replace("=", "")
    results: list[FinetuneResult] = []
    solved: list[tuple[bool, ...]] = []
    for seed in config.seeds:
        run = dataclasses.replace(base, seed=seed, out=folder / f"seed{seed}")
        part = progress.part(f"{name} {seed}")
        part.plan({"train": 1.0, "play": 0.25 * bool(config.episodes)})
        results.append(_finished(run, progress) or finetune(run, part.part("train")))
        if config.episodes:
            actor = ActorSpec(name="tuned", source=str(run.out))
            # Whole chunks are played, whatever their length, as on the robot.
            setup = Setup(robot=config.robot, replan_every=Bundle.open(run.out).spec.horizon)
            loop = ClosedLoopConfig(
                out=folder / f"seed{seed}.closed", episodes=config.episodes, workers=config.workers, setup=setup
            )
            solved.append(tuple(closed_loop([actor], loop, part.part("play")).successes("tuned").values()))
    return SweepRow(
        name=name,
        trainable=results[0].trainable,
        steps=max(r.steps for r in results),
        step_seconds=statistics.mean(r.step_seconds for r in results),
        samples_per_second=statistics.mean(r.samples_per_second for r in results),
        peak_memory_gb=max(r.peak_memory_gb for r in results),
        validation_loss=tuple(r.validation["loss"] for r in results if r.validation),
        mae_rad=tuple(r.validation["mae_rad"] for r in results if r.validation),
        per_joint_rad=_mean_by_name([r.validation["per_joint_rad"] for r in results if r.validation]),
        success=wilson(sum(map(sum, solved)), sum(map(len, solved))) if solved else None,
        solved=tuple(solved),
    )


def _mean_by_name(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(r[name] for r in rows) for name in (rows[0] if rows else {})}


def _finished(run: FinetuneConfig, progress: Progress) -> FinetuneResult | None:
    """The result of this very run, where it is there already."""
    if not ((run.out / "manifest.json").is_file() and (run.run_folder / FILE).is_file()):
        return None
    stored = Bundle.open(run.out).manifest.config
    if stored not in (run.to_dict(), with_precision(run).to_dict()):
        return None
    progress.say(f"reusing {run.out}: trained with the same configuration")
    return result_of(run)


def _write(result: SweepResult) -> None:
    out = result.out
    files.write_json(out / "sweep.json", [dataclasses.asdict(r) for r in result.rows], TrainingError)
    table = [HEADER, ("---",) * len(HEADER), *(r.cells() for r in result.rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table) + "\n"
    files.write_text(out / "sweep.md", text, TrainingError)
    _plot(result.rows, out / "sweep.png")


def _plot(rows: Sequence[SweepRow], path: Path) -> None:
    """Quality against trainable parameters: success with its interval, or the error where no loop was closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    closed = all(r.success is not None for r in rows)
    for row in rows:
        if row.success is not None and closed:
            s = row.success
            bars = [[100 * (s.success - s.low)], [100 * (s.high - s.success)]]
            axes.errorbar([row.trainable], [100 * s.success], yerr=bars, fmt="o", capsize=3)
            height = 100 * s.success
        else:
            axes.plot([row.trainable] * len(row.mae_rad), row.mae_rad, "o")
            height = statistics.mean(row.mae_rad) if row.mae_rad else 0.0
        axes.annotate(row.name, (row.trainable, height), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set_xscale("log")
    axes.set(xlabel="trainable parameters", ylabel="success [%]" if closed else "validation error [rad]")
    axes.grid(alpha=0.3)
    with files.whole_file(path, TrainingError) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    middle = f"{statistics.mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"
