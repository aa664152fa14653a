"""Schedules: which sparsity belongs to which step of training.

A schedule is a small immutable object that is called with a step. It knows the step alone, never how often it was
called, so a run that is killed and resumed has the sparsity that belongs to its step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.masks.mask import check_sparsity

_LARGEST = 1.0 - 2.0**-53  # the largest number below 1


class Schedule:
    """The base of all schedules: ``schedule(step)`` is the sparsity that belongs to a step.

    For a schedule of your own, derive from this class, set the three attributes, and write ``__call__``.

    Attributes:
        sparsity: the final one, in [0, 1); it holds from ``end`` on.
        start: the first step at which anything may be pruned.
        end: the step at which the final sparsity is reached, at least ``start``.
    """

    sparsity: float
    start: int
    end: int

    def __call__(self, step: int) -> float:
        """The sparsity in [0, 1) that belongs to a step of at least 0; it never falls."""
        raise NotImplementedError

    @property
    def changes(self) -> tuple[int, ...] | None:
        """The steps at which the sparsity changes; None if it does all the time between ``start`` and ``end``."""
        return None


@dataclass(frozen=True)
class Cubic(Schedule):
    """Rises fast at first and then ever more slowly, because the first weights are the easiest to spare.

    With p from 0 at ``start`` to 1 at ``end`` the sparsity is the cubic polynomial that begins at ``initial``, ends
    at ``sparsity``, and arrives there without slope and without curvature. These four conditions leave one:
    sparsity + (initial − sparsity) (1 − p)³ (Zhu & Gupta 2018, "To prune, or not to prune", equation 1). Both end
    points are exact.

    Attributes:
        sparsity: the final one, in [0, 1), not below ``initial``; holds after ``end``.
        start: the last step of the warm-up, at least 0.
        end: the last step of the rise, after ``start``.
        initial: the sparsity up to ``start``, in [0, 1).

    Raises:
        TypeError: if a sparsity is no number.
        ValueError: if an argument is out of range.
    """

    sparsity: float
    start: int = field(default=0, kw_only=True)
    end: int = field(kw_only=True)
    initial: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        _store(
            self,
            sparsity=check_sparsity(self.sparsity),
            initial=check_sparsity(self.initial, "initial"),
            start=check_integer("start", self.start, 0),
        )
        _store(self, end=check_integer("end", self.end, self.start + 1))
        if self.sparsity < self.initial:
            raise ValueError(f"sparsity must be at least initial, {self.initial!r}, got {self.sparsity!r}")

    def __call__(self, step: int) -> float:
        """The sparsity that belongs to a step."""
        if _checked(step) <= self.start:
            return self.initial
        remaining = max(0.0, 1.0 - (step - self.start) / (self.end - self.start))
        return max(self.initial, self.sparsity + (self.initial - self.sparsity) * remaining**3)


@dataclass(frozen=True)
class OneShot(Schedule):
    """Prunes once: 0 before ``start``, and ``sparsity`` from then on.

    Attributes:
        sparsity: in [0, 1).
        start: the step at which all is pruned, at least 0: 0 is before training, the number of steps of the run is
            after it.
        end: the same step.

    Raises:
        TypeError: if the sparsity is no number.
        ValueError: if an argument is out of range.
    """

    sparsity: float
    start: int = field(default=0, kw_only=True)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        start = check_integer("start", self.start, 0)
        _store(self, sparsity=check_sparsity(self.sparsity), start=start, end=start)

    def __call__(self, step: int) -> float:
        """The sparsity that belongs to a step."""
        return self.sparsity if _checked(step) >= self.start else 0.0

    @property
    def changes(self) -> tuple[int, ...]:
        """The one step at which it prunes."""
        return (self.start,)


@dataclass(frozen=True)
class Geometric(Schedule):
    """Prunes in rounds, each of which keeps the same share of what is left (Han et al. 2015; Frankle & Carbin 2019).

    After n rounds the sparsity is 1 − keepⁿ. The last round is the one that reaches ``sparsity``; if no number of
    rounds meets it, that round prunes the remainder only.

    Attributes:
        sparsity: the final one, in [0, 1); reached exactly.
        start: the step at which the rounds begin, at least 0; the first one ends ``every`` steps later.
        every: steps per round, at least 1.
        keep: share of the remaining weights that a round keeps, in (0, 1).
        end: the step of the last round.

    Raises:
        TypeError: if a number is expected and something else is given.
        ValueError: if an argument is out of range.
    """

    sparsity: float
    start: int = field(default=0, kw_only=True)
    every: int = field(default=100, kw_only=True)
    keep: float = field(default=0.8, kw_only=True)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        _store(
            self,
            sparsity=check_sparsity(self.sparsity),
            start=check_integer("start", self.start, 0),
            every=check_integer("every", self.every, 1),
            keep=check_number("keep", self.keep, "(0, 1)"),
        )
        rounds = math.log(1 - self.sparsity) / math.log(self.keep)
        # 0.36 = 1 − 0.8² is stored with a rounding error, which must not cost a round: no network has 10¹² weights
        natural = abs(geometric(round(rounds), self.keep) - self.sparsity) < 1e-12
        rounds = round(rounds) if natural else math.ceil(rounds)
        _store(self, end=self.start + self.every * rounds)

    def __call__(self, step: int) -> float:
        """The sparsity that belongs to a step."""
        if _checked(step) >= self.end:
            return self.sparsity
        return min(self.sparsity, geometric(max(0, step - self.start) // self.every, self.keep))

    @property
    def changes(self) -> tuple[int, ...]:
        """The steps at which rounds end."""
        return tuple(range(self.start + self.every, self.end + 1, self.every)) or (self.start,)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Holds the sparsity of the last point that was passed; 0 before the first.

    ``Piecewise(((0, 0.5), (500, 0.8)))`` prunes half of the weights before training and more after 500 steps.

    Attributes:
        points: pairs (step, sparsity), or a mapping from step to sparsity; steps rise, sparsities in [0, 1) never fall.
        sparsity: that of the last point.
        start: the step of the first point.
        end: the step of the last point.

    Raises:
        TypeError: if the points are no pairs, or a sparsity is no number.
        ValueError: if there is no point, or the points are out of range or order.
    """

    points: tuple[tuple[int, float], ...]
    sparsity: float = field(init=False)
    start: int = field(init=False)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        given: Any = self.points.items() if isinstance(self.points, Mapping) else self.points
        pairs = tuple(given) if isinstance(given, Iterable) else (given,)
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise TypeError(f"points must be pairs (step, sparsity), got {self.points!r}")
        if not pairs:
            raise ValueError("points must have at least one pair (step, sparsity), got none")
        points = tuple(
            (check_integer("points", step, 0), check_sparsity(sparsity, f"points at step {step}"))
            for step, sparsity in pairs
        )
        for (before, lower), (after, higher) in zip(points, points[1:], strict=False):
            if after <= before or higher < lower:
                raise ValueError(f"points must rise, got {(before, lower)} before {(after, higher)}")
        _store(self, points=points, sparsity=points[-1][1], start=points[0][0], end=points[-1][0])

    def __call__(self, step: int) -> float:
        """The sparsity that belongs to a step."""
        passed = [sparsity for at, sparsity in self.points if at <= _checked(step)]
        return passed[-1] if passed else 0.0

    @property
    def changes(self) -> tuple[int, ...]:
        """The steps of the points."""
        return tuple(step for step, _ in self.points)


