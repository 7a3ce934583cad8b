"""`athena improve`: play, collect corrections, build, go on training with a replay, compare, keep unless worse.

Each round lies in a folder of its own, which takes its name when the decision is made. Every step before goes on
where it was interrupted: scenes and test episodes one by one, the build by episodes, the training by checkpoints.
"""

import dataclasses
import os
import signal
from pathlib import Path

from athena_vla import files
from athena_vla.bundle import Bundle, is_bundle
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError
from athena_vla.evaluate.closedloop import SCENES_PER_SEED
from athena_vla.evaluate.summary import Kept
from athena_vla.finetune.merge_config import MergeConfig
from athena_vla.finetune.result import FILE
from athena_vla.gate import failed
from athena_vla.improve.collecting import Collect, Collected, collect
from athena_vla.improve.improve_config import ENOUGH_SCENES, ImproveConfig
from athena_vla.improve.improve_page import write_page
from athena_vla.improve.judging import Judged, in_simulator, more_of, on_recordings
from athena_vla.improve.keeping_rule import Decision, decide, further
from athena_vla.improve.round_result import ImproveResult, RoundResult, sentences
from athena_vla.improve.shared_inputs import Improving, claim_folder, open_inputs
from athena_vla.merge import merge
from athena_vla.plan.advised_finetune import finetune
from athena_vla.progress import Progress, quiet
from athena_vla.stopping import Interrupted

RESULT, PAGE, ROUND = "result.json", "report.html", "round.json"
PARTS = ("play", "build", "train", "merge", "compare")
SCENE_SECONDS, STEP_SECONDS, EPISODE_SECONDS = 1.0, 0.35, 0.5  # [s] on one core, for progress


def improve(config: ImproveConfig, progress: Progress = quiet) -> ImproveResult:
    """All rounds. Interrupted, the same command goes on; finished rounds are kept.

    Raises `TrainingError` where policy, set and corrector do not fit, and what the stages raise.
    """
    with files.lock(config.out, TrainingError):
        work = open_inputs(config)
        claim_folder(config, work)
        progress.plan({f"round {n}": 1.0 for n in range(1, config.round_count + 1)})
        rounds: list[RoundResult] = []
        try:
            return _improve(work, rounds, progress)
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            inside = str(error) or "the same command goes on from there."
            raise Interrupted(f"{len(rounds)} of {config.round_count} rounds are whole; {inside}", number) from error


def _improve(work: Improving, rounds: list[RoundResult], progress: Progress) -> ImproveResult:
    config = work.config
    policy = _start(work, progress)
    notes: list[str] = []
    if config.test_scenes < ENOUGH_SCENES and work.setup is not None:
        notes.append(f"Each round was judged on {config.test_scenes} scenes: {ENOUGH_SCENES} at least for a decision.")
    for number in range(1, config.round_count + 1):
        folder = work.folder(number)
        if (folder / ROUND).is_file():
            progress.skip(f"round {number}")
            progress.say(f"reusing {folder}: round {number} is whole")
            result = RoundResult.from_dict(files.read_json_object(folder / ROUND, TrainingError))
        else:
            found = _round(work, number, policy, rounds, progress.part(f"round {number}"))
            if found is None:
                notes.append(f"Round {number} has nothing to learn from: no scene of it was corrected. It ends here.")
                break
            result = found
            progress.say(f"round {number}: " + "  ".join(result.cells()[1:]))
        rounds.append(result)
        policy = Path(result.kept)
        notes += sentences(result)
    page = write_page(config.out / PAGE, tuple(rounds), tuple(notes), str(policy))
    result = ImproveResult(config.out, policy, tuple(rounds), page, tuple(notes))
    files.write_json(config.out / RESULT, result.to_dict(), TrainingError)
    return result


def _round(
    work: Improving, number: int, policy: Path, before: list[RoundResult], progress: Progress
) -> RoundResult | None:
    """One round; None where nothing could be learned from. Its folder has its name only when it is whole."""
    config = work.config
    now = config.out / f"round_{number}.unfinished"
    steps = config.training.max_steps or 600
    progress.plan(
        dict(zip(PARTS, (
            SCENE_SECONDS * config.scenes * (not config.folders), 10.0, STEP_SECONDS * steps, 10.0,
            2 * EPISODE_SECONDS * config.test_scenes,
        ), strict=True))
    )  # fmt: skip
    played = Collected(())
    if not config.folders:
        played = _played(work, number, policy, now, progress.part("play"))
    sources = work.recordings(number, now)
    if not sources or not (config.folders or played.episodes):
        return None
    new = _built(work, sources, now / "dataset", progress.part("build"))
    if work.setup is not None and not config.folders:
        steps_now = played.steps
    else:
        steps_now = sum(
            int(m.has("correction", int(e["length"])).sum()) for e, m in zip(new.episodes, new.marks, strict=True)
        )
    adapter = _trained(work, policy, now, progress.part("train"))
    gates = failed(Bundle.open(adapter, verify=False).manifest.gates.values())
    refused = tuple(f"it fails a gate: {g.label}" for g in gates)
    candidate = now / "policy"
    if not is_bundle(candidate):
        merge(MergeConfig(adapter, candidate), progress.part("merge"))
    judged = _judged(work, number, policy, candidate, now, new, progress.part("compare"))
    decision = _decided(work, number, policy, candidate, now, judged, refused, progress)
    earlier = before[-1].all_steps if before else 0
    result = RoundResult(
        number=number,
        policy=str(policy),
        candidate=str(work.folder(number) / "policy"),
        scenes=len(played.scenes),
        solved_alone=played.solved_alone,
        taken_over=played.taken_over,
        corrected=played.corrected,
        episodes=played.episodes or len(new.episodes),
        steps=steps_now,
        all_steps=earlier + steps_now,
        test_scenes=sum(c.scenes for c in judged.counts.values()),
        success=judged.success,
        decision=decision,
        not_judged=judged.not_judged,
    )
    files.write_json(now / ROUND, result.to_dict(), TrainingError)
    os.replace(now, work.folder(number))
    return result


