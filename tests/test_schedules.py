"""Schedules: end points, order, purity, and what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganprune.dynamic.schedules import cubic, geometric, get_schedule, one_shot, piecewise

sparsities = st.floats(0, 0.999)


def test_one_shot_is_a_step():
    assert [one_shot(step, final=0.8, start=2) for step in range(4)] == [0.0, 0.0, 0.8, 0.8]


def test_geometric_keeps_the_same_share_each_round():
    assert geometric(0) == 0.0
    for number in range(1, 20):
        assert 1 - geometric(number) == pytest.approx(0.8**number)


def test_geometric_in_steps_with_warm_up_and_limit():
    values = [geometric(step, 0.5, start=10, every=5, final=0.7) for step in (0, 10, 14, 15, 19, 20, 1000)]
    assert values == [0.0, 0.0, 0.0, 0.5, 0.5, 0.7, 0.7]
    assert geometric(10_000) < 1.0  # a sparsity stays below 1 however long it runs


@given(initial=sparsities, rise=st.floats(0, 1), start=st.integers(0, 50), length=st.integers(1, 60))
def test_cubic_end_points_are_exact_and_it_is_monotone(initial, rise, start, length):
    final = min(0.999, initial + rise * (0.999 - initial))
    final = max(final, initial)
    values = [
        cubic(step, start=start, end=start + length, final=final, initial=initial)
        for step in range(start + length + 3)
    ]
    assert set(values[: start + 1]) == {initial}
    assert set(values[start + length :]) == {final}
    assert all(before <= after for before, after in zip(values, values[1:], strict=False))


def test_cubic_matches_the_formula_of_the_paper():
    for step in range(1, 10):
        expected = 0.9 + (0.1 - 0.9) * (1 - step / 10) ** 3
        assert cubic(step, start=0, end=10, final=0.9, initial=0.1) == pytest.approx(expected, abs=1e-12)


def test_piecewise_holds_the_last_point():
    points = {10: 0.5, 20: 0.8}
    assert [piecewise(step, points=points) for step in (0, 9, 10, 19, 20, 99)] == [
        0.0,
        0.0,
        0.5,
        0.5,
        0.8,
        0.8,
    ]


def test_a_schedule_by_name_or_by_function_depends_on_the_step_alone():
    by_name = get_schedule("cubic", start=0, end=10, final=0.9)
    assert [by_name(5) for _ in range(3)] == [cubic(5, start=0, end=10, final=0.9)] * 3
    own = get_schedule(lambda step: step / 10)
    assert own(5) == 0.5
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1.0"):
        own(10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_shot(0, final=1.0), r"final must be in \[0, 1\), got 1.0"),
        (lambda: one_shot(-1, final=0.5), "step must be an integer of at least 0, got -1"),
        (lambda: one_shot(0.5, final=0.5), "step must be an integer"),
        (lambda: geometric(1, 0.0), r"keep must be in \(0, 1\], got 0.0"),
        (lambda: geometric(1, every=0), "every must be an integer of at least 1"),
        (lambda: cubic(0, start=5, end=5, final=0.5), "end must be after start, 5, got 5"),
        (lambda: cubic(0, start=0, end=5, final=0.2, initial=0.3), "final must be at least initial"),
        (lambda: cubic(0, start=0, end=5, final=float("nan")), r"final must be in \[0, 1\), got nan"),
        (lambda: piecewise(0, points={}), "points must have at least one step"),
        (lambda: piecewise(0, points={3: 1.5}), r"points\[3\] must be in \[0, 1\), got 1.5"),
        (lambda: get_schedule("linear"), "schedule must be one of one-shot, geometric, cubic, piecewise"),
        (lambda: get_schedule("cubic", start=0, end=10, final=2), r"final must be in \[0, 1\)"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_or_unknown_options_are_reported_at_once():
    with pytest.raises(TypeError):
        get_schedule("cubic", start=0, end=10)
    with pytest.raises(TypeError, match="final must be a number"):
        one_shot(0, final="half")
