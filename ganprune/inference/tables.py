"""A program as tables of its non-zero weights: for each output channel, what to multiply and where it lies.

Every operation becomes rows: a row makes one channel, or one of its phases, at a list of positions. A transposed
convolution of stride s has s × s phases, in each of which neighbouring pixels of the output read neighbouring pixels of
the input (the sub-pixel form of Shi et al. 2016), so that it is computed as a convolution is. Walking over non-zero
weights only is the direct sparse convolution of Park et al. (2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganprune.inference.layout import Buffer, plan_layout, reads_vectors
from ganprune.inference.program import Layer, Program, Sum

GROUP = 8
"""Lists of positions are filled up to a multiple of this with copies of their last one."""
CODES = {"tanh": 1, "sigmoid": 2}
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """What the kernels walk over; the arrays are those of ``kernels.run_block``.

    Attributes:
        pixels: of the memory, 16 numbers each.
        inputs, outputs, segments, step_in, step_out, starts, bias, to, slopes, offsets, weights: as there.
    """

    pixels: int
    inputs: NDArray[np.int32]
    outputs: NDArray[np.int32]
    segments: Ints
    step_in: NDArray[np.int32]
    step_out: NDArray[np.int32]
    starts: Ints
    bias: NDArray[np.float32]
    to: NDArray[np.int32]
    slopes: NDArray[np.float32]
    offsets: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arguments of the kernel behind memory, latents and images."""
        return (
            *(self.inputs, self.outputs, self.segments, self.step_in, self.step_out, self.starts),
            *(self.bias, self.to, self.slopes, self.offsets, self.weights),
        )


def build_tables(program: Program) -> Tables:
    """The tables of a program."""
    layout, writer = plan_layout(program), _Writer()
    for number, one in enumerate(program.operations):
        out = layout.values[number + 1]
        if isinstance(one, Sum):
            sources = [layout.values[source].addresses().reshape(out.shape) for source in one.sources]
            _write_sum(writer, sources, out.addresses(), one)
            continue
        source = layout.values[one.source]
        if number in layout.staged:
            staged, up = layout.staged[number], one.upsample
            grid = source.addresses().reshape(one.input).repeat(up, 1).repeat(up, 2)
            _write_sum(writer, [grid], staged.addresses(), None)
            source = staged
        if reads_vectors(one):
            _write_vectors(writer, one, source, out)
        elif one.kind == "conv2d":
            _write_convolution(writer, one, source, out)
        else:
            _write_transposed(writer, one, source, out)
    inputs, outputs = (layout.values[at].addresses().ravel() for at in (0, -1))
    return writer.finish(layout.pixels, inputs, outputs)


