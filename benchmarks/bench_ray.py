"""Building a set and playing scenes: one process, the local pool, Ray on this machine; and what a fleet needs.

    python benchmarks/bench_ray.py --out benchmarks/ray.json      # needs the extras sim and ray

The three places take turns, so that a busy hour burdens all of them. The part of a build that one process does alone
(statistics, findings, writing the set) is timed apart, since it is what more machines do not shorten. `predicted` holds
what the rates measured here come to for 100,000 episodes on 8 machines of 64 cores: arithmetic, never run.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from athena_vla.bench.facts import device_facts
from athena_vla.dataset.build import build
from athena_vla.dataset.build_config import BuildConfig
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.closedloop import ClosedLoopConfig, closed_loop
from athena_vla.evaluate.results import Setup
from athena_vla.jobs import Place
from athena_vla.progress import Nowhere, Progress, State
from athena_vla.sim.record import RecordConfig, record

PLACES: dict[str, tuple[int, Place]] = {"one process": (1, "here"), "two processes": (2, "here"), "Ray": (2, "ray")}
FLEET_EPISODES, MACHINES, CORES = 100_000, 8, 64


@dataclass(frozen=True)
class RayBenchConfig:
    out: Path = Path("benchmarks/ray.json")
    """Where the numbers go."""
    episodes: int = 120
    """Recorded with the embedded simulator, and built."""
    scenes: int = 16
    """Played with the shipped policy, not tuned."""
    rounds: int = 3
    """How often the places take turns."""


class Watch(Nowhere):
    """When the last episode was prepared."""

    prepared = 0.0

    def show(self, state: State) -> None:
        if state.what == "preparing episodes":
            self.prepared = time.perf_counter()


def built(source: Path, out: Path, workers: int, on: Place) -> tuple[float, float]:
    """[s] that preparing took, and what one process did alone after it."""
    shutil.rmtree(out, ignore_errors=True)
    watch, began = Watch(), time.perf_counter()
    build(BuildConfig(input=source, out=out, robot="athena", workers=workers, on=on), Progress(watch))
    return watch.prepared - began, time.perf_counter() - watch.prepared


def played(out: Path, scenes: int, workers: int, on: Place) -> float:
    """[s] of all scenes."""
    shutil.rmtree(out, ignore_errors=True)
    untuned = ActorSpec("untuned", "policy", "builtin:base")
    began = time.perf_counter()
    closed_loop(
        [untuned], ClosedLoopConfig(out=out, episodes=scenes, workers=workers, on=on, setup=Setup(robot="athena"))
    )
    return time.perf_counter() - began


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def predicted(rows: dict[str, Any], config: RayBenchConfig, read: int, written: int, sidecar: int) -> dict[str, float]:
    """Arithmetic from what was measured: shares of Ray's two cores, scaled by the cores of the fleet."""
    cores = MACHINES * CORES
    each = rows["Ray"]["preparing [s]"] * 2 / config.episodes  # [core s] per episode
    alone = statistics.median(r["one process alone [s]"] for r in rows.values()) / config.episodes
    seconds, recordings = FLEET_EPISODES * each / cores, FLEET_EPISODES * read / config.episodes / 1e9
    return {
        "episodes": FLEET_EPISODES,
        "machines": MACHINES,
        "cores each": CORES,
        "preparing [s]": round(seconds, 1),
        "one process alone [s]": round(FLEET_EPISODES * alone, 1),
        "recordings [GB]": round(recordings, 1),
        "set [GB]": round(FLEET_EPISODES * written / config.episodes / 1e9, 1),
        "meta/athena.json [GB]": round(FLEET_EPISODES * sidecar / config.episodes / 1e9, 2),
        "shared storage reads while preparing [GB/s]": round(
            FLEET_EPISODES * read / config.episodes / 1e9 / seconds, 2
        ),
        "scenes per hour": round(3600 * cores / (rows["Ray"]["scenes [s]"] * 2 / config.scenes)),
    }


def main(config: RayBenchConfig) -> None:
    """Record once, let the places take turns."""
    times: dict[str, dict[str, list[float]]] = {p: {"prepare": [], "alone": [], "scenes": []} for p in PLACES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        record(RecordConfig(out=folder / "in", episodes=config.episodes, workers=2, quiet=True))
        recording = time.perf_counter() - began
        built(folder / "in", folder / "set", *PLACES["Ray"])  # Ray starts here, outside what is timed
        for _ in range(config.rounds):
            for place, where in PLACES.items():
                prepare, alone = built(folder / "in", folder / "set", *where)
                scenes = played(folder / "scenes", config.scenes, *where)
                for key, value in (("prepare", prepare), ("alone", alone), ("scenes", scenes)):
                    times[place][key].append(value)
                print(place, f"preparing {prepare:.1f} s, alone {alone:.1f} s, scenes {scenes:.1f} s", flush=True)
        rows: dict[str, Any] = {
            place: {
                "preparing [s]": round(statistics.median(t["prepare"]), 2),
                "one process alone [s]": round(statistics.median(t["alone"]), 2),
                "scenes [s]": round(statistics.median(t["scenes"]), 2),
            }
            for place, t in times.items()
        }
        sidecar = (folder / "set/meta/athena.json").stat().st_size
        fleet = predicted(rows, config, size(folder / "in"), size(folder / "set"), sidecar)
    content = {
        "command": "python benchmarks/bench_ray.py",
        "kind": "measured_here",
        "machine": device_facts(),
        "cores": os.cpu_count(),
        "episodes": config.episodes,
        "scenes": config.scenes,
        "recording, two processes [s]": round(recording, 1),
        "places, median of rounds": rows,
        "predicted, never run": fleet,
    }
    config.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(RayBenchConfig))
