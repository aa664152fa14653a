"""Fully connected networks: specs and modules."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from ganprune.networks.parts import check_latent, normalise_spectrally, set_size, set_sizes
from ganprune.networks.registry import register_model_spec


@register_model_spec
@dataclass(frozen=True)
class MLPGeneratorSpec:
    """Fully connected generator.

    Attributes:
        latent_dim: length of the latent vector.
        hidden: widths of the hidden layers.
        output_shape: (C, H, W) for images in [-1, 1] (Tanh), or (d,) for points in the plane (no Tanh).
    """

    latent_dim: int = 64
    hidden: tuple[int, ...] = (256, 512)
    output_shape: tuple[int, ...] = (1, 28, 28)

    def __post_init__(self) -> None:
        set_size(self, "latent_dim")
        set_sizes(self, "hidden")
        set_sizes(self, "output_shape")

    def build(self) -> MLPGenerator:
        """The freshly initialised network."""
        return MLPGenerator(self)


@register_model_spec
@dataclass(frozen=True)
class MLPDiscriminatorSpec:
    """Fully connected discriminator.

    Attributes:
        hidden: widths of the hidden layers.
        input_shape: shape of one sample.
        norm: "spectral" or "none" (with batch norm, real and generated samples would see each other).
    """

    hidden: tuple[int, ...] = (512, 256)
    input_shape: tuple[int, ...] = (1, 28, 28)
    norm: str = "none"

    def __post_init__(self) -> None:
        set_sizes(self, "hidden")
        set_sizes(self, "input_shape")
        if self.norm not in ("spectral", "none"):
            raise ValueError(f"norm of an MLP discriminator must be spectral or none, got {self.norm!r}")

    def build(self) -> MLPDiscriminator:
        """The freshly initialised network."""
        return MLPDiscriminator(self)


def _linear_layers(inputs: int, hidden: tuple[int, ...], outputs: int) -> OrderedDict[str, nn.Module]:
    """Linear layers with a leaky ReLU behind each but the last, by name."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(hidden, 1):
        layers[f"linear{number}"] = nn.Linear(inputs, width)
        layers[f"lrelu{number}"] = nn.LeakyReLU(0.2, inplace=True)
        inputs = width
    layers["output"] = nn.Linear(inputs, outputs)
    return layers


class MLPGenerator(nn.Module):
    """See :class:`MLPGeneratorSpec`. Maps z (N, latent_dim) to ``(N, *output_shape)``."""

    def __init__(self, spec: MLPGeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        layers = _linear_layers(spec.latent_dim, spec.hidden, math.prod(spec.output_shape))
        if len(spec.output_shape) == 3:
            layers["tanh"] = nn.Tanh()
        self.layers = nn.Sequential(layers)

    def forward(self, z: Tensor) -> Tensor:
        """Samples ``(N, *output_shape)`` for latents z (N, latent_dim)."""
        check_latent(z, self.spec.latent_dim)
        return self.layers(z).unflatten(1, self.spec.output_shape)


class MLPDiscriminator(nn.Module):
    """See :class:`MLPDiscriminatorSpec`. Maps samples ``(N, *input_shape)`` to logits (N,)."""

    def __init__(self, spec: MLPDiscriminatorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.Sequential(_linear_layers(math.prod(spec.input_shape), spec.hidden, 1))
        if spec.norm == "spectral":
            normalise_spectrally(self)

    def forward(self, samples: Tensor) -> Tensor:
        """Logits (N,): large for real, small for fake."""
        return self.layers(samples.flatten(1)).flatten()
