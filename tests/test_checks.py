"""What the checks of arguments let through, and what they say of the rest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ganprune.core.checks import check_choice, check_integer, check_number


def test_one_of_the_names_comes_back() -> None:
    assert check_choice("loss", "hinge", ("hinge", "least-squares")) == "hinge"
    with pytest.raises(ValueError, match=r"^loss must be one of hinge, least-squares for now, got 'Hinge'$"):
        check_choice("loss", "Hinge", iter(["hinge", "least-squares"]), " for now")
    with pytest.raises(ValueError, match=r"^penalty must be one of None, r1, got \['r1'\]$"):
        check_choice("penalty", ["r1"], (None, "r1"))


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_integers_from_a_least_one_on_are_taken_whoever_made_them(value: int, least: int) -> None:
    for made in (value, np.int64(value), torch.tensor(value)):
        if value >= least:
            found = check_integer("steps", made, least)
            assert found == value
            assert type(found) is int
        else:
            with pytest.raises(ValueError, match=f"^steps must be an integer of at least {least}, got "):
                check_integer("steps", made, least)


@pytest.mark.parametrize("value", [True, 2.0, "2", None, math.nan, [2], np.float32(2)])
def test_what_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got"):
        check_integer("steps", value, 1)


@given(
    st.sampled_from([-math.inf, -1.0, 0.0, 0.1, 1.0, math.inf]),
    st.sampled_from("[("),
    st.sampled_from([-1.0, 0.0, 1.0, math.inf]),
    st.sampled_from("])"),
)
def test_an_interval_has_the_ends_that_it_says(value: float, left: str, high: float, right: str) -> None:
    interval = f"{left}-1, {high}{right}"
    inside = (value > -1 or (value == -1 and left == "[")) and (
        value < high or (value == high and right == "]")
    )
    if inside:
        assert check_number("gain", value, interval) == value
    else:
        with pytest.raises(ValueError) as error:
            check_number("gain", value, interval, " or None")
        assert str(error.value) == f"gain must be in {interval} or None, got {value!r}"


def test_what_is_no_number_is_refused() -> None:
    for value in ("0.5", None, True, [0.5], 1j):
        with pytest.raises(TypeError, match=r"^gain must be a number in \[0, 1\), got "):
            check_number("gain", value, "[0, 1)")
    with pytest.raises(ValueError, match=r"gain must be in \[-inf, inf\], got nan"):
        check_number("gain", math.nan, "[-inf, inf]")
    assert (
        check_number("gain", np.float32(0.5), "[0, 1)")
        == check_number("gain", torch.tensor(0.5), "[0, 1)")
        == 0.5
    )
