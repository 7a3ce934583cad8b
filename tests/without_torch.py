"""Run by tests/test_without_torch.py in a process of its own, where torch, transformers and peft cannot be imported.

    python without_torch.py BUNDLE ANSWERS_OUT

Acts, serves over loopback, benches, and refuses to be held up by any of the three.
"""

import importlib.abc
import json
import sys
from collections.abc import Sequence
from types import ModuleType

FORBIDDEN = ("torch", "transformers", "peft")


class Refuse(importlib.abc.MetaPathFinder):
    """The packages as if they were not installed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name.split(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def main(path: str, out: str) -> None:
    sys.meta_path.insert(0, Refuse())
    import numpy as np

    from athena_vla.policy import replay
    from athena_vla.serve import open_policy

    policy, _ = open_policy(path, device="cpu")
    from athena_vla.bundle import Bundle

    bundle = Bundle.open(path)
    frames = bundle.golden.observations
    chunks = policy.chunks(frames)
    replayed = replay(policy, bundle.golden)
    record = {
        "replay_max_rad": replayed["max_rad"],
        "taken": policy.engine.taken.to_dict(),
    }
    from athena_vla.bench import BenchConfig, bench
    from athena_vla.bench.benchmarking import BenchResult
    from athena_vla.wire.client import RemotePolicy
    from athena_vla.wire.server import PolicyServer, background

    with (
        background(PolicyServer(policy, policy.robot)) as server,
        RemotePolicy(server.address, policy.robot) as remote,
    ):
        served = np.stack([remote.act(f).positions for f in frames])
    timed = bench(BenchConfig(bundle=bundle.path, warmup=10, runs=100, device="cpu"))
    assert isinstance(timed, BenchResult)
    record["bench_action_ms"] = timed.summary()["action_ms"]
    np.savez(out, chunks=chunks, served=served)
    record["imported"] = [name for name in FORBIDDEN if name in sys.modules]
    print(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
