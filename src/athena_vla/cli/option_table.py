"""The options of a command as its config declares them, read from the sources: nothing heavy is imported for it.

Completion and the reference of commands are made from this table.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from athena_vla.cli.table import Command

_SOURCE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Option:
    """One field of a config."""

    field: str
    kind: str  # its annotation, as written
    values: tuple[str, ...]  # where they are a closed set
    default: str | None  # as written in the source; None: it must be given
    says: str  # its docstring, on one line; "" where it has none

    @property
    def flag(self) -> str:
        return f"--{self.field.replace('_', '-')}"

    @property
    def is_switch(self) -> bool:
        """Whether there is a `--no-` form."""
        return self.kind == "bool"


def options_of(command: Command) -> list[Option]:
    """The options of a command's config, of what it inherits, and of the groups in it; a later one of a name counts."""
    found = _fields(*definition(command.config_module or command.module, command.config))
    return list({option.field: option for option in found}.values())


def presets_of(command: Command) -> tuple[str, ...]:
    """Names for `--preset`; () where the command has none."""
    if not command.presets:
        return ()
    _, table = definition(command.config_module or command.module, command.presets)
    assert isinstance(table, ast.Dict)
    return tuple(str(ast.literal_eval(k)) for k in table.keys if k is not None)


@cache
def _tree(module: str) -> ast.Module:
    path = _SOURCE.joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def definition(module: str, name: str) -> tuple[str, ast.AST]:
    """The module that defines a name, and the class or the value; imports are followed. Raises `KeyError`."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and getattr(targets[0], "id", "") == name:
            return module, node.value
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("athena_vla"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition((node.module or "").removeprefix("athena_vla").lstrip("."), alias.name)
    raise KeyError(f"{module} has no {name}")


def _fields(module: str, node: ast.AST) -> list[Option]:
    assert isinstance(node, ast.ClassDef)
    bases = [d for b in node.bases if (d := _known(module, ast.unparse(b))) and isinstance(d[1], ast.ClassDef)]
    found = [field for base in bases for field in _fields(*base)]
    for line, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        kind = ast.unparse(line.annotation)
        groups = [d for n in re.findall(r"\w+", kind) if (d := _known(module, n)) and isinstance(d[1], ast.ClassDef)]
        if groups:
            found += _fields(*groups[0])
            continue
        named = _known(module, kind)
        values = _literal(named[1] if named else line.annotation)
        found.append(Option(line.target.id, kind, values, _default(module, line.value), _docstring(after)))
    return found


def _known(module: str, name: str) -> tuple[str, ast.AST] | None:
    try:
        return definition(module, name)
    except KeyError:
        return None


def _literal(node: ast.AST) -> tuple[str, ...]:
    if not isinstance(node, ast.Subscript) or ast.unparse(node.value) != "Literal":
        return ()
    members = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return tuple(str(ast.literal_eval(m)) for m in members)


def _default(module: str, node: ast.AST | None) -> str | None:
    """The value as written; a constant by its value, a dataclass field by its default."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("field", "dataclasses.field"):
        node = next((k.value for k in node.keywords if k.arg in ("default", "default_factory")), None)
    if node is None:
        return None
    named = _known(module, node.id) if isinstance(node, ast.Name) else None
    return ast.unparse(named[1] if named else node)


def _docstring(node: ast.AST | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
