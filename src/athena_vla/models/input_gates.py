"""Gates: a policy whose actions do not depend on image, instruction or state is refused with a sentence.

Ported OpenVLA code was seen to load, answer plausibly and ignore the camera. So the policy is asked, through whatever
backend runs it, at load, after every stage and before a server opens. Knows nothing of weights or how actions are made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import ActionChunk, Observation
from athena_vla.errors import BlindPolicy, InvalidObservation
from athena_vla.gate import Gate
from athena_vla.models.contract import Engine, HostLoop, ModelInput, Tapped, Values

Act = Callable[[Observation], ActionChunk | NDArray[np.floating[Any]]]

# Two instructions that no policy should answer alike, used where the observations have only one.
INSTRUCTIONS = ("raise the left arm", "look at the red cube on the right")
# Rounding differs by 1e-7 between runs; anything learned moves joints by far more.
THRESHOLD = 1e-5  # [rad] from a policy, [-1, 1] units from a model

_REASONS = {
    "black_white": "a black and a white image give the same actions: it does not see",
    "frames": "two different camera frames give the same actions: it does not see",
    "language": "two different instructions give the same actions: it does not listen",
    "proprio": "two different states give the same actions, although the state is one of its inputs",
}
_ADVICE = (
    "It is not exported, served or evaluated. Look at how its inputs reach the model: frozen or pruned vision, a "
    "cached prompt, or training that never needed them."
)


@dataclass(frozen=True)
class Sensitivity:
    """How far actions move when one input changes; the largest change over joints, steps and observations."""

    changes: Mapping[str, float]
    threshold: float

    @property
    def blind_to(self) -> tuple[str, ...]:
        # `not >` also catches NaN.
        return tuple(name for name, change in self.changes.items() if not change > self.threshold)

    def require(self, name: str = "The policy") -> "Sensitivity":
        """Itself. Raises `BlindPolicy` naming everything the actions do not depend on."""
        if self.blind_to:
            reasons = "; ".join(_REASONS[n] for n in self.blind_to)
            raise BlindPolicy(f"{name} is refused: {reasons}. {_ADVICE}")
        return self

    def gates(self, unit: str = "") -> tuple[Gate, ...]:
        """One for each input, as manifests record them; a change that is no larger than the limit does not pass."""
        return tuple(
            Gate(f"sensitivity_{name}", float(change), self.threshold, "at least", name not in self.blind_to, unit)
            for name, change in self.changes.items()
        )


def check_sensitivity(
    act: Act, observations: Sequence[Observation], *, proprio: bool = False, threshold: float = THRESHOLD
) -> Sensitivity:
    """Ask a policy, through any backend, how its actions move when one input at a time is changed.

    `proprio` says that the state is one of its inputs. Up to three observations are used.
    """
    if not observations:
        raise InvalidObservation("The sensitivity gates need at least one observation; none was given.")
    some = list(observations[:3])

    def change(a: Observation, b: Observation) -> float:
        return float(np.abs(_positions(act(a)) - _positions(act(b))).max())

    texts = list(dict.fromkeys(o.instruction for o in observations))
    pair = texts[:2] if len(texts) > 1 else INSTRUCTIONS
    changes = {
        "black_white": max(change(_filled(o, 0), _filled(o, 255)) for o in some),
        "frames": max(change(o, _other_frame(o, observations)) for o in some),
        "language": max(change(replace(o, instruction=pair[0]), replace(o, instruction=pair[1])) for o in some),
    }
    if proprio:
        changes["proprio"] = max(change(o, replace(o, state=o.state + 0.2)) for o in some)
    return Sensitivity(changes, threshold)


def require_sensitive(
    act: Act,
    observations: Sequence[Observation],
    *,
    proprio: bool = False,
    threshold: float = THRESHOLD,
    name: str = "The policy",
) -> Sensitivity:
    """The same. Raises `BlindPolicy`."""
    return check_sensitivity(act, observations, proprio=proprio, threshold=threshold).require(name)


def check_model(loop: HostLoop, engine: Engine, threshold: float = THRESHOLD) -> Sensitivity:
    """The same for a model without a robot: made-up images, states and instructions, actions in [-1, 1] units."""
    spec = loop.spec
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2)]
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    rest = np.zeros(spec.state_dim, np.float32)

    def actions(image: NDArray[np.uint8], text: str = INSTRUCTIONS[0], state: NDArray[np.float32] = rest):
        item = ModelInput(images=(image,) * spec.cameras, state=state, instruction=text)
        return _decode(loop, engine, item)

    reference = actions(noise[0])
    changes = {
        "black_white": np.abs(actions(black) - actions(white)).max(),
        "frames": np.abs(reference - actions(noise[1])).max(),
        "language": np.abs(reference - actions(noise[0], INSTRUCTIONS[1])).max(),
    }
    if loop.reads_state:
        changes["proprio"] = np.abs(reference - actions(noise[0], state=rest + np.float32(0.5))).max()
    return Sensitivity({k: float(v) for k, v in changes.items()}, threshold)


def count_vision_calls(loop: HostLoop, engine: Engine) -> dict[str, int]:
    """How often vision runs in one decode: each tower and the projector where the engine can look inside its graphs,
    its vision graph elsewhere.
    """
    graph = {"vision graph": 0}

    def counted(name: str, values: Values) -> Values:
        graph["vision graph"] += name == "vision"
        return engine.run(name, values)

    check = ModelInput(
        images=(np.zeros((64, 64, 3), np.uint8),) * loop.spec.cameras,
        state=np.zeros(loop.spec.state_dim, np.float32),
        instruction=INSTRUCTIONS[0],
    )
    with engine.watched() as inside:
        _decode(loop, Tapped(engine, counted), check)
    return inside or graph


def require_vision_runs_once(loop: HostLoop, engine: Engine, name: str = "The model") -> dict[str, int]:
    """Vision towers and projector run exactly once per call. Raises `BlindPolicy`."""
    counts = count_vision_calls(loop, engine)
    wrong = {module: count for module, count in counts.items() if count != 1}
    if wrong:
        told = ", ".join(f"'{module}' {count} times" for module, count in wrong.items())
        raise BlindPolicy(f"{name} is refused: in one call {told} instead of once. {_ADVICE}")
    return counts


def _decode(loop: HostLoop, engine: Engine, item: ModelInput) -> NDArray[np.float32]:
    return loop.decode(engine, loop.collate([item]), loop.noise(1, np.random.default_rng(0)))


def _positions(answer: ActionChunk | NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return answer.positions if isinstance(answer, ActionChunk) else np.asarray(answer)


def _filled(observation: Observation, value: int) -> Observation:
    return replace(observation, images={k: np.full_like(v, value) for k, v in observation.images.items()})


def _other_frame(observation: Observation, observations: Sequence[Observation]) -> Observation:
    """The same moment seen through another observation's cameras, or mirrored where no other image is at hand."""
    for other in observations:
        if any(not np.array_equal(other.images[k], v) for k, v in observation.images.items()):
            return replace(observation, images=other.images)
    return replace(observation, images={k: np.ascontiguousarray(v[::-1, ::-1]) for k, v in observation.images.items()})
