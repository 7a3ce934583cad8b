"""What the operator is asked, as text in a terminal, and what may be answered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from athena_vla.trials.drawing import Plan, Trial, TrialScene


class Terminal(Protocol):
    """Where the operator is: text goes out, a line comes in. `ask` raises `EOFError` where nobody is there."""

    def say(self, text: str) -> None: ...

    def ask(self, question: str) -> str: ...


class Console:
    """The terminal of this process."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def ask(self, question: str) -> str:
        return input(f"{question} ")


@dataclass(frozen=True)
class Answer:
    """One letter that may be given, and what it means."""

    letter: str
    meaning: str


VERDICTS = (
    Answer("y", "success"),
    Answer("n", "failure"),
    Answer("e", "ended by the emergency stop: a failure"),
    Answer("i", "invalid, the scene or the robot was not as it should be: tried again"),
)
READY = (Answer("", "the scene is set"), Answer("c", "correct the verdict before"), Answer("q", "pause"))


def choose(terminal: Terminal, question: str, answers: tuple[Answer, ...]) -> str:
    """One of the letters; anything else is asked again."""
    offered = ", ".join(f"{a.letter or 'Enter'}: {a.meaning}" for a in answers)
    while True:
        given = terminal.ask(f"{question} [{offered}]").strip().lower()
        if given in {a.letter for a in answers}:
            return given
        terminal.say(f"'{given}' is none of {', '.join(a.letter or 'Enter' for a in answers)}.")


def announce(plan: Plan, trial: Trial, scene: TrialScene, *, manual: bool) -> str:
    """What is to be set up, and which slot is to be started where a person starts it."""
    lines = [f"Trial {trial.number} of {len(plan.order)}: scene '{scene.name}', round {trial.round + 1}"]
    lines += [f"  instruction: {scene.instruction}"] if scene.instruction else []
    lines += [f"  [ ] {item}" for item in scene.checklist]
    lines += [f"  policy: slot {trial.slot}"] if manual else []
    return "\n".join(lines)


Drive = Callable[[str, str], str]  # policy's place, instruction -> what ended the run
