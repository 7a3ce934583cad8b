"""Write docs/reference/commands.md and check-codes.md from the configs of the commands and the rules of the check.

python scripts/reference_pages.py          # rewrite both
python scripts/reference_pages.py --check  # exit 1 where one is not true any more
"""

import ast
import sys
from collections.abc import Callable
from pathlib import Path

from athena_vla.check.findings import RULES
from athena_vla.cli.option_table import Option, options_of, presets_of
from athena_vla.cli.table import COMMANDS, Command

PAGES = Path(__file__).resolve().parents[1] / "docs" / "reference"
WRITTEN = "<!-- Written by scripts/reference_pages.py: edit the sources that it reads, not this page. -->"
HEAD = f"""# Commands

{WRITTEN}

Each command is `athena NAME`, and `athena NAME --help` prints the same as this page. Capital words in front are given
without their flag, in this order. Options that are not given keep their default. Three options belong to every command:

| option | meaning |
|---|---|
| `--help` | Print the options of the command, and leave. |
| `--json` | Print one object on standard output, errors included. |
| `--debug` | Show the traceback of an error, in place of its sentence. |

The exit status is 0 where all went well, and 2 for an error that a sentence explains. Five commands have statuses of
their own:

| command | status | when |
|---|---|---|
| `athena data check` | 1 | the recording has errors, or warnings with `--strict` |
| `athena data diff` | 1 | the two sets differ |
| `athena doctor` | 1 | something that the demo needs is missing or broken |
| `athena export` | 3 | the graphs are written, and no engine was built |
| `athena export` | 1, 4 | an engine failed; the note of the result says why |
| `athena gates` | 4 | a gate failed |

## All commands

| command | what it does |
|---|---|
"""
CODES = f"""# Check codes

{WRITTEN}

`athena data check` names every defect of a recording by one of these codes. With `--explain CODE` it prints the same
explanation, and where the defect was found. Errors give the exit status 1. With `--strict`, warnings do too.
"""


def main() -> None:
    stale = []
    made: dict[str, Callable[[], str]] = {"commands.md": commands_page, "check-codes.md": codes_page}
    for name, write in made.items():
        page, text = PAGES / name, write()
        if "--check" not in sys.argv:
            page.write_text(text)
        elif not page.is_file() or page.read_text() != text:
            stale.append(name)
    if stale:
        sys.exit(f"{' and '.join(stale)} in docs/reference is stale; run: python scripts/reference_pages.py")


def commands_page() -> str:
    rows = "".join(f"| [`athena {n}`](#athena-{n.replace(' ', '-')}) | {c.help} |\n" for n, c in COMMANDS.items())
    return HEAD + rows + "".join(f"\n{_command(n, c)}" for n, c in COMMANDS.items())


def _command(name: str, command: Command) -> str:
    options = options_of(command)
    front = [o for f in command.positional for o in options if o.field == f]
    words = "".join(f" {o.field.upper()}" for o in front)
    presets = presets_of(command)
    said = [f"## athena {name}", "", f"`athena {name}{words} [OPTIONS]`: {command.help}."]
    if presets:
        said += ["", f"`--preset NAME` starts from a named set of options: {', '.join(f'`{p}`' for p in presets)}."]
    if command.kept:
        said += ["", f"After an interruption {command.kept} are kept, and the same command goes on from them."]
    said += ["", "| option | default | meaning |", "|---|---|---|"]
    said += [_row(o, f"`{o.field.upper()}`") for o in front]
    said += [_row(o, _flags(o)) for o in options if o not in front]
    return "\n".join(said) + "\n"


def _row(option: Option, shown: str) -> str:
    values = f" One of {', '.join(f'`{v}`' for v in option.values)}." if option.values else ""
    return f"| {shown} | {_default(option)} | {_cell(option.says)}{values} |"


def _flags(option: Option) -> str:
    if option.is_switch:
        return f"`{option.flag}`, `--no-{option.flag[2:]}`"
    kind = option.kind.removesuffix(" | None")
    several = " ..." if kind.startswith("tuple[") and kind.endswith("...]") else ""
    kind = kind.removeprefix("tuple[").partition(",")[0].rstrip("]")
    word = "VALUE" if option.values else {"Path": "PATH", "int": "INT", "float": "FLOAT", "str": "TEXT"}[kind]
    return f"`{option.flag} {word}{several}`"


def _default(option: Option) -> str:
    if option.default is None:
        return "required"
    if option.is_switch:
        return "on" if option.default == "True" else "off"
    node = ast.parse(option.default, mode="eval").body
    if isinstance(node, ast.Call):  # Path('runs')
        node = node.args[0]
    value = eval(compile(ast.Expression(node), "default", "eval"), {"__builtins__": {}})  # arithmetic on literals
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
    return f"`{shown}`" if shown else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def codes_page() -> str:
    lines = [CODES]
    for group in dict.fromkeys(code.partition(".")[0] for code in sorted(RULES)):
        lines += [f"## {group}", "", "| code | severity | why it matters | what to do |", "|---|---|---|---|"]
        same = (c for c in sorted(RULES) if c.partition(".")[0] == group)
        lines += [f"| `{c}` | {RULES[c].severity} | {_cell(RULES[c].why)} | {_cell(RULES[c].fix)} |" for c in same]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
