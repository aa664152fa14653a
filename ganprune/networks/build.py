"""Ready-made GANs."""

from __future__ import annotations

import torch

from ganprune.core.checks import check_integer
from ganprune.networks.convolutional import SIDES, DCGANDiscriminatorSpec, DCGANGeneratorSpec, doublings
from ganprune.networks.fully_connected import MLPDiscriminatorSpec, MLPGeneratorSpec
from ganprune.networks.gan import GAN, GANSpec

SPECTRAL_GAIN = 20.0
"""Gain on the logits of :func:`dcgan` under spectral norm; see :class:`DCGANDiscriminatorSpec`."""


def dcgan(
    image_shape: tuple[int, int, int] = (1, 28, 28),
    width: int = 32,
    latent_dim: int = 64,
    norm: str = "none",
    seed: int = 0,
    device: str | torch.device | None = None,
) -> GAN:
    """The course's pair: a DCGAN whose channel counts are multiples of ``width``.

    Args:
        image_shape: (C, S, S), with S 28, 32, 56, 64, 112 or 128.
        width: channels nearest to the image, at least 1; doubled at each halving of the resolution.
        latent_dim: length of the latent vector.
        norm: of the discriminator: "none", "batch", or "spectral", under which the logits have a gain of 20. The
            generator always uses batch norm.
        seed: determines the initial weights.
        device: None for the best device.
    """
    check_integer("width", width, 1)
    gain = SPECTRAL_GAIN if norm == "spectral" else 1.0
    layers = (
        doublings(image_shape[-1]) if image_shape[-1] in SIDES else 3
    )  # a wrong side is refused by the specs
    widths = tuple(width * 2**number for number in range(layers))
    spec = GANSpec(
        DCGANGeneratorSpec(latent_dim, widths[::-1], image_shape),
        DCGANDiscriminatorSpec(widths, image_shape, norm, gain),
    )
    return GAN.from_spec(spec, seed, device)


def mlp_gan(
    output_shape: tuple[int, ...] = (1, 28, 28),
    latent_dim: int = 64,
    hidden: tuple[int, ...] = (256, 512),
    norm: str = "none",
    seed: int = 0,
    device: str | torch.device | None = None,
) -> GAN:
    """A fully connected GAN for images, or for points of the plane with ``output_shape=(2,)``.

    Args:
        output_shape: shape of one sample.
        latent_dim: length of the latent vector.
        hidden: hidden widths of the generator; the discriminator uses them in reverse.
        norm: of the discriminator: "spectral" or "none".
        seed: determines the initial weights.
        device: None for the best device.
    """
    spec = GANSpec(
        MLPGeneratorSpec(latent_dim, tuple(hidden), tuple(output_shape)),
        MLPDiscriminatorSpec(tuple(reversed(hidden)), tuple(output_shape), norm),
    )
    return GAN.from_spec(spec, seed, device)
