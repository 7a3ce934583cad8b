"""What a robot and its recordings ask of a model, by name: the one list of sizes that every family is bound with."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from athena_vla.errors import ModelError, UnknownName

_OF_THE_BODY = ("crop_area",)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a robot, its chunks and its images; frozen, and no other name is taken."""

    action_dim: int
    state_dim: int
    horizon: int  # steps of a chunk
    cameras: int = 1
    proprio: bool = True  # the state is an input; families that never read it pass this over
    prefix: int = 0  # most steps of a chunk that the model can be given
    crop_area: float | None = None  # share of an image around its centre that is seen; None: as the body has it

    @classmethod
    def of_dict(cls, raw: Mapping[str, Any]) -> "Sizes":
        """From names and values. Raises `UnknownName`."""
        known = {f.name for f in dataclasses.fields(cls)}
        for name in raw:
            if name not in known:
                raise UnknownName("size of a model", name, sorted(known))
        return cls(**raw)

    @classmethod
    def of(cls, spec: Any) -> "Sizes":
        """Those of a specification."""
        known = {f.name for f in dataclasses.fields(cls)}
        own = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name in known}
        return cls(**own, crop_area=spec.body.images.crop_area)

    def of_a_robot(self) -> dict[str, int]:
        """The four that every family has."""
        names = ("action_dim", "state_dim", "horizon", "cameras")
        return {name: getattr(self, name) for name in names}

    def named(self, kind: type[Any], family: str) -> dict[str, Any]:
        """The fields that a family's specification has. Raises `ModelError` for one that it would have to have."""
        fields = {f.name for f in dataclasses.fields(kind)}
        if self.prefix and "prefix" not in fields:
            raise ModelError(
                f"The family {family} cannot be given a prefix; leave --prefix out, or choose another --family."
            )
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _OF_THE_BODY}
        return {name: value for name, value in own.items() if name in fields}
