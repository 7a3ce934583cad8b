"""The command `athena`: one subcommand per stage; parses, calls, prints, and nothing else.

A command is a module's function of one frozen config. Modules are imported only when their command is called, so
that the robot side needs no torch and `--help` is instant.
"""

import dataclasses
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from athena_vla.cli.arguments import parse, require_inputs
from athena_vla.cli.table import COMMANDS, load, overview, split
from athena_vla.errors import AthenaError
from athena_vla.progress import shown
from athena_vla.stopping import Interrupted, sigterm_as_ctrl_c
from athena_vla.version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; leaves with status 0, the command's own status, or 2 for an error about the user's world."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with sigterm_as_ctrl_c():
            status = run(words)
    except AthenaError as error:
        if "--debug" in words:
            raise
        status = _failed(words, error.code, str(error), 2)
    except KeyboardInterrupt as error:
        status = error.status if isinstance(error, Interrupted) else 130
        _failed(words, "interrupted", f"interrupted; {error if str(error) else _kept(words)}", status)
    except BrokenPipeError:
        status = 0
    except OSError as error:  # a full disk or a forbidden folder where no stage could say more about it
        if "--debug" in words:
            raise
        status = _failed(words, "system", f"the operating system refused: {error}. --debug shows where.", 2)
    sys.exit(status)


def _failed(words: Sequence[str], code: str, message: str, status: int) -> int:
    """Say it on standard error, or with --json as an object on standard output; the status."""
    if "--json" in words:
        print(json.dumps({"error": {"code": code, "message": message, "status": status}}, indent=1, sort_keys=True))
    else:
        print(f"athena: {message}", file=sys.stderr)
    return status


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
    require_inputs(name, command, rest)
    config = parse(name, command, load(command, command.config_module), rest, as_json=as_json)
    module = load(command)
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
    to_list = getattr(value, "tolist", None)  # numpy's; this file starts without it
    if callable(to_list):
        return plain(to_list())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