def geometric(rounds: int, keep: float = 0.8) -> float:
    """The sparsity after some rounds that each keep the same share of what is left: 1 − keepⁿ.

    Args:
        rounds: n, at least 0.
        keep: share kept per round, in (0, 1).

    Raises:
        TypeError: if ``keep`` is no number.
        ValueError: if an argument is out of range.
    """
    share = check_number("keep", keep, "(0, 1)")
    return min(1.0 - share ** check_integer("rounds", rounds, 0), _LARGEST)


SCHEDULES: dict[str, type[Schedule]] = {
    "one-shot": OneShot,
    "cubic": Cubic,
    "geometric": Geometric,
    "piecewise": Piecewise,
}


def get_schedule(name: str, **arguments: Any) -> Schedule:
    """The schedule of that name, from arguments of which those that are None count as not given.

    ``get_schedule("cubic", sparsity=0.9, end=800, keep=None)`` is ``Cubic(0.9, end=800)``. For the command line,
    where a schedule is put together from words.

    Args:
        name: one of ``SCHEDULES``.
        arguments: of the schedule's class.

    Raises:
        TypeError: if something that must be a number is none.
        ValueError: if there is no schedule of that name, an argument is missing or is not used by it, or one is out
            of range. The message begins with the name of the argument.
    """
    chosen = SCHEDULES[check_choice("schedule", name, SCHEDULES)]
    given = {key: value for key, value in arguments.items() if value is not None}
    fields = {one.name: one for one in dataclasses.fields(chosen) if one.init}  # type: ignore[arg-type]
    for key in given:
        if key not in fields:
            raise ValueError(f"{key} is not used by the schedule {name!r}, got {given[key]!r}")
    for key, one in fields.items():
        if key not in given and one.default is dataclasses.MISSING:
            raise ValueError(f"{key} must be given for the schedule {name!r}")
    return chosen(**given)


def check_schedule(schedule: Any, steps: Iterable[int]) -> None:
    """Does nothing for a schedule that gives sparsities at these steps, none below the one before.

    Raises:
        TypeError: if it is no schedule.
        ValueError: if a value is not in [0, 1), or they fall.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule must be a schedule such as gp.Cubic(0.9, start=0, end=800), got {schedule!r}"
        )
    values = [check_sparsity(schedule(step), f"schedule at step {step}") for step in steps]
    if values != sorted(values):
        raise ValueError(f"schedule must not fall, got {values}")


def _checked(step: int) -> int:
    return check_integer("step", step, 0)


def _store(schedule: Schedule, **values: Any) -> None:
    """Writes checked values into a frozen dataclass that is just being made."""
    for name, value in values.items():
        object.__setattr__(schedule, name, value)