def _played(work: Improving, number: int, policy: Path, now: Path, progress: Progress) -> Collected:
    config = work.config
    assert work.setup is not None  # `open_inputs` has asked
    job = Collect(
        policy=str(policy),
        recordings=now / "recordings",
        setup=work.setup,
        first_scene=config.play_seed(number) * SCENES_PER_SEED,
        correct=config.kind == "script",
    )
    return collect(job, config.scenes, now, config.workers, progress)


def _built(work: Improving, sources: tuple[Path, ...], out: Path, progress: Progress) -> Dataset:
    """The corrections of all rounds as one set, in the form of the old one."""
    if not out.exists():
        build(
            BuildConfig(
                input=sources[0],
                also=sources[1:],
                out=out,
                robot=work.config.robot or work.data.robot.name,
                horizon=work.data.horizon,
                stride=work.data.stride,
                seed=work.config.seed,
                workers=work.config.workers,
            ),
            progress,
        )
    return Dataset.open(out)


def _trained(work: Improving, policy: Path, now: Path, progress: Progress) -> Path:
    """The policy, trained on with a share of what it knew."""
    config = work.config
    sets = (f"{now / 'dataset'}={1 - config.replay}",)
    if config.replay:
        sets = (f"{config.data}={config.replay}", *sets)
    run = dataclasses.replace(
        config.training,
        model=str(policy),
        mix=sets if len(sets) > 1 else (),
        data=now / "dataset",
        out=now / "adapter",
        weight=("success=1", "failure=0", f"correction={config.correction_weight:g}"),
    )
    if not (is_bundle(run.out) and (run.run_folder / FILE).is_file()):
        finetune(run, progress)
    return run.out


def _judged(
    work: Improving, number: int, policy: Path, candidate: Path, now: Path, new: Dataset, progress: Progress
) -> Judged:
    config = work.config
    if work.setup is None:
        return on_recordings(
            policy, candidate, work.data, new, samples=config.samples, seed=config.seed, progress=progress
        )
    return in_simulator(
        policy,
        candidate,
        now / "episodes",
        old=work.old,
        setup=dataclasses.replace(work.setup, split=config.split),
        scenes=config.test_scenes,
        seed=config.test_seed(number),
        workers=config.workers,
        progress=progress,
    )


def _decided(
    work: Improving,
    number: int,
    policy: Path,
    candidate: Path,
    now: Path,
    judged: Judged,
    refused: tuple[str, ...],
    progress: Progress,
) -> Decision:
    """The decision; old tasks that lost the margin by chance so far are played on until it is clear."""
    config, more = work.config, dict[str, Kept]()
    on = work.setup is not None and config.tasks == "tested" and config.task_scenes > 0
    while True:
        decision = decide(
            judged.counts,
            old=judged.old,
            level=config.level,
            margin=config.margin,
            tasks=config.tasks,
            more=more,
            enough=config.task_scenes if on else 0,
            refused=refused,
        )
        if not (on and decision.keep and decision.unsure):
            return decision
        assert work.setup is not None
        had = {t: judged.counts[t].scenes for t in judged.counts}
        wanted = {t: c.scenes for t, c in more.items()}
        for task in decision.unsure:
            wanted[task] = further(had[task] + wanted.get(task, 0), config.task_scenes) - had[task]
            progress.say(f"'{task}' has lost the margin, perhaps by chance: {wanted[task]} further scenes of it.")
        more = more_of(
            wanted,
            policy,
            candidate,
            now / "further",
            setup=dataclasses.replace(work.setup, split=config.split),
            first=config.test_seed(number) * SCENES_PER_SEED + config.test_scenes,
            workers=config.workers,
            progress=progress.part("compare"),
        )


def _start(work: Improving, progress: Progress) -> Path:
    """The policy as float weights that can be trained on: an adapter is merged first."""
    bundle = Bundle.open(work.config.bundle)
    if bundle.manifest.adapter:
        merged = work.config.out / "start"
        if not is_bundle(merged):
            progress.say(f"merging '{work.config.bundle}' first, so that training can go on from it")
            merge(MergeConfig(work.config.bundle, merged))
        return merged
    return bundle.path
