"""Spectral norms whose vectors belong to other weights, and how to bring them up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

POWER_ITERATIONS = 20
TOLERANCE = 0.1
"""Vectors whose σ is more than this share below the true one count as stale."""


def _spectral_norms(network: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(weight as a matrix of one row per output, u, v) of each of PyTorch's spectral norms, of either kind."""
    for module in network.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                names = (f"{hook.name}_orig", f"{hook.name}_u", f"{hook.name}_v")
                weight, u, v = (cast(Tensor, getattr(module, name)) for name in names)
                yield weight.detach().movedim(hook.dim, 0).flatten(1), u, v
        if isinstance(module, parametrize.ParametrizationList) and "original" in module._parameters:
            for part in module.children():
                if hasattr(part, "_u") and hasattr(part, "_v"):
                    weight, dim = cast(Tensor, module.original).detach(), cast(int, part.dim)
                    yield weight.movedim(dim, 0).flatten(1), cast(Tensor, part._u), cast(Tensor, part._v)


def power_iteration(matrix: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The leading singular vectors of a matrix, from a first guess of the left one.

    Args:
        matrix: shape (outputs, rest).
        u: shape (outputs,); where it sees nothing of the matrix, another guess takes its place.

    Returns:
        u of shape (outputs,) and v of shape (rest,), both of length 1.
    """
    if (matrix.T @ u).norm() <= 1e-6 * matrix.norm():
        u = matrix @ matrix[matrix.norm(dim=1).argmax()]
    for _ in range(POWER_ITERATIONS):
        v = nn.functional.normalize(matrix.T @ u, dim=0)
        u = nn.functional.normalize(matrix @ v, dim=0)
    return u, v


@contextmanager
def settled_spectral_norms(network: nn.Module) -> Iterator[None]:
    """Inside the block every spectral norm divides by about the true σ; afterwards the vectors are as before.

    The older ``torch.nn.utils.spectral_norm`` starts from random vectors, and a network that has not been
    trained divides by a σ near zero in evaluation mode: its outputs are ten orders of magnitude too large.
    Vectors that fit their weight to within a tenth are left alone.
    """
    before = []
    with torch.no_grad():
        for matrix, u, v in _spectral_norms(network):
            better_u, better_v = power_iteration(matrix, u)
            true = better_u @ matrix @ better_v
            if not (u @ matrix @ v).abs() >= (1 - TOLERANCE) * true:
                before += [(u, u.clone()), (v, v.clone())]
                u.copy_(better_u)
                v.copy_(better_v)
    try:
        yield
    finally:
        with torch.no_grad():
            for vector, old in before:
                vector.copy_(old)
