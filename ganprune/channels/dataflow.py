"""What is known of a network whatever its input: constants, and which channels can only go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ganprune.masks.weights import WeightSlot

OUTPUT = "it is an output of the network"


SAME_PLACE = 1e-10  # relative spread below which one number is meant, in float64


@dataclass
class Shadow:
    """What is known of a tensor's entries, on the CPU.

    Attributes:
        tensor: the tensor itself, held so that its identity stays its own.
        version: its version counter; a change made through another view shows here.
        constant: bool, whether an entry is the same for every input.
        value: float64, the constant; 0 elsewhere.
        label: int64, the channel that an entry comes from; 0 for none.
        uses: how many functions have taken the tensor.
        maker: the read whose immediate output this is.
    """

    tensor: Tensor
    version: int
    constant: Tensor
    value: Tensor
    label: Tensor
    uses: int = 0
    maker: Read | None = None


@dataclass
class Read:
    """One layer and what it reads.

    Attributes:
        key: name of the layer, such as "layers.deconv2".
        slot: the layer's weight.
        weight: its effective weight in float64.
        constant: per input channel, whether it is constant everywhere.
        value: the layer's input in float64, 0 where it is not constant.
        axis: which dimension of the input counts channels.
        inputs: label per input channel.
        outputs: label per output channel.
        linear: the layer without its bias, as a function of a float64 input and weight.
        norm: name of the batch norm that takes the output, if there is one.
        output: shadow of the output.
    """

    key: str
    slot: WeightSlot
    weight: Tensor
    constant: Tensor
    value: Tensor
    axis: int
    inputs: list[int]
    outputs: list[int]
    linear: Callable[[Tensor, Tensor], Tensor]
    norm: str | None = None
    output: Shadow | None = None

    @property
    def nonzero(self) -> Tensor:
        """Which input channel matters to which output channel: bool, (outputs, inputs)."""
        matrix = (self.weight != 0).flatten(2).any(2) if self.weight.ndim > 2 else self.weight != 0
        return matrix.T if self.slot.output_dim == 1 else matrix


class Channels:
    """Output channels of layers, numbered from 1, joined into classes that can only be removed together."""

    def __init__(self) -> None:
        self.owners: list[tuple[str, int]] = [("", -1)]
        self.parents = [0]
        self.reasons: dict[int, str] = {}

    def new(self, key: str, count: int) -> list[int]:
        """Labels for the outputs of a layer."""
        first = len(self.owners)
        self.owners += [(key, index) for index in range(count)]
        self.parents += range(first, first + count)
        return list(range(first, first + count))

    def root(self, label: int) -> int:
        """The label that stands for the class."""
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def join(self, one: int, other: int) -> None:
        """Makes two classes one; class 0 (no channel) binds what it is joined with."""
        low, high = sorted((self.root(one), self.root(other)))
        if low == 0 and high:
            self.bind([high], "it is mixed with numbers that belong to no channel")
        elif low != high:
            self.parents[high] = low
            if high in self.reasons:
                self.reasons.setdefault(low, self.reasons.pop(high))

    def bind(self, labels: list[int] | Tensor, reason: str) -> None:
        """Channels that must stay, and why; the first reason is kept."""
        found = labels.unique().tolist() if isinstance(labels, Tensor) else labels
        for label in found:
            if label:
                self.reasons.setdefault(self.root(label), reason)

    def roots(self, labels: Tensor) -> Tensor:
        """Each label replaced by the one that stands for its class."""
        return torch.tensor([self.root(label) for label in range(len(self.parents))])[labels]

    def classes(self) -> dict[int, list[int]]:
        """The labels of each class, by its root."""
        found: dict[int, list[int]] = {}
        for label in range(1, len(self.parents)):
            found.setdefault(self.root(label), []).append(label)
        return found


@dataclass
class Dataflow:
    """What :func:`~ganprune.channels.shadows.trace` found.

    Attributes:
        channels: all output channels and how they are coupled.
        reads: one entry per layer that could be followed.
        constant: per layer, which output channels are constant.
    """

    channels: Channels = field(default_factory=Channels)
    reads: list[Read] = field(default_factory=list)
    constant: dict[str, Tensor] = field(default_factory=dict)


def rows_of(tensor: Tensor, axis: int) -> Tensor:
    """Channels × everything else."""
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def shift(read: Read, inputs: list[int]) -> tuple[Tensor, Tensor]:
    """What constant input channels add to a layer's outputs, and to which outputs the same in every place.

    Args:
        read: the layer.
        inputs: indices of input channels that are constant.

    Returns:
        The amounts, float64 of shape (outputs,), and whether they hold at every position, bool of that shape.
    """
    chosen = torch.tensor(inputs)
    weight = read.weight.index_select(1 - read.slot.output_dim, chosen)
    rows = rows_of(read.linear(read.value.index_select(read.axis, chosen), weight), read.axis)
    low, high = rows.amin(1), rows.amax(1)
    return rows[:, 0], (high - low) <= SAME_PLACE * rows.abs().amax(1)
