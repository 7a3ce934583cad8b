"""The two sides of the control loop, as protocols: a body with a clock, and whatever decides what it does."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation

Balance = Callable[[Array, Array], Array]  # (times [n] [s], last measured state [C]) -> commands [n, C]


class Robot(Protocol):
    """A body with a clock. `observe` returns the latest of everything and does not wait for a camera."""

    @property
    def embodiment(self) -> Embodiment: ...

    @property
    def time(self) -> float:
        """[s]"""
        ...

    def observe(self) -> Observation: ...

    def command(self, positions: Array, /) -> None:
        """Joint targets [rad], then channels, [C]; a simulated robot advances by one command period."""
        ...


class Actor(Protocol):
    """Whatever turns an observation into a chunk: a policy, a remote policy, an expert, a baseline."""

    def act(self, observation: Observation, /) -> ActionChunk: ...


@runtime_checkable
class Identified(Protocol):
    """An actor that knows which policy it is."""

    @property
    def policy_id(self) -> str:
        """Hash of the bundle that answers; "" where that is not known."""
        ...


def policy_of(actor: object) -> str:
    """Hash of the policy behind an actor; "" for one that says nothing about it."""
    return actor.policy_id if isinstance(actor, Identified) else ""
