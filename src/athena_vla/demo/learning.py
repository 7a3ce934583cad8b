"""Steps 3 to 5: fine-tune, compare with the untuned model and the baselines, and provoke the safety filter."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla.bound_base import bind_base
from athena_vla.bundle import Bundle, open_base
from athena_vla.dataset.dataset import Dataset
from athena_vla.demo.expected import COMPARING, FILMING
from athena_vla.demo.journal import plain
from athena_vla.demo.run import BASELINES, Run, hash_of
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.comparison import compare_all
from athena_vla.finetune.finetune_config import PRESETS
from athena_vla.finetune.log import read
from athena_vla.jobs import run_jobs
from athena_vla.plan.advised_finetune import FinetuneConfig, finetune

HOSTILE_SCENES = 21
RECORDED_POSES = 24


def training(run: Run) -> FinetuneConfig:
    """The demo's preset on this run's dataset."""
    config = run.config
    preset = PRESETS["demo"]
    steps = config.training_steps
    return dataclasses.replace(
        preset,
        model=config.model,
        data=run.dataset,
        out=run.bundle("tuned"),
        max_steps=steps,
        warmup_steps=min(preset.warmup_steps, max(1, steps // 4)),
        evaluate_every=min(preset.evaluate_every, max(1, steps // 2)),
        seed=config.seed,
    )


def train(run: Run) -> dict[str, Any]:
    """Fine-tune the base with LoRA. Resumes its own checkpoints when it was interrupted."""
    config = training(run)
    inputs = {"config": config.identity(), "model": hash_of(config.model), "dataset": run.result("prepare")["hash"]}

    def work() -> dict[str, Any]:
        result = finetune(config, run.journal.now)
        run.journal.say(str(result))
        tuned = Bundle.open(config.out)
        return {
            "bundle": str(config.out),
            "hash": tuned.hash,
            "base": config.model,
            "base_hash": hash_of(config.model),
            "steps": config.max_steps,
            "batch": config.batch * config.accumulation,
            "gates": {n: g.to_dict() for n, g in tuned.manifest.gates.items()},
            "summary": plain(result),
            "curves": curves(config.run_folder),
        }

    return run.journal.step("train", "Fine-tune the base model with LoRA", inputs, work, ("bundles/tuned",))


def curves(folder: Path) -> dict[str, list[list[float]]]:
    """Training and validation loss over steps, from the run's own log."""
    found: dict[str, list[list[float]]] = {"train": [], "validation": []}
    for entry in read(folder / "log.jsonl"):
        if "loss" in entry:
            found["train"].append([float(entry["step"]), float(entry["loss"])])
        elif "validation" in entry:
            found["validation"].append([float(entry["step"]), float(entry["validation"]["loss"])])
    return found


def compare(run: Run) -> dict[str, Any]:
    """Untuned and tuned beside what knows nothing: open loop on held-out recordings, closed loop where there is one."""
    own = run.config.data is not None
    tuned_hash = run.result("train")["hash"]
    untuned = _untuned(run)
    inputs = {
        "tuned": tuned_hash,
        "untuned": hash_of(untuned),
        "dataset": run.result("prepare")["hash"],
        "seed": run.config.seed,
        "episodes": 0 if own else run.config.episode_count,
        "samples": run.config.open_loop_samples,
        "setup": run.setup,
    }

    def work() -> dict[str, Any]:
        policies = [
            ActorSpec("tuned", source=str(run.bundle("tuned"))),
            ActorSpec("untuned", source=str(untuned)),
        ]
        run.journal.now.plan({"compare": 1.0} if own else COMPARING)
        result = compare_all(
            policies,
            reference="tuned",
            out=run.evaluation,
            dataset=Dataset.open(run.dataset),
            baselines=BASELINES,
            ablate=("tuned",),
            episodes=run.config.episode_count,
            samples=run.config.open_loop_samples,
            seed=run.config.seed,
            workers=run.workers,
            setup=None if own else run.setup,
            progress=run.journal.now.part("compare"),
        )
        reused = {k: v for k, v in result.reused.items() if v}
        if reused:
            run.journal.say(f"reused finished episodes: {reused}")
        outcome: dict[str, Any] = plain(result)
        if not own:
            outcome["outcomes"] = {n: {e.scene: e.success for e in rows} for n, rows in result.episodes.items()}
            outcome["films"] = films(run, outcome["outcomes"])
        run.journal.progress.say(str(result))
        return outcome

    title = "Compare with the untuned model and the baselines"
    return run.journal.step("compare", title, inputs, work)


