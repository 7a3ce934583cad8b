"""A released checkpoint as the base of any family: found, fingerprinted, opened with heads for a robot, gated.

Knows checkpoints and families, nothing of data, bundles or training.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from torch import Tensor

from athena_vla.errors import ModelError
from athena_vla.models import input_gates as gates
from athena_vla.models.architecture import DEFAULT_FAMILY, Architecture, TorchEngine, family
from athena_vla.models.loops.shared_loop import VlaSpec
from athena_vla.models.openvla_oft import OpenVLAOFT
from athena_vla.models.precision import multiply_natively
from athena_vla.models.released import oft_files
from athena_vla.models.released import released_weights as checkpoint
from athena_vla.models.robot_sizes import Sizes
from athena_vla.models.vla import VisionLanguageModel, cropped
from athena_vla.models.weights.store import TensorStore

LARGE = 2_000_000_000  # [bytes] of stored weights; smaller ones are opened in float32, which holds bfloat16 exactly
_SAMPLES, _SAMPLE_BYTES = 16, 65_536  # of each weight file that the fingerprint reads
_BODY = "body."  # where a family keeps what the release stores


@dataclass(frozen=True)
class Release:
    """A checkpoint in the released layout, OpenVLA or OFT, that was found to be one; its weights are not read yet."""

    source: str  # a folder, or owner/name@commit: enough to find the very same again
    folder: Path

    @classmethod
    def open(cls, source: str | Path, *, offline: bool = False) -> "Release":
        """A folder or a Hub id, optionally `owner/name@revision`; `offline`: from the cache only.

        Raises `ModelError`.
        """
        name, revision = str(source), None
        if not Path(name).expanduser().is_dir():
            name, _, at = name.partition("@")
            revision = at or None
        folder = checkpoint.fetch(name, revision=revision, offline=offline)
        checkpoint.read_spec(folder)
        here = Path(name).expanduser().is_dir()
        # The Hub's cache names a snapshot's folder by its commit.
        return cls(str(folder.resolve()) if here else f"{name}@{folder.name}", folder)

    @cached_property
    def hash(self) -> str:
        """Fingerprint: configuration, tokenizer, and of every weight file its size, header and samples of its content.

        Not every byte: fifteen gigabytes would take half a minute each time a policy is opened.
        """
        digest = hashlib.sha256()
        for file in sorted(self.folder.iterdir()):
            if file.name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
                digest.update(file.name.encode() + file.read_bytes())
            elif file.suffix in (".safetensors", ".pt"):
                digest.update(f"{file.name} {file.stat().st_size}".encode())
                digest.update(_samples(file))
        return digest.hexdigest()[:16]

    @cached_property
    def large(self) -> bool:
        return TensorStore(self.folder).bytes > LARGE

    def model(
        self,
        name: str = "",
        *,
        sizes: Sizes,
        device: str = "cpu",
        four_bit: bool = False,
        double: bool = True,
        check: bool = False,
    ) -> Architecture:
        """The body with heads of family `name` ("" = the default one) for the robot's `sizes`.

        `four_bit`: a large checkpoint's decoder is quantised as it is read. Raises `ModelError`, `BlindPolicy`.
        """
        precision: checkpoint.Precision = "float32"
        if self.large:
            precision = "nf4" if four_bit else "bfloat16"
        return from_release(
            name or DEFAULT_FAMILY,
            self.folder,
            sizes,
            precision=precision,
            double=double,
            device=device,
            check=check,
        )

    def spec(self, name: str, sizes: Sizes) -> VlaSpec:
        """The specification that `model` would have; reads no weights."""
        kind = cast(type[VisionLanguageModel], family(name or DEFAULT_FAMILY))
        _, body = checkpoint.read_spec(self.folder)
        return kind.spec_on(checkpoint.lean(body, output=kind.reads_tokens), sizes)

    def store(self) -> "ReleasedWeights":
        """The weights under the names that the families give them, for merging."""
        return ReleasedWeights(self.folder, wide=not self.large)


class ReleasedWeights:
    """Reads like a `TensorStore` of a bundle; float32 where models of this checkpoint compute in float32."""

    def __init__(self, folder: Path, *, wide: bool) -> None:
        self.inner, self.wide = TensorStore(folder), wide
        self.names = tuple(_BODY + n for n in self.inner.names)
        self.bytes = self.inner.bytes

    def read(self, name: str) -> Tensor:
        weight = self.inner.read(name.removeprefix(_BODY))
        assert isinstance(weight, Tensor), "released weights are not packed"
        return weight.float() if self.wide else weight

    def shape(self, name: str) -> tuple[int, ...]:
        return self.inner.shape(name.removeprefix(_BODY))


def from_release(
    name: str,
    source: str | Path,
    sizes: Sizes,
    *,
    precision: checkpoint.Precision = "bfloat16",
    double: bool = True,
    device: str = "cpu",
    revision: str | None = None,
    offline: bool = False,
    check: bool = True,
) -> Architecture:
    """Body, tokenizer and image processing from a folder or Hub id; heads of family `name`, fresh but for OFT's own.

    An OFT folder's action head and state projector are taken over where they are of this robot's sizes. `check` asks
    the loaded model whether it sees and listens (a few forward passes). Raises `ModelError`, `BlindPolicy`.
    """
    kind = cast(type[VisionLanguageModel], family(name))
    loaded = checkpoint.load(
        source, precision, double=double, device=device, output=kind.reads_tokens, revision=revision, offline=offline
    )
    spec = kind.spec_on(loaded.spec, sizes)
    model = kind(spec, loaded.tokenizer_files, loaded.body).eval()
    if isinstance(model, OpenVLAOFT):
        _take_over(model, loaded.folder, precision)
    weight = loaded.body.language_model.model.norm.weight
    for head in model.head_modules():
        model.get_submodule(head).to(device=weight.device, dtype=weight.dtype)
    multiply_natively(model, device)
    if check:
        name, engine = f"The model loaded from '{source}'", TorchEngine(model)
        gates.require_vision_runs_once(model.loop, engine, name)
        gates.check_model(model.loop, engine).require(name)
    return model


def bind(model: Architecture, name: str, sizes: Sizes) -> Architecture:
    """The model's body with heads of family `name` for these sizes; itself where nothing differs.

    Heads of the same family keep what does not depend on the robot; another family's are fresh. Raises `ModelError`.
    """
    assert isinstance(model, VisionLanguageModel)
    kind = cast(type[VisionLanguageModel], family(name))
    if kind is not type(model):
        if kind.reads_tokens and not model.body_spec.text.output:
            raise ModelError(
                f"The base has no token output, which family '{name}' reads actions from. Use another --family, or a "
                "base that has one, such as the released openvla-7b."
            )
        return kind(kind.spec_on(model.body_spec, sizes), model.tokenizer_files(), model.body).eval()
    spec = dataclasses.replace(model.spec, **sizes.named(type(model.spec), model.family))
    if spec != model.spec:
        model = model.rebind(spec)
    # The same robot: its heads go on from where the base left them.
    return model if sizes.crop_area in (None, model.body_spec.images.crop_area) else _seeing(model, sizes.crop_area)


def _seeing(model: VisionLanguageModel, area: float) -> Architecture:
    """The same weights, seeing the middle `area` of each image."""
    spec = dataclasses.replace(cast(VlaSpec, model.spec), body=cropped(model.body_spec, area))
    other = type(model)(spec, model.tokenizer_files(), model.body).eval()
    for path in model.head_modules():
        other.get_submodule(path).load_state_dict(model.get_submodule(path).state_dict())
    return other


def _take_over(model: OpenVLAOFT, folder: Path, precision: checkpoint.Precision) -> None:
    files = oft_files.find(folder)
    if not files.any:
        return
    parts = oft_files.load(files, model.body_spec.text.width, precision)
    for path, part in (("head", parts.head), ("state_projector", parts.proprio)):
        if part is None or path not in model.head_modules():
            continue
        own, theirs = model.get_submodule(path).state_dict(), part.state_dict()
        if {k: t.shape for k, t in own.items()} == {k: t.shape for k, t in theirs.items()}:
            model.get_submodule(path).load_state_dict(theirs)


def _samples(file: Path) -> bytes:
    """Some of a file's bytes, evenly spread, its beginning (a weight file's header) among them."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        read = []
        for i in range(_SAMPLES):
            stream.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            read.append(stream.read(_SAMPLE_BYTES))
    return b"".join(read)
