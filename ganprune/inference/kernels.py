"""The sparse kernels: one compiled function walks over the tables of a whole network."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding
from numba import njit

from ganprune.inference.lanes import LANES, gather

_features = binding.get_host_cpu_features()
WIDE = 8
"""The positions of a table are padded to a multiple of this."""
PIXELS = 8 if _features.get("avx512f") else 4
"""Pixels computed at once: with what they are multiplied by, they should fill the processor's registers."""
_many, _few, _one = gather(PIXELS, 1), gather(max(1, PIXELS // 2), 1), gather(1, 4)
_HALF = max(1, PIXELS // 2)


@njit(nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _tanh(x: Any) -> Any:
    """tanh x from Lambert's continued fraction of tanh (x / 4), doubled twice; within 3e-7 for every float."""
    y = np.float32(0.25) * min(max(x, np.float32(-9.0)), np.float32(9.0))
    s = y * y
    above = y * (np.float32(135135) + s * (np.float32(17325) + s * (np.float32(378) + s)))
    below = np.float32(135135) + s * (np.float32(62370) + s * (np.float32(3150) + s * np.float32(28)))
    t = above / below
    t = np.float32(2) * t / (np.float32(1) + t * t)
    return np.float32(2) * t / (np.float32(1) + t * t)


@njit(nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _curve(pixel: Any, code: Any) -> None:
    """tanh (code 1) or the logistic function (code 2) of the numbers of one pixel.

    The compiler turns a loop into vectors where its length is not known to be short: it is that of the array.
    """
    if code == 1:
        for j in range(len(pixel)):
            pixel[j] = _tanh(pixel[j])
    else:
        half = np.float32(0.5)
        for j in range(len(pixel)):
            pixel[j] = half + half * _tanh(half * pixel[j])


@njit(nogil=True, error_model="numpy")
def run_block(
    memory: Any,
    batch: Any,
    images: Any,
    begin: Any,
    inputs: Any,
    outputs: Any,
    segments: Any,
    step_in: Any,
    step_out: Any,
    starts: Any,
    bias: Any,
    to: Any,
    slopes: Any,
    offsets: Any,
    weights: Any,
) -> None:
    """Images of up to 16 latents.

    Args:
        memory: float32, 16 numbers for each pixel of each channel of each value.
        batch: latents (N, n).
        images: where images go, (N, m).
        begin: the first of the latents.
        inputs, outputs: the pixel in memory of each number of a latent, and of an image.
        segments: (S, 5) rows that share their positions: first row, end row, first position, end position, activation
            (0 for what a slope can say, 1 tanh, 2 logistic).
        step_in, step_out: of each position, in pixels.
        starts: of each row, where its weights begin; one more at the end.
        bias, to: of each row.
        slopes: of each segment: what a negative sum is multiplied by.
        offsets, weights: of each non-zero weight.
    """
    count = min(LANES, len(batch) - begin)
    for i in range(len(inputs)):
        cell = inputs[i] * LANES
        for j in range(count):
            memory[cell + j] = batch[begin + j, i]
        for j in range(count, LANES):
            memory[cell + j] = 0
    for s in range(len(segments)):
        first, last, position, stop, code = segments[s]
        slope = slopes[s]
        while position < stop:
            left = stop - position
            for r in range(first, last):
                if left > _HALF:
                    _many(memory, weights, offsets, starts[r], starts[r + 1], bias[r], slope,
                          step_in, step_out, position, to[r])  # fmt: skip
                elif left > 1:
                    _few(memory, weights, offsets, starts[r], starts[r + 1], bias[r], slope,
                         step_in, step_out, position, to[r])  # fmt: skip
                else:
                    _one(memory, weights, offsets, starts[r], starts[r + 1], bias[r], slope,
                         step_in, step_out, position, to[r])  # fmt: skip
                if code:
                    for q in range(position, min(stop, position + PIXELS)):
                        cell = (to[r] + step_out[q]) * LANES
                        _curve(memory[cell : cell + LANES], code)
            position += PIXELS if left > _HALF else _HALF
    for i in range(0, len(outputs), LANES):
        for j in range(count):
            for k in range(i, min(i + LANES, len(outputs))):
                images[begin + j, k] = memory[outputs[k] * LANES + j]
