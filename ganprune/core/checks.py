"""Checks of arguments: each gives the value back, or names the argument, what came and what is allowed."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any


class ArgumentTypeError(TypeError, ValueError):
    """An argument is no number where one is needed; both a wrong type and a wrong value, as one may see it."""


def check_choice(name: str, value: Any, allowed: Iterable[Any], note: str = "") -> Any:
    """The value, which must be one of those allowed.

    Args:
        name: of the argument, in the message.
        value: what came.
        allowed: what may come.
        note: follows them in the message.

    Raises:
        ValueError: if it is none of them.
    """
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name} must be one of {', '.join(map(str, names))}{note}, got {value!r}")
    return value


def check_integer(name: str, value: Any, least: int) -> int:
    """The value as an int; whatever Python takes for an index is one, truth values are not.

    Raises:
        ValueError: if it is no integer, or less than ``least``.
    """
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or operator.index(value) < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return operator.index(value)


def check_number(name: str, value: Any, interval: str, note: str = "") -> float:
    """The value as a float.

    Args:
        name: of the argument, in the message.
        value: what came.
        interval: where it must lie, as it is written: "[0, 1)" has 0 and not 1, "(0, inf)" all that is positive.
        note: follows the interval in the message.

    Raises:
        ArgumentTypeError: if it is not a number; truth values are none.
        ValueError: if it is outside of the interval, as NaN always is.
    """
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ArgumentTypeError(f"{name} must be a number in {interval}{note}, got {value!r}")
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = float(value)
    above = low <= number if interval[0] == "[" else low < number
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below):
        raise ValueError(f"{name} must be in {interval}{note}, got {value!r}")
    return number