def films(run: Run, outcomes: dict[str, dict[int, bool]]) -> list[dict[str, Any]]:
    """One scene of each task, the tuned and the untuned model side by side, chosen by rule.

    Of each task the first scene in which only the tuned model succeeds; then the first in which it fails: the report
    shows both.
    """
    from athena_vla.demo.report_images import episode_frames, save_animation
    from athena_vla.evaluate.film import make_camera_man
    from athena_vla.evaluate.rollout import Job
    from athena_vla.sim.tasks import sample_scene

    sources = {"tuned": run.bundle("tuned"), "untuned": _untuned(run)}
    by_family: dict[str, int] = {}
    failed: list[int] = []
    for scene in sorted(outcomes["tuned"]):
        family = sample_scene(scene, run.setup.split).goal.family
        if outcomes["tuned"][scene] and not outcomes["untuned"][scene]:
            by_family.setdefault(family, scene)
        elif not outcomes["tuned"][scene]:
            failed.append(scene)
    order = [f for f in ("touch", "point", "push", "look", "raise", "lift", "squat") if f in by_family]
    chosen = [by_family[f] for f in order[: run.config.film_count]] + failed[:1]
    jobs = [Job(ActorSpec(n, source=str(s)), scene) for n, s in sources.items() for scene in chosen]
    shot = {}
    for number, taken in run_jobs(make_camera_man, run.setup, jobs, workers=run.workers, error=EvaluationError):
        shot[jobs[number].actor.name, jobs[number].scene] = taken
        run.journal.now(len(shot), len(jobs), FILMING)
    shown = []
    for number in chosen:
        scene = sample_scene(number, run.setup.split)
        length = max(len(shot[n, number].outside) for n in sources)
        entry: dict[str, Any] = {"scene": number, "task": scene.goal.family, "instruction": scene.instruction}
        for name in sources:
            taken = shot[name, number]
            frames = episode_frames(taken, length)
            saved = save_animation(frames, taken.fps, run.media, f"scene-{number}-{name}")
            entry[name] = {**saved, "success": taken.success, "seconds": (len(taken.outside) - 1) / taken.fps}
        shown.append(entry)
    return shown


def recorded_safety(run: Run) -> dict[str, Any]:
    """Without a simulator: chunks from recorded poses through the filter, the policy's and some that jump at random."""
    inputs = {"tuned": run.result("train")["hash"], "dataset": run.result("prepare")["hash"], "poses": RECORDED_POSES}

    def work() -> dict[str, Any]:
        from athena_vla.evaluate.baselines import Hostile
        from athena_vla.evaluate.recorded_poses import follow
        from athena_vla.evaluate.summary import summarise
        from athena_vla.policy import Policy

        dataset = Dataset.open(run.dataset)
        held_out = dataset.validation if len(dataset.validation) else dataset.train
        picks = held_out[np.linspace(0, len(held_out) - 1, min(RECORDED_POSES, len(held_out))).round().astype(int)]
        samples = [dataset[int(i)] for i in picks]
        policy = Policy.load(run.bundle("tuned"))
        rows = {
            name: summarise(follow(name, actor, samples, dataset.robot))
            for name, actor in (("tuned", policy), ("hostile", Hostile(dataset.robot)))
        }
        run.journal.say(
            f"{rows['tuned'].commands:,} commands from {len(samples)} recorded poses, {rows['tuned'].violations} "
            f"beyond a limit; random jumps: {rows['hostile'].commands:,}, {rows['hostile'].violations} beyond a limit"
        )
        return {
            "filtered": {"tuned": rows["tuned"].to_dict()},
            "hostile": rows["hostile"].to_dict(),
            "not_called_safe": dataset.robot.not_called_safe,
        }

    return run.journal.step("safety", "Provoke the safety filter", inputs, work)


def safety(run: Run) -> dict[str, Any]:
    """Every command of every actor goes through the filter; one that jumps at random shows that it matters."""
    inputs = {"compare": run.journal.steps["compare"].fingerprint, "seed": run.config.seed}

    def work() -> dict[str, Any]:
        from athena_vla.evaluate.closedloop import ClosedLoopConfig, closed_loop

        count = min(HOSTILE_SCENES, run.config.episode_count)
        config = ClosedLoopConfig(
            out=run.evaluation / "hostile",
            episodes=count,
            seed=run.config.seed,
            workers=run.workers,
            setup=dataclasses.replace(run.setup, duration=3.0),
        )
        hostile = closed_loop([ActorSpec("hostile", "hostile")], config, run.journal.now).actors["hostile"]
        run.journal.say(
            f"{hostile.commands:,} commands towards random jumps of up to three times the range: {hostile.touched:,} "
            f"changed by the filter, {hostile.violations} beyond a limit behind it"
        )
        return {"hostile": hostile.to_dict()}

    return run.journal.step("safety", "Provoke the safety filter", inputs, work)


def _untuned(run: Run) -> Path:
    """The base itself, or bound to the robot of the recordings where it was made for another one."""
    base = open_base(run.config.model)
    dataset = Dataset.open(run.dataset)
    if isinstance(base, Bundle) and base.robot.hash == dataset.robot.hash:
        return Path(run.config.model)
    bound = run.bundle("untuned")
    if not (bound / "manifest.json").is_file() or Bundle.open(bound).manifest.dataset_hash != dataset.hash:
        bind_base(base, dataset, bound, run.config.seed)
    return bound
