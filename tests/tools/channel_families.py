"""Ways in which others write networks: those whose channels can be followed, and those that must be refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.channel_networks import Do, Gives, Join, cat, free, gate, reshaped, three


class Sequence(nn.Module):
    """Rows of images as a sequence, through a layer that remembers, or through its cell."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell = kind(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        rows, memory = x.flatten(2), None
        if isinstance(self.cell, nn.RNNBase):
            return self.cell(rows)[0].view_as(x)
        for row in rows.unbind(1):
            memory = self.cell(row, memory)
        return (rows + (memory[0] if isinstance(memory, tuple) else memory)[:, None]).view_as(x)


class LooseCell(Gives):
    """A gated recurrent unit whose weights lie in no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.keep = (nn.Parameter(torch.randn(18, 6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.gru_cell(h, torch.tanh(h), self.read, self.keep))


class WrittenCell(Gives):
    """A gated recurrent unit written out, with a linear layer for its three gates."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.keep = nn.Linear(6, 18), nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        h = torch.tanh(x)
        (reset, update, new), (old, kept, past) = self.read(x).chunk(3, 1), self.keep(h).chunk(3, 1)
        new = torch.tanh(new + torch.sigmoid(reset + old) * past)
        return self.last(new + torch.sigmoid(update + kept) * (h - new))


class Modulated(nn.Module):
    """Folds samples into the groups of a convolution, as StyleGAN2 does, and sums images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.style = three(8, 8), nn.Linear(8, 8)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(o, 8, 1, 1)) for o in (8, 3, 8, 3))

    def modulate(self, x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
        b, c, h, w = x.shape
        k = (weight[None] * (style[:, None, :, None, None] + 1)).reshape(-1, c, 1, 1)
        return functional.conv2d(x.reshape(1, -1, h, w), k, groups=b).reshape(b, -1, h, w)

    def forward(self, z: Tensor) -> Any:
        x, image, style = self.first(z[:, :, None, None].expand(-1, -1, 4, 4)), 0, self.style(z)
        for hidden, shown in (self.weights[:2], self.weights[2:]):
            x = functional.leaky_relu(self.modulate(x, hidden, style), 0.2)
            image = image + self.modulate(x, shown, style)
        return image


class Constant(nn.Module):
    """Starts at a learned constant, as style-based generators do; the noise has a strength per channel."""

    latent_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.strength = nn.Parameter(torch.randn(6, 1, 1))
        self.scale, self.conv = nn.Linear(5, 6), nn.Conv2d(6, 2, 3)

    def forward(self, z: Tensor) -> Tensor:
        noise = torch.linspace(-1, 1, 16 * len(z)).view(len(z), 1, 4, 4)
        return self.conv(self.constant * self.scale(z)[:, :, None, None] + self.strength * noise)


class Together(Gives):
    """Does something else once two layers have both become smaller, and its outputs are tiny."""

    def __init__(self) -> None:
        super().__init__()
        self.middle, self.last = nn.Linear(6, 5), nn.Linear(5, 2)
        for parameter in self.parameters():
            parameter.data.mul_(1e-3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.last(torch.relu(self.middle(torch.relu(self.first(x)))))
        return -h if self.first.out_features < 6 and self.middle.out_features < 5 else h


class Concatenated(nn.Module):
    """Two producers side by side, and a layer that both are coupled to; modules may be in another order."""

    def __init__(self, kind: str, reader_first: bool = False) -> None:
        super().__init__()
        reader = three(10, 10, groups=10 if kind == "depth-wise" else 1)
        if reader_first:
            self.c = reader
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 6, 1)
        self.kind, self.c, self.o = kind, reader, nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(cat([self.a(x), self.b(x)]))
        c = self.c(h)
        return self.o({"depth-wise": c, "residual": h + c, "gate": gate([h, c])}[self.kind])


class Keyword(nn.Sequential):
    """Calls a layer by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        return self[1](torch.relu(self[0](input=x)))


