"""Write the rooms of the package into README.md, and every file of it into docs/architecture.md, from the docstrings.

python scripts/file_list.py          # rewrite both between their markers
python scripts/file_list.py --check  # exit 1 where one is not true any more
"""

import ast
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "athena_vla"
BEGIN, END = "<!-- tree: scripts/file_list.py -->", "<!-- /tree -->"
PAGES = {"README.md": 1, "docs/architecture.md": 9}  # page -> how many levels of folders it lists
# The data's path, top to bottom; rooms and files not named here follow in the alphabet.
ORDER = [
    "errors.py", "files", "embodiment.py", "robots", "recordings", "annotate", "check", "dataset", "models",
    "bundle.py", "engines", "policy.py", "finetune", "plan", "merge.py", "quantize", "export", "serve.py",
    "control", "wire", "ros2", "sim", "evaluate", "bench", "report", "sweep.py", "demo", "cli.py",
]  # fmt: skip
ABOUT = {"robots": "Shipped robots: descriptions (TOML) and models (MJCF)", "assets": "The small base model that ships"}
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


def lines(folder: Path, indent: str, levels: int) -> list[str]:
    written = []
    for path in sorted(folder.iterdir(), key=place):
        if path.name.startswith(("_", ".")) or path.name == "py.typed":
            continue
        if path.is_dir():
            about = path / "__init__.py"
            said = first_line(about) if about.is_file() and about.read_text().strip() else ABOUT.get(path.name, "")
            written.append(f"{indent}{path.name + '/':<{34 - len(indent)}} {said}".rstrip())
            if path.name != "assets" and levels > 1:
                written += lines(path, indent + "  ", levels - 1)
        elif levels > 1 or len(indent) > 2:
            if path.suffix == ".py":
                written.append(f"{indent}{path.name:<{34 - len(indent)}} {first_line(path)}")
            elif path.suffix in OTHER:
                written.append(f"{indent}{path.name:<{34 - len(indent)}} {OTHER[path.suffix]}")
    return written


def tree(levels: int) -> str:
    body = "\n".join(["athena_vla/", *lines(PACKAGE, "  ", levels)])
    return f"{BEGIN}\n```text\n{body}\n```\n{END}"


def main() -> None:
    stale = []
    for name, levels in PAGES.items():
        page = REPOSITORY / name
        text = page.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        fresh = before + tree(levels) + after
        if "--check" not in sys.argv:
            page.write_text(fresh)
        elif fresh != text:
            stale.append(name)
    if stale:
        sys.exit(f"The tree in {' and '.join(stale)} is not true any more; run: python scripts/file_list.py")


if __name__ == "__main__":
    main()
