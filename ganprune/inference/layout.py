"""Where each value of a program lies in memory: its channels as maps in a border of zeros, as wide as readers need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ganprune.inference.program import Layer, Program, Sum, size_of

Border = tuple[int, int, int, int]
"""Rows of zeros above and below, columns of zeros left and right."""
NO_BORDER: Border = (0, 0, 0, 0)


@dataclass(frozen=True)
class Buffer:
    """The place of one value.

    Attributes:
        base: the pixel in memory where it begins.
        shape: (C, H, W).
        border: of each channel's map.
    """

    base: int
    shape: tuple[int, int, int]
    border: Border

    @property
    def padded(self) -> tuple[int, int, int]:
        """(C, H, W) with the border."""
        channels, height, width = self.shape
        above, below, left, right = self.border
        return channels, height + above + below, width + left + right

    @property
    def end(self) -> int:
        """The pixel after the last one."""
        return self.base + size_of(self.padded)

    def addresses(self) -> NDArray[np.int64]:
        """The pixel in memory of each (channel, row, column)."""
        above, _, left, _ = self.border
        _, height, width = self.shape
        grid = self.base + np.arange(size_of(self.padded)).reshape(self.padded)
        return grid[:, above : above + height, left : left + width]


@dataclass(frozen=True)
class Layout:
    """The buffers of a program.

    Attributes:
        values: of each value; value 0 are the latents.
        staged: of what a convolution reads where that is not how its source lies, because of upsampling or of another
            shape; by the number of the operation.
        pixels: in all.
    """

    values: tuple[Buffer, ...]
    staged: dict[int, Buffer]
    pixels: int


def plan_layout(program: Program) -> Layout:
    """The buffers of a program, one behind another."""
    shapes = [_shape_in_memory(program, value) for value in range(len(program.operations) + 1)]
    borders: list[Border] = [NO_BORDER] * len(shapes)
    staged: dict[int, Border] = {}
    for number, one in enumerate(program.operations):
        if isinstance(one, Layer) and not reads_vectors(one):
            if one.upsample > 1 or one.input != shapes[one.source]:
                staged[number] = border_of(one)
            else:
                borders[one.source] = _wider(borders[one.source], border_of(one))
    _align_sums(program, shapes, borders)
    values: list[Buffer] = []
    base = 0
    for shape, border in zip(shapes, borders, strict=True):
        values.append(Buffer(base, shape, border))
        base = values[-1].end
    places: dict[int, Buffer] = {}
    for number, border in staged.items():
        layer = program.operations[number]
        assert isinstance(layer, Layer)
        channels, height, width = layer.input
        places[number] = Buffer(base, (channels, height * layer.upsample, width * layer.upsample), border)
        base = places[number].end
    return Layout(tuple(values), places, base)


def reads_vectors(layer: Layer) -> bool:
    """Whether each output number has weights of its own: in linear layers, and where maps of one pixel grow."""
    pixel = layer.kind == "conv_transpose2d" and layer.upsample == 1 and layer.input[1:] == (1, 1)
    return layer.kind == "linear" or pixel


def border_of(layer: Layer) -> Border:
    """The border of zeros that a convolution looks at."""
    sides = []
    for axis in (0, 1):
        size, outputs = layer.input[1 + axis] * layer.upsample, layer.output[1 + axis]
        taps = np.arange(layer.weight.shape[2 + axis]) * layer.dilation[axis] - layer.padding[axis]
        stride = layer.stride[axis]
        if layer.kind == "conv2d":
            first, last = int(taps.min()), int(taps.max()) + (outputs - 1) * stride
        else:
            first, last = 0, size - 1
            for phase in range(min(stride, outputs)):
                reached = (phase - taps)[(phase - taps) % stride == 0] // stride
                if len(reached):
                    count = -(-(outputs - phase) // stride)
                    first, last = min(first, int(reached.min())), max(last, int(reached.max()) + count - 1)
        sides += [max(0, -first), max(0, last - size + 1)]
    return sides[0], sides[1], sides[2], sides[3]


def as_maps(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Any shape as (C, H, W): features are maps of one pixel."""
    channels, *sides = shape or (1,)
    return (channels, sides[0], sides[1]) if len(sides) == 2 else (channels, size_of(tuple(sides)), 1)


def _shape_in_memory(program: Program, value: int) -> tuple[int, int, int]:
    """How a value lies: as it was made, or as its first reader wants it where every number is made by itself."""
    maker = program.operations[value - 1] if value else None
    readers = (one for one in program.operations if isinstance(one, Layer) and one.source == value)
    wanted = (as_maps(one.input) for one in readers if not reads_vectors(one) and one.upsample == 1)
    if maker is None or (isinstance(maker, Layer) and reads_vectors(maker)):
        return next(wanted, as_maps(program.shape_of(value)))
    return as_maps(maker.output)


def _wider(one: Border, other: Border) -> Border:
    return (max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))


def _align_sums(program: Program, shapes: list[tuple[int, int, int]], borders: list[Border]) -> None:
    """Gives values that are added the same border, so that one table of positions serves both."""
    for one in [*program.operations, *reversed(program.operations)]:
        if isinstance(one, Sum):
            first, second = one.sources
            if shapes[first] == shapes[second]:
                borders[first] = borders[second] = _wider(borders[first], borders[second])
