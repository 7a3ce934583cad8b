"""One table over trainings. Oracle: run folders written here as a training leaves them."""

import json
from pathlib import Path

import pytest

from athena_vla.errors import TrainingError
from athena_vla.evaluate.runs import RunsConfig, runs
from athena_vla.finetune.finetune_config import FinetuneConfig


def training(folder: Path, losses: list[float], validation: dict[int, float], *, finished: bool) -> None:
    folder.mkdir(parents=True)
    config = FinetuneConfig(data=Path("sets/cups"), out=folder.with_suffix(""), max_steps=40)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    lines = [{"step": 10 * (i + 1), "loss": loss, "samples_per_second": 5.0} for i, loss in enumerate(losses)]
    lines += [{"step": s, "validation": {"loss": v, "mae_rad": v / 10}} for s, v in validation.items()]
    lines += [{"note": "Crops and colours are on."}]
    (folder / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if finished:
        (folder / "result.json").write_text(json.dumps({"steps": 40, "chosen_step": 30, "seconds": 90.0}))


def test_the_best_run_stands_first(tmp_path: Path) -> None:
    training(tmp_path / "a.run", [0.9, 0.5, 0.4, 0.3], {20: 0.6, 40: 0.5}, finished=True)
    training(tmp_path / "sweep/b.run", [0.9, 0.2], {20: 0.35}, finished=False)
    training(tmp_path / "c.run", [], {}, finished=False)
    found = runs(RunsConfig(input=tmp_path))
    assert [(r.name, r.state, r.step, r.best_step) for r in found.runs] == [
        ("sweep/b", "interrupted", 20, 20),
        ("a", "finished", 40, 40),
        ("c", "interrupted", 0, None),
    ]
    best, second, _ = found.runs
    assert (best.loss, best.validation, best.error, best.seconds) == (0.2, 0.35, pytest.approx(0.035), None)
    assert (second.seconds, second.max_steps, second.data) == (90.0, 40, "cups")
    lines = str(found).splitlines()
    assert len(lines) >= 4
    assert "35.0" in next(line for line in lines if "sweep/b" in line)
    assert runs(RunsConfig(input=tmp_path / "a.run")).runs[0].name == "a"


def test_what_is_no_training_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no folder"):
        runs(RunsConfig(input=tmp_path / "nowhere"))
    with pytest.raises(TrainingError, match="No training"):
        runs(RunsConfig(input=tmp_path))
    training(tmp_path / "a.run", [0.9], {}, finished=False)
    training(tmp_path / "b.run", [0.9], {}, finished=False)
    (tmp_path / "b.run/log.jsonl").write_text('{"step": 1, "lo')
    found = runs(RunsConfig(input=tmp_path))
    assert [r.name for r in found.runs] == ["a"]
    assert len(found.unreadable) == 1
    assert "b.run" in str(found)


def test_where_scenes_were_played_the_best_step_is_the_one_that_solved_most(tmp_path: Path) -> None:
    training(tmp_path / "a.run", [0.9], {}, finished=False)
    found = {10: (0.3, 2), 20: (0.5, 4), 30: (0.4, 4)}  # step -> loss, scenes solved of six
    with (tmp_path / "a.run/log.jsonl").open("a") as file:
        for step, (loss, solved) in found.items():
            success = {"solved": solved, "scenes": 6}
            measured = {"loss": loss, "mae_rad": 0.01, "success": success}
            file.write(json.dumps({"step": step, "validation": measured}) + "\n")
    (run,) = runs(RunsConfig(input=tmp_path)).runs
    assert (run.best_step, run.validation) == (30, 0.4)
