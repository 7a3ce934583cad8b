"""The table of commands: where each lives and how it reads. Modules are imported only when their command is called."""

import importlib
from dataclasses import dataclass
from typing import Any

from athena_vla.errors import MissingDependency, UnknownName
from athena_vla.extras import extra_of
from athena_vla.version import __version__

INPUTS = ("input", "bundle", "run", "box", "a", "b")


@dataclass(frozen=True)
class Command:
    """Where a command lives and how it reads on the command line."""

    module: str
    function: str
    config: str
    help: str
    positional: tuple[str, ...] = ()  # config fields that may be given without their flag, in this order
    presets: str = ""  # name in the module of a table of configs for --preset
    config_module: str = ""  # where config and presets live, where that is another module: one that is read at once
    several: str = ""  # field that takes the words between the first and the last positional one
    weighted: tuple[str, str] = ("", "")  # option of one path, and the field that takes several with their weights
    kept: str = ""  # what an interrupted run leaves for the next one, where the command itself does not say it

    @property
    def inputs(self) -> tuple[str, ...]:
        """The positional fields that name something which must be there already."""
        return tuple(f for f in self.positional if f in INPUTS)


COMMANDS: dict[str, Command] = {
    "demo": Command("demo", "demo", "DemoConfig", "the whole way, on the simulator or on your own recordings"),
    "doctor": Command("doctor", "doctor", "DoctorConfig", "what this machine has, what works, what is missing"),
    "clean": Command("files.cleaning", "clean", "CleanConfig", "remove caches, and say how much they were"),
    "record": Command(
        "sim.record",
        "record",
        "RecordConfig",
        "record demonstrations in the simulator",
        ("out",),
        kept="finished recordings",
    ),
    "robot import": Command(
        "robot_import.robot_importing",
        "import_robot",
        "RobotImportConfig",
        "a robot's file from its URDF or MJCF",
        ("input", "out"),
    ),
    "data info": Command("recordings.info", "info", "InfoConfig", "what a recording is, from its content", ("input",)),
    "data check": Command("check", "check", "CheckConfig", "every defect of a recording, named", ("input",)),
    "data align": Command("check.lags", "align", "AlignConfig", "lags between streams, and the real rate", ("input",)),
    "data annotate": Command(
        "annotate.annotating", "annotate", "AnnotateConfig", "segments with instructions", ("input",)
    ),
    "data build": Command(
        "dataset.build",
        "build",
        "BuildConfig",
        "recordings become a training set",
        ("input", "out"),
        several="also",
        kept="finished episodes",
    ),
    "data convert": Command("recordings.convert", "convert", "ConvertConfig", "to another format", ("input", "out")),
    "data merge": Command(
        "recordings.merging", "merge", "MergeConfig", "several recordings as one", ("input", "out"), several="also"
    ),
    "data select": Command(
        "check.selecting", "select", "SelectConfig", "some episodes of a recording", ("input", "out")
    ),
    "data view": Command(
        "view",
        "view",
        "ViewConfig",
        "look at episodes, in Rerun or as HTML pages",
        ("input",),
        config_module="view.view_config",
    ),
    "data diff": Command("dataset.diff", "diff", "DiffConfig", "what two built datasets differ in", ("a", "b")),
    "train": Command(
        "evaluate.training_by_success",
        "finetune",
        "FinetuneConfig",
        "fine-tune with LoRA, QLoRA or DoRA",
        presets="PRESETS",
        weighted=("data", "mix"),
        config_module="finetune.finetune_config",
    ),
    "runs": Command("evaluate.runs", "runs", "RunsConfig", "one table over the trainings below a folder", ("input",)),
    "checkpoint": Command(
        "finetune",
        "bundle_of_checkpoint",
        "CheckpointConfig",
        "a bundle of one checkpoint of a run",
        ("run",),
        config_module="finetune.checkpoint_config",
    ),
    "sweep": Command(
        "sweep",
        "sweep",
        "SweepConfig",
        "several presets or ranks on the same data and seeds",
        config_module="finetune.sweep_config",
        kept="finished runs",
    ),
    "evaluate": Command(
        "evaluate.commands",
        "evaluate",
        "EvaluateConfig",
        "open and closed loop, with intervals",
        ("bundle",),
        config_module="evaluate.evaluate_config",
        kept="finished episodes of the closed loop",
    ),
    "compare": Command(
        "evaluate.commands",
        "compare",
        "CompareConfig",
        "two policies and the baselines, paired",
        ("a", "b"),
        config_module="evaluate.evaluate_config",
        kept="finished episodes of the closed loop",
    ),
    "merge": Command(
        "merge",
        "merge",
        "MergeConfig",
        "fold the adapter into its base",
        ("input", "out"),
        config_module="finetune.merge_config",
    ),
    "quantize": Command(
        "quantize",
        "quantize",
        "QuantizeConfig",
        "8 or 4 bit, by action error",
        ("input", "out"),
        config_module="quantize.quantize_config",
        kept="finished layers",
    ),
    "export": Command(
        "export",
        "export",
        "ExportConfig",
        "ONNX graphs and TensorRT scripts",
        ("input", "out"),
        config_module="export.export_config",
    ),
    "report": Command("report", "report", "ReportConfig", "the page of a finished demo, written again", ("run",)),
    "gates": Command(
        "export",
        "check",
        "GateConfig",
        "may this bundle be served: thresholds and outcomes",
        ("bundle",),
        config_module="export.gate_config",
    ),
    "plan": Command("plan", "plan", "PlanConfig", "will it fit and how fast: predicted, and labelled so"),
    "bench": Command("bench", "bench", "BenchConfig", "stage by stage, measured here", ("bundle",)),
    "serve": Command("serve", "serve", "ServeBundleConfig", "a policy over a socket", ("bundle",)),
    "drive": Command("drive.driving", "drive", "DriveConfig", "a robot with a policy, with stop and shadow"),
    "improve": Command(
        "improve",
        "improve",
        "ImproveConfig",
        "rounds of corrections and training; a policy is kept unless it is worse",
        ("bundle",),
        config_module="improve.improve_config",
    ),
    "trials draw": Command(
        "trials.trial_commands", "trials_draw", "DrawConfig", "trials on a robot: draw their order", ("out",)
    ),
    "trials run": Command(
        "trials.trial_commands",
        "trials_run",
        "RunConfig",
        "trials on a robot: run them, with hidden names",
        ("folder",),
        kept="every verdict",
    ),
    "trials report": Command(
        "trials.trial_commands",
        "trials_report",
        "TrialReportConfig",
        "trials on a robot: open the names, count",
        ("folder",),
    ),
    "incident": Command("incident", "incident", "IncidentConfig", "what a robot's black box kept", ("box",)),
    "push": Command(
        "hub",
        "push",
        "PushConfig",
        "a bundle, adapter or dataset to the Hugging Face Hub, with its card",
        ("input", "repo"),
        config_module="hub.hub_config",
        kept="files that the Hub has",
    ),
    "pull": Command(
        "hub",
        "pull",
        "PullConfig",
        "the same from the Hub, every hash compared",
        ("repo", "out"),
        config_module="hub.hub_config",
        kept="what has come",
    ),
    "completion": Command(
        "cli.completion", "completion", "CompletionConfig", "a script for bash, zsh or fish", ("shell",)
    ),
}


def split(words: list[str]) -> tuple[str, list[str]]:
    """Command name (one or two words) and its arguments. Raises `UnknownName`, `AthenaError`."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    family = [c for c in COMMANDS if c.startswith(f"{words[0]} ")]
    if family and (len(words) == 1 or words[1] in ("-h", "--help")):
        print("\n".join(f"athena {c:<15} {COMMANDS[c].help}" for c in family))
        raise SystemExit(0)
    raise UnknownName("command", " ".join(words[: 2 if family else 1]), family or COMMANDS)


def load(command: Command, module: str = "") -> Any:
    """The command's module, or another one. Raises `MissingDependency` when an optional package is not installed."""
    try:
        return importlib.import_module(f"athena_vla.{module or command.module}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "athena_vla"):
            raise
        raise MissingDependency(
            package, extra_of().get(package, "train"), f"for this command ({command.help})"
        ) from error


def overview() -> str:
    lines = [f"athena-vla {__version__}: from robot recordings to a safe, fast policy on the robot", ""]
    lines += [f"  athena {name:<15} {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "Every command has --help and --json (one object on standard output); --debug shows tracebacks."]
    return "\n".join(lines)
