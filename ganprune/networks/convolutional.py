"""The DCGAN: specs and modules."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from ganprune.core.checks import check_number
from ganprune.networks.parts import check_latent, check_norm, normalise_spectrally, set_size, set_sizes
from ganprune.networks.registry import register_model_spec


def _strides(image_shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(kernel, stride, padding) from 4 × 4 maps up to the image, three doublings."""
    _, height, side = image_shape
    if height != side or side not in (28, 32):
        raise ValueError(f"image_shape must be (channels, 28, 28) or (channels, 32, 32), got {image_shape!r}")
    first = (3, 2, 1) if side == 28 else (4, 2, 1)  # 4 → 7 or 4 → 8
    return [first, (4, 2, 1), (4, 2, 1)]


@register_model_spec
@dataclass(frozen=True)
class DCGANGeneratorSpec:
    """DCGAN generator (Radford et al. 2016): latent → 4 × 4 maps → three doublings → image.

    Attributes:
        latent_dim: length of the latent vector.
        channels: channels of the 4 × 4 maps and after the first and second doubling.
        image_shape: (C, 28, 28) or (C, 32, 32).
    """

    latent_dim: int = 64
    channels: tuple[int, ...] = (128, 64, 32)
    image_shape: tuple[int, int, int] = (1, 28, 28)

    def __post_init__(self) -> None:
        set_size(self, "latent_dim")
        set_sizes(self, "channels", 3)
        set_sizes(self, "image_shape", 3)
        _strides(self.image_shape)

    def build(self) -> DCGANGenerator:
        """The freshly initialised network."""
        return DCGANGenerator(self)


@register_model_spec
@dataclass(frozen=True)
class DCGANDiscriminatorSpec:
    """DCGAN discriminator: image → three halvings → 4 × 4 maps → one logit.

    Attributes:
        channels: channels after each halving.
        image_shape: (C, 28, 28) or (C, 32, 32).
        norm: "spectral" (Miyato et al. 2018), "batch" (not after the first layer) or "none".
        logit_gain: factor on the logits; the bound that spectral norm puts on the slope grows by it. The course's
            value was chosen by short pilot runs of one seed each, which is no evidence beyond them.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    image_shape: tuple[int, int, int] = (1, 28, 28)
    norm: str = "spectral"
    logit_gain: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_gain", check_number("logit_gain", self.logit_gain, "(0, inf)"))
        set_sizes(self, "channels", 3)
        set_sizes(self, "image_shape", 3)
        _strides(self.image_shape)
        check_norm(self.norm)

    def build(self) -> DCGANDiscriminator:
        """The freshly initialised network."""
        return DCGANDiscriminator(self)


class DCGANGenerator(nn.Module):
    """See :class:`DCGANGeneratorSpec`. Maps z (N, latent_dim) to images (N, C, H, W) in [-1, 1]."""

    def __init__(self, spec: DCGANGeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        first, second, third = spec.channels
        up = _strides(spec.image_shape)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        pairs = [(spec.latent_dim, first, (4, 1, 0)), (first, second, up[0]), (second, third, up[1])]
        for number, (inputs, outputs, (kernel, stride, padding)) in enumerate(pairs, 1):
            layers[f"deconv{number}"] = nn.ConvTranspose2d(
                inputs, outputs, kernel, stride, padding, bias=False
            )
            layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
        layers["deconv4"] = nn.ConvTranspose2d(third, spec.image_shape[0], *up[2])
        layers["tanh"] = nn.Tanh()
        self.layers = nn.Sequential(layers)
        _initialise_dcgan(self)

    def forward(self, z: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] for latents z (N, latent_dim)."""
        check_latent(z, self.spec.latent_dim)
        return self.layers(z[:, :, None, None])


class DCGANDiscriminator(nn.Module):
    """See :class:`DCGANDiscriminatorSpec`. Maps images (N, C, H, W) to logits (N,)."""

    def __init__(self, spec: DCGANDiscriminatorSpec) -> None:
        super().__init__()
        self.spec = spec
        down = list(reversed(_strides(spec.image_shape)))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = spec.image_shape[0]
        for number, (outputs, (kernel, stride, padding)) in enumerate(
            zip(spec.channels, down, strict=True), 1
        ):
            normalised = spec.norm == "batch" and number > 1
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not normalised)
            if normalised:
                layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
            layers[f"lrelu{number}"] = nn.LeakyReLU(0.2, inplace=True)
            inputs = outputs
        layers["conv4"] = nn.Conv2d(inputs, 1, 4)
        self.layers = nn.Sequential(layers)
        _initialise_dcgan(self)
        if spec.norm == "spectral":
            normalise_spectrally(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,): large for real, small for fake."""
        return self.spec.logit_gain * self.layers(images).flatten()


def _initialise_dcgan(network: nn.Module) -> None:
    """Convolutions N(0, 0.02), batch-norm scales N(1, 0.02), all biases 0 (Radford et al. 2016)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
