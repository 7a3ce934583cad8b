"""The exported graphs of a bundle as files."""

from pathlib import Path

from athena_vla.errors import UnknownName


def graph_file(folder: Path, name: str, suffix: str) -> Path:
    """The file of one exported graph. Raises `UnknownName` listing the graphs that are there."""
    file = folder / f"{name}.{suffix}"
    if not file.is_file():
        raise UnknownName(f"exported graph in '{folder}'", name, graph_names(folder, suffix))
    return file


def graph_names(folder: Path, suffix: str) -> list[str]:
    return sorted(f.stem for f in folder.glob(f"*.{suffix}"))
