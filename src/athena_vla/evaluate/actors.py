"""What can be evaluated, as plain data: a policy from a bundle or a baseline, with or without an ablation.

A specification crosses process borders; the actor it describes is built where it acts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from athena_vla import files
from athena_vla.bundle import Bundle
from athena_vla.constrained import WithinReach
from athena_vla.embodiment import Embodiment
from athena_vla.errors import EvaluationError, UnknownName
from athena_vla.evaluate.baselines import (
    Actor,
    BlackImage,
    HoldStill,
    Hostile,
    Library,
    NearestNeighbour,
    OtherInstruction,
    Replay,
    Trajectory,
)
from athena_vla.policy import Policy

Kind = Literal["policy", "hold", "mean_action", "nearest_neighbour", "replay", "hostile"]
Ablation = Literal["none", "black_image", "other_instruction"]
ABLATIONS: tuple[Ablation, ...] = ("black_image", "other_instruction")
BASELINES: tuple[str, ...] = ("hold", "mean_action", "nearest_neighbour", "replay")
NEEDS_NO_SOURCE = ("hold", "hostile")


@dataclass(frozen=True)
class ActorSpec:
    """One row of a comparison."""

    name: str
    kind: Kind = "policy"
    source: str = ""  # a bundle for a policy, a library file for baselines made from the training split
    backend: str = "auto"
    device: str = "auto"  # of a policy: auto, cpu, cuda or cuda:N
    ablation: Ablation = "none"
    within_reach: bool = False  # hold a policy that chooses from bins to those the robot can reach

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UnknownName("kind of actor", self.kind, get_args(Kind))
        if self.ablation not in get_args(Ablation):
            raise UnknownName("ablation", self.ablation, get_args(Ablation))
        if not self.source and self.kind not in NEEDS_NO_SOURCE:
            raise EvaluationError(f"Actor '{self.name}' ({self.kind}) needs a source: a bundle or a library file.")

    @property
    def ablates(self) -> str:
        """Name of the row that this one is without something."""
        return self.name.removesuffix(f".{self.ablation}")

    @property
    def sees(self) -> bool:
        """Whether images matter; rendering is most of the time of an episode."""
        return self.kind in ("policy", "nearest_neighbour") and self.ablation != "black_image"

    def fingerprint(self) -> dict[str, str]:
        """What this row depends on, by content: results of the same fingerprint may be reused."""
        content = ""
        if self.kind == "policy":
            content = Bundle.open(self.source, verify=False).hash
        elif self.source:
            content = files.sha256(Path(self.source))
        found = {"kind": self.kind, "content": content, "backend": self.backend, "ablation": self.ablation}
        if self.device != "auto":
            found["device"] = self.device
        return {**found, "held": "within reach"} if self.within_reach else found


@dataclass
class ActorFactory:
    """Builds actors and keeps what is expensive: the last `keep` policies, and every library."""

    robot: Embodiment
    keep: int = 99  # a closed loop plays one actor after the other and needs only the last
    policies: dict[tuple[str, str, str], Policy] = field(default_factory=dict)
    libraries: dict[str, Library] = field(default_factory=dict)

    def actor(self, spec: ActorSpec, instead: Mapping[str, str] | None = None, *, remember: bool = True) -> Actor:
        """A fresh actor for one episode.

        `instead` maps instructions to what the actor is told in the ablation of language; `remember` says whether
        hold-still keeps its first pose.
        """
        inner = self._inner(spec, remember)
        if spec.ablation == "black_image":
            return BlackImage(inner)
        if spec.ablation == "other_instruction":
            return OtherInstruction(inner, instead or {})
        return inner

    def _inner(self, spec: ActorSpec, remember: bool) -> Actor:
        if spec.kind == "policy":
            policy = self.policy(spec)
            return WithinReach(policy) if spec.within_reach else policy
        if spec.kind == "hold":
            return HoldStill(self.robot, remember=remember)
        if spec.kind == "hostile":
            return Hostile(self.robot)
        library = self.library(spec.source)
        if spec.kind == "mean_action":
            return Trajectory(self.robot, library.mean_trajectory(), library.horizon)
        if spec.kind == "replay":
            return Replay(self.robot, library)
        return NearestNeighbour(self.robot, library)

    def policy(self, spec: ActorSpec) -> Policy:
        key = (spec.source, spec.backend, spec.device)
        if key not in self.policies:
            backend: Any = spec.backend
            policy = Policy.load(spec.source, backend, device=spec.device)
            if policy.robot.hash != self.robot.hash:
                raise EvaluationError(
                    f"'{spec.source}' drives the robot '{policy.robot.name}' ({policy.robot.hash}), the evaluation is "
                    f"on '{self.robot.name}' ({self.robot.hash}). Rebind its statistics first: athena train."
                )
            while len(self.policies) >= self.keep:
                self.policies.pop(next(iter(self.policies)))
            self.policies[key] = policy
        return self.policies[key]

    def library(self, source: str) -> Library:
        if source not in self.libraries:
            self.libraries[source] = Library.load(Path(source), self.robot)
        return self.libraries[source]
