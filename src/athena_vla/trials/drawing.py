"""The order of trials, drawn before the first one and bound by a hash; the policies' names lie in a file of their own.

In each round every scene is tried once with every policy, in random order, so that light, heat and the operator's day
fall on all policies alike.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from athena_vla import files
from athena_vla.errors import EvaluationError
from athena_vla.files.content import read_json_object

PLAN, SEALED = "trials.json", "sealed.json"
FORMAT = 1
SLOTS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_TRIALS = 10_000
Stop = Literal["fixed", "evidence"]


@dataclass(frozen=True)
class TrialScene:
    """What is set up before a trial, in the operator's words."""

    name: str
    instruction: str = ""
    task: str = ""
    checklist: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str) -> "TrialScene":
        """Raises `EvaluationError` for a key that it does not have, or a value that is no text."""
        unknown = sorted(set(raw) - {"name", "instruction", "task", "checklist"})
        if unknown:
            raise EvaluationError(f"{where}: unknown key '{unknown[0]}'; known: name, instruction, task, checklist.")
        texts = [raw.get(k, "") for k in ("name", "instruction", "task")]
        checklist = raw.get("checklist", ())
        if not all(isinstance(t, str) for t in texts) or not texts[0].strip():
            raise EvaluationError(f"{where}: 'name' is a text that is not empty, 'instruction' and 'task' are texts.")
        if not isinstance(checklist, list | tuple) or not all(isinstance(c, str) for c in checklist):
            raise EvaluationError(f"{where}: 'checklist' is a list of texts.")
        name, instruction, task = texts
        return cls(name, instruction, task, tuple(checklist))


@dataclass(frozen=True)
class Trial:
    """One try: where in the order, which scene, which time, and the slot of the policy."""

    number: int  # from 1
    scene: str
    round: int  # from 0
    slot: str


@dataclass(frozen=True)
class Plan:
    """Everything that was decided beforehand. `hash` is over all of it, and over the sealed names."""

    scenes: tuple[TrialScene, ...]
    order: tuple[Trial, ...]
    stop: Stop
    emergencies: int  # of one policy, after which the trials end; 0: never
    hidden: str  # hash of the sealed file's content

    @property
    def hash(self) -> str:
        return files.fingerprint({"format": FORMAT, **asdict(self)})

    def scene(self, name: str) -> TrialScene:
        return next(s for s in self.scenes if s.name == name)

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "hash": self.hash, **asdict(self)}


@dataclass(frozen=True)
class Sealed:
    """Which policy is in which slot, and where it is; not for the operator's eyes before the end."""

    names: Mapping[str, str]  # slot -> name
    places: Mapping[str, str]  # name -> address or bundle; "" where a person starts it
    salt: str

    @property
    def hash(self) -> str:
        return files.fingerprint(asdict(self))


def draw(
    policies: Mapping[str, str],
    scenes: Sequence[TrialScene],
    rounds: int,
    seed: int,
    stop: Stop = "fixed",
    emergencies: int = 0,
) -> tuple[Plan, Sealed]:
    """The order of all trials. Raises `EvaluationError` for fewer than two policies, or names given twice."""
    if not 2 <= len(policies) <= len(SLOTS):
        raise EvaluationError(f"Trials compare two to {len(SLOTS)} policies; {len(policies)} was named: NAME=WHERE.")
    names = [s.name for s in scenes]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not names:
        raise EvaluationError(f"Scenes need names of their own: '{twice[0]}' is there twice." if twice else "No scene.")
    if rounds < 1 or rounds * len(names) * len(policies) > MOST_TRIALS:
        raise EvaluationError(f"{rounds} rounds of {len(names)} scenes cannot be run; 1 to {MOST_TRIALS} trials can.")
    if emergencies < 0:
        raise EvaluationError(f"{emergencies} emergency stops cannot end the trials; 0 is never.")
    chance = random.Random(f"athena-vla trials {seed}")
    slots = list(SLOTS[: len(policies)])
    shuffled = chance.sample(sorted(policies), len(policies))
    salt = hashlib.sha256(chance.randbytes(32)).hexdigest()
    sealed = Sealed(dict(zip(slots, shuffled, strict=True)), dict(policies), salt)
    order: list[Trial] = []
    for turn in range(rounds):
        for scene in chance.sample(names, len(names)):
            for slot in chance.sample(slots, len(slots)):
                order.append(Trial(len(order) + 1, scene, turn, slot))
    return Plan(tuple(scenes), tuple(order), stop, emergencies, sealed.hash), sealed


def write(folder: Path, plan: Plan, sealed: Sealed) -> None:
    """Both files; the sealed one is its owner's alone. Raises `EvaluationError` where trials are there already."""
    if (folder / PLAN).exists():
        raise EvaluationError(f"'{folder / PLAN}' was drawn already; trials that were begun are not drawn again.")
    folder.mkdir(parents=True, exist_ok=True)
    place = files.write_json(folder / SEALED, asdict(sealed), EvaluationError)
    place.chmod(0o600)
    files.write_json(folder / PLAN, plan.to_dict(), EvaluationError)


def read(folder: Path) -> tuple[Plan, Sealed]:
    """Both files. Raises `EvaluationError` where one is missing, or is not what was drawn."""
    path = folder / PLAN
    if not path.is_file():
        raise EvaluationError(f"There are no trials in '{folder}'; draw their order first: athena trials draw.")
    raw = read_json_object(path, EvaluationError)
    try:
        if raw["format"] != FORMAT:
            raise EvaluationError(f"'{path}' has format {raw['format']!r}; this version reads {FORMAT}.")
        plan = Plan(
            tuple(TrialScene.from_dict(s, f"'{path}'") for s in raw["scenes"]),
            tuple(Trial(**t) for t in raw["order"]),
            raw["stop"],
            raw["emergencies"],
            raw["hidden"],
        )
        drawn, now = raw["hash"], plan.hash
    except (KeyError, TypeError) as error:
        raise EvaluationError(f"'{path}' is no drawn order: {error}. {_MENDED}") from error
    if drawn != now:
        raise EvaluationError(f"'{path}' was edited after it was drawn (hash {now[:12]}, not {drawn[:12]}). {_MENDED}")
    sealed = _sealed(read_json_object(folder / SEALED, EvaluationError))
    if sealed is None or sealed.hash != plan.hidden:
        raise EvaluationError(f"'{folder / SEALED}' was edited after it was drawn. {_MENDED}")
    return plan, sealed


def _sealed(content: Mapping[str, Any]) -> Sealed | None:
    try:
        return Sealed(**content)
    except TypeError:
        return None


_MENDED = "What was recorded is kept: put the file back as it was, or draw new trials in another folder."
