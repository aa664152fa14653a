"""Generators that the package does not know, as a reader may bring them along; each takes one small batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift depend on a class label."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.normal_(self.scale.weight, 1.0, 0.1)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.norm(x) * self.scale(label)[:, :, None, None] + self.shift(label)[:, :, None, None]


class ResidualBlock(nn.Module):
    """Conditional BN → ReLU → nearest upsampling → conv, twice, with a 1 × 1 skip connection."""

    def __init__(self, inputs: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ConditionalBatchNorm(inputs, classes), ConditionalBatchNorm(outputs, classes)
        self.conv1 = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = spectral_norm(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = functional.interpolate(functional.relu(self.norm1(x, label)), scale_factor=2)
        h = functional.relu(self.norm2(self.conv1(h), label))
        return self.conv2(h) + self.skip(functional.interpolate(x, scale_factor=2))


class ResidualGenerator(nn.Module):
    """SN-GAN style: linear, reshape, residual block, convolution, functional tanh; takes (z, label)."""

    latent_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8 * 4 * 4)
        self.block = ResidualBlock(8, 4, classes=3)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        h = self.first(z).view(-1, 8, 4, 4)
        return torch.tanh(self.last(functional.relu(self.block(h, label))))


class LinearFirst(nn.Module):
    """Linear → reshape → BN → ReLU → transposed convolution → Tanh."""

    latent_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6 * 4 * 4)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 1, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.up(functional.relu(self.norm(self.first(z).view(-1, 6, 4, 4)))))


class SelfAttention(nn.Module):
    """1 × 1 convolutions, softmax attention, and a residual with a learned weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = nn.Conv2d(channels, 2, 1), nn.Conv2d(channels, 2, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.weight_of_attention = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        return x + self.weight_of_attention * (value @ attention.transpose(1, 2)).view_as(x)


class TiedGenerator(nn.Module):
    """Two layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight = self.first.weight

    def forward(self, z: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(z)))))


def _frozen_first() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].requires_grad_(False)
    return model


def _wave() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose1d(4, 6, 8, 4, 2),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.ConvTranspose1d(6, 1, 8, 4, 2),
        nn.Tanh(),
    )


def _volume() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose3d(3, 4, 2, 2),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.Conv3d(4, 1, 3, padding=1),
        nn.Sigmoid(),
    )


def _grouped() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(4, 8, 4, 2, 1, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 3, 1, 1, groups=8),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 4, 1, groups=4),
    )


def _attention() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, 2, 1),
        nn.ReLU(),
        SelfAttention(4),
        nn.Conv2d(4, 1, 3, padding=1),
        nn.Tanh(),
    )


_BUILDERS = {
    "residual": (ResidualGenerator, lambda: (torch.randn(4, 6), torch.arange(4) % 3)),
    "linear first": (LinearFirst, lambda: (torch.randn(4, 5),)),
    "grouped": (_grouped, lambda: (torch.randn(4, 4, 4, 4),)),
    "1-D": (_wave, lambda: (torch.randn(4, 4, 4),)),
    "3-D": (_volume, lambda: (torch.randn(4, 3, 2, 2, 2),)),
    "attention": (_attention, lambda: (torch.randn(4, 3, 4, 4),)),
    "tied": (TiedGenerator, lambda: (torch.randn(4, 4),)),
    "frozen": (_frozen_first, lambda: (torch.randn(4, 4),)),
}
UNSEEN = tuple(_BUILDERS)


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network of that name and one batch of arguments for it."""
    torch.manual_seed(seed)
    network, inputs = _BUILDERS[name]
    return network(), inputs()
