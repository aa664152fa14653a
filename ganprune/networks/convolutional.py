"""The DCGAN: specs and modules."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from ganprune.core.checks import check_number
from ganprune.networks.parts import check_latent, check_norm, normalise_spectrally, set_size, set_sizes
from ganprune.networks.registry import register_model_spec

SIDES = (28, 32, 56, 64, 112, 128)
"""The lengths that the sides of a DCGAN's images can have."""


def _strides(image_shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(kernel, stride, padding) from 4 × 4 maps up to the image, three to five doublings."""
    if len(image_shape) != 3 or image_shape[1] != image_shape[2] or image_shape[2] not in SIDES:
        allowed = ", ".join(f"(channels, {side}, {side})" for side in SIDES[:-1])
        raise ValueError(
            f"image_shape must be {allowed} or (channels, {SIDES[-1]}, {SIDES[-1]}), got {image_shape!r}"
        )
    side = image_shape[2]
    first = (3, 2, 1) if side % 28 == 0 else (4, 2, 1)  # 4 → 7 or 4 → 8
    return [first, *[(4, 2, 1)] * doublings(side)][:-1]


def doublings(side: int) -> int:
    """How often the side of a map doubles from 4 × 4 to the image: 3 for 28 and 32, 4 for 56 and 64, else 5."""
    return 3 + SIDES.index(side) // 2


@register_model_spec
@dataclass(frozen=True)
class DCGANGeneratorSpec:
    """DCGAN generator (Radford et al. 2016): latent → 4 × 4 maps → three to five doublings → image.

    Attributes:
        latent_dim: length of the latent vector.
        channels: channels of the 4 × 4 maps and after each doubling but the last.
        image_shape: (C, S, S), with S one of :data:`SIDES`; each doubling of S takes one more entry of ``channels``.
    """

    latent_dim: int = 64
    channels: tuple[int, ...] = (128, 64, 32)
    image_shape: tuple[int, int, int] = (1, 28, 28)

    def __post_init__(self) -> None:
        set_size(self, "latent_dim")
        set_sizes(self, "image_shape", 3)
        set_sizes(self, "channels", len(_strides(self.image_shape)))

    def build(self) -> DCGANGenerator:
        """The freshly initialised network."""
        return DCGANGenerator(self)


@register_model_spec
@dataclass(frozen=True)
class DCGANDiscriminatorSpec:
    """DCGAN discriminator: image → three to five halvings → 4 × 4 maps → one logit.

    Attributes:
        channels: channels after each halving.
        image_shape: (C, S, S), with S one of :data:`SIDES`.
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
        set_sizes(self, "image_shape", 3)
        set_sizes(self, "channels", len(_strides(self.image_shape)))
        check_norm(self.norm)

    def build(self) -> DCGANDiscriminator:
        """The freshly initialised network."""
        return DCGANDiscriminator(self)


class DCGANGenerator(nn.Module):
    """See :class:`DCGANGeneratorSpec`. Maps z (N, latent_dim) to images (N, C, H, W) in [-1, 1]."""

    def __init__(self, spec: DCGANGeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        up = _strides(spec.image_shape)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        widths = (spec.latent_dim, *spec.channels)
        pairs = zip(widths, spec.channels, [(4, 1, 0), *up], strict=False)
        for number, (inputs, outputs, (kernel, stride, padding)) in enumerate(pairs, 1):
            layers[f"deconv{number}"] = nn.ConvTranspose2d(
                inputs, outputs, kernel, stride, padding, bias=False
            )
            layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
        layers[f"deconv{len(widths)}"] = nn.ConvTranspose2d(widths[-1], spec.image_shape[0], *up[-1])
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
        layers[f"conv{len(spec.channels) + 1}"] = nn.Conv2d(inputs, 1, 4)
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
