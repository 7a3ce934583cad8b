"""Completion for shells: commands, their options, and the values of an option where they are a closed set.

The script is made from the commands themselves and is static: completing a word starts no Python.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from athena_vla.cli.option_table import options_of, presets_of
from athena_vla.cli.table import COMMANDS, Command

Shell = Literal["bash", "zsh", "fish"]
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
    """Option -> its values, () where any are allowed."""
    found: dict[str, tuple[str, ...]] = {}
    for option in options_of(command):
        found[option.flag] = option.values
        if option.is_switch:
            found[f"--no-{option.flag[2:]}"] = ()
    if command.presets:
        found["--preset"] = presets_of(command)
    if "--robot" in found:
        found["--robot"] = robots()
    return {**found, **_ALWAYS}


def robots() -> tuple[str, ...]:
    """Names of the robots that ship."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in _resource("robots") if p.name.endswith(".toml")))


def _resource(folder: str) -> list[Path]:
    return [Path(str(p)) for p in resources.files("athena_vla").joinpath(folder).iterdir()]


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
