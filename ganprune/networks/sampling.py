"""Latents, and samples of a generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ganprune.core.checks import check_integer
from ganprune.core.modes import eval_mode
from ganprune.core.random import seeded, step_seed
from ganprune.networks.fast_convolutions import fast_convolutions

LATENT_STREAM = "latent"


def latent_dim_of(generator: nn.Module) -> int:
    """Length of the latent vector of a generator: its spec's, or its own attribute ``latent_dim``.

    Raises:
        ValueError: if it has neither.
    """
    found = getattr(getattr(generator, "spec", None), "latent_dim", None) or getattr(
        generator, "latent_dim", None
    )
    if found is None:
        raise ValueError(
            f"generator {type(generator).__name__} must have an attribute latent_dim (or a spec that has one)"
        )
    return int(found)


def sample_latents(n: int, latent_dim: int, seed: int = 0, device: str | torch.device = "cpu") -> Tensor:
    """Standard normal latents, float32, shape (n, latent_dim); drawn on the CPU so that all devices agree."""
    check_integer("n", n, 1)
    return torch.randn(n, latent_dim, generator=seeded(step_seed(seed, 0, LATENT_STREAM))).to(device)


@torch.no_grad()
def sample(
    generator: nn.Module, n: int = 64, seed: int = 0, batch_size: int = 1_000, latents: Tensor | None = None
) -> Tensor:
    """Samples of a generator in evaluation mode; the generator is left as it was.

    Args:
        generator: any module that maps (N, latent_dim) to samples.
        n: number of samples (ignored when latents are given).
        seed: determines the latents.
        batch_size: samples made at a time.
        latents: use these instead, shape (n, latent_dim).

    Returns:
        float32, shape (n, C, H, W), on the generator's device.
    """
    device = next(generator.parameters()).device
    if latents is None:
        latents = sample_latents(n, latent_dim_of(generator), seed)
    with eval_mode(generator), fast_convolutions(generator):
        return torch.cat([generator(z.to(device)).float() for z in latents.split(batch_size)])
