"""Weights by name from one or many safetensors files, one tensor in memory at a time; and the writer of such folders.

Knows names, shards and the quantised form; nothing of models.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from athena_vla.errors import ModelError
from athena_vla.files import faults
from athena_vla.models.weights import packed
from athena_vla.models.weights.packed import CODES, SCALES, Packed

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 2_000_000_000
READ_AHEAD = 8 << 20  # [bytes] per read
_METADATA = {"format": "pt"}  # transformers refuses files without it


class TensorStore:
    """A folder of safetensors files, memory-mapped. Quantised weights appear under the name of the weight.

    Files are opened when first needed and stay mapped; `close`, or leaving a `with` block, gives their pages back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = _places(folder)
        self.files: dict[str, Any] = {}
        self.maps: dict[str, dict[str, Any]] = {}
        self.packed = set(packed.packed_names(self.places))
        parts = {n + s for n in self.packed for s in (*CODES.values(), SCALES)}
        self.names: tuple[str, ...] = tuple(sorted((set(self.places) - parts) | self.packed))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the mapped files. Tensors that were read stay valid, and keep their own file mapped; clones do not."""
        self.files.clear()
        self.maps.clear()

    def read(self, name: str) -> Tensor | Packed:
        """One weight. Raises `ModelError` for a name that is not there."""
        if name in self.packed:
            keys = [k for k in (*(name + c for c in CODES.values()), name + SCALES) if k in self.places]
            return packed.load(name, {k: self.stored(k) for k in keys})
        if name not in self.places:
            raise ModelError(f"'{self.folder}' holds no weight '{name}'; it holds {len(self.names)} others.")
        return self.stored(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight, without reading it."""
        if name in self.packed:
            codes = next(name + c for c in CODES.values() if name + c in self.places)
            rows, columns = self._file(codes).get_slice(codes).get_shape()
            return (rows, columns * 2) if codes.endswith(CODES[4]) else (rows, columns)
        return tuple(self._file(name).get_slice(name).get_shape())

    def packing(self, name: str) -> tuple[int, int]:
        """Bits of a quantised weight and inputs that share a scale, without reading it."""
        bits = next(b for b, suffix in CODES.items() if name + suffix in self.places)
        groups = self._file(name + SCALES).get_slice(name + SCALES).get_shape()[1]
        return bits, self.shape(name)[1] // groups

    def plain(self) -> dict[str, Tensor]:
        """All weights, quantised ones de-quantised to float32: for models that fit into memory."""
        values = ((n, self.read(n)) for n in self.names)
        return {n: v.dequantize() if isinstance(v, Packed) else v for n, v in values}

    @property
    def bytes(self) -> int:
        return sum((self.folder / f).stat().st_size for f in set(self.places.values()))

    def _file(self, key: str) -> Any:
        file = self.places[key]
        if file not in self.files:
            self.files[file] = safe_open(self.folder / file, framework="pt")
        return self.files[file]

    def read_ahead(self) -> None:
        """Read all files into the page cache from a thread of its own, while the first weights are already used: page
        faults of a mapped file fetch 128 KB at a time, which no disk is fast at."""

        def read() -> None:
            buffer = bytearray(READ_AHEAD)
            for file in sorted(set(self.places.values())):
                with (self.folder / file).open("rb", buffering=0) as stream:
                    while stream.readinto(buffer):
                        pass

        threading.Thread(target=read, name="read-ahead", daemon=True).start()

    def stored(self, key: str) -> Tensor:
        """A tensor of a file under its own name: codes and scales are two."""
        return self._file(key).get_tensor(key)

    def mapped(self, key: str) -> Tensor:
        """The same as a view of the mapped file, of which nothing is read yet: `stored` reads a page of each tensor,
        which takes seconds for a thousand of them on a cold disk."""
        file = self.places[key]
        if file not in self.maps:
            self.maps[file] = _map(self.folder / file)
        entry, whole = self.maps[file][key], self.maps[file][""]
        view = whole[entry["at"] : entry["to"]]
        kind: torch.dtype = entry["dtype"]
        return (view if view.storage_offset() % kind.itemsize == 0 else view.clone()).view(kind).view(entry["shape"])