class _Writer:
    """The tables so far."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Any]] = {
            name: [] for name in ("counts", "bias", "to", "offsets", "weights", "step_in", "step_out")
        }
        self.segments: list[tuple[int, ...]] = []
        self.slopes: list[float] = []
        self._rows = self._positions = 0

    def add(
        self,
        rows: Ints,
        offsets: Ints,
        weights: NDArray[np.float32],
        bias: Any,
        to: Ints,
        steps: tuple[Ints, Ints],
        then: Layer | Sum | None,
    ) -> None:
        """Adds rows that share their positions.

        Args:
            rows: of each non-zero weight, the number of its row; in any order.
            offsets: of each, what it multiplies at the first position.
            weights: their values.
            bias: one for each row, or one for all.
            to: of each row, where it writes at the first position.
            steps: of each position, how much further it reads and writes.
            then: whose activation follows; None for none.
        """
        order = np.argsort(rows, kind="stable")
        filled = [np.pad(step, (0, -len(step) % GROUP), mode="edge") for step in steps]
        added = {
            "counts": np.bincount(rows, minlength=len(to)),
            "bias": np.broadcast_to(bias, len(to)),
            "to": to,
            "offsets": offsets[order],
            "weights": weights[order],
            "step_in": filled[0],
            "step_out": filled[1],
        }
        for name, part in added.items():
            self.parts[name].append(part)
        activation = "none" if then is None else then.activation
        slope = then.slope if then is not None and activation == "leaky_relu" else float(activation != "relu")
        begin, position = self._rows, self._positions
        end = (begin + len(to), position, position + len(steps[0]))
        self.segments.append((begin, *end, CODES.get(activation, 0)))
        self.slopes.append(slope)
        self._rows, self._positions = begin + len(to), position + len(filled[0])

    def finish(self, pixels: int, inputs: Ints, outputs: Ints) -> Tables:
        """The tables as the kernels want them."""
        joined = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        small = {name: joined[name].astype(np.int32) for name in ("to", "offsets", "step_in", "step_out")}
        return Tables(
            pixels=pixels,
            inputs=inputs.astype(np.int32),
            outputs=outputs.astype(np.int32),
            segments=np.array(self.segments, np.int64),
            starts=np.concatenate([[0], np.cumsum(joined["counts"])]).astype(np.int64),
            bias=joined["bias"].astype(np.float32),
            slopes=np.array(self.slopes, np.float32),
            weights=joined["weights"].astype(np.float32),
            **small,
        )


def _weights_of(layer: Layer) -> tuple[Ints, Ints, Ints, Ints, NDArray[np.float32]]:
    """Output channel, input channel, row and column in the kernel, and value of each non-zero weight."""
    weight = layer.weight.numpy()
    found = np.nonzero(weight)
    first, second, row, column = (*found, *[np.zeros_like(found[0])] * (4 - len(found)))
    if layer.kind == "conv_transpose2d":  # (in, out of the group, …)
        group = first // (weight.shape[0] // layer.groups)
        return group * weight.shape[1] + second, first, row, column, weight[found]
    group = first // (weight.shape[0] // layer.groups)
    return first, group * weight.shape[1] + second, row, column, weight[found]


def _write_vectors(writer: _Writer, layer: Layer, source: Buffer, out: Buffer) -> None:
    """A row for each number of the output, at one position."""
    output, inputs, row, column, weights = _weights_of(layer)
    to, rows, bias = out.addresses().ravel(), output, layer.bias.numpy()
    if layer.kind == "conv_transpose2d":
        _, height, width = layer.output
        y = row * layer.dilation[0] - layer.padding[0]
        x = column * layer.dilation[1] - layer.padding[1]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        rows = ((output * height + y) * width + x)[inside]
        inputs, weights, bias = inputs[inside], weights[inside], bias.repeat(height * width)
    here = np.zeros(1, np.int64)
    writer.add(rows, source.addresses().ravel()[inputs], weights, bias, to, (here, here), layer)


def _write_convolution(writer: _Writer, layer: Layer, source: Buffer, out: Buffer) -> None:
    """A row for each output channel; neighbours in the output read a stride apart."""
    output, inputs, row, column, weights = _weights_of(layer)
    y, x = (at * d - p for at, d, p in zip((row, column), layer.dilation, layer.padding, strict=True))
    offsets = _first_pixels(source)[inputs] + y * source.padded[2] + x
    grid = np.indices(layer.output[1:]).reshape(2, -1)
    read = grid[0] * layer.stride[0] * source.padded[2] + grid[1] * layer.stride[1]
    write = grid[0] * out.padded[2] + grid[1]
    writer.add(output, offsets, weights, layer.bias.numpy(), _first_pixels(out), (read, write), layer)


def _write_transposed(writer: _Writer, layer: Layer, source: Buffer, out: Buffer) -> None:
    """A row for each output channel and phase; neighbours in the input are a stride apart in the output."""
    output, inputs, row, column, weights = _weights_of(layer)
    (up, across), (_, height, width) = layer.stride, layer.output
    for a, b in np.ndindex(min(up, height), min(across, width)):
        y = a + layer.padding[0] - row * layer.dilation[0]
        x = b + layer.padding[1] - column * layer.dilation[1]
        here = (y % up == 0) & (x % across == 0)
        offsets = _first_pixels(source)[inputs] + y // up * source.padded[2] + x // across
        grid = np.indices((-(-(height - a) // up), -(-(width - b) // across))).reshape(2, -1)
        read = grid[0] * source.padded[2] + grid[1]
        write = grid[0] * up * out.padded[2] + grid[1] * across
        to = _first_pixels(out) + a * out.padded[2] + b
        writer.add(output[here], offsets[here], weights[here], layer.bias.numpy(), to, (read, write), layer)


def _write_sum(writer: _Writer, sources: list[Ints], out: Ints, then: Sum | None) -> None:
    """Sums of values, or a copy of one: a row for each channel where all of them lie alike, else for each number."""
    grids = [grid.reshape(len(out), -1) for grid in (*sources, out)]
    read, write = grids[0] - grids[0][:, :1], grids[-1] - grids[-1][:, :1]
    alike = all((grid - grid[:, :1] == read[0]).all() for grid in grids[:-1]) and (write == write[0]).all()
    if not alike:
        grids = [grid.reshape(-1, 1) for grid in grids]
        read = write = np.zeros((1, 1), np.int64)
    rows = np.tile(np.arange(len(grids[0])), len(sources))
    offsets = np.concatenate([grid[:, 0] for grid in grids[:-1]])
    ones = np.ones(len(rows), np.float32)
    writer.add(rows, offsets, ones, 0.0, grids[-1][:, 0], (read[0], write[0]), then)


def _first_pixels(buffer: Buffer) -> Ints:
    """Where each channel's map begins, behind the border."""
    return buffer.addresses()[:, 0, 0]
