"""A GAN: a generator, a discriminator, and the moving average of the generator."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ganprune.core.device import as_device
from ganprune.core.random import step_seed


@dataclass(frozen=True)
class GANSpec:
    """The specs of both networks of a GAN."""

    generator: Any
    discriminator: Any


class GAN:
    """A generator, a discriminator, and the exponential moving average (EMA) of the generator.

    Attributes:
        generator: maps latents (N, latent_dim) to samples.
        discriminator: maps samples to logits (N,).
        generator_ema: a frozen copy of the generator in evaluation mode; training moves it slowly after the generator.
        masks: the masks that came with a checkpoint, by network name; empty for a dense GAN.
        metadata: what a checkpoint says of its making.
    """

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, generator_ema: nn.Module | None = None
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.generator_ema = generator_ema if generator_ema is not None else copy.deepcopy(generator)
        self.generator_ema.requires_grad_(False).eval()
        self.masks: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}

    @classmethod
    def from_spec(cls, spec: GANSpec, seed: int = 0, device: str | torch.device | None = None) -> GAN:
        """A freshly initialised GAN; the seed determines the weights, on every device alike."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step_seed(seed, 0, "init"))
            generator, discriminator = spec.generator.build(), spec.discriminator.build()
        return cls(generator, discriminator).to(as_device(device))

    @property
    def spec(self) -> GANSpec:
        """The specs of the two networks."""
        return GANSpec(self.generator.spec, self.discriminator.spec)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.generator.parameters()).device

    def networks(self) -> dict[str, nn.Module]:
        """The three networks by name."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_ema": self.generator_ema,
        }

    def to(self, device: str | torch.device) -> GAN:
        """Moves all three networks in place; returns self."""
        for network in self.networks().values():
            network.to(device)
        return self

    def __repr__(self) -> str:
        counts = {
            name: sum(p.numel() for p in network.parameters()) for name, network in self.networks().items()
        }
        return (
            f"GAN(generator={type(self.generator).__name__} {counts['generator']:,} parameters, "
            f"discriminator={type(self.discriminator).__name__} {counts['discriminator']:,} parameters)"
        )
