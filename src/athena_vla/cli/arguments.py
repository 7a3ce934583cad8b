"""A command's config from the words behind it: presets, positional words, one style of options, sentences for slips.

What can be refused before a stage is imported is refused here: paths that are not there cost no import of torch.
"""

import contextlib
import difflib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from athena_vla.cli.table import Command
from athena_vla.errors import AthenaError, UnknownName

_BOX = re.compile("[\u2500-\u257f]+")  # lines around tyro's messages
_PREFIXES = ("--server.",)  # options once had the name of their group in front
_INPUT_FLAGS = ("--data",)


class UsageError(AthenaError):
    """Words that are no arguments of this command."""

    code = "usage"


def parse(name: str, command: Command, module: Any, words: list[str], *, as_json: bool = False) -> Any:
    """The command's config. Raises `UnknownName`, and `UsageError` where the answer is JSON; else leaves with tyro's
    own message.
    """
    words, default, notes = list(words), {}, [f"{command.help}."]
    if command.presets:
        presets = getattr(module, command.presets)
        notes.append(f"--preset NAME starts from a named set of options: {', '.join(presets)}.")
        chosen = _taken(words, "--preset")
        if chosen is not None:
            if chosen not in presets:
                raise UnknownName("preset", chosen, presets)
            default["default"] = presets[chosen]
    notes.append("--json prints one object.")
    config = getattr(module, command.config)
    _show_positional(config, command.positional)
    words = in_order(command, words)
    words = [w.replace(p, "--", 1) if w.startswith(p) else w for w in words for p in _PREFIXES]
    with _as_sentence() if as_json else contextlib.nullcontext():
        return tyro.cli(
            config,
            prog=f"athena {name}",
            description=" ".join(notes),
            args=words,
            config=(tyro.conf.OmitArgPrefixes,),
            registry=_registry(),
            **default,
        )


def in_order(command: Command, words: Sequence[str]) -> list[str]:
    """The words with positional fields in front, also those given by their flag. Raises `UsageError`."""
    words = _weighted(command, _gathered(command, list(words)))
    named = {f: v for f in command.positional if (v := _taken(words, f"--{f.replace('_', '-')}")) is not None}
    if not named:
        return words
    front: list[str] = []
    for field in command.positional:
        if field in named:
            front.append(named.pop(field))
        elif words and not words[0].startswith("-"):
            front.append(words.pop(0))
        elif named:
            raise UsageError(f"{field.upper()} is missing before --{next(iter(named)).replace('_', '-')}.")
    return front + words


def _gathered(command: Command, words: list[str]) -> list[str]:
    """Words between the first and the last positional one, behind the flag of the field that takes them."""
    bare = next((i for i, w in enumerate(words) if w.startswith("-")), len(words))
    extra = bare - len(command.positional)
    if not command.several or extra <= 0:
        return words
    first = len(command.positional) - 1
    return [*words[:first], *words[bare - 1 :], f"--{command.several}", *words[first : bare - 1]]


def _weighted(command: Command, words: list[str]) -> list[str]:
    """`--data A=1 B=0.3` behind the flag of the field that takes sets with weights; one plain path stays."""
    option, field = (f"--{name}" for name in command.weighted)
    if not command.weighted[0] or option not in words:
        return words
    at = words.index(option)
    given = list(itertools.takewhile(lambda w: not w.startswith("-"), words[at + 1 :]))
    if len(given) < 2 and not any("=" in w and not Path(w).expanduser().exists() for w in given):
        return words
    return [*words[:at], field, *given, *words[at + 1 + len(given) :]]


