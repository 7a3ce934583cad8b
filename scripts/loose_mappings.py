"""Count string-keyed mappings of Any, object or a JSON alias in signatures and fields, per room and per 1,000 lines.

    python scripts/loose_mappings.py [--list]

Such a mapping says nothing of its keys: a class with `to_dict` and `from_dict` does. What is counted: annotations of
parameters, of returned values and of fields (class and module level), each mapping in them once. Local variables do
not count. A JSON alias is a name at module level that stands for such a mapping.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "athena_vla"
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping", "OrderedDict", "defaultdict"}
LOOSE = {"Any", "object"}


@dataclass(frozen=True)
class Place:
    """Where one stands."""

    file: Path
    line: int
    text: str

    @property
    def room(self) -> str:
        return self.file.relative_to(SOURCE).parts[0].removesuffix(".py")


def places(source: Path = SOURCE) -> list[Place]:
    """All of them, by file and line."""
    trees = {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(source.rglob("*.py"))}
    own = {_module(p, source): set(_aliases(tree)) for p, tree in trees.items()}
    return [
        Place(file, node.lineno, ast.unparse(node))
        for file, tree in trees.items()
        for annotation in _annotations(tree)
        for node in _loose(annotation, own[_module(file, source)] | _imported(tree, own))
    ]


def lines(source: Path = SOURCE) -> int:
    """Of all modules."""
    return sum(len(p.read_text(encoding="utf-8").splitlines()) for p in source.rglob("*.py"))


def _module(file: Path, source: Path) -> str:
    return ".".join((source.name, *file.relative_to(source).with_suffix("").parts)).removesuffix(".__init__")


def _imported(tree: ast.Module, own: dict[str, set[str]]) -> set[str]:
    """Aliases of other modules, under the names that they have here."""
    imports = [n for n in tree.body if isinstance(n, ast.ImportFrom)]
    return {a.asname or a.name for n in imports for a in n.names if a.name in own.get(n.module or "", ())}


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Of parameters, returned values and fields; not of local variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            yield from (a.annotation for a in every if a is not None and a.annotation is not None)
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.ClassDef | ast.Module):
            yield from (n.annotation for n in node.body if isinstance(n, ast.AnnAssign))


def _loose(annotation: ast.expr, aliases: set[str]) -> Iterator[ast.expr]:
    """The mappings in one annotation, also where it is written as text."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                inside = ast.parse(node.value, mode="eval").body
            except SyntaxError:  # a shape
                continue
            for found in _loose(inside, aliases):
                yield ast.copy_location(found, node)
        elif (isinstance(node, ast.Subscript) and _is_loose(node)) or (
            isinstance(node, ast.Name) and node.id in aliases
        ):
            yield node


def _is_loose(node: ast.Subscript) -> bool:
    if not (isinstance(node.value, ast.Name | ast.Attribute) and _name(node.value) in MAPPINGS):
        return False
    if not (isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2):
        return False
    key, value = node.slice.elts
    return _name(key) == "str" and any(_name(n) in LOOSE for n in _parts(value))


def _parts(value: ast.expr) -> list[ast.expr]:
    """The value's type, or the members of a union."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
        return [*_parts(value.left), *_parts(value.right)]
    return [value]


def _aliases(tree: ast.Module) -> Iterator[str]:
    """Names at module level that stand for such a mapping."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and _name(node.annotation) == "TypeAlias" and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and isinstance(value, ast.Subscript) and _is_loose(value):
            yield target.id


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def main() -> None:
    """Print the rooms with the most, and the whole."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="every place, too")
    options = parser.parse_args()
    found = places()
    if options.list:
        for place in found:
            print(f"{place.file.relative_to(SOURCE)}:{place.line}  {place.text}")
    for room, count in Counter(p.room for p in found).most_common():
        print(f"{count:5}  {room}")
    print(f"{len(found):5}  in {lines():,} lines: {1000 * len(found) / lines():.2f} per 1,000")


if __name__ == "__main__":
    main()
