"""Small twins of twelve public generators, each with the traits that pruning stumbles over, in its adapter.

They are written from the papers, with few channels and small images. A function of no arguments makes each, as a reader
would name it on the command line; layers of one's own are registered by :func:`registered`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

import ganprune as gp

CLASSES = 5


class DCGAN64(nn.Module):
    """Radford et al. 2016: maps of one pixel, transposed convolutions, batch norm, 64 × 64 pixels."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        sizes = [16, 8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            layers += [
                nn.ConvTranspose2d(inputs, outputs, 4, 2 if number else 1, 1 if number else 0, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(True),
            ]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)


class ACGAN(nn.Module):
    """Odena et al. 2017: the label's embedding times the latent, a fixed view, upsampling and convolutions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.label = width, nn.Embedding(CLASSES, 12)
        self.first = nn.Linear(12, width * 16)
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.BatchNorm2d(width, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, 3, 1, 1),
            nn.BatchNorm2d(width // 2, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width // 2, 1, 3, 1, 1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        h = self.first(torch.mul(self.label(labels), noise))
        return self.blocks(h.view(h.shape[0], self.width, 4, 4))


class ConditionalNorm(nn.Module):
    """Batch norm with a scale and shift for each class, written with a fixed view (Dumoulin et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.norm = channels, nn.BatchNorm2d(channels, affine=False)
        self.gamma, self.beta = nn.Embedding(CLASSES, channels), nn.Embedding(CLASSES, channels)
        nn.init.normal_(self.gamma.weight, 1.0, 0.02)
        nn.init.zeros_(self.beta.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gamma, beta = (part(y).view(-1, self.channels, 1, 1) for part in (self.gamma, self.beta))
        return gamma * self.norm(x) + beta


class UpBlock(nn.Module):
    """A residual block that doubles the side (Miyato et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, normed: bool = False) -> None:
        super().__init__()
        wrap = spectral_norm if normed else nn.Identity()
        self.norm1, self.norm2 = ConditionalNorm(inputs), ConditionalNorm(outputs)
        self.conv1 = wrap(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv2 = wrap(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = wrap(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = functional.interpolate(functional.relu(self.norm1(x, y)), scale_factor=2)
        h = functional.relu(self.norm2(self.conv1(h), y))
        return self.conv2(h) + self.skip(functional.interpolate(x, scale_factor=2))


class SNGAN(nn.Module):
    """Miyato et al. 2018: the residual generator, with conditional batch norm."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.first = width, nn.Linear(12, width * 16)
        self.block1, self.block2 = UpBlock(width, width), UpBlock(width, width)
        self.norm, self.last = nn.BatchNorm2d(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.first(z).view(-1, self.width, 4, 4)
        h = self.block2(self.block1(h, y), y)
        return torch.tanh(self.last(functional.relu(self.norm(h))))


class Attention(nn.Module):
    """Self-attention over positions (Zhang et al. 2019); gives its map as well."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (spectral_norm(nn.Conv2d(channels, channels // 4, 1)) for _ in range(2))
        self.value = spectral_norm(nn.Conv2d(channels, channels, 1))
        self.gamma = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, c, h, w = x.size()
        query = self.query(x).view(n, -1, h * w).permute(0, 2, 1)
        attention = torch.softmax(torch.bmm(query, self.key(x).view(n, -1, h * w)), dim=-1)
        out = torch.bmm(self.value(x).view(n, -1, h * w), attention.permute(0, 2, 1)).view(n, c, h, w)
        return self.gamma * out + x, attention


class SAGAN(nn.Module):
    """Zhang et al. 2019: spectral norm in the generator too, and self-attention; gives a tuple."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.first = width, spectral_norm(nn.Linear(12, width * 16))
        self.block1, self.block2 = UpBlock(width, width, True), UpBlock(width, width, True)
        self.attention = Attention(width)
        self.norm, self.last = nn.BatchNorm2d(width), spectral_norm(nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.block1(self.first(z).view(-1, self.width, 4, 4), y)
        h, attention = self.attention(h)
        return torch.tanh(self.last(functional.relu(self.norm(self.block2(h, y))))), attention


class OwnSpectralConv(nn.Conv2d):
    """A spectral norm written by hand, as BigGAN's code has it (Brock et al. 2019)."""

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_buffer("u", functional.normalize(torch.randn(self.out_channels), dim=0))

    def normed(self) -> Tensor:
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = functional.normalize(matrix.T @ self.u, dim=0)
            u = functional.normalize(matrix @ v, dim=0)
            if self.training:
                self.u.copy_(u)
        return self.weight / (u @ matrix @ v)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.normed(), self.bias, self.stride, self.padding)


class BigGANBlock(nn.Module):
    """Scale and shift by linear maps of the class and a part of the latent."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.channels, self.norm = channels, nn.BatchNorm2d(channels, affine=False)
        self.gain, self.shift = (nn.Linear(condition, channels, bias=False) for _ in range(2))
        self.conv1, self.conv2, self.skip = (
            OwnSpectralConv(channels, channels, size, padding=size // 2) for size in (3, 3, 1)
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gain, shift = (1 + self.gain(c)).view(c.size(0), -1, 1, 1), self.shift(c).view(c.size(0), -1, 1, 1)
        h = functional.interpolate(functional.relu(self.norm(x) * gain + shift), scale_factor=2)
        h = self.conv2(functional.relu(self.conv1(h)))
        return h + self.skip(functional.interpolate(x, scale_factor=2))


class BigGAN(nn.Module):
    """Brock et al. 2019: a shared embedding, a latent in parts, a spectral norm of its own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.shared = width, nn.Embedding(CLASSES, 6)
        self.first = nn.Linear(4, width * 16)
        self.blocks = nn.ModuleList(BigGANBlock(width, 10) for _ in range(2))
        self.norm, self.last = nn.BatchNorm2d(width), OwnSpectralConv(width, 3, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        parts, label = torch.split(z, 4, 1), self.shared(y)
        h = self.first(parts[0]).view(-1, self.width, 4, 4)
        for block, part in zip(self.blocks, parts[1:], strict=True):
            h = block(h, torch.cat([label, part], 1))
        return torch.tanh(self.last(functional.relu(self.norm(h))))


class EqualLinear(nn.Module):
    """Equalised learning rate (Karras et al. 2018): the multiplier is applied at run time."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate * inputs**-0.5, rate

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConv(nn.Module):
    """The same for a convolution."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.padding = (2 / (inputs * size * size)) ** 0.5, size // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class ModulatedConv(nn.Module):
    """A weight for each sample, with demodulation (Karras et al. 2020)."""

    def __init__(self, inputs: int, outputs: int, style: int, size: int = 3, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, size, size))
        self.affine, self.demodulate = EqualLinear(style, inputs, bias=1.0), demodulate
        self.scale, self.padding = (inputs * size * size) ** -0.5, size // 2

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        n, c, height, side = x.shape
        weight = self.scale * self.weight * self.affine(style).view(n, 1, c, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        x = x.reshape(1, n * c, height, side)
        x = functional.conv2d(x, weight.view(-1, *weight.shape[2:]), padding=self.padding, groups=n)
        return x.view(n, -1, height, side)


class StyleGAN2(nn.Module):
    """Karras et al. 2020: mapping network, modulated convolutions, noise inputs, skips to the image; a dictionary."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.mapping = nn.ModuleList(EqualLinear(12, 12, rate=0.5) for _ in range(3))
        self.constant = nn.Parameter(torch.randn(1, width, 4, 4))
        self.convs = nn.ModuleList(ModulatedConv(width, width, 12) for _ in range(3))
        self.images = nn.ModuleList(ModulatedConv(width, 3, 12, 1, demodulate=False) for _ in range(3))
        self.strength = nn.Parameter(torch.full((3,), 0.1))

    def forward(self, z: Tensor, *noise: Tensor) -> dict[str, Tensor]:
        w = z * torch.rsqrt(z.pow(2).mean(1, keepdim=True) + 1e-8)
        for layer in self.mapping:
            w = functional.leaky_relu(layer(w), 0.2)
        x, image = self.constant.expand(z.shape[0], -1, -1, -1), None
        for number, (conv, to_image) in enumerate(zip(self.convs, self.images, strict=True)):
            x = functional.interpolate(x, scale_factor=2) if number else x
            x = functional.leaky_relu(conv(x, w) + self.strength[number] * noise[number], 0.2)
            shown = to_image(x, w)
            image = shown if image is None else shown + functional.interpolate(image, scale_factor=2)
        return {"image": image, "w": w}  # type: ignore[dict-item]


class PixelNorm(nn.Module):
    """Each position's features divided by their size: a norm over channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-8)


class PGAN(nn.Module):
    """Karras et al. 2018: equalised layers and pixel norm, no last tanh."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.first = width, EqualLinear(12, width * 16)
        self.convs = nn.ModuleList(EqualConv(width, width, 3) for _ in range(3))
        self.norm, self.last = PixelNorm(), EqualConv(width, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(self.norm(z)).view(-1, self.width, 4, 4)
        for number, conv in enumerate(self.convs):
            h = functional.interpolate(h, scale_factor=2) if number else h
            h = self.norm(functional.leaky_relu(conv(h), 0.2))
        return self.last(h)


class UNet(nn.Module):
    """pix2pix (Isola et al. 2017): a U-Net with concatenated skips and dropout, from image to image."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, width, 4, 2, 1), nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.down3 = nn.Conv2d(2 * width, 2 * width, 4, 2, 1)
        self.norm2, self.norm_up3, self.norm_up2 = (nn.BatchNorm2d(n * width) for n in (2, 2, 1))
        self.up3 = nn.ConvTranspose2d(2 * width, 2 * width, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(4 * width, width, 4, 2, 1)
        self.up1, self.drop = nn.ConvTranspose2d(2 * width, 3, 4, 2, 1), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.norm2(self.down2(functional.leaky_relu(one, 0.2)))
        three = self.down3(functional.leaky_relu(two, 0.2))
        h = torch.cat([self.drop(self.norm_up3(self.up3(functional.relu(three)))), two], 1)
        h = torch.cat([self.norm_up2(self.up2(functional.relu(h))), one], 1)
        return torch.tanh(self.up1(functional.relu(h)))


class ResnetBlock(nn.Module):
    """Reflection padding, instance norm, and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class CycleGAN(nn.Module):
    """Zhu et al. 2017: down, residual blocks, up, from image to image."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, width, 7),
            nn.InstanceNorm2d(width),
            nn.ReLU(True),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.InstanceNorm2d(2 * width),
            nn.ReLU(True),
            ResnetBlock(2 * width),
            ResnetBlock(2 * width),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1),
            nn.InstanceNorm2d(width),
            nn.ReLU(True),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, 3, 7),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SRBlock(nn.Module):
    """Two convolutions with batch norm and PReLU, and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(self.prelu(self.norm1(self.conv1(x)))))


class SRGAN(nn.Module):
    """Ledig et al. 2017: from a small image to a larger one, through pixel shuffle."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(SRBlock(width), SRBlock(width))
        self.middle = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.last = nn.Conv2d(width, 3, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return (torch.tanh(self.last(self.up(first + self.middle(self.blocks(first))))) + 1) / 2


class WaveGAN(nn.Module):
    """Donahue et al. 2019: transposed convolutions of length 25 over sound."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width, self.first = width, nn.Linear(12, 4 * width * 16)
        self.up1 = nn.ConvTranspose1d(4 * width, 2 * width, 25, 4, 11, output_padding=1)
        self.up2 = nn.ConvTranspose1d(2 * width, width, 25, 4, 11, output_padding=1)
        self.up3 = nn.ConvTranspose1d(width, 1, 25, 4, 11, output_padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = functional.relu(self.first(z).view(-1, 4 * self.width, 16))
        return torch.tanh(self.up3(functional.relu(self.up2(functional.relu(self.up1(h))))))


class Volume(nn.Module):
    """3-D GAN (Wu et al. 2016): volumes in [0, 1]."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose3d(12, 2 * width, 4),
            nn.BatchNorm3d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose3d(2 * width, width, 4, 2, 1),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.ConvTranspose3d(width, 1, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Critic(nn.Module):
    """A discriminator for samples of any shape."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 8), nn.ReLU(), nn.Linear(8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten()


def _drawings(side: int) -> Any:
    """A function that gives images to start from."""

    def draw(n: int, seed: int) -> Tensor:
        return torch.rand(n, 3, side, side, generator=gp.seeded(seed)) * 2 - 1

    return draw


def dcgan64() -> nn.Module:
    return gp.adapt(DCGAN64(), (16, 1, 1))


def acgan() -> nn.Module:
    return gp.adapt(ACGAN(), 12, CLASSES)


def sngan() -> nn.Module:
    return gp.adapt(SNGAN(), 12, CLASSES)


def sagan() -> nn.Module:
    return gp.adapt(SAGAN(), 12, CLASSES, output=0)


def biggan() -> nn.Module:
    return gp.adapt(BigGAN(), 12, CLASSES)


def stylegan2() -> nn.Module:
    return gp.adapt(StyleGAN2(), 12, noise=[(1, 4, 4), (1, 8, 8), (1, 16, 16)], output="image", clamp=True)


def pgan() -> nn.Module:
    return gp.adapt(PGAN(), 12, clamp=True)


def pix2pix() -> nn.Module:
    return gp.adapt(UNet(), inputs=_drawings(16))


def cyclegan() -> nn.Module:
    return gp.adapt(CycleGAN(), inputs=_drawings(16))


def srgan() -> nn.Module:
    return gp.adapt(SRGAN(), inputs=_drawings(8), image_range=(0, 1))


def wavegan() -> nn.Module:
    return gp.adapt(WaveGAN(), 12)


def volume() -> nn.Module:
    return gp.adapt(Volume(), (12, 1, 1, 1), image_range=(0, 1))


NAMES = {
    "DCGAN 64": "dcgan64",
    "ACGAN": "acgan",
    "SNGAN": "sngan",
    "SAGAN": "sagan",
    "BigGAN": "biggan",
    "StyleGAN2": "stylegan2",
    "PGAN": "pgan",
    "pix2pix": "pix2pix",
    "CycleGAN": "cyclegan",
    "SRGAN": "srgan",
    "WaveGAN": "wavegan",
    "3-D GAN": "volume",
}
"""The name in the papers → the function here."""


@contextmanager
def registered() -> Iterator[None]:
    """The layers of their own that these networks have, registered inside of the block."""
    with ExitStack() as stack:
        for layer in (EqualLinear, EqualConv):
            stack.enter_context(gp.register_layer(layer, effective=lambda found: found.weight * found.scale))
        stack.enter_context(gp.register_layer(OwnSpectralConv, effective=lambda found: found.normed()))
        scaled = gp.register_layer(
            ModulatedConv, effective=lambda found: found.weight * found.scale, output_dim=1
        )
        stack.enter_context(scaled)
        yield
