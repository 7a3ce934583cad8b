"""Sweeps: every row is the stage with other fields; the table says what it cost, and bad rows are refused at once."""

import dataclasses
import json

import pytest

from athena_vla import sweep as module
from athena_vla.dataset.dataset import BuildConfig, build
from athena_vla.errors import AthenaError
from athena_vla.finetune import PRESETS
from athena_vla.finetune.finetune_config import parse_changes
from athena_vla.sweep import SweepConfig, SweepRow, rows_of, sweep
from recordings import clean, write
from small_bundles import write_base


def test_rows_are_presets_times_variants():
    rows = rows_of(SweepConfig(presets=("demo", "humanoid_efficient"), variants=("rank=4", "rank=8,dora=true")))
    assert list(rows) == [
        "demo rank=4",
        "demo rank=8,dora=true",
        "humanoid_efficient rank=4",
        "humanoid_efficient rank=8,dora=true",
    ]
    assert rows["demo rank=8,dora=true"] == dataclasses.replace(
        PRESETS["demo"], rank=8, dora=True, data=rows["demo rank=4"].data
    )


def test_variants_are_typed_as_the_fields_are():
    assert parse_changes("rank=8,dora=true,alpha=4,targets=q_proj+v_proj,state-noise=0.1") == {
        "rank": 8,
        "dora": True,
        "alpha": 4.0,
        "targets": ("q_proj", "v_proj"),
        "state_noise": 0.1,
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"presets": ("best",)}, "There is no preset 'best'. Known: humanoid_default"),
        ({"presets": ()}, "at least one preset"),
        ({"variants": ("size=3",)}, "There is no field of fine-tuning 'size'"),
        ({"variants": ("rank=many",)}, "rank takes a int"),
        ({"variants": ("dora=perhaps",)}, "dora takes a bool"),
        ({"variants": ("rank=0",)}, "--rank must be at least 1"),
    ],
)
def test_rows_that_cannot_run_are_refused_before_anything_trains(change, said):
    with pytest.raises(AthenaError, match=said):
        rows_of(SweepConfig(**change))


def test_a_sweep_measures_every_row_and_reuses_what_is_done(tmp_path, toy, monkeypatch, capsys):
    write(tmp_path / "rec", *(clean(i, length=12) for i in range(4)))
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="toy", horizon=4, workers=1, validation=0.25))
    write_base(tmp_path / "base", toy)
    config = SweepConfig(
        out=tmp_path / "sweep",
        data=tmp_path / "set",
        model=str(tmp_path / "base"),
        variants=tuple(f"rank={r},batch=4,processes=1,progress=false" for r in (2, 4)),
        seeds=(0, 1),
        max_steps=2,
    )
    result = sweep(config)
    assert [len(r.mae_rad) for r in result.rows] == [2, 2]
    small, large = (r.trainable for r in result.rows)
    heads = 2 * small - large  # the adapter doubles with its rank, the heads stay
    assert 0 < heads < small < large
    assert "demo rank=2" in str(result)
    for row in result.rows:
        assert sum(row.per_joint_rad.values()) / 3 == pytest.approx(sum(row.mae_rad) / 2)
    assert all(r.peak_memory_gb > 0 and r.step_seconds > 0 for r in result.rows)
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())[0]["steps"] == 2
    assert (tmp_path / "sweep" / "sweep.md").read_text().count("|\n") == 4
    assert (tmp_path / "sweep" / "sweep.png").read_bytes()[:4] == b"\x89PNG"

    def never(run, progress):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "finetune", never)
    assert [r.mae_rad for r in sweep(config).rows] == [r.mae_rad for r in result.rows]
    assert "reusing" in capsys.readouterr().err


def test_rows_are_compared_scene_by_scene_with_the_first():
    def row(*solved):
        return SweepRow(
            name="", trainable=1, steps=1, step_seconds=1, samples_per_second=1, peak_memory_gb=1, validation_loss=(),
            mae_rad=(), per_joint_rad={}, success=None, solved=solved,
        )  # fmt: skip

    first, second, third = module.compared(
        [row((True, True, False), (True, False, False)), row((False, True, False)), row()]
    )
    assert first.against_first is None
    assert third.against_first is None
    test = second.against_first  # the second seed is not there yet: the first seed's scenes count
    assert test is not None
    assert (test.only_first, test.only_second, test.both, test.neither) == (1, 0, 1, 1)
    assert second.cells()[-1].startswith("-33.3 (")
    assert third.cells()[-1] == "-"
