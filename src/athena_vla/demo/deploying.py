"""Steps 6 to 8: merge, quantise, export; benchmark and predict; serve over a socket, behind the safety filter."""

import dataclasses
from pathlib import Path
from typing import Any

from athena_vla import files
from athena_vla.bench import BenchConfig, BenchResult, bench
from athena_vla.bundle import Bundle
from athena_vla.dataset.dataset import Dataset
from athena_vla.demo.expected import DEPLOYING
from athena_vla.demo.journal import plain
from athena_vla.demo.run import Run, quiet_threads
from athena_vla.engines.deployment_config import deployment_config
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.openloop import open_loop, spread
from athena_vla.evaluate.summary import compare_pair
from athena_vla.export import ExportConfig, GateConfig, check, export
from athena_vla.gate import failed
from athena_vla.merge import MergeConfig, merge
from athena_vla.plan import PlanConfig, plan
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig, quantize

DEVICE = "jetson-orin-nx-16gb"
PRECISIONS = ("int8", "int4")


def deploy(run: Run) -> dict[str, Any]:
    """Merge, quantise to 8 and 4 bits, export all three to ONNX; measure what it costs in radians and in success."""
    own = run.config.data is not None
    inputs = {
        "tuned": run.result("train")["hash"],
        "dataset": run.result("prepare")["hash"],
        "episodes": 0 if own else run.config.episode_count,
        "seed": run.config.seed,
        "setup": run.setup,
        "quick": run.config.quick,
    }

    def work() -> dict[str, Any]:
        now = run.journal.now
        now.plan({k: v for k, v in DEPLOYING.items() if not (own and k == "play")})
        merged = merge(MergeConfig(run.bundle("tuned"), run.bundle("merged"), overwrite=True), now.part("merge"))
        run.journal.say(str(merged))
        outcome: dict[str, Any] = {"merge": plain(merged), "export": {}, "quantize": {}}
        for name in ("float", *PRECISIONS):
            source = run.bundle("merged")
            if name != "float":
                source = run.bundle(f"{name}-torch")
                made = quantize(
                    QuantizeConfig(
                        run.bundle("merged"),
                        source,
                        bits=8 if name == "int8" else 4,
                        data=run.dataset,
                        seed=run.config.seed,
                        frames=24 if run.config.quick else 64,
                        overwrite=True,
                    ),
                    now.part(f"quantize {name}"),
                )
                run.journal.say(str(made))
                outcome["quantize"][name] = plain(made)
            exported = export(ExportConfig(source, run.bundle(name), overwrite=True), now.part(f"export {name}"))
            run.journal.say(str(exported).splitlines()[0])
            outcome["export"][name] = {**plain(exported), "hash": Bundle.open(run.bundle(name)).hash}
        outcome["action_error"] = action_errors(run)
        if not own:
            outcome.update(play(run))
        outcome["gates"] = {name: gates(run, name, outcome) for name in PRECISIONS}
        return outcome

    outputs = tuple(f"bundles/{n}" for n in ("merged", "float", *PRECISIONS))
    return run.journal.step("deploy", "Merge, quantise and export, and measure what it costs", inputs, work, outputs)


