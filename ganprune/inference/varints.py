"""Whole numbers in as few bytes as they need: unsigned LEB128, seven bits a byte, the lowest first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LONGEST = 5
"""Bytes of the largest number that is read: 35 bits."""


def encode_varints(numbers: NDArray[np.int64]) -> bytes:
    """The bytes of whole numbers of at least 0, one after another; every byte but a number's last one has bit 7."""
    lengths = np.ones(len(numbers), np.int64)
    for count in range(1, LONGEST):
        lengths += numbers >= 1 << 7 * count
    ends = np.cumsum(lengths)
    found = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(LONGEST):
        long = lengths > place
        more = (lengths[long] > place + 1).astype(np.int64) << 7
        found[(ends - lengths)[long] + place] = ((numbers[long] >> 7 * place) & 0x7F) | more
    return found.tobytes()


def decode_varints(data: bytes) -> NDArray[np.int64]:
    """The numbers that :func:`encode_varints` wrote.

    Raises:
        ValueError: if the last number is cut off, or one is longer than :data:`LONGEST` bytes.
    """
    given = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(given < 0x80)
    if len(given) and (not len(ends) or ends[-1] != len(given) - 1):
        raise ValueError("the last number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    if len(ends) and int((ends - starts).max()) >= LONGEST:
        raise ValueError(f"a number is longer than {LONGEST} bytes")
    numbers = np.zeros(len(ends), np.int64)
    for place in range(LONGEST):
        long = starts + place <= ends
        numbers[long] |= (given[starts[long] + place].astype(np.int64) & 0x7F) << 7 * place
    return numbers
