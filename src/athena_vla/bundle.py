"""The one artefact on disk for all of a model's life: manifest.json, golden.npz and weights/, bound by hashes.

Every stage reads a bundle and writes a new one. A bundle appears by rename, so a folder with a manifest is complete.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import platform
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla import files
from athena_vla.dataset.normalize import Normalizer
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.errors import AthenaError, BundleError
from athena_vla.gate import Gate
from athena_vla.manifest import FORMAT, FileEntry, Manifest, Stage
from athena_vla.models.contract import HostLoop, Spec, loop_type, spec_from_dict
from athena_vla.models.robot_sizes import Sizes
from athena_vla.recordings.formats.common import npz_headers, save_arrays
from athena_vla.version import __version__

__all__ = ["FORMAT", "Bundle", "Golden", "Manifest", "Stage"]

MOST_GOLDEN_BYTES = 2**28  # unpacked; a few observations are some megabytes
# Written beside the graphs by the device that builds engines; the engines are bound by hashes of their own.
BUILT_ON_DEVICE = ("engines.json", "*.plan", "*.layers.json", "timing.cache")
BUILTIN = "builtin:"  # prefix of bundles that ship with the package, such as builtin:base
MODEL_FILE = "weights/model.safetensors"
ADAPTER_FILE = "weights/adapter.safetensors"
PUBLISHED = "published"  # in `stage_info` of a manifest that lost this machine's paths on its way to the Hub


PREFIX_KEYS = ("action_prefix", "committed")  # in golden.npz; the second in bundles written before 0.2.0


@dataclass(frozen=True)
class Golden:
    """A few observations and the chunks the float model answered: every later stage replays them."""

    observations: tuple[Observation, ...]
    chunks: NDArray[np.float64]  # [N, H, D] [rad]

    def save(self, path: Path, cameras: tuple[str, ...]) -> None:
        arrays: dict[str, Any] = {f"image.{c}": np.stack([o.images[c] for o in self.observations]) for c in cameras}
        arrays["state"] = np.stack([o.state for o in self.observations])
        arrays["instruction"] = np.array([o.instruction for o in self.observations])
        arrays["chunk"] = self.chunks
        given = {i: o.action_prefix for i, o in enumerate(self.observations) if o.action_prefix is not None}
        arrays |= {f"{PREFIX_KEYS[0]}.{i}": rows for i, rows in given.items()}
        save_arrays(path, arrays, compressed=True)

    @classmethod
    def load(cls, path: Path, cameras: tuple[str, ...]) -> "Golden":
        unpacked = sum(math.prod(shape) * kind.itemsize for shape, kind in npz_headers(path).values())
        if unpacked > MOST_GOLDEN_BYTES:
            raise BundleError(f"'{path}' unpacks to {unpacked} bytes; that is no golden example.")
        with np.load(path, allow_pickle=False) as z:
            images = {c: z[f"image.{c}"] for c in cameras}
            observations = tuple(
                Observation(
                    {c: images[c][i] for c in cameras},
                    state,
                    str(text),
                    action_prefix=next((z[f"{key}.{i}"] for key in PREFIX_KEYS if f"{key}.{i}" in z.files), None),
                )
                for i, (state, text) in enumerate(zip(z["state"], z["instruction"], strict=True))
            )
            return cls(observations, z["chunk"])


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; hashes of all files are verified when it is opened."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, where: str | Path, *, verify: bool = True) -> "Bundle":
        """Open a folder, or a shipped bundle by `builtin:NAME`. Raises `BundleError`."""
        path = _resolve(where)
        file = path / "manifest.json"
        if not file.is_file():
            raise BundleError(f"'{path}' is not a bundle: it has no manifest.json. A bundle is what a stage writes.")
        try:
            raw = json.loads(file.read_text())
        except (ValueError, RecursionError, OSError) as error:
            raise BundleError(f"The manifest of '{path}' cannot be read: {error}. Make the bundle again.") from error
        bundle = cls(path, Manifest.from_dict(raw, path))
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Compare every file with the manifest, and the manifest with every file that would be read.

        Raises `BundleError` naming the missing, the edited, and those that nobody listed.
        """
        listed, root = self.manifest.files, self.path.resolve()
        missing = [f for f in listed if not (self.path / f).is_file()]
        if missing:
            raise BundleError(f"Bundle '{self.path}' lacks {missing}. Copy it again, or run its stage again.")
        outside = [f for f in listed if not (self.path / f).resolve().is_relative_to(root)]
        if outside:
            raise BundleError(f"Bundle '{self.path}': {outside} are links to somewhere else. Copy the files.")
        edited = [
            f
            for f, entry in listed.items()
            if entry.bytes not in (None, (self.path / f).stat().st_size) or files.sha256(self.path / f) != entry.sha256
        ]
        if edited:
            raise BundleError(
                f"Bundle '{self.path}': {edited} differ from their recorded hashes; it was edited or cut."
            )
        found = [f for folder in ("weights", "tokenizer") for f in (self.path / folder).rglob("*") if not f.is_dir()]
        extra = [str(f.relative_to(self.path)) for f in found if not any(f.match(p) for p in BUILT_ON_DEVICE)]
        unlisted = sorted(set(extra) - set(listed))
        if unlisted:
            raise BundleError(
                f"Bundle '{self.path}' holds {unlisted}, which its manifest does not list: they would be read without "
                "having been measured. Remove them, or run the stage again."
            )

    @cached_property
    def hash(self) -> str:
        """Hash of the manifest, which holds the hashes of all files and of the parent: the whole chain.

        Gates do not count: a bundle that is examined stays the parent of what was made from it.
        """
        text = json.dumps(self.manifest.to_dict() | {"gates": {}}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def known_as(self) -> tuple[str, ...]:
        """Hashes by which a bundle that was made from this one knows it: its own, and the one before it was published.

        The second is what the manifest says; hashes find accidents, they are no signatures.
        """
        before = self.manifest.stage_info.get(PUBLISHED)
        said = before.get("hash") if isinstance(before, Mapping) else None
        return (self.hash, said) if isinstance(said, str) else (self.hash,)

    @cached_property
    def robot(self) -> Embodiment:
        with understood(self.path, "robot"):
            return Embodiment.from_dict(self.manifest.robot)

    @cached_property
    def normalizer(self) -> Normalizer:
        with understood(self.path, "normaliser"):
            return Normalizer.from_dict(self.manifest.normalizer)

    @cached_property
    def spec(self) -> Spec:
        with understood(self.path, "specification"):
            return spec_from_dict(self.manifest.family, self.manifest.spec)

    @cached_property
    def golden(self) -> Golden:
        with understood(self.path, "golden example"):
            return Golden.load(self.path / "golden.npz", self.robot.camera_names)

    def tokenizer_files(self) -> dict[str, bytes]:
        return {f.name: f.read_bytes() for f in sorted((self.path / "tokenizer").iterdir())}

    @cached_property
    def loop(self) -> HostLoop:
        """The family's host loop: what an engine needs beside the graphs. No weights, no torch."""
        return loop_type(self.manifest.family)(self.spec, self.tokenizer_files())

    # What follows needs torch, and imports it then. The types of the answers are inferred: to name them here would
    # import torch wherever a bundle is opened.

    def meta_model(self):
        """The torch model of the family with shapes alone, without weights."""
        from athena_vla.models import architecture
        from athena_vla.models.sizes import without_weights

        with without_weights():
            return architecture.family(self.manifest.family).from_spec(self.spec, self.tokenizer_files())

    def model(self, device: str = "cpu"):
        """The torch model with its weights on a device; for a fine-tuned bundle the base with the adapter attached."""
        from athena_vla.models import architecture
        from athena_vla.models.lora import LoraSettings
        from athena_vla.models.weights import opening

        if self.manifest.adapter:
            settings = LoraSettings(**self.manifest.adapter)
            return opening.adapted(self._body(settings, device), settings, self.path / ADAPTER_FILE, device)
        kind = architecture.family(self.manifest.family)
        return opening.open_model(kind, self.spec, self.tokenizer_files(), self.store(), device)

    def packed_model(self, device: str = "cpu"):
        """The torch model of a quantised bundle on its codes as they are stored: see `models.weights.packed_linear`."""
        from athena_vla.models.weights.packed_linear import packed_model

        if self.manifest.stage != "quantized":
            raise BundleError(
                f"'{self.path}' is {self.manifest.stage}; only a quantised bundle runs on its codes. Quantise it, "
                "or take another backend."
            )
        return packed_model(self.meta_model(), self.store(), device)

    def _body(self, settings: Any, device: str) -> Any:
        """What the adapter was trained on, with this bundle's heads."""
        from athena_vla.models.released import pretrained

        family, sizes = self.manifest.family, Sizes.of(self.spec)
        if self.manifest.checkpoint:
            nf4, double = settings.quantization == "nf4", settings.double_quantization
            model = self.release().model(family, sizes=sizes, device=device, four_bit=nf4, double=double)
        else:
            model = pretrained.bind(self.parent().model(device), family, sizes)
        if model.spec != self.spec:
            raise BundleError(f"'{self.path}' is of another specification than its base gives now; train it again.")
        return model

    def store(self):
        """The bundle's own weights. Raises `BundleError` for an adapter, whose base lies elsewhere."""
        from athena_vla.models.weights.store import TensorStore

        if self.manifest.adapter:
            base = self.manifest.checkpoint or self.manifest.parent_path
            raise BundleError(f"'{self.path}' holds an adapter; its weights are those of '{base}'. Run athena merge.")
        if self.manifest.stage == "exported":
            raise BundleError(
                f"Bundle '{self.path}' holds exported graphs, no torch weights; leave --backend out, or name "
                "the engine of the graphs (--backend onnxruntime)."
            )
        return TensorStore(self.path / "weights")

    def base_store(self):
        """The weights that the adapter was trained on, one at a time."""
        return self.release().store() if self.manifest.checkpoint else self.parent().store()

    def release(self):
        """The released checkpoint this adapter was trained on. Raises `BundleError` when it is not the very same."""
        from athena_vla.models.released.pretrained import Release

        release = Release.open(self.manifest.checkpoint)
        if release.hash != self.manifest.parent_hash:
            raise BundleError(
                f"Bundle '{self.path}' was made from a checkpoint with fingerprint {self.manifest.parent_hash}, but "
                f"'{release.source}' has {release.hash}: an adapter fits only its own base."
            )
        return release

    def parent(self) -> "Bundle":
        """The bundle this one was made from. Raises `BundleError` when it is not the very same any more."""
        if self.manifest.checkpoint and self.manifest.adapter:
            raise BundleError(f"'{self.path}' was made from the checkpoint '{self.manifest.checkpoint}', no bundle.")
        if not self.manifest.parent_path and PUBLISHED in self.manifest.stage_info:
            raise BundleError(
                f"Bundle '{self.path}' came from the Hub, which does not know where its base lies on this machine. "
                "Pull the base too, then this one again with: athena pull REPO OUT --base BASE --overwrite."
            )
        parent = Bundle.open(self.manifest.parent_path)
        if self.manifest.parent_hash not in parent.known_as:
            why = "an adapter fits only its own base" if self.manifest.adapter else "it was made again since"
            raise BundleError(
                f"Bundle '{self.path}' was made from {self.manifest.parent_hash}, but '{parent.path}' is "
                f"{parent.hash}: {why}."
            )
        return parent


@contextlib.contextmanager
def understood(where: Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged part of a bundle raises into one sentence about it."""
    try:
        yield
    except AthenaError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, OSError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BundleError(f"The {what} of bundle '{where}' cannot be understood: {reason}. Make it again.") from error


def open_base(where: str | Path):
    """What can be fine-tuned: a bundle, or a released checkpoint (`pretrained.Release`) as a folder or Hub id.

    Raises `BundleError`.
    """
    from athena_vla.models.released.pretrained import Release

    path = Path(where).expanduser()
    if str(where).startswith(BUILTIN) or (path / "manifest.json").is_file():
        return Bundle.open(where)
    hub = not path.exists() and str(where).count("/") == 1 and not str(where).startswith((".", "/", "~"))
    if (path / "config.json").is_file() or hub:
        return Release.open(where)
    raise BundleError(
        f"'{where}' is neither a bundle (a folder with a manifest.json) nor a released checkpoint (a folder with a "
        f"config.json, or a Hub id such as openvla/openvla-7b). The small base that ships is {BUILTIN}base."
    )


def claim(out: Path, *, overwrite: bool, reads: Path | None = None) -> contextlib.AbstractContextManager[None]:
    """Hold the name of a bundle for the time of a stage that `reads` another one.

    Raises `BundleError` where another run has it, where it is what is read, and where it exists, unless `overwrite`
    says that the bundle there is replaced at the end.
    """
    return files.claim(out, overwrite=overwrite, what="a bundle", ours=is_bundle, reads=reads, error=BundleError)


def is_bundle(path: Path) -> bool:
    """Whether a folder looks like a bundle, whole or not."""
    return (path / "manifest.json").is_file()


@contextlib.contextmanager
def writing(path: Path, manifest: Manifest, golden: Golden | None, tokenizer: Mapping[str, bytes]) -> Iterator[Path]:
    """Yield a temporary folder to put `weights/` in; on success it gets manifest and hashes and takes its name.

    An existing bundle at `path` is replaced only at the end. Raises `BundleError` when the path is something else.
    """
    with claim(path, overwrite=True), files.whole_folder(path, BundleError) as folder:
        (folder / "weights").mkdir()
        (folder / "tokenizer").mkdir()
        for name, content in tokenizer.items():
            (folder / "tokenizer" / name).write_bytes(content)
        if golden is not None:
            golden.save(folder / "golden.npz", Embodiment.from_dict(manifest.robot).camera_names)
        yield folder
        if not is_bundle(folder):  # a stage that measured what it wrote has sealed it itself
            seal(folder, manifest)


def seal(folder: Path, manifest: Manifest) -> None:
    """Hash all files of the folder and write its manifest by rename."""
    listed = {
        f.relative_to(folder).as_posix(): FileEntry(files.sha256(f), f.stat().st_size)
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != "manifest.json"
    }
    _write_manifest(folder, dataclasses.replace(manifest, files=listed, tools=tool_versions(), format=FORMAT))


def mark(bundle: Bundle, gates: Mapping[str, Gate]) -> None:
    """Write what its gates said into a bundle that is there. Raises `BundleError` where it cannot be written."""
    _write_manifest(bundle.path, dataclasses.replace(bundle.manifest, gates=dict(gates)))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    files.write_json(folder / "manifest.json", manifest.to_dict(), BundleError, sort_keys=True)


def tool_versions() -> dict[str, str]:
    versions = {"athena_vla": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "transformers", "peft", "onnx", "onnxruntime"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _resolve(where: str | Path) -> Path:
    text = str(where)
    if not text.startswith(BUILTIN):
        return Path(where)
    shipped = Path(str(resources.files("athena_vla") / "assets"))
    path = shipped / text.removeprefix(BUILTIN)
    if not path.is_dir():
        known = sorted(f"{BUILTIN}{p.name}" for p in shipped.iterdir() if p.is_dir()) if shipped.is_dir() else []
        raise BundleError(f"No bundle '{text}' ships with the package. Shipped: {', '.join(known) or 'none'}.")
    return path
