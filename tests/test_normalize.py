"""The normaliser against its inverse, its bounds, and statistics it must refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena_vla import embodiment
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.normalize import MODES, RESERVOIR_ROWS, Normalizer, NormalizerFit
from athena_vla.dataset.within_limits import within_limits
from athena_vla.errors import DatasetError, UnknownName
from recordings import clean, write

TOY = embodiment.load("toy")
DELTA = replace(TOY, joints=tuple(replace(j, mode="delta" if j.name != "finger" else "absolute") for j in TOY.joints))


def data(seed: int = 0, n: int = 200, horizon: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    states = rng.uniform(TOY.lower, TOY.upper, (n, 3))
    return states[:, None] + rng.normal(0, 0.1, (n, horizon, 3)), states


@pytest.mark.parametrize("robot", [TOY, DELTA], ids=["absolute", "delta"])
def test_minmax_decode_inverts_encode_on_its_own_data(robot):
    chunks, states = data()
    normalizer = Normalizer.fit(robot, chunks, states)
    unit = normalizer.encode(chunks, states)
    assert unit.dtype == np.float32
    assert np.abs(unit).max() <= 1.0
    assert unit.max() > 0.99
    assert unit.min() < -0.99
    assert np.allclose(normalizer.decode(unit, states), chunks, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), mode=st.sampled_from(MODES), is_delta=st.booleans())
def test_any_mode_decodes_what_was_not_clipped(seed, mode, is_delta):
    chunks, states = data(seed, n=50)
    normalizer = Normalizer.fit(DELTA if is_delta else TOY, chunks, states, mode)
    unit = normalizer.encode(chunks, states)
    inside = np.abs(unit) < 1.0
    assert np.abs(unit).max() <= 1.0
    assert np.allclose(normalizer.decode(unit, states)[inside], chunks[inside], atol=1e-5)


def test_delta_joints_are_relative_to_the_current_state_and_absolute_ones_are_not():
    chunks, states = data()
    normalizer = Normalizer.fit(DELTA, chunks, states)
    unit = np.zeros((1, 4, 3))
    moved = normalizer.decode(unit, states[:1] + 0.25) - normalizer.decode(unit, states[:1])
    assert np.allclose(moved[0, 0], [0.25, 0.25, 0.0])


def test_a_joint_that_hardly_moves_does_not_explode():
    chunks, states = data()
    chunks[..., 1] = 0.3
    states[:, 1] = 0.3
    normalizer = Normalizer.fit(TOY, chunks, states)
    assert normalizer.still == ("shoulder",)
    nudged = chunks.copy()
    nudged[..., 1] += 1e-3
    assert np.abs(normalizer.encode(nudged, states)[..., 1]).max() < 0.1
    assert np.allclose(normalizer.decode(np.zeros((1, 4, 3)), states[:1])[..., 1], 0.3)


def test_q01q99_uses_quantiles_and_meanstd_uses_moments():
    chunks, states = data(n=5000)
    q = Normalizer.fit(TOY, chunks, states, "q01q99")
    rows = chunks.reshape(-1, 3)
    assert np.allclose(q.action_low, np.quantile(rows, 0.01, axis=0), atol=1e-5)
    m = Normalizer.fit(TOY, chunks, states, "meanstd")
    assert np.allclose((m.action_high + m.action_low) / 2, rows.mean(axis=0))
    assert np.allclose((m.action_high - m.action_low) / 8, rows.std(axis=0))


def test_modes_are_per_group_and_groups_not_named_stay_minmax():
    chunks, states = data()
    normalizer = Normalizer.fit(TOY, chunks, states, {"hand": "q01q99"})
    assert normalizer.modes == ("minmax", "minmax", "q01q99")
    with pytest.raises(UnknownName, match="arm"):
        Normalizer.fit(TOY, chunks, states, {"leg": "minmax"})


def test_streaming_fit_equals_fitting_at_once():
    chunks, states = data(n=900)
    once = Normalizer.fit(TOY, chunks, states, "meanstd")
    fit = NormalizerFit(TOY, "meanstd")
    for part in np.array_split(np.arange(900), 7):
        fit.add(chunks[part], states[part])
    assert np.allclose(fit.finish().action_low, once.action_low, atol=1e-12)


def test_quantiles_from_the_reservoir_stay_close_when_rows_no_longer_fit():
    rng = np.random.default_rng(0)
    fit = NormalizerFit(TOY, "q01q99")
    for _ in range(5):
        states = rng.uniform(TOY.lower, TOY.upper, (RESERVOIR_ROWS // 2, 3))
        fit.add(states, states)
    exact = TOY.lower + 0.01 * (TOY.upper - TOY.lower)
    assert np.allclose(fit.finish().action_low, exact, atol=0.01)


def test_rows_that_are_not_valid_do_not_count():
    chunks, states = data()
    chunks[:, -1] = 50.0
    valid = np.ones(chunks.shape[:2], bool)
    valid[:, -1] = False
    fit = NormalizerFit(TOY)
    fit.add(chunks, states, valid)
    assert fit.finish().action_high.max() < 3.0


def test_dict_round_trip_is_exact_and_strict():
    chunks, states = data()
    normalizer = Normalizer.fit(DELTA, chunks, states)
    raw = json.loads(json.dumps(normalizer.to_dict()))
    again = Normalizer.from_dict(raw)
    assert again.to_dict() == normalizer.to_dict()
    assert np.array_equal(again.encode(chunks, states), normalizer.encode(chunks, states))
    with pytest.raises(UnknownName):
        Normalizer.from_dict({**raw, "extra": 1})
    with pytest.raises(DatasetError, match="lacks"):
        Normalizer.from_dict({k: v for k, v in raw.items() if k != "modes"})
    with pytest.raises(DatasetError, match="empty"):
        Normalizer.from_dict({**raw, "action_high": raw["action_low"]})


def test_another_robots_statistics_are_refused_with_a_sentence(athena):
    chunks, states = data()
    normalizer = Normalizer.fit(TOY, chunks, states)
    assert normalizer.require(TOY) is normalizer
    with pytest.raises(DatasetError, match="belong to 'toy'.*not to 'athena'"):
        normalizer.require(athena)
    with pytest.raises(DatasetError, match="changed since"):
        normalizer.require(replace(TOY, control_hz=5.0))


def test_wrong_shapes_and_values_are_refused():
    chunks, states = data()
    normalizer = Normalizer.fit(TOY, chunks, states)
    with pytest.raises(DatasetError, match="chunks"):
        normalizer.encode(chunks[..., :2], states)
    with pytest.raises(DatasetError, match="state columns"):
        normalizer.encode_state(states[:, :2])
    with pytest.raises(DatasetError, match="finite"):
        Normalizer.fit(TOY, np.full((5, 4, 3), np.nan), states[:5])
    with pytest.raises(DatasetError, match="not one sample"):
        NormalizerFit(TOY).finish()


def test_no_rows_are_kept_where_no_quantile_is_asked_for():
    rows = np.random.default_rng(0).uniform(TOY.lower, TOY.upper, (500, 3))
    kept = {}
    for mode in MODES:
        fit = NormalizerFit(TOY, mode)
        fit.add(rows, rows)
        kept[mode] = fit._actions._rows.nbytes
        fit.finish()
    assert {m for m, size in kept.items() if size} == {"q01q99"}


@pytest.mark.parametrize("mode", ["minmax", "q01q99", "meanstd"])
def test_one_broken_frame_does_not_stretch_a_range(tmp_path, mode) -> None:
    """300 rad once at a joint that ends at 1.2: the range ends at the limits, and the set says so."""
    actions = clean(3).actions.copy()
    actions[20, 1] = 300.0
    write(tmp_path / "rec", *(clean(i) if i != 3 else replace(clean(3), actions=actions) for i in range(6)))
    config = BuildConfig(
        input=tmp_path / "rec", out=tmp_path / "set", robot="toy", workers=1, normalization=mode, validation=0.0
    )
    notes = [n for n in build(config).notes if n.code == "limits.clipped"]
    found = Dataset.open(tmp_path / "set").normalizer
    span = TOY.upper - TOY.lower
    slack = span * (1.0 if mode == "meanstd" else 0.05)
    assert (found.action_low >= TOY.lower - slack - 1e-9).all()
    assert (found.action_high <= TOY.upper + slack + 1e-9).all()
    assert notes == [] if mode == "q01q99" else "shoulder" in notes[0].text


def test_recordings_within_the_limits_keep_their_statistics(tmp_path) -> None:
    states = np.linspace(TOY.lower, TOY.upper, 50)
    fitted = Normalizer.fit(TOY, TOY.action_of(states), states)
    assert within_limits(fitted, TOY) == (fitted, [])
