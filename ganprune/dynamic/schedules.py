"""Schedules: pure functions from a step (or a round) to the sparsity that holds after it.

They know the step only, never how often they were called: a run that is killed and resumed, or whose
optimiser skips a step, has the sparsity that belongs to its step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.masks.mask import check_sparsity

Schedule = Callable[[int], float]
"""Step → sparsity in [0, 1)."""


_LARGEST = 1.0 - 2.0**-53  # the largest number below 1


def one_shot(step: int, *, final: float, start: int = 0) -> float:
    """0 before ``start``, ``final`` from then on."""
    check_integer("step", step, 0)
    return check_sparsity(final, "final") if step >= start else 0.0


def geometric(
    step: int, keep: float = 0.8, *, start: int = 0, every: int = 1, final: float | None = None
) -> float:
    """1 − keep^rounds: each round keeps the same share of what is left (Han et al. 2015; Frankle & Carbin
    2019).

    By default a step is a round: ``geometric(3)`` is 1 − 0.8³.

    Args:
        step: at least 0.
        keep: share kept per round, in (0, 1].
        start: the step at which round 0 begins.
        every: steps per round.
        final: never above this sparsity; None for no limit.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_integer("step", step, 0)
    check_number("keep", keep, "(0, 1]")
    check_integer("every", every, 1)
    sparsity = 1.0 - keep ** (max(0, step - start) // every)
    limit = check_sparsity(final, "final") if final is not None else _LARGEST
    return min(sparsity, limit)


def cubic(step: int, *, start: int, end: int, final: float, initial: float = 0.0) -> float:
    """final + (initial − final) (1 − p)³ with p from 0 at ``start`` to 1 at ``end``: fast at first, then
    slower.

    Zhu & Gupta 2018, "To prune, or not to prune", equation 1 (automated gradual pruning, AGP). Both end
    points are exact, and it never turns back.

    Args:
        step: at least 0; before ``start`` the sparsity is ``initial``, after ``end`` it is ``final``.
        start: first step of the ramp (the warm-up lies before).
        end: last step of the ramp, after ``start``.
        final: in [0, 1), not below ``initial``.
        initial: in [0, 1).

    Raises:
        ValueError: if an argument is out of range.
    """
    check_integer("step", step, 0)
    low, high = check_sparsity(initial, "initial"), check_sparsity(final, "final")
    if low > high:
        raise ValueError(f"final must be at least initial, {initial!r}, got {final!r}")
    if end <= start:
        raise ValueError(f"end must be after start, {start!r}, got {end!r}")
    if step <= start:
        return low
    remaining = max(0.0, 1.0 - (step - start) / (end - start))
    return max(low, high + (low - high) * remaining**3)


def piecewise(step: int, *, points: Mapping[int, float]) -> float:
    """The sparsity of the last point at or before ``step``; 0 before the first.

    Args:
        step: at least 0.
        points: step → sparsity in [0, 1).

    Raises:
        ValueError: if there is no point, or one is out of range.
    """
    check_integer("step", step, 0)
    if not points:
        raise ValueError("points must have at least one step, got none")
    checked = {at: check_sparsity(value, f"points[{at}]") for at, value in points.items()}
    reached = [at for at in checked if at <= step]
    return checked[max(reached)] if reached else 0.0


SCHEDULES: dict[str, Callable[..., float]] = {
    "one-shot": one_shot,
    "geometric": geometric,
    "cubic": cubic,
    "piecewise": piecewise,
}


def get_schedule(schedule: str | Schedule, **options: Any) -> Schedule:
    """A function of the step alone, from a name and its options, or from a function of one's own.

    ``get_schedule("cubic", start=100, end=800, final=0.9)`` gives one; so does any function
    from step to sparsity, whose values are then checked at each call.

    Raises:
        ValueError: if there is no schedule of that name, or an option is out of range.
        TypeError: if an option is missing or unknown.
    """
    if callable(schedule):
        own = partial(schedule, **options)
        return lambda step: check_sparsity(own(step), "the schedule's sparsity")
    check_choice("schedule", schedule, SCHEDULES, " or a function of the step")
    chosen = partial(SCHEDULES[schedule], **options)
    chosen(0)  # wrong options are reported here, not at some step in the middle of a run
    return chosen
