"""Completion for shells: commands, their options, and the values of an option where they are a closed set.

The script is made from the commands themselves and is static: completing a word starts no Python.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from athena_vla.cli.table import COMMANDS, Command

Shell = Literal["bash", "zsh", "fish"]
_SOURCE = Path(__file__).resolve().parents[1]
_ALWAYS = {"--help": (), "--json": (), "--debug": ()}


@dataclass(frozen=True)
class CompletionConfig:
    """The script that completes `athena` for a shell: eval "$(athena completion bash)"."""

    shell: Shell
    """Where it is for; zsh loads its own emulation of bash's, fish reads it from a pipe into `source`."""


@dataclass(frozen=True)
class Completion:
    """The script; `str()` is the script itself."""

    shell: str
    script: str

    def __str__(self) -> str:
        return self.script


def completion(config: CompletionConfig) -> Completion:
    """The script for a shell."""
    table = {name: options(command) for name, command in COMMANDS.items()}
    if config.shell == "fish":
        return Completion(config.shell, _fish(table))
    head = "autoload -U +X bashcompinit && bashcompinit\n" if config.shell == "zsh" else ""
    return Completion(config.shell, head + _bash(table))


def options(command: Command) -> dict[str, tuple[str, ...]]:
    """Option -> its values, () where any are allowed; read from the sources, so that nothing heavy is imported."""
    found: dict[str, tuple[str, ...]] = {}
    for field, values in _fields(*_definition(command.config_module or command.module, command.config)):
        found[f"--{field.replace('_', '-')}"] = values
    if command.presets:
        _, table = _definition(command.config_module or command.module, command.presets)
        assert isinstance(table, ast.Dict)
        found["--preset"] = tuple(str(ast.literal_eval(k)) for k in table.keys if k is not None)
    if "--robot" in found:
        found["--robot"] = robots()
    return {**found, **_ALWAYS}


def robots() -> tuple[str, ...]:
    """Names of the robots that ship."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in _resource("robots") if p.name.endswith(".toml")))


def _resource(folder: str) -> list[Path]:
    return [Path(str(p)) for p in resources.files("athena_vla").joinpath(folder).iterdir()]


@cache
def _tree(module: str) -> ast.Module:
    path = _SOURCE.joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def _definition(module: str, name: str) -> tuple[str, ast.AST]:
    """The module that defines a name, and the class or the value; imports are followed."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and getattr(targets[0], "id", "") == name:
            return module, node.value
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("athena_vla"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition((node.module or "").removeprefix("athena_vla").lstrip("."), alias.name)
    raise KeyError(f"{module} has no {name}")


def _fields(module: str, node: ast.AST) -> list[tuple[str, tuple[str, ...]]]:
    """(field, values) of a config, of what it inherits and of the groups in it."""
    assert isinstance(node, ast.ClassDef)
    bases = [d for b in node.bases if (d := _known(module, ast.unparse(b))) and isinstance(d[1], ast.ClassDef)]
    found = [field for base in bases for field in _fields(*base)]
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        kind = ast.unparse(line.annotation)
        groups = [d for n in re.findall(r"\w+", kind) if (d := _known(module, n)) and isinstance(d[1], ast.ClassDef)]
        if groups:
            found += _fields(*groups[0])
            continue
        named = _known(module, kind)
        found.append((line.target.id, _literal(named[1] if named else line.annotation)))
        if kind == "bool":
            found.append((f"no-{line.target.id}", ()))
    return found


def _known(module: str, name: str) -> tuple[str, ast.AST] | None:
    try:
        return _definition(module, name)
    except KeyError:
        return None


def _literal(node: ast.AST) -> tuple[str, ...]:
    text = ast.unparse(node)
    return tuple(re.findall(r"'([^']+)'", text)) if text.startswith("Literal[") else ()


def _bash(table: Mapping[str, Mapping[str, tuple[str, ...]]]) -> str:
    first = sorted({name.split()[0] for name in table})
    families = {f: sorted(n.split()[1] for n in table if n.startswith(f"{f} ")) for f in first}
    lines = ["_athena() {", '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" known=""']
    lines += ['  local name="${COMP_WORDS[1]}"', "  COMPREPLY=()"]
    lines += [f'  if [ "$COMP_CWORD" -eq 1 ]; then known="{" ".join(first)} --help --version"']
    for family, members in families.items():
        if members:
            lines += [
                f'  elif [ "$COMP_CWORD" -eq 2 ] && [ "$name" = {family} ]; then known="{" ".join(members)}"',
            ]
    doubled = "|".join(f for f, members in families.items() if members)
    lines += ["  else", f'    case "$name" in {doubled}) name="$name ${{COMP_WORDS[2]}}" ;; esac']
    lines += ['    case "$name $before" in']
    for name, options_ in table.items():
        for option, values in options_.items():
            if values:
                lines.append(f'      "{name} {option}") known="{" ".join(values)}" ;;')
    lines += ["    esac", '    if [ -z "$known" ] && [ "${word#-}" != "$word" ]; then', '      case "$name" in']
    for name, options_ in table.items():
        lines.append(f'        "{name}") known="{" ".join(options_)}" ;;')
    lines += ["      esac", "    fi"]
    lines += ['    if [ "$name" = completion ]; then known="bash zsh fish"; fi', "  fi"]
    lines += ['  if [ -n "$known" ]; then COMPREPLY=($(compgen -W "$known" -- "$word"))']
    lines += ['  else COMPREPLY=($(compgen -f -- "$word")); fi', "}", "complete -o filenames -F _athena athena", ""]
    return "\n".join(lines)


def _fish(table: Mapping[str, Mapping[str, tuple[str, ...]]]) -> str:
    lines = []
    for name, options_ in table.items():
        words = name.split()
        told = COMMANDS[name].help.replace("'", "")
        if len(words) == 2:
            lines.append(f"complete -c athena -n '__fish_use_subcommand' -f -a {words[0]}")
            lines.append(f"complete -c athena -n '__fish_seen_subcommand_from {words[0]}' -f -a {words[1]} -d '{told}'")
        else:
            lines.append(f"complete -c athena -n '__fish_use_subcommand' -f -a {name} -d '{told}'")
        seen = "; and ".join(f"__fish_seen_subcommand_from {w}" for w in words)
        for option, values in options_.items():
            choices = f" -x -a '{' '.join(values)}'" if values else ""
            lines.append(f"complete -c athena -n '{seen}' -l {option[2:]}{choices}")
    lines.append("complete -c athena -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'")
    return "\n".join(dict.fromkeys(lines)) + "\n"
