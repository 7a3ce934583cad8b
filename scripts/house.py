"""Count the house for the table in docs/architecture.md: files, lines, statements, functions, rooms, loose mappings.

python scripts/house.py [SRC ...]    # a folder that holds athena_vla; several, to compare two checkouts
"""

import ast
import sys
from collections import Counter
from pathlib import Path

from loose_mappings import places

ROOT = Path(__file__).resolve().parents[1]


def counted(source: Path) -> dict[str, str]:
    """What is counted -> how much, as text."""
    package = source / "athena_vla"
    files = sorted(package.rglob("*.py"))
    trees = {f: ast.parse(f.read_text(encoding="utf-8")) for f in files}
    lines = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in files}
    total = sum(lines.values())
    templates = sum(len(t.read_text(encoding="utf-8").splitlines()) for t in package.rglob("*.html"))
    statements = sum(isinstance(n, ast.stmt) for tree in trees.values() for n in ast.walk(tree))
    functions = [
        (n.end_lineno or n.lineno) - n.lineno + 1
        for tree in trees.values()
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    rooms = Counter[str]()
    for file, count in lines.items():
        rooms[file.relative_to(package).parts[0]] += count
    room, most = rooms.most_common(1)[0]
    mappings = len(places(package))
    return {
        "files": f"{len(files)}",
        "lines; of templates": f"{total:,}; {templates}",
        "statements": f"{statements:,}",
        "mean function [lines]; above 50": (
            f"{sum(functions) / len(functions):.1f}; {sum(f > 50 for f in functions) / len(functions):.1%}"
        ),
        "files above 300 lines": f"{sum(n > 300 for n in lines.values())}",
        "biggest room": f"{room}, {most / total:.0%}",
        "loose mappings per 1,000 lines": f"{1000 * mappings / total:.1f}",
    }


def main() -> None:
    sources = [Path(a) for a in sys.argv[1:]] or [ROOT / "src"]
    columns = [counted(s) for s in sources]
    for what in columns[0]:
        print(f"| {what} | {' | '.join(c[what] for c in columns)} |")


if __name__ == "__main__":
    main()
