"""What several networks are built with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ganprune.core.checks import check_choice

NORMS = ("spectral", "batch", "none")


def check_sizes(name: str, values: tuple[int, ...], length: int | None = None) -> None:
    if (length is not None and len(values) != length) or any(int(v) != v or v < 1 for v in values):
        wanted = f"{length} positive integers" if length else "positive integers"
        raise ValueError(f"{name} must hold {wanted}, got {values!r}")


def check_norm(norm: str) -> None:
    check_choice("norm", norm, NORMS)


def check_latent(z: Tensor, latent_dim: int) -> None:
    if z.ndim != 2 or z.shape[1] != latent_dim:
        raise ValueError(f"z must have shape (N, {latent_dim}), got {tuple(z.shape)}")


def normalise_spectrally(network: nn.Module) -> None:
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            spectral_norm(module)
