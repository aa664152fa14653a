"""A network as a list of operations: convolutions and linear layers with nothing left to compute but them, and sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ganprune.core.errors import GanpruneError

KINDS = ("linear", "conv2d", "conv_transpose2d")
ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")


class InferenceError(GanpruneError, ValueError):
    """A network cannot be made a list of operations; the message names the layer and says what could be done."""


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution, with what comes right before and after it.

    Attributes:
        name: of the layer in the network, such as "layers.deconv1".
        kind: one of :data:`KINDS`.
        weight: float32 on the CPU, in PyTorch's order.
        bias: float32, one number for each output channel or feature.
        source: the value it reads; 0 are the latents, and operation i (from 0) makes value i + 1.
        input: the shape of one input, (n,) or (C, H, W), before the upsampling.
        output: the shape of one output, (m,) or (C, H, W).
        stride, padding, output_padding, dilation, groups: as in PyTorch; a linear layer has none.
        upsample: nearest-neighbour upsampling by this factor, before the layer.
        activation: one of :data:`ACTIVATIONS`, after the layer.
        slope: of the leaky ReLU.
    """

    name: str
    kind: str
    weight: Tensor
    bias: Tensor
    source: int
    input: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    upsample: int = 1
    activation: str = "none"
    slope: float = 0.0

    @property
    def nonzeros(self) -> int:
        """The number of weights that are not zero."""
        return int(self.weight.count_nonzero())


@dataclass(frozen=True)
class Sum:
    """Two values added, as at the end of a residual block.

    Attributes:
        name: of the part of the network that adds them.
        sources: the two values, numbered as in :class:`Layer`.
        output: the shape of either and of the sum, (n,) or (C, H, W).
        activation, slope: what follows, as in :class:`Layer`.
    """

    name: str
    sources: tuple[int, int]
    output: tuple[int, ...]
    activation: str = "none"
    slope: float = 0.0


@dataclass(frozen=True)
class Program:
    """A network in evaluation mode, with norms folded in.

    Between two operations a value may be reshaped: the reader's shape has as many numbers as the writer's.

    Attributes:
        latent: the shape of one input.
        image: the shape of one output.
        operations: what is computed, in this order; the last one makes the output.
    """

    latent: tuple[int, ...]
    image: tuple[int, ...]
    operations: tuple[Layer | Sum, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The operations that have weights."""
        return tuple(one for one in self.operations if isinstance(one, Layer))

    @property
    def nonzeros(self) -> int:
        """The number of weights that are not zero, in all layers."""
        return sum(layer.nonzeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The share of the weights that is zero, in [0, 1]."""
        return 1 - self.nonzeros / sum(layer.weight.numel() for layer in self.layers)

    def shape_of(self, value: int) -> tuple[int, ...]:
        """The shape of a value as it was made; value 0 are the latents."""
        return self.operations[value - 1].output if value else self.latent


def output_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of one output that follows from a layer's weight, input and options.

    The formulas are those of ``torch.nn.Conv2d`` and ``torch.nn.ConvTranspose2d``.
    """
    if layer.kind == "linear":
        return (layer.weight.shape[0],)
    transposed = layer.kind == "conv_transpose2d"
    channels = layer.weight.shape[1] * layer.groups if transposed else layer.weight.shape[0]
    sides = []
    for axis in (0, 1):
        size, kernel = layer.input[1 + axis] * layer.upsample, layer.weight.shape[2 + axis]
        span = layer.dilation[axis] * (kernel - 1) + 1
        stride, padding = layer.stride[axis], layer.padding[axis]
        if transposed:
            sides.append((size - 1) * stride - 2 * padding + span + layer.output_padding[axis])
        else:
            sides.append((size + 2 * padding - span) // stride + 1)
    return (channels, *sides)


class FoldedNetwork(nn.Module):
    """A program computed by PyTorch's dense layers, to check other ways of computing it by.

    Args:
        program: what is computed. The layers' weights become buffers.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        for number, one in enumerate(program.operations):
            if isinstance(one, Layer):
                self.register_buffer(f"weight{number}", one.weight)
                self.register_buffer(f"bias{number}", one.bias)

    def forward(self, latents: Tensor) -> Tensor:
        """Images ``(N, *image)`` for latents ``(N, *latent)``."""
        values = [latents]
        for number, one in enumerate(self.program.operations):
            if isinstance(one, Sum):
                first, second = (values[source].reshape(-1, *one.output) for source in one.sources)
                result = first + second
            else:
                weight, bias = (self.get_buffer(f"{part}{number}") for part in ("weight", "bias"))
                result = _apply(one, values[one.source].reshape(-1, *one.input), weight, bias)
            values.append(activate(result, one.activation, one.slope))
        return values[-1].reshape(-1, *self.program.image)


def _apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if layer.kind == "linear":
        return functional.linear(x, weight, bias)
    if layer.upsample > 1:
        x = functional.interpolate(x, scale_factor=layer.upsample)
    if layer.kind == "conv2d":
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return functional.conv_transpose2d(
        x,
        weight,
        bias,
        layer.stride,
        layer.padding,
        layer.output_padding,
        layer.groups,
        layer.dilation,
    )


def activate(x: Tensor, activation: str, slope: float = 0.0) -> Tensor:
    """An activation of :data:`ACTIVATIONS` applied to a tensor."""
    if activation == "leaky_relu":
        return functional.leaky_relu(x, slope)
    return x if activation == "none" else getattr(torch, activation)(x)


def size_of(shape: tuple[int, ...]) -> int:
    """How many numbers a shape holds."""
    return math.prod(shape)
