"""What is in files: bytes, text and JSON written whole; JSON read with sentences; hashes of files, folders, values."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from athena_vla.errors import AthenaError
from athena_vla.files.whole import whole_file


def write_bytes(path: Path, content: bytes, error: type[AthenaError] = AthenaError) -> Path:
    """Write a whole file. Raises `error` where the operating system refuses."""
    with whole_file(path, error) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, content: str, error: type[AthenaError] = AthenaError) -> Path:
    """Write a whole file in UTF-8. Raises `error` where the operating system refuses."""
    return write_bytes(path, content.encode(), error)


def write_json(
    path: Path,
    content: object,
    error: type[AthenaError] = AthenaError,
    *,
    indent: int | None = 1,
    sort_keys: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> Path:
    """Write a whole JSON file. Raises `error` where the operating system refuses."""
    return write_text(path, json.dumps(content, indent=indent, sort_keys=sort_keys, default=default), error)


def read_json(path: Path, error: type[AthenaError] = AthenaError) -> Any:
    """What a JSON file holds. Raises `error` for a file that is missing, cut or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as problem:
        raise error(f"There is no file '{path}'.") from problem
    except OSError as problem:
        raise error(f"'{path}' cannot be read: {problem.strerror}.") from problem
    except (ValueError, RecursionError) as problem:  # not UTF-8, not JSON, or nested beyond reason
        raise error(f"'{path}' is not a JSON file: {problem}.") from problem


def read_json_object(path: Path, error: type[AthenaError] = AthenaError) -> dict[str, Any]:
    """What a JSON file with an object holds. Raises `error` as `read_json` does, and for any other content."""
    content = read_json(path, error)
    if not isinstance(content, dict):
        raise error(f"'{path}' is not a JSON object.")
    return content


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes; of a folder, that of the names and hashes of all files in it."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(f for f in path.rglob("*") if f.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(content: object) -> str:
    """A hash of anything that JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
