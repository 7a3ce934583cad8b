"""The command `athena`: one subcommand per stage; parses, calls, prints, and nothing else.

A command is a module's function of one frozen config. Modules are imported only when their command is called, so
that the robot side needs no torch and `--help` is instant.
"""

import dataclasses
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from athena_vla.errors import AthenaError, MissingDependency, UnknownName
from athena_vla.extras import extra_of
from athena_vla.progress import shown
from athena_vla.stopping import Interrupted, sigterm_as_ctrl_c
from athena_vla.version import __version__


@dataclass(frozen=True)
class Command:
    """Where a command lives and how it reads on the command line."""

    module: str
    function: str
    config: str
    help: str
    positional: tuple[str, ...] = ()  # config fields that may be given without their flag, in this order
    presets: str = ""  # name in the module of a table of configs for --preset
    kept: str = ""  # what an interrupted run leaves for the next one, where the command itself does not say it


COMMANDS: dict[str, Command] = {
    "demo": Command("demo", "demo", "DemoConfig", "the whole way, on the simulator or on your own recordings"),
    "doctor": Command("doctor", "doctor", "DoctorConfig", "what this machine has, what works, what is missing"),
    "record": Command(
        "sim.record",
        "record",
        "RecordConfig",
        "record demonstrations in the simulator",
        ("out",),
        kept="finished recordings",
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
        kept="finished episodes",
    ),
    "data convert": Command("recordings.convert", "convert", "ConvertConfig", "to another format", ("input", "out")),
    "train": Command(
        "plan.advised_finetune", "finetune", "FinetuneConfig", "fine-tune with LoRA, QLoRA or DoRA", (), "PRESETS"
    ),
    "checkpoint": Command(
        "finetune", "bundle_of_checkpoint", "CheckpointConfig", "a bundle of one checkpoint of a run", ("run",)
    ),
    "sweep": Command(
        "sweep", "sweep", "SweepConfig", "several presets or ranks on the same data and seeds", kept="finished runs"
    ),
    "evaluate": Command(
        "evaluate",
        "evaluate",
        "EvaluateConfig",
        "open and closed loop, with intervals",
        ("bundle",),
        kept="finished episodes of the closed loop",
    ),
    "compare": Command(
        "evaluate",
        "compare",
        "CompareConfig",
        "two policies and the baselines, paired",
        ("a", "b"),
        kept="finished episodes of the closed loop",
    ),
    "merge": Command("merge", "merge", "MergeConfig", "fold the adapter into its base", ("input", "out")),
    "quantize": Command(
        "quantize",
        "quantize",
        "QuantizeConfig",
        "8 or 4 bit, by action error",
        ("input", "out"),
        kept="finished layers",
    ),
    "export": Command("export", "export", "ExportConfig", "ONNX graphs and TensorRT scripts", ("input", "out")),
    "report": Command("report", "report", "ReportConfig", "the page of a finished demo, written again", ("run",)),
    "gates": Command(
        "export", "check", "GateConfig", "may this bundle be served: thresholds and outcomes", ("bundle",)
    ),
    "plan": Command("plan", "plan", "PlanConfig", "will it fit and how fast: predicted, and labelled so"),
    "bench": Command("bench", "bench", "BenchConfig", "stage by stage, measured here", ("bundle",)),
    "serve": Command("serve", "serve", "ServeBundleConfig", "a policy over a socket", ("bundle",)),
    "drive": Command("drive.driving", "drive", "DriveConfig", "a robot with a policy, with stop and shadow"),
    "incident": Command("incident", "incident", "IncidentConfig", "what a robot's black box kept", ("box",)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; leaves with status 0, the command's own status, or 2 for an error about the user's world."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with sigterm_as_ctrl_c():
            status = run(words)
    except AthenaError as error:
        if "--debug" in words:
            raise
        print(f"athena: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as error:
        print(f"athena: interrupted; {error if str(error) else _kept(words)}", file=sys.stderr)
        status = error.status if isinstance(error, Interrupted) else 130
    except BrokenPipeError:
        status = 0
    except OSError as error:  # a full disk or a forbidden folder where no stage could say more about it
        if "--debug" in words:
            raise
        print(f"athena: the operating system refused: {error}. --debug shows where.", file=sys.stderr)
        status = 2
    sys.exit(status)


def run(words: list[str]) -> int:
    """Parse, call, print; returns the exit status. Raises `AthenaError`."""
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"athena-vla {__version__}")
        return 0
    name, rest = split(words)
    as_json = "--json" in rest
    rest = [w for w in rest if w not in ("--json", "--debug")]
    command = COMMANDS[name]
    module = load(command)
    config = parse(name, command, module, rest)
    result = call(getattr(module, command.function), config)
    print(json.dumps(plain(result), indent=1, sort_keys=True) if as_json else str(result))
    return int(getattr(result, "exit_status", 0))


def _kept(words: list[str]) -> str:
    command = next((COMMANDS[n] for n in (" ".join(words[:2]), *words[:1]) if n in COMMANDS), None)
    if command is not None and command.kept:
        return f"{command.kept} are kept, and the same command goes on from them."
    return "nothing of it is kept."


def call(function: Callable[..., Any], config: Any) -> Any:
    """The stage's result; stages that take a `progress` show it on standard error, as bars or as lines in a log."""
    if "progress" not in inspect.signature(function).parameters:
        return function(config)
    with shown() as progress:
        return function(config, progress=progress)


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


def load(command: Command) -> Any:
    """The command's module. Raises `MissingDependency` when an optional package is not installed."""
    try:
        return importlib.import_module(f"athena_vla.{command.module}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "athena_vla"):
            raise
        raise MissingDependency(
            package, extra_of().get(package, "train"), f"for this command ({command.help})"
        ) from error


def parse(name: str, command: Command, module: Any, words: list[str]) -> Any:
    """The command's config from its arguments; positional words become their flags."""
    words = list(words)
    default: dict[str, Any] = {}
    if command.presets and "--preset" in words:
        place = words.index("--preset")
        presets = getattr(module, command.presets)
        chosen = words[place + 1] if place + 1 < len(words) else ""
        if chosen not in presets:
            raise UnknownName("preset", chosen, presets)
        default["default"] = presets[chosen]
        del words[place : place + 2]
    flags: list[str] = []
    for field in command.positional:
        if words and not words[0].startswith("-"):
            flags += [f"--{field.replace('_', '-')}", words.pop(0)]
    places = " ".join(p.upper() for p in command.positional)
    description = f"{command.help}. Usage: athena {name} {places} [--json] [options]"
    return tyro.cli(
        getattr(module, command.config),
        prog=f"athena {name}",
        description=description,
        args=flags + words,
        **default,
    )


def overview() -> str:
    lines = [f"athena-vla {__version__}: from robot recordings to a safe, fast policy on the robot", ""]
    lines += [f"  athena {name:<15} {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "Every command has --help and --json (one object on standard output); --debug shows tracebacks."]
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """Dataclasses, paths, numpy values and infinities as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        to_dict = getattr(value, "to_dict", None)
        if callable(to_dict):
            return plain(to_dict())
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


if __name__ == "__main__":
    main()
