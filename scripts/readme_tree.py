"""Write the file tree of the package into README.md: one line per file, taken from the first line of its docstring.

python scripts/readme_tree.py          # rewrite the tree between its markers
python scripts/readme_tree.py --check  # exit 1 where it is not true any more
"""

import ast
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "athena_vla"
BEGIN, END = "<!-- tree: scripts/readme_tree.py -->", "<!-- /tree -->"
# The data's path, top to bottom; rooms and files not named here follow in the alphabet.
ORDER = [
    "errors.py", "embodiment.py", "robots", "data", "sim", "models", "bundle.py", "backends.py", "policy.py",
    "finetune.py", "training", "merge.py", "quantize", "export", "plan.py", "control", "serving.py", "evaluate",
    "bench", "report", "demo", "cli.py",
]  # fmt: skip
OTHER = {".toml": "robot description", ".xml": "robot model (MJCF)", ".md": "notes"}


def first_line(path: Path) -> str:
    """First sentence of a module's docstring, without its full stop; raises where there is none."""
    doc = ast.get_docstring(ast.parse(path.read_text()))
    if not doc:
        raise SystemExit(f"{path} has no docstring; every file says what it is")
    return doc.split("\n\n")[0].split("\n")[0].rstrip(".").strip()


def place(path: Path) -> tuple[int, str]:
    name = path.name
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def lines(folder: Path, indent: str) -> list[str]:
    written = []
    for path in sorted(folder.iterdir(), key=place):
        if path.name.startswith(("_", ".")) or path.name == "py.typed":
            continue
        if path.is_dir():
            about = path / "__init__.py"
            said = first_line(about) if about.is_file() and about.read_text().strip() else ""
            written.append(f"{indent}{path.name + '/':<{34 - len(indent)}} {said}".rstrip())
            if path.name != "assets":
                written += lines(path, indent + "  ")
        elif path.suffix == ".py":
            written.append(f"{indent}{path.name:<{34 - len(indent)}} {first_line(path)}")
        elif path.suffix in OTHER:
            written.append(f"{indent}{path.name:<{34 - len(indent)}} {OTHER[path.suffix]}")
    return written


def tree() -> str:
    body = "\n".join(["athena_vla/", *lines(PACKAGE, "  ")])
    return f"{BEGIN}\n```text\n{body}\n```\n{END}"


def main() -> None:
    readme = REPOSITORY / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = before + tree() + after
    if "--check" in sys.argv:
        sys.exit(0 if fresh == text else "README.md's tree is not true; run: python scripts/readme_tree.py")
    readme.write_text(fresh)


if __name__ == "__main__":
    main()
