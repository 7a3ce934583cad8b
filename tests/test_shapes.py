"""Shapes in signatures are enforced while the tests run: what does not fit is refused at the boundary."""

import importlib
from typing import Any

import pytest

torch = pytest.importorskip("torch")
jaxtyping = pytest.importorskip("jaxtyping")

from athena_vla.models.weights.packed import Packed, from_nibbles, nibbles  # noqa: E402
from athena_vla.quantize.codes import clipped, nearest  # noqa: E402
from conftest import modules_with_shapes  # noqa: E402


def test_what_fits_passes() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).reshape(2, 8)
    assert torch.equal(from_nibbles(nibbles(codes)), codes)


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param(torch.zeros(8, dtype=torch.int8), id="one axis too few"),
        pytest.param(torch.zeros(2, 8, dtype=torch.int64), id="another type of number"),
        pytest.param([[1, 2], [3, 4]], id="no tensor"),
    ],
)
def test_what_does_not_fit_a_signature_is_refused(codes: Any) -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="codes"):
        nibbles(codes)


def test_two_arguments_that_name_one_axis_have_to_agree() -> None:
    weight, moment = torch.randn(4, 64), torch.ones(32)
    assert clipped(weight, 4, 32, torch.ones(64)).codes.shape == weight.shape
    with pytest.raises(jaxtyping.TypeCheckError, match="moment"):
        clipped(weight, 4, 32, moment)
    with pytest.raises(jaxtyping.TypeCheckError, match="bits"):
        nearest(weight, 3, 32)  # pyright: ignore[reportArgumentType]


def test_the_fields_of_a_dataclass_are_checked_too() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="scales"):
        Packed(torch.zeros(2, 8, dtype=torch.int8), torch.zeros(2, 1), 8)  # float32 where fp16 belongs


def test_every_module_that_names_shapes_is_watched() -> None:
    names = modules_with_shapes()
    assert "athena_vla.models.architecture" in names
    for name in names:
        spec = importlib.import_module(name).__spec__
        assert spec is not None
        assert type(spec.loader).__module__.startswith("jaxtyping"), f"{name} was imported before the hook"


def test_arrays_are_named_by_a_class() -> None:
    """jaxtyping takes classes alone; from NumPy 2.5 on its aliases are none, and the package could not be imported."""
    from athena_vla.models.contract import Array

    assert isinstance(Array, type)
