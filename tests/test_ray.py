"""Jobs on a Ray cluster of this machine's own: a killed worker costs nothing, and numbers are those of here."""

import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from athena_vla.dataset.build import build
from athena_vla.dataset.build_config import BuildConfig
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.closedloop import ClosedLoopConfig, closed_loop
from athena_vla.evaluate.results import Setup
from athena_vla.jobs import run_jobs
from fragile_jobs import fragile
from recordings import clean, write

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    # Workers import what the tests define by name.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(Path(__file__).parent), before) if p)
    yield
    importlib.import_module("ray").shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


def handler(folder: str) -> Callable[[Any], Any]:
    (Path(folder) / f"made-{os.getpid()}-{len(os.listdir(folder))}").touch()
    return fragile(folder)


def on_ray(folder: Path, jobs: list[tuple[str, int]]) -> dict[int, Any]:
    return dict(
        run_jobs(
            handler, str(folder), jobs, workers=2, place="ray", describe="scene {0[1]}".format, error=EvaluationError
        )
    )


def test_a_killed_worker_loses_nothing_and_each_job_is_answered_once(tmp_path: Path) -> None:
    jobs = [("die once" if i == 5 else "ok", i) for i in range(40)]
    assert on_ray(tmp_path, jobs) == {i: i for i in range(40)}
    assert (tmp_path / "died").exists()
    # What does jobs is made once in each worker: loading a policy for each scene would take longer than playing it.
    assert len(list(tmp_path.glob("made-*"))) == len({f.name.split("-")[1] for f in tmp_path.glob("made-*")})


def test_errors_are_sentences_that_name_the_job(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="^scene 7: no such table$"):
        on_ray(tmp_path, [("ok", 0), ("refuse", 7)])
    with pytest.raises(EvaluationError, match=r"scene 8: unexpected error(.|\n)*ZeroDivisionError"):
        on_ray(tmp_path, [("bug", 8)])
    with pytest.raises(EvaluationError, match=r"scene 9 died 4 times .*What is finished is kept"):
        on_ray(tmp_path, [("ok", 0), ("die", 9)])


def test_the_local_cluster_listens_on_loopback_only(tmp_path: Path) -> None:
    on_ray(tmp_path, [("ok", 0)])
    nodes = importlib.import_module("ray").nodes()  # not before: jobs.py decides what it listens to
    assert {node["NodeManagerAddress"] for node in nodes} == {"127.0.0.1"}


def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    code = (
        "from athena_vla.errors import DatasetError\nfrom athena_vla.jobs import calling, run_jobs\n"
        "try:\n    list(run_jobs(calling, str, [1], workers=1, place='ray', error=DatasetError))\n"
        "except DatasetError as problem:\n    print(problem)\n"
    )
    surroundings = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("The Ray cluster of RAY_ADDRESS='127.0.0.1:1' cannot be reached"), done.stderr[-500:]


def test_a_set_built_on_ray_is_the_set_built_here(tmp_path: Path) -> None:
    write(tmp_path / "in", *(clean(i) for i in range(4)))
    for place in ("here", "ray"):
        build(BuildConfig(input=tmp_path / "in", out=tmp_path / place, robot="toy", workers=1, on=place))
    digests = [
        {f.relative_to(root): hashlib.sha256(f.read_bytes()).hexdigest() for f in root.rglob("*") if f.is_file()}
        for root in (tmp_path / "here", tmp_path / "ray")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) > 4


def test_scenes_played_on_ray_are_those_played_here(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    hold = [ActorSpec("hold", "hold")]
    setup = Setup(robot="athena", duration=0.5)
    played = [
        closed_loop(hold, ClosedLoopConfig(out=tmp_path / place, episodes=3, workers=1, on=place, setup=setup)).episodes
        for place in ("here", "ray")
    ]
    here, there = ([replace(e, wall={}) for e in each["hold"]] for each in played)  # all but the clock's figures
    assert here == there
    assert len(here) == 3


def test_the_page_on_fleets_holds_the_figures_of_its_file() -> None:
    root = Path(__file__).resolve().parents[1]
    figures = json.loads((root / "benchmarks/ray.json").read_text())["predicted, never run"]
    page = (root / "docs/scale.md").read_text()
    assert "Predicted, never run" in page
    for key in ("preparing [s]", "recordings [GB]", "set [GB]", "meta/athena.json [GB]"):
        assert f"| {figures[key]:g} {'s' if key.endswith('[s]') else 'GB'} |" in page, key
    assert f"| {figures['one process alone [s]']:.0f} s |" in page
