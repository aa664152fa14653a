"""Synthetic data in the plane."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ganprune.core.checks import check_integer
from ganprune.core.random import seeded


def gaussian_ring(n: int, seed: int, modes: int = 8, radius: float = 2.0, std: float = 0.05) -> Tensor:
    """Points from a mixture of Gaussians whose centres lie on a circle.

    Args:
        n: number of points, at least 1.
        seed: determines the points.
        modes: number of Gaussians, at least 1.
        radius: of the circle.
        std: standard deviation of each Gaussian in both coordinates.

    Returns:
        float32, shape (n, 2).
    """
    check_integer("n", n, 1)
    check_integer("modes", modes, 1)
    generator = seeded(seed)
    chosen = torch.randint(modes, (n,), generator=generator, device="cpu")
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float32, device="cpu")
    return ring_centres(modes, radius)[chosen] + std * noise


def ring_centres(modes: int = 8, radius: float = 2.0) -> Tensor:
    """The centres of :func:`gaussian_ring`: evenly on a circle, float32, shape (modes, 2)."""
    angles = torch.arange(modes, dtype=torch.float32, device="cpu") * (2 * math.pi / modes)
    return radius * torch.stack([angles.cos(), angles.sin()], dim=1)