def require_inputs(name: str, command: Command, words: Sequence[str]) -> None:
    """Raises `UsageError` where a path that the command reads is not there; reads the words only."""
    if {"-h", "--help"} & set(words):
        return
    rest = in_order(command, words)
    bare = []
    while rest and not rest[0].startswith("-"):
        bare.append(rest.pop(0))
    for field, value in zip(command.positional, bare, strict=False):
        if field in command.inputs:
            _require(value, f"{field.upper()} of athena {name}")
    if command.several and f"--{command.several}" in rest:
        more = rest[rest.index(f"--{command.several}") + 1 :]
        for value in itertools.takewhile(lambda w: not w.startswith("-"), more):
            _require(value, f"{command.positional[0].upper()} of athena {name}")
    mixed = f"--{command.weighted[1]}"
    if command.weighted[0] and mixed in rest:
        for value in itertools.takewhile(lambda w: not w.startswith("-"), rest[rest.index(mixed) + 1 :]):
            path = value if Path(value).expanduser().exists() else value.rpartition("=")[0] or value
            _require(path, f"--{command.weighted[0]}")
    for flag in _INPUT_FLAGS:
        value = _taken(list(words), flag)
        if value is not None:
            _require(value, flag)


def _require(value: str, what: str) -> None:
    path = Path(value).expanduser()
    if ":" in value.partition("/")[0] or path.exists():  # builtin:base, or an address
        return
    if value.count("/") == 1 and not path.parent.exists() and not value.startswith((".", "~", "/")):
        return  # a name on the Hub, or a folder that the command itself will miss
    raise UsageError(f"There is nothing at '{value}' ({what}). {_nearby(path)}")


def _nearby(path: Path) -> str:
    """What there is instead, as far up as there is anything."""
    parent = next(p for p in path.absolute().parents if p.exists())
    names = sorted(p.name for p in parent.iterdir() if not p.name.startswith(".")) if parent.is_dir() else []
    missing = path.absolute().relative_to(parent).parts[0]
    close = difflib.get_close_matches(missing, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{path.parent / close[0] if path.absolute().parent == parent else parent / close[0]}'?"
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"In '{parent}' there {'are: ' + listed if names else 'is nothing'}."


def _taken(words: list[str], flag: str) -> str | None:
    """Take a flag and its value out of the words; the value, or None where the flag is not there."""
    for place, word in enumerate(words):
        if word == flag:
            value = words[place + 1] if place + 1 < len(words) else ""
            del words[place : place + 2]
            return value
        if word.startswith(f"{flag}="):
            del words[place]
            return word.partition("=")[2]
    return None


def _show_positional(config: type, fields: Sequence[str]) -> None:
    """Let help and parser show these fields as words without a flag, under their own names."""
    hints = get_type_hints(config, include_extras=True)
    for field in fields:
        marked = Annotated[hints[field], tyro.conf.arg(metavar=field.upper())]
        if getattr(hints[field], "__metadata__", None) is None:
            config.__annotations__[field] = tyro.conf.Positional[marked]


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Values that may be absent read `STR` in the help, as others do, and not `{None}|STR`."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        kinds = [k for k in get_args(info.type) if k is not type(None)]
        if len(kinds) != 1 or len(get_args(info.type)) != 2:
            return None
        group = get_args(kinds[0]) if get_origin(kinds[0]) is tuple else ()  # such as height and width
        parts = group or tuple(kinds)
        if not all(p in (str, int, float, Path) for p in parts):
            return None

        def read(given: list[str]) -> Any:
            if given[0] == "None":
                return None
            values = tuple(p(g) for p, g in zip(parts, given, strict=True))
            return values if group else values[0]

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=len(parts),
            metavar=" ".join(p.__name__.upper() for p in parts),
            instance_from_str=read,
            is_instance=lambda value: value is None or isinstance(value, tuple if group else parts[0]),
            str_from_instance=lambda value: [str(v) for v in value] if isinstance(value, tuple) else [str(value)],
        )

    return registry


@contextlib.contextmanager
def _as_sentence() -> Iterator[None]:
    """Turn the parser's message into an error with a sentence."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            yield
    except SystemExit as stop:
        if not stop.code:  # help
            print(said.getvalue())
            raise
        text = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
        raise UsageError(" ".join(_BOX.sub(" ", text).split())) from stop
