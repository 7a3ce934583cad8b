"""What a log says of an order: which trial is next, and whether a rule that was set beforehand ends the trials."""

from collections import Counter
from itertools import combinations

from athena_vla.evaluate.statistics import anytime_evidence
from athena_vla.trials.drawing import Plan, Trial
from athena_vla.trials.trial_log import TrialLog

ENOUGH = 20.0  # evidence that ends trials: under equal policies it is ever reached with a chance of at most 1/20


def next_trial(plan: Plan, log: TrialLog) -> Trial | None:
    """The first trial without a verdict; None where all have one."""
    judged = log.verdicts()
    return next((t for t in plan.order if t.number not in judged), None)


def outcomes_by_slot(plan: Plan, log: TrialLog) -> dict[str, dict[tuple[str, int], bool]]:
    """slot -> (scene, round) -> success."""
    found: dict[str, dict[tuple[str, int], bool]] = {}
    judged = log.verdicts()
    for trial in plan.order:
        if trial.number in judged:
            found.setdefault(trial.slot, {})[trial.scene, trial.round] = bool(judged[trial.number].success)
    return found


def evidence(plan: Plan, log: TrialLog) -> float:
    """The greatest evidence of two policies against being equal, shared by the number of pairs (Bonferroni)."""
    by_slot = outcomes_by_slot(plan, log)
    pairs = list(combinations(sorted({t.slot for t in plan.order}), 2))
    best = 0.0
    for one, two in pairs:
        mine, theirs = by_slot.get(one, {}), by_slot.get(two, {})
        common = set(mine) & set(theirs)
        only_one = sum(mine[k] and not theirs[k] for k in common)
        only_two = sum(theirs[k] and not mine[k] for k in common)
        best = max(best, anytime_evidence(only_one, only_two) / len(pairs))
    return best


def reason_to_end(plan: Plan, log: TrialLog) -> str:
    """Why the trials are over; "" while they are not."""
    ended = next((e for e in log.entries if e.event == "ended"), None)
    if ended is not None:
        return ended.notes
    if next_trial(plan, log) is None:
        return "all trials have a verdict"
    slots = {t.number: t.slot for t in plan.order}
    stops = Counter(slots[n] for n, e in log.verdicts().items() if e.emergency)
    if plan.emergencies and stops and max(stops.values()) >= plan.emergencies:
        return f"one policy needed the emergency stop {plan.emergencies} times"
    whole = len(log.verdicts()) % len(set(slots.values())) == 0  # all policies have had the scene
    if plan.stop == "evidence" and whole and evidence(plan, log) >= ENOUGH:
        return f"the policies differ: evidence of at least {ENOUGH:.0f} to 1"
    return ""
