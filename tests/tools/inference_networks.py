"""Generators for tests of inference: drawn ones, in a straight line and with branches, and ways to write one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tools.channel_networks import lively

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Identity,
    lambda: nn.LeakyReLU(0.2),
    lambda: nn.LeakyReLU(1.5, inplace=True),
]


class Shaped(nn.Module):
    """Layers with the shape of their input."""

    def __init__(self, latent_shape: tuple[int, ...], *layers: nn.Module) -> None:
        super().__init__()
        self.latent_shape, self.layers = latent_shape, nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Block(nn.Module):
    """BN → ReLU → nearest upsampling → convolution, twice, with a 1 × 1 convolution around it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.interpolate(functional.relu(self.norm1(x)), scale_factor=2))
        h = self.conv2(functional.relu(self.norm2(h), inplace=True))
        h += self.skip(functional.interpolate(x, scale_factor=2))
        return h


class Residual(nn.Module):
    """A generator with branches, functional forms, a learned factor and images in [0, 1] that it moves to [-1, 1]."""

    latent_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8 * 4 * 4)
        self.up, self.again = Block(8, 6), Block(6, 4)
        self.norm = nn.BatchNorm2d(4)
        self.last = weight_norm(nn.Conv2d(4, 1, 3, padding=1))
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, z: Tensor) -> Tensor:
        h = self.again(self.up(self.first(z).view(-1, 8, 4, 4)))
        h = functional.dropout(functional.leaky_relu(self.norm(h), 0.1), 0.5, self.training)
        return torch.sigmoid(self.gain * self.last(h) + 1) * 2 - 1


def residual(seed: int = 0) -> Any:
    """Return the generator with branches; no statistic of it is trivial."""
    torch.manual_seed(seed)
    return lively(Residual().eval(), seed)


@torch.no_grad()
def thinned(network: nn.Module, sparsity: float, seed: int = 0) -> Any:
    """Return the network with about so many weights set to zero, and one output of each layer without any."""
    random = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and isinstance(weight, Tensor):
            weight[torch.rand(weight.shape, generator=random) < sparsity] = 0
            if sparsity:
                weight.select(1 if isinstance(layer, nn.ConvTranspose2d) else 0, 0).zero_()
    return network


@st.composite
def convolutions(draw: st.DrawFn, groups: bool = True) -> Any:
    """Draw a convolution of either kind, perhaps between batch norm, upsampling and activations."""
    number = draw(st.sampled_from([1, 2])) if groups else 1
    inputs, outputs = number * draw(st.integers(1, 3)), number * draw(st.integers(1, 3))
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))
    kernel, stride, dilation, padding = pair(1, 4), pair(1, 3), pair(1, 2), pair(0, 3)
    sides, transposed = pair(1, 6), draw(st.booleans())
    up = draw(st.sampled_from([1, 1, 2, 3]))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        padding = tuple(
            min(p, ((n * up - 1) * s + w - 1) // 2)
            for p, n, s, w in zip(padding, sides, stride, span, strict=True)
        )
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        options: dict[str, Any] = {"output_padding": extra}
        kind: Any = nn.ConvTranspose2d
    else:
        sides = tuple(
            max(n, -(-max(1, w - 2 * p) // up)) for n, w, p in zip(sides, span, padding, strict=True)
        )
        kind, options = nn.Conv2d, {}
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = kind(
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation=dilation,
        groups=number,
        bias=draw(st.booleans()),
        **options,
    )
    layers = [nn.Upsample(scale_factor=up)] if up > 1 else []
    layers += [layer, *([nn.BatchNorm2d(outputs)] if draw(st.booleans()) else [])]
    layers += [draw(st.sampled_from(ACTIVATIONS))() for _ in range(draw(st.integers(0, 2)))]
    network = lively(Shaped((inputs, *sides), *layers).eval(), draw(st.integers(0, 99)))
    return thinned(network, draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])))