def called_module() -> nn.Module:
    """Return a network with a part whose name is that of what wrappers hold."""
    network = nn.Sequential()
    network.module, network.head = nn.Linear(3, 4), nn.Linear(4, 1)
    return network


def beside(*branches: nn.Module | None, how: Any = cat) -> nn.Module:
    """Return branches, of which None is the network's own input, and a layer that reads what they are joined to."""
    return nn.Sequential(Join(how, *branches), nn.LazyConv2d(3, 1))


def viewed(size: int, *layers: nn.Module) -> nn.Module:
    """Return a network with a reshape that fixes the number of channels."""
    return nn.Sequential(nn.Linear(3, 6 * size**2), reshaped(size, channels=6), *layers)


def twice(layer: nn.Module) -> nn.Module:
    """Return a network that uses a layer two times."""
    return nn.Sequential(layer, nn.ReLU(), layer)


Z, X, Y, LONG = torch.randn(3, 5), torch.randn(4, 2, 5, 5), torch.randn(4, 3), torch.randn(2, 8)
FREE = {"first.weight": (48, 5), "up.weight": (3, 2, 4, 4)}
TWO = {"a.weight": (2, 2, 1, 1), "b.weight": (3, 2, 1, 1), "c.bias": (5,), "o.weight": (2, 5, 1, 1)}
EACH, FULL = TWO | {"c.weight": (5, 1, 3, 3)}, TWO | {"c.weight": (5, 5, 3, 3)}
LOOSE = {"constant": (1, 3, 4, 4), "strength": (3, 1, 1), "scale.bias": (3,), "conv.weight": (2, 3, 3, 3)}

FOLLOWED: dict[str, Any] = {
    "sigmoid": (lambda: free(nn.Sigmoid()), Z, FREE),
    "slopes": (lambda: free(nn.PReLU(6)), Z, FREE | {"middle.weight": (3,)}),
    "one slope": (lambda: free(nn.PReLU()), Z, FREE | {"middle.weight": (1,)}),
    "norm": (free, Z, FREE | {"middle.running_var": (3,)}),
    "norm without a scale": (lambda: free(nn.BatchNorm2d(6, affine=False)), Z, FREE),
    "instance norm": (lambda: free(nn.InstanceNorm2d(6, affine=True)), Z, FREE | {"middle.bias": (3,)}),
    "unflatten": (lambda: free(reshape=nn.Unflatten(1, (-1, 4, 4))), Z, FREE),
    "skip": (lambda: free(Join(sum, None, three(6, 6))), Z, FREE),
    "dense": (
        lambda: free(nn.Sequential(nn.BatchNorm2d(6), Join(cat, None, three(6, 4)), three(10, 6))),
        Z, FREE | {"middle.1.branches.1.weight": (2, 3, 3, 3), "middle.2.weight": (3, 5, 3, 3)},
    ),
    "in place": (
        lambda: nn.Sequential(three(2, 8), nn.InstanceNorm2d(8, affine=True), nn.ReLU(True), three(8, 3)),
        X, {"1.weight": (4,), "3.weight": (3, 4, 3, 3)},
    ),
    "loose parameters": (Constant, Z, LOOSE),
    "written cell": (WrittenCell, Y, {"first.bias": (3,), "read.weight": (9, 3), "last.weight": (2, 3)}),
    "own input last": (lambda: nn.Sequential(Join(cat, three(2, 6), None), three(8, 3)), X, {"1.weight": (3, 5, 3, 3)}),
    "called module": (called_module, Y, {"module.weight": (2, 3), "head.weight": (1, 2)}),
    "by keyword": (
        lambda: Keyword(nn.ConvTranspose2d(2, 6, 2), nn.Conv2d(6, 2, 1)), X, {"1.weight": (2, 3, 1, 1)},
    ),
    "depth-wise": (lambda: Concatenated("depth-wise"), X, EACH),
    "depth-wise, declared first": (lambda: Concatenated("depth-wise", True), X, EACH),
    "residual": (lambda: Concatenated("residual"), X, FULL),
    "residual, declared first": (lambda: Concatenated("residual", True), X, FULL),
    "gate": (lambda: Concatenated("gate"), X, FULL),
    "gate, declared first": (lambda: Concatenated("gate", True), X, FULL),
    "view(-1, c, 1, 1)": (
        lambda: viewed(1, nn.ConvTranspose2d(6, 2, 4)), Y, {"0.weight": (3, 3), "2.weight": (3, 2, 4, 4)},
    ),
    "view, then norm": (
        lambda: viewed(1, nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)), Y, {"0.weight": (3, 3), "2.running_var": (3,)},
    ),
    "view(-1, c, 4, 4)": (
        lambda: viewed(4, nn.Conv2d(6, 2, 3)), Y, {"0.weight": (48, 3), "2.weight": (2, 3, 3, 3)},
    ),
    "GLU": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.GLU(1), nn.Conv2d(4, 3, 3)), X,
        {"0.weight": (4, 2, 3, 3), "2.weight": (3, 2, 3, 3)},
    ),
}  # fmt: skip
"""How to make a network, a batch for it, and shapes of its parameters when half of its channels are gone."""

