"""Constrained generation measured: a token policy that may choose any bin, and one held to the bins within reach.

    python benchmarks/bench_constrained.py --work runs/constrained     # writes benchmarks/constrained.json
    python benchmarks/bench_constrained.py --work runs/try --recordings 24 --steps 20 --episodes 4   # a quick look

A tiny policy of the token family is trained on the simulator's recordings by the ordinary stages, on the body of the
built-in base (which lacks a token output: that one is fresh). It is no good policy, and need not be one: the same
weights play the same scenes with and without the constraint, and the difference is the result.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from athena_vla import __version__
from athena_vla.bench.facts import device_facts
from athena_vla.bundle import MODEL_FILE, Bundle, open_base, writing
from athena_vla.dataset.build import build
from athena_vla.dataset.build_config import BuildConfig
from athena_vla.dataset.dataset import Dataset
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.comparison import compare_all
from athena_vla.evaluate.results import Setup
from athena_vla.finetune import FinetuneConfig, finetune
from athena_vla.finetune.finetune_config import DECODER_LINEARS
from athena_vla.models.architecture import family
from athena_vla.models.robot_sizes import Sizes
from athena_vla.models.weights.store import save_tensors
from athena_vla.policy import Policy, record_golden
from athena_vla.sim.record import RecordConfig, record

HORIZON = 2  # control steps per chunk: 46 tokens
HERE = Path(__file__).parent


def token_base(dataset: Dataset, out: Path) -> Path:
    """The built-in base's body with a fresh token output, as a bundle to fine-tune."""
    base = open_base("builtin:base")
    assert isinstance(base, Bundle)
    source: Any = base.model()
    body = dataclasses.replace(source.body_spec, text=dataclasses.replace(source.body_spec.text, output=True))
    kind: Any = family("openvla")
    robot = dataset.robot
    sizes = Sizes(horizon=HORIZON, action_dim=robot.action_dim, state_dim=robot.state_dim, cameras=1)
    torch.manual_seed(0)
    model = kind(kind.spec_on(body, sizes), source.tokenizer_files()).eval()
    missing, unexpected = model.body.load_state_dict(source.body.state_dict(), strict=False)
    assert not unexpected
    assert all("lm_head" in name for name in missing), missing
    manifest = dataclasses.replace(
        base.manifest,
        family=model.family,
        spec=model.spec.to_dict(),
        normalizer=dataset.normalizer.to_dict(),
        dataset_hash=dataset.hash,
        parent_hash=base.hash,
        deviation={},
        gates={},
        stage_info={"token_output": "fresh"},
    )
    policy = Policy.of_model(model, robot, dataset.normalizer)
    golden = record_golden(policy, [dataset[int(dataset.train[0])].observation])
    with writing(out, manifest, golden, model.tokenizer_files()) as folder:
        save_tensors(model.state_dict(), folder / MODEL_FILE)
    return out


def trained(work: Path, recordings: int, steps: int) -> tuple[Path, dict[str, Any]]:
    if not (work / "dataset").exists():
        record(RecordConfig(out=work / "recordings", episodes=recordings, quiet=True))
        build(BuildConfig(input=work / "recordings", out=work / "dataset", robot="athena", horizon=HORIZON))
    dataset = Dataset.open(work / "dataset")
    base = work / "base"
    if not base.exists():
        token_base(dataset, base)
    began = time.perf_counter()
    config = FinetuneConfig(
        model=str(base),
        data=work / "dataset",
        out=work / "tuned",
        rank=64,
        alpha=128,
        targets=(*DECODER_LINEARS, "lm_head"),
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=min(30, steps // 4),
        batch=16,
        accumulation=1,
        max_steps=steps,
        evaluate_every=steps,
        evaluate_samples=64,
        select="last",
        augment=False,
        progress=False,
    )
    if not (work / "tuned").exists():
        finetune(config)
    facts = {
        "family": "openvla",
        "horizon": HORIZON,
        "recordings": recordings,
        "steps": steps,
        "batch": 16,
        "seconds": round(time.perf_counter() - began, 1),
    }
    return work / "tuned", facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/constrained"), help="finished parts are kept here")
    parser.add_argument("--recordings", type=int, default=42)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--episodes", type=int, default=24, help="scenes, the same for both")
    parser.add_argument("--only-train", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "constrained.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle, facts = trained(arguments.work, arguments.recordings, arguments.steps)
    print(facts, flush=True)
    if arguments.only_train:
        return
    names = ("any bin", "within reach")
    result = compare_all(
        [ActorSpec(n, source=str(bundle), within_reach=n == names[1]) for n in names],
        reference=names[0],
        out=arguments.work / "evaluation",
        dataset=None,
        baselines=(),
        ablate=(),
        episodes=arguments.episodes,
        seed=0,
        workers=2,
        setup=Setup(robot="athena", replan_every=HORIZON),
    )
    print(result)
    told = json.loads(json.dumps(result.to_dict(), default=str))
    arguments.out.write_text(
        json.dumps(
            {
                "command": " ".join(["python benchmarks/bench_constrained.py", *sys.argv[1:]]),
                "what": "measured here",
                "version": __version__,
                "machine": device_facts(),
                "training": facts,
                "comparison": told,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
