"""Trials one after the other: scene, robot, verdict. Every answer is on the disk before the next question.

The names of the policies are nowhere on the screen. Interrupted anywhere, the same command goes on at the same trial.
"""

import time
from collections.abc import Callable
from pathlib import Path

from athena_vla import files
from athena_vla.errors import AthenaError, EvaluationError
from athena_vla.trials import asking
from athena_vla.trials.asking import Drive, Terminal
from athena_vla.trials.counting import next_trial, reason_to_end
from athena_vla.trials.drawing import Plan, Sealed, Trial, read
from athena_vla.trials.trial_log import Entry, TrialLog

SHORT = 12  # characters of a hash that a person compares


def run_trials(
    folder: Path,
    terminal: Terminal,
    drive: Drive | None = None,
    *,
    video: bool = False,
    clock: Callable[[], float] = time.time,
) -> str:
    """Run until a rule ends it, or until the operator pauses; what ended it, "paused" included.

    `drive` moves the robot with a policy until the trial is over; None where a person starts policies by their slot.
    Raises `EvaluationError` for an order or a log that was edited, and where a policy has no place to drive from.
    """
    with files.lock(folder / "trials", EvaluationError):
        plan, sealed = read(folder)
        if drive is not None and not all(sealed.places.values()):
            raise EvaluationError(
                "Not every policy was drawn with a place (NAME=WHERE), so none can be driven; use --manual."
            )
        log = TrialLog(folder, plan.hash, clock)
        terminal.say(f"{len(plan.order)} trials, hash {plan.hash[:SHORT]}; {len(log.verdicts())} have a verdict.")
        if log.cut:
            terminal.say(
                "The last line of the log was cut off by a crash and is dropped; that question is asked again."
            )
        session = _Session(plan, sealed, log, terminal, drive, video)
        try:
            return session.run()
        except EOFError:
            return "paused"


class _Session:
    def __init__(
        self, plan: Plan, sealed: Sealed, log: TrialLog, terminal: Terminal, drive: Drive | None, video: bool
    ) -> None:
        self.plan, self.sealed, self.log, self.terminal = plan, sealed, log, terminal
        self.drive, self.video = drive, video

    def run(self) -> str:
        while True:
            why = reason_to_end(self.plan, self.log)
            if why:
                if not self.log.ended:
                    self.log.add(Entry("ended", notes=why))
                return why
            trial = next_trial(self.plan, self.log)
            assert trial is not None  # there is a reason to end otherwise
            if self.log.open_trial == trial.number:
                self.terminal.say(f"Trial {trial.number} was begun and has no verdict.")
                if self._judge(trial, None):
                    continue
            if not self._try(trial):
                return "paused"

    def _try(self, trial: Trial) -> bool:
        """Set up, run, judge; False where the operator pauses before it."""
        scene = self.plan.scene(trial.scene)
        self.terminal.say("\n" + asking.announce(self.plan, trial, scene, manual=self.drive is None))
        while True:
            given = asking.choose(self.terminal, "Ready?", asking.READY)
            if given == "q":
                return False
            if given == "":
                break
            self._correct()
        self.log.add(Entry("begun", trial.number))
        begun = time.monotonic()
        if self.drive is None:
            self.terminal.ask("The policy runs. Enter when the trial is over.")
        else:
            place = self.sealed.places[self.sealed.names[trial.slot]]
            try:
                self.terminal.say(f"The robot stands still ({self.drive(place, scene.instruction)}).")
            except AthenaError as error:
                # A sentence about a server may name it, and with it the policy.
                hidden = str(error).replace(place, "the policy").replace(self.sealed.names[trial.slot], "the policy")
                self.terminal.say(f"The run failed: {hidden}")
        self._judge(trial, time.monotonic() - begun)
        return True

    def _judge(self, trial: Trial, seconds: float | None) -> bool:
        """Ask for the verdict; False where the trial has to be made again."""
        given = asking.choose(self.terminal, "Verdict?", asking.VERDICTS)
        if given == "i":
            reason = ""
            while not reason:
                reason = self.terminal.ask("What was wrong? (it stands in the report)").strip()
            self.log.add(Entry("invalid", trial.number, notes=reason, seconds=seconds))
            return False
        notes = self.terminal.ask("Notes? (Enter: none)").strip()
        video = self.terminal.ask("Link to a video? (Enter: none)").strip() if self.video else ""
        self.log.add(Entry("verdict", trial.number, given == "y", given == "e", notes, video, seconds))
        return True

    def _correct(self) -> None:
        """Another verdict for the last trial; the first one stays in the log."""
        judged = self.log.verdicts()
        if not judged:
            self.terminal.say("There is no verdict yet.")
            return
        number = max(judged)
        given = asking.choose(self.terminal, f"Verdict of trial {number}?", asking.VERDICTS[:3])
        notes = self.terminal.ask("Why is it corrected?").strip()
        before = judged[number]
        self.log.add(Entry("corrected", number, given == "y", given == "e", notes, before.video, before.seconds))
