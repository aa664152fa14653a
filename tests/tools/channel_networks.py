"""Networks for tests of whole channels: those of the course, drawn ones, and ways in which others write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import ganprune as gp

COURSE = ("generator", "discriminator", "mlp generator", "mlp discriminator")


def course(name: str, width: int = 4, **options: Any) -> Any:
    """Return a network of the package in which no bias, scale or statistic is trivial, with its ``batch``."""
    gan = (
        gp.mlp_gan(hidden=(12, 20), device="cpu", **options)
        if name.startswith("mlp")
        else gp.dcgan(width=width, latent_dim=6, device="cpu", **{"norm": "spectral", **options})
    )
    network: Any = gan.generator if name.endswith("generator") else gan.discriminator
    spec = network.spec
    shape = (spec.latent_dim,) if hasattr(spec, "latent_dim") else getattr(spec, "image_shape", None)
    network.batch = torch.randn(5, *(shape or spec.input_shape), generator=torch.Generator().manual_seed(1))
    return lively(network)


@torch.no_grad()
def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network with norms, biases and statistics that are neither zero nor one."""
    random = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=random))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=random))
            if layer.affine:
                layer.weight.copy_(torch.randn(layer.num_features, generator=random))
        if isinstance(getattr(layer, "bias", None), Tensor):
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=random))
    return network


@torch.no_grad()
def evaluated(network: nn.Module, *arguments: Any) -> Any:
    """Return the outputs in evaluation mode."""
    with gp.eval_mode(network):
        return network(*arguments)


def state(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {key: value.clone() for key, value in network.state_dict().items()}


def close(first: Tensor, second: Tensor) -> None:
    """Fail if outputs differ by more than rounding."""
    limit = 1e-10 if first.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(first, second, rtol=0, atol=limit * max(1.0, float(second.abs().max())))


class Do(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def reshaped(size: int = 4, channels: int = 0) -> nn.Module:
    """Return a layer that makes images of features; its code leaves the number of channels open, or fixes it."""
    if channels:
        return Do(lambda x: x.view(-1, channels, size, size))
    return Do(lambda x: x.view(len(x), -1, size, size))


class Join(nn.Module):
    """Branches that are put together by a function, such as a sum; None is what comes in."""

    def __init__(self, how: Callable[[list[Tensor]], Tensor], *branches: nn.Module | None) -> None:
        super().__init__()
        self.how, self.branches = how, nn.ModuleList(branch or nn.Identity() for branch in branches)

    def forward(self, x: Tensor) -> Tensor:
        return self.how([branch(x) for branch in self.branches])


def cat(parts: list[Tensor]) -> Tensor:
    """Return the channels side by side."""
    return torch.cat(parts, 1)


def gate(parts: list[Tensor]) -> Tensor:
    """Return the first part, as far as the second one lets it through."""
    return parts[0] * torch.sigmoid(parts[1])


def three(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    """Return a convolution that keeps the size of images."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


STEPS: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "convolution": lambda c, n: (three(c, n), n),
    "transposed": lambda c, n: (nn.ConvTranspose2d(c, n, 3, 1, 1), n),
    "grouped": lambda c, n: (three(c, 2 * n, groups=2 - c % 2), 2 * n),
    "transposed and grouped": lambda c, n: (nn.ConvTranspose2d(c, 2 * n, 3, 1, 1, groups=2 - c % 2), 2 * n),
    "depth-wise": lambda c, n: (three(c, c, groups=c), c),
    "batch norm": lambda c, n: (nn.BatchNorm2d(c), c),
    "plain batch norm": lambda c, n: (nn.BatchNorm2d(c, affine=False), c),
    "leaky ReLU": lambda c, n: (nn.LeakyReLU(0.2), c),
    "in place": lambda c, n: (nn.Sequential(three(c, n), nn.LeakyReLU(0.2, inplace=True)), n),
    "PReLU": lambda c, n: (nn.PReLU(c), c),
    "tanh": lambda c, n: (nn.Tanh(), c),
    "residual": lambda c, n: (Join(sum, None, nn.Sequential(nn.Tanh(), three(c, c))), c),
    "two sums": lambda c, n: (Join(sum, nn.Conv2d(c, n, 1), three(c, n, bias=False)), n),
    "dense": lambda c, n: (Join(cat, None, three(c, n)), c + n),
    "inception": lambda c, n: (Join(cat, nn.Conv2d(c, n, 1), three(c, 2)), n + 2),
    "gate": lambda c, n: (Join(gate, None, three(c, c)), c),
}
"""What a drawn network may go on with, given its channels and a number; and the channels then."""


@st.composite
def courses(draw: st.DrawFn) -> Any:
    """Draw a network of the package, with spectral norm or without."""
    return course(draw(st.sampled_from(COURSE)), norm=draw(st.sampled_from(["spectral", "none"])))


@st.composite
def drawn_networks(draw: st.DrawFn) -> Any:
    """Draw a network in double precision, with a batch for it as its ``batch``."""
    steps = draw(st.lists(st.tuples(st.sampled_from([*STEPS]), st.integers(2, 4)), min_size=1, max_size=5))
    latents, flat, seed = draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 99))
    torch.manual_seed(seed)
    channels = draw(st.integers(2, 4))
    layers = [nn.Linear(3, 4 * channels), reshaped(2)] if latents else [three(3, channels)]
    for kind, number in steps:
        layer, channels = STEPS[kind](channels, number)
        layers.append(layer)
    if flat:
        layers += [nn.Flatten(), nn.Linear(4 * channels, 4), nn.Tanh(), nn.Linear(4, 2)]
    else:
        layers += [nn.ConvTranspose2d(channels, 2, 4, 2, 1)]
    network = lively(nn.Sequential(*layers), seed).double()
    network.batch = torch.randn(4, 3, *(() if latents else (2, 2))).double()
    return network


def free(middle: nn.Module | None = None, reshape: nn.Module | None = None) -> Any:
    """Return a linear layer, a reshape that leaves the number of channels open, and what a test puts behind it."""
    torch.manual_seed(0)
    network = nn.Sequential()
    network.first, network.shape = nn.Linear(5, 6 * 16), reshape or reshaped()
    network.middle, network.relu = middle or nn.BatchNorm2d(6), nn.ReLU()
    network.up, network.tanh = nn.ConvTranspose2d(6, 2, 4, 2, 1), nn.Tanh()
    network.latent_dim = 5
    return lively(network)


class Gives(nn.Module):
    """Two layers, and whatever a test makes of the second one's output."""

    def __init__(self, give: Callable[[Tensor], Any] = lambda output: output) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.give = nn.Linear(3, 6), nn.Linear(6, 2), give

    def forward(self, x: Tensor) -> Any:
        return self.give(self.last(torch.relu(self.first(x))))