OTHER, MIXES = "output is not that of the masked", r"mixes its channels"
PIXEL_NORM = Do(lambda x: x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt())
HALVES = Do(lambda x: x.roll(x.shape[1] // 2, 1))  # with an even number of channels gone it may look right

REFUSED: dict[str, Any] = {
    "pixel norm": (lambda: free(PIXEL_NORM), Z, "first", OTHER),
    "group norm": (lambda: free(nn.GroupNorm(2, 6)), Z, "first", rf"middle \(GroupNorm\) {MIXES}"),
    "layer norm": (lambda: free(nn.LayerNorm([6, 4, 4])), Z, "first", rf"middle \(LayerNorm\) {MIXES}"),
    "softmax": (lambda: free(nn.Softmax(1)), Z, "first", OTHER),
    "reused": (lambda: free(twice(three(6, 6))), Z, "first", "middle.0 runs 2 times"),
    "shuffle": (lambda: free(nn.ChannelShuffle(2)), Z, "first", "channels of first cannot be removed"),
    "halves": (lambda: free(HALVES), Z, "first", OTHER),
    "GRU": (lambda: free(Sequence(nn.GRU)), Z, "first", r"middle\.cell is a GRU, which cannot be followed"),
    "GRUCell": (lambda: free(Sequence(nn.GRUCell)), Z, "first", r"middle\.cell is a GRUCell, which cannot"),
    "LSTMCell": (lambda: free(Sequence(nn.LSTMCell)), Z, "first", r"middle\.cell is a LSTMCell, which"),
    "LSTM": (lambda: free(Sequence(nn.LSTM)), Z, "first", "channels of first cannot be removed"),
    "loose cell": (LooseCell, Y, "first", "more than 50,000 indices hang on one channel of first"),
    "modulated": (Modulated, LONG, "first", "channels of first cannot be removed"),
    "own input first": (lambda: beside(None, three(2, 2)), X, "0.branches.1", OTHER),
    "own input between": (lambda: beside(three(2, 2), None, three(2, 2)), X, "0.branches.0", "does not run"),
    "own input added": (lambda: beside(None, three(2, 2), how=sum), X, "0.branches.1", "does not run"),
    "own input gated": (lambda: beside(None, three(2, 2), how=gate), X, "0.branches.1", "does not run"),
    "grouped behind a concatenation": (
        lambda: nn.Sequential(Join(cat, three(2, 2), three(2, 4)), three(6, 6, groups=2), three(6, 1)),
        X, "0.branches.0", "only some of the channels of the grouped 1 are in it",
    ),
}  # fmt: skip
"""How to make a network, a batch for it, a layer whose channels must stay, and why."""
