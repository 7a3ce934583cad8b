"""Action tokens: inverse within half a bin, edges, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena_vla.errors import InvalidObservation
from athena_vla.models.action_tokens import ActionTokens

TOKENS = ActionTokens()


@given(st.floats(-1, 1, allow_nan=False))
def test_round_trip_is_within_half_a_bin(value: float) -> None:
    ids = TOKENS.encode(np.array([value]))
    assert 31744 <= ids[0] <= 31999
    assert abs(TOKENS.decode(ids)[0] - value) <= 1 / 255 + 1e-12


@given(st.integers(31744, 31999))
def test_ids_survive_but_for_the_one_of_exactly_plus_one(number: int) -> None:
    back = TOKENS.encode(TOKENS.decode(np.array([number])))[0]
    assert back == max(number, 31745)


def test_edges() -> None:
    np.testing.assert_array_equal(
        TOKENS.encode(np.array([-1.0, 0.0, 1.0, -9.0, 9.0])), [31999, 31872, 31744, 31999, 31744]
    )
    assert TOKENS.decode(np.array([31872]))[0] == 0.0
    assert TOKENS.decode(np.array([31744]))[0] == TOKENS.decode(np.array([31745]))[0]
    assert TOKENS.encode(np.array([np.inf, -np.inf])).tolist() == [31744, 31999]


def test_order_is_kept() -> None:
    values = np.linspace(-1, 1, 1001)
    assert (np.diff(TOKENS.encode(values)) <= 0).all()


def test_nan_is_refused_unless_compatibility_is_asked_for() -> None:
    with pytest.raises(InvalidObservation, match="1 of 3 action values are NaN"):
        TOKENS.encode(np.array([0.0, np.nan, 1.0]))
    assert TOKENS.encode_compatible(np.array([np.nan]))[0] == 31744


def test_any_shape_and_any_vocabulary() -> None:
    small = ActionTokens(1536)
    unit = np.random.default_rng(0).uniform(-1, 1, (5, 8, 23))
    ids = small.encode(unit)
    assert ids.shape == unit.shape
    assert ids.min() >= small.first == 1280
    assert ids.max() < 1536
    assert np.abs(small.decode(ids) - unit).max() <= 1 / 255 + 1e-12


def test_every_bin_decodes_to_its_value() -> None:
    values = TOKENS.values
    assert values.shape == (256,)
    assert (np.diff(values) >= 0).all()
    ids = np.array(TOKENS.ids)[::-1]  # ids count down as values go up
    np.testing.assert_array_equal(TOKENS.decode(ids), values)
