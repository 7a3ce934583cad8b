"""How long the demo's steps take: seconds on one machine, from which another one's are learned while it works.

Totals of the steps were measured once, on two quiet cores, at the demo's usual size; other sizes by proportion. How a
step divides into parts is an estimate that nobody measured: it moves what is said within a step, not its end.
"""

from athena_vla.demo.demo_config import DemoConfig

PREPARING = {"check": 8.0, "annotate": 3.0, "build": 18.0}
FILMING = "films"
COMPARING = {"compare": 112.0, FILMING: 4.0}
DEPLOYING = {
    "merge": 3.0,
    "export float": 4.0,
    "quantize int8": 8.0,
    "export int8": 4.0,
    "quantize int4": 12.0,
    "export int4": 4.0,
    "errors": 7.0,
    "play": 24.0,
}
RECORD, FEATURES, TRAIN, SAFETY, BENCH, SERVE, REPORT = 59.0, 51.0, 436.0, 3.0, 15.0, 4.0, 1.0


def expected(config: DemoConfig) -> dict[str, float]:
    """[s] of each step, in order."""
    usual = DemoConfig()
    recordings = config.recording_count / usual.recording_count
    episodes = config.episode_count / usual.episode_count
    prepared = {
        "prepare": sum(PREPARING.values()) * recordings,
        "train": FEATURES * recordings + TRAIN * config.training_steps / usual.training_steps,
    }
    if config.data is not None:
        return {
            **prepared,
            "compare": sum(COMPARING.values()) / 4,
            "safety": SAFETY,
            "deploy": sum(DEPLOYING.values()) - DEPLOYING["play"],
            "bench": BENCH,
            "report": REPORT,
        }
    return {
        "record": RECORD * recordings,
        **prepared,
        "compare": sum(COMPARING.values()) * episodes,
        "safety": SAFETY,
        "deploy": sum(DEPLOYING.values()) + DEPLOYING["play"] * (episodes - 1.0),
        "bench": BENCH,
        "serve": SERVE,
        "report": REPORT,
    }