def gates(run: Run, name: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """All gates of one exported bundle in one report, the closed loop that was just played among them."""
    paired = None
    if "paired" in outcome:
        paired = run.evaluation / f"paired-{name}.json"
        files.write_json(paired, outcome["paired"][name], sort_keys=True)
    frames = 24 if run.config.quick else 64
    report = check(
        GateConfig(run.bundle(name), data=run.dataset, frames=frames, closed_loop=paired, seed=run.config.seed)
    )
    missed = [g.name for g in failed(report.gates.values())]
    run.journal.say(
        f"{name}: {len(report.gates)} gates, " + (f"FAILED {', '.join(missed)}: not served" if missed else "all passed")
    )
    return plain(report)


def action_errors(run: Run) -> dict[str, Any]:
    """[rad] difference of each exported model's chunks from the float model's, on held-out recordings."""
    dataset = Dataset.open(run.dataset)
    indices = dataset.validation if len(dataset.validation) else dataset.train
    samples = [dataset[int(indices[i])] for i in spread(len(indices), run.config.open_loop_samples)]
    with quiet_threads():
        reference = Policy.load(run.bundle("merged"))
        # The float model's answer takes the place of the recording, so that the table shows what precision costs.
        answered = [
            dataclasses.replace(s, chunk=reference.act(dataclasses.replace(s.observation)).positions) for s in samples
        ]
        actors = {name: Policy.load(run.bundle(name)) for name in ("float", *PRECISIONS)}
        table = open_loop(
            actors, answered, dataset.robot, seed=run.config.seed, progress=run.journal.now.part("errors")
        )
    return {
        name: {
            "mean_rad": errors.mae.value,
            "p95_rad": errors.p95.value,
            "max_rad": errors.maximum,
            "per_joint_p95": errors.per_joint_p95,
        }
        for name, errors in table.actors.items()
    }


def play(run: Run) -> dict[str, Any]:
    """Closed loop of the exported models on the scenes of the comparison, and paired tests against the tuned one."""
    from athena_vla.evaluate.closedloop import ClosedLoopConfig, closed_loop

    specs = [ActorSpec(n, source=str(run.bundle(n)), backend="onnxruntime") for n in PRECISIONS]
    config = ClosedLoopConfig(
        out=run.evaluation / "episodes",
        episodes=run.config.episode_count,
        seed=run.config.seed,
        workers=run.workers,
        setup=run.setup,
    )
    result = closed_loop(specs, config, run.journal.now.part("play"))
    tuned = {int(k): v for k, v in run.result("compare")["outcomes"]["tuned"].items()}
    paired = {n: compare_pair(result.successes(n), tuned).to_dict() for n in PRECISIONS}
    for name in PRECISIONS:
        s, test = result.actors[name].success, paired[name]
        run.journal.say(
            f"{name}: {100 * s.success:.0f}% of {s.n} [{100 * s.low:.0f}, {100 * s.high:.0f}]; paired with the float "
            f"model: {test['only_first']} scenes only {name}, {test['only_second']} only float, "
            f"p of being worse {test['first_worse_p']:.3f}"
        )
    return {"closed_loop": {n: result.actors[n].to_dict() for n in PRECISIONS}, "paired": paired}


def measure(run: Run) -> dict[str, Any]:
    """Time the exported models stage by stage here, predict the full-size model on the device, write the config."""
    exported = run.result("deploy")["export"]
    inputs = {"bundles": {n: e["hash"] for n, e in exported.items()}, "device": DEVICE}

    def work() -> dict[str, Any]:
        with quiet_threads():
            records: dict[str, Any] = {}
            for name in ("float", *PRECISIONS):
                run.journal.now(len(records), 1 + len(PRECISIONS), "benchmarks")
                records[name] = _bench(run, name)
        predicted = plain(plan(PlanConfig(device=DEVICE)))
        source = Bundle.open(run.bundle("int4"))
        content = deployment_config(
            source,
            DEVICE,
            Path("bundles/int4"),
            source.manifest.stage_info,
            predicted=predicted,
            measured_here=records["int4"]["summary"],
        )
        files.write_json(run.folder / "deployment_config.json", plain(content), sort_keys=True)
        run.journal.say(
            f"measured here, int4: {records['int4']['summary']['action_ms']:.1f} ms per action chunk; predicted for "
            f"the 7B model on {predicted['prediction']['label']}: {_range(predicted)} s per chunk"
        )
        return {"records": records, "predicted": predicted}

    title = "Benchmark here, predict the device, write deployment_config.json"
    return run.journal.step("bench", title, inputs, work, ("deployment_config.json",))


def _bench(run: Run, name: str) -> dict[str, Any]:
    result = bench(BenchConfig(bundle=run.bundle(name), runs=100 if run.config.quick else 200))
    assert isinstance(result, BenchResult)
    run.journal.say(str(result).splitlines()[-2].strip())
    return {k: v for k, v in plain(result).items() if k != "samples_s"}  # raw samples are for athena bench


def _range(predicted: dict[str, Any]) -> str:
    low, high = predicted["prediction"]["action_seconds"]
    return f"{low:.2f} to {high:.2f}"


def serve(run: Run) -> dict[str, Any]:
    """One episode with the int4 policy in another process, over a socket, behind the safety filter.

    Where int4 failed a gate it is not served; the most compact bundle that passed takes its place.
    """
    from athena_vla.demo.served_run import serve_one_episode

    deployed = run.result("deploy")
    name = next((n for n in ("int4", "int8") if deployed["gates"][n]["passed"]), "float")
    inputs = {name: deployed["export"][name]["hash"], "seed": run.config.seed, "setup": run.setup}

    def work() -> dict[str, Any]:
        if name != "int4":
            run.journal.say(f"int4 did not pass its gates and is not served; {name} is")
        played = deployed["closed_loop"].get(name)
        result = serve_one_episode(run, name)
        run.journal.say(
            f"'{result['instruction']}': {'succeeded' if result['success'] else 'did not succeed'}; "
            f"{result['asked']} questions over {result['address']}, median round trip "
            f"{1000 * result['median_seconds']:.1f} ms; {result['violations']} violations"
        )
        rate = None if played is None else played["success"]["success"]
        return {**result, "bundle": name, "rate_without_socket": rate}

    return run.journal.step("serve", f"Serve the {name} policy over a socket to the simulated robot", inputs, work)
