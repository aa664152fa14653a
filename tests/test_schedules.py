"""Schedules: exact end points, never falling, a function of the step alone, and what they refuse."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ganprune as gp
from ganprune.dynamic import Geometric, OneShot, Piecewise, Schedule, get_schedule
from ganprune.dynamic.schedules import geometric

sparsities = st.floats(0, 0.999)
steps = st.integers(0, 60)


@st.composite
def schedules(draw):
    """A schedule of any kind, with ends within some 200 steps."""
    low, high = sorted((draw(sparsities), draw(sparsities)))
    start = draw(steps)
    kind = draw(st.sampled_from(["cubic", "one-shot", "geometric", "piecewise"]))
    if kind == "cubic":
        return gp.Cubic(high, start=start, end=start + draw(st.integers(1, 60)), initial=low)
    if kind == "one-shot":
        return OneShot(high, start=start)
    if kind == "geometric":
        return Geometric(high, start=start, every=draw(st.integers(1, 9)), keep=draw(st.floats(0.05, 0.8)))
    return Piecewise(((start, low), (start + draw(st.integers(1, 60)), high)))


@given(schedules())
def test_every_schedule_is_exact_at_its_end_and_never_falls(schedule):
    values = [schedule(step) for step in range(schedule.end + 5)]
    assert values == sorted(values)
    assert set(values[: schedule.start]) <= {0.0, getattr(schedule, "initial", 0.0)}
    assert set(values[schedule.end :]) == {schedule.sparsity}
    assert values == [schedule(step) for step in range(schedule.end + 5)]
    for step in set(range(1, schedule.end + 5)) - set(schedule.changes or range(schedule.end + 1)):
        assert schedule(step) == schedule(step - 1), "it changes where it does not say so"


@given(initial=sparsities, final=sparsities, length=st.integers(2, 60))
def test_cubic_is_the_polynomial_of_its_four_boundary_conditions(initial, final, length):
    """Value at both ends, and no slope and no curvature at the last: four equations for four coefficients."""
    initial, final = sorted((initial, final))
    conditions = [[0, 0, 0, 1], [1, 1, 1, 1], [3, 2, 1, 0], [6, 2, 0, 0]]
    polynomial = np.linalg.solve(np.array(conditions, dtype=float), [initial, final, 0, 0])
    schedule = gp.Cubic(final, start=5, end=5 + length, initial=initial)
    for step in range(length + 1):
        assert schedule(5 + step) == pytest.approx(np.polyval(polynomial, step / length), abs=1e-12)


@given(rounds=st.integers(0, 25), keep=st.floats(0.1, 0.95), every=st.integers(1, 100))
def test_a_natural_sparsity_takes_its_own_number_of_rounds(rounds, keep, every):
    """1 − keepⁿ, however it was rounded on its way: printed, typed in, computed by products."""
    product = 1.0
    for _ in range(rounds):
        product *= keep
    for sparsity in {geometric(rounds, keep), min(1 - product, 1 - 2**-53), round(1 - product, 13)} - {1.0}:
        schedule = Geometric(sparsity, start=7, every=every, keep=keep)
        if 1 - sparsity > 1e-11:  # nearer to 1 the rounding of the sparsity is worth a round
            assert schedule.end == 7 + rounds * every
        assert schedule(schedule.end) == sparsity
        for number in range(rounds):
            assert schedule(7 + number * every) == pytest.approx(1 - keep**number)


@pytest.mark.parametrize(
    ("sparsity", "rounds"), [(0.2, 1), (0.36, 2), (0.488, 3), (0.5, 4), (0.5904, 4), (0.75, 7), (0.9, 11)]
)
def test_a_geometric_schedule_takes_any_sparsity(sparsity, rounds):
    schedule = Geometric(sparsity, every=100)
    assert schedule.end == 100 * rounds
    assert len(schedule.changes) == rounds
    assert [schedule(step) for step in (0, 99, schedule.end)] == [0.0, 0.0, sparsity]


def test_geometric_sparsities_stay_below_one():
    assert [geometric(number) for number in (0, 1, 2)] == pytest.approx([0, 0.2, 0.36])
    assert geometric(10_000) < 1


def test_piecewise_holds_the_last_point():
    schedule = Piecewise(((10, 0.5), (20, 0.8)))
    assert [schedule(step) for step in (0, 9, 10, 19, 20, 99)] == [0.0, 0.0, 0.5, 0.5, 0.8, 0.8]
    assert schedule == Piecewise({10: 0.5, 20: 0.8})
    assert (schedule.sparsity, schedule.start, schedule.end) == (0.8, 10, 20)


def test_schedules_are_immutable_and_print_what_they_are():
    schedule = gp.Cubic(np.float32(0.5), start=np.int64(1), end=9)
    assert repr(schedule) == "Cubic(sparsity=0.5, start=1, end=9, initial=0.0)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.end = 3


def test_a_schedule_from_words_is_that_of_its_class():
    nothing = {"keep": None, "points": None}
    assert get_schedule("cubic", sparsity=0.9, end=8, **nothing) == gp.Cubic(0.9, end=8)
    assert get_schedule("one-shot", sparsity=0.9, start=3, end=None, **nothing) == OneShot(0.9, start=3)
    assert get_schedule("geometric", sparsity=0.9, keep=0.5) == Geometric(0.9, keep=0.5)
    assert get_schedule("piecewise", points={0: 0.5}, sparsity=None) == Piecewise(((0, 0.5),))
    with pytest.raises(ValueError, match="schedule must be one of one-shot, cubic, geometric, piecewise"):
        get_schedule("linear", sparsity=0.5)
    with pytest.raises(ValueError, match="end must be given for the schedule 'cubic'"):
        get_schedule("cubic", sparsity=0.5)
    with pytest.raises(ValueError, match="keep is not used by the schedule 'cubic', got 0.8"):
        get_schedule("cubic", sparsity=0.5, end=8, keep=0.8)
    with pytest.raises(ValueError, match="sparsity is not used by the schedule 'piecewise'"):
        get_schedule("piecewise", points={0: 0.5}, sparsity=0.5)


def test_the_base_class_asks_for_a_rule():
    with pytest.raises(NotImplementedError):
        Schedule()(0)


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda: OneShot(1.0), ValueError, "sparsity"),
        (lambda: OneShot("half"), TypeError, "sparsity"),
        (lambda: OneShot(0.5, start=-1), ValueError, "start"),
        (lambda: OneShot(0.5)(-1), ValueError, "step"),
        (lambda: OneShot(0.5)(0.5), ValueError, "step"),
        (lambda: Geometric(0.5, keep=1.0), ValueError, "keep"),
        (lambda: Geometric(0.5, keep=0), ValueError, "keep"),
        (lambda: Geometric(0.5, every=0), ValueError, "every"),
        (lambda: geometric(-1), ValueError, "rounds"),
        (lambda: gp.Cubic(0.5, start=5, end=5), ValueError, "end"),
        (lambda: gp.Cubic(0.5, end=5.5), ValueError, "end"),
        (lambda: gp.Cubic(0.2, end=5, initial=0.3), ValueError, "sparsity must be at least initial"),
        (lambda: gp.Cubic(float("nan"), end=5), ValueError, "sparsity"),
        (lambda: Piecewise(()), ValueError, "points"),
        (lambda: Piecewise(0.5), TypeError, "points"),
        (lambda: Piecewise((0, 0.5)), TypeError, "points"),
        (lambda: Piecewise({3: 1.5}), ValueError, "points at step 3"),
        (lambda: Piecewise({-3: 0.5}), ValueError, "points"),
        (lambda: Piecewise(((5, 0.1), (5, 0.2))), ValueError, "points must rise"),
        (lambda: Piecewise(((0, 0.5), (5, 0.2))), ValueError, "points must rise"),
    ],
)
def test_refused_when_it_is_made(call, error, argument):
    with pytest.raises(error, match=f"^{argument}"):
        call()