def _places(folder: Path) -> dict[str, str]:
    """Tensor name -> file. Raises `ModelError` naming missing shards and broken files."""
    index = folder / INDEX
    if index.is_file():
        try:
            places: dict[str, str] = json.loads(index.read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
            raise ModelError(
                f"The index '{index}' cannot be read: {error}. Download or write the weights again."
            ) from error
        missing = sorted({f for f in places.values() if not (folder / f).is_file()})
        if missing:
            raise ModelError(
                f"'{folder}' lacks {len(missing)} of {len(set(places.values()))} weight files: {', '.join(missing)}."
            )
    else:
        # Released folders hold separate heads beside the one file of the model.
        files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"'{folder}' holds no weights: no .safetensors file.")
        places = {}
        for file in files:
            places |= dict.fromkeys(_keys(file), file.name)
        return places
    for file in sorted(set(places.values())):
        there = _keys(folder / file)
        lost = [k for k, f in places.items() if f == file and k not in there]
        if lost:
            raise ModelError(f"'{folder / file}' lacks {lost[:4]} ({len(lost)} tensors) that the index promises.")
    return places


def _keys(file: Path) -> set[str]:
    try:
        with safe_open(file, framework="pt") as stream:
            return set(stream.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{file}' is not a readable safetensors file ({error}). Copy it again.") from error


def _map(file: Path) -> dict[str, Any]:
    """Places of a safetensors file's tensors by name; under the empty name all of its bytes, mapped."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    size = file.stat().st_size
    mapped = torch.UntypedStorage.from_file(str(file), False, size)
    places: dict[str, Any] = {
        "": torch.empty(0, dtype=torch.uint8).set_(mapped, 0, (size,))  # pyright: ignore[reportCallIssue]  torch's own
    }
    for name, entry in header.items():
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        places[name] = {"dtype": _DTYPES[entry["dtype"]], "shape": entry["shape"], "at": first, "to": last}
    return places


_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


class StoreWriter:
    """Write weights into shards; at most one shard is in memory."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.pending: dict[str, Tensor] = {}
        self.places: dict[str, int] = {}
        self.size = 0
        self.shards = 0
        self.total = 0

    def add(self, name: str, weight: Tensor | Packed) -> None:
        parts: Mapping[str, Tensor] = (
            packed.store(name, weight) if isinstance(weight, Packed) else {name: weight.detach().contiguous()}
        )
        size = sum(t.numel() * t.element_size() for t in parts.values())
        if self.pending and self.size + size > self.shard_bytes:
            self._flush()
        for key, tensor in parts.items():
            # A view would drag its whole storage into the file.
            self.pending[key] = tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        self.size += size

    def close(self) -> None:
        """Write the rest, and the index where there is more than one shard."""
        if self.shards == 0:
            self.places |= dict.fromkeys(self.pending, 0)
            save(self.pending, self.folder / SINGLE)
            return
        self._flush()
        names = {i: f"model-{i:05d}-of-{self.shards:05d}.safetensors" for i in range(1, self.shards + 1)}
        for i, name in names.items():
            (self.folder / f"part-{i}.safetensors").rename(self.folder / name)
        index = {"metadata": {"total_size": self.total}, "weight_map": {k: names[i] for k, i in self.places.items()}}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))

    def _flush(self) -> None:
        if not self.pending:
            return
        self.shards += 1
        save(self.pending, self.folder / f"part-{self.shards}.safetensors")
        self.places |= dict.fromkeys(self.pending, self.shards)
        self.total += self.size
        self.pending, self.size = {}, 0


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """One safetensors file. Raises `OSError` where it cannot be written; the library has its own name for that."""
    faults.point("write", path)
    try:
        save_file(tensors, path, _METADATA)
    except SafetensorError as error:
        raise OSError(f"{error}: '{path.name}'") from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """One safetensors file of contiguous, unshared tensors, from whatever device they are on."""
    save({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, path)


def pairs(store: TensorStore) -> Iterator[tuple[str, Tensor | Packed]]:
    """All weights, one at a time, in the order they lie on disk."""
    for name in sorted(store.names, key=lambda n: (store.places.get(n, ""), n)):
        yield name, store.read(name)


def misfits(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Every tensor that is missing, unexpected or of another shape, in words; empty where all fit."""
    problems = [f"missing {k}" for k in own if k not in tensors] + [f"unexpected {k}" for k in tensors if k not in own]
    return problems + [
        f"{k} has shape {list(t.shape)}, expected {list(own[k].shape)}"
        for k, t in tensors.items()
        if k in own and own[k].shape != t.shape
    ]


def as_float(weight: Tensor | Packed) -> Tensor:
    """float32, whatever the form."""
    return weight.dequantize() if isinstance(weight, Packed) else weight.to(torch.float32)
