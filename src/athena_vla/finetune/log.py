"""What a run leaves to read: log.jsonl, curves.png, progress, and trackers that are asked for. Knows no model."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from athena_vla import files
from athena_vla.errors import MissingDependency, TrainingError
from athena_vla.extras import install
from athena_vla.finetune import trackio_run
from athena_vla.finetune.evaluation import Evaluation
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.progress import Progress, quiet

STEP = "step"  # what progress calls one

CONFIG = "config.json"  # of a run folder: what was asked for


class RunLog:
    """Writes only in the main process; the others keep silent."""

    def __init__(self, config: FinetuneConfig, *, main: bool, progress: Progress = quiet) -> None:
        self.config, self.main = config, main
        self.file = config.run_folder / "log.jsonl"
        self.progress = progress if main and config.progress else quiet
        self.said = ""  # of the last step that was logged
        self.board: Any = None
        self.wandb: Any = None
        self.trackio: Any = None
        if not main:
            return
        files.write_json(config.run_folder / CONFIG, config.to_dict(), TrainingError, sort_keys=True)
        if config.tensorboard:
            self._open_board()
        if config.wandb != "off":
            self._open_wandb()
        if config.trackio:
            self.trackio = trackio_run.opened(config)

    def restart(self) -> None:
        """Forget the lines of an earlier run."""
        if self.main:
            self.file.unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Keep the lines up to `step`: what came after it will be done again."""
        if self.main and self.file.is_file():
            kept = [x for x in read(self.file) if x.get("step", 0) <= step]
            self.file.write_text("".join(json.dumps(x) + "\n" for x in kept))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._line({"step": step, **{k: _number(v) for k, v in values.items()}})
        self._curves(step, {f"train/{k}": v for k, v in values.items()})
        self.said = f"loss {values['loss']:.4f}, {values['samples_per_second']:.0f} samples/s"

    def evaluation(self, step: int, measured: Evaluation) -> None:
        self._line({"step": step, "validation": measured})
        flat = {f"validation/{k}": measured[k] for k in ("loss", "mae_rad")}
        flat |= {f"joint_rad/{k}": v for k, v in measured["per_joint_rad"].items()}
        of = measured.get("sets", {})
        flat |= {f"validation/{name}/{k}": one[k] for name, one in of.items() for k in ("loss", "mae_rad")}
        success = measured.get("success")
        if success is not None:
            flat["validation/success"] = success["solved"] / success["scenes"]
        self._curves(step, flat)
        for name, one in of.items():
            self.note(f"step {step}: {name}: validation loss {one['loss']:.4f}, error {one['mae_rad']:.4f} rad")
        played = "" if success is None else f", {success['solved']} of {success['scenes']} scenes solved"
        self.note(f"step {step}: validation loss {measured['loss']:.4f}, error {measured['mae_rad']:.4f} rad{played}")

    def note(self, text: str) -> None:
        """A sentence for the user; stderr, so that --json stays clean."""
        if not self.main:
            return
        self._line({"note": text})
        self.progress.say(text)

    def track(self, steps: Iterable[int], first: int, total: int) -> Iterator[int]:
        """Yield the steps and show how far they are."""
        self.progress(first, total, STEP)
        for step in steps:
            yield step
            self.progress(step + 1, total, STEP, self.said)

    def close(self) -> None:
        """Draw the curves and close the trackers."""
        if not self.main:
            return
        if self.file.is_file():
            draw(read(self.file), self.config.run_folder / "curves.png")
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.trackio is not None:
            trackio_run.close(self.trackio)

    def _line(self, content: Mapping[str, Any]) -> None:
        if self.main:
            with self.file.open("a") as stream:
                stream.write(json.dumps(content) + "\n")

    def _curves(self, step: int, values: Mapping[str, float]) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(dict(values), step=step)
        if self.trackio is not None:
            self.trackio.log(dict(values), step=step)

    def _open_board(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.note(f"TensorBoard is not installed ({install('train')}): curves go to log.jsonl and curves.png.")
            return
        self.board = SummaryWriter(str(self.config.run_folder / "tensorboard"))

    def _open_wandb(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingDependency("wandb", "wandb", f"for --wandb {self.config.wandb}") from error
        self.wandb = wandb.init(
            project=trackio_run.PROJECT,
            name=self.config.out.name,
            dir=str(self.config.run_folder),
            mode=self.config.wandb,
            config=self.config.to_dict(),
            resume="allow",
        )


def read(file: Path) -> list[dict[str, Any]]:
    """Lines of a log; a last line that was cut by a crash is left out."""
    lines = []
    for line in file.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Loss of training and validation, and the error per joint over time, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [(x["step"], x["loss"]) for x in lines if x.get("loss") is not None]
    checks = [(x["step"], x["validation"]) for x in lines if "validation" in x]
    if not train and not checks:
        return
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps state and looks for a display
    left, right = figure.subplots(1, 2)
    if train:
        left.plot(*zip(*train, strict=True), label="training", linewidth=1.2)
    if checks:
        left.plot([s for s, _ in checks], [v["loss"] for _, v in checks], "o-", label="validation", markersize=4)
        joints = list(checks[-1][1]["per_joint_rad"])
        worst = sorted(joints, key=lambda j: -checks[-1][1]["per_joint_rad"][j])[:6]
        for joint in joints:
            values = [v["per_joint_rad"][joint] for _, v in checks]
            loud = joint in worst
            style = {"label": joint, "linewidth": 1.5} if loud else {"color": "0.8", "linewidth": 0.7}
            right.plot([s for s, _ in checks], values, "o-", markersize=3 if loud else 2, **style)
        right.legend(fontsize=7, title="largest at the end", title_fontsize=7)
    left.set(xlabel="optimiser step", ylabel="loss (normalised units)", title="Loss")
    right.set(xlabel="optimiser step", ylabel="mean absolute error [rad]", title="Validation error per joint")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set(xlim=(0, None), ylim=(0, None))
    with files.whole_file(path, TrainingError) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _number(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
