"""What several networks are built with."""

from __future__ import annotations

import copy
import operator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._pytree import tree_leaves

from ganprune.core.checks import check_choice, check_integer

NORMS = ("spectral", "batch", "none")


def copy_network(network: nn.Module) -> nn.Module:
    """A deep copy of any network, also of one whose layers hold computed weights.

    ``torch.nn.utils.weight_norm`` and ``spectral_norm`` (the functions that are older than parametrisations) keep the
    weight that they computed last as a plain attribute, and ``copy.deepcopy`` refuses tensors with a history of
    gradients. The copy gets their values, and computes them anew at its next call.
    """
    held = [
        leaf for part in network.modules() for leaf in tree_leaves(vars(part)) if isinstance(leaf, Tensor)
    ]
    return copy.deepcopy(network, {id(leaf): leaf.detach().clone() for leaf in held if not leaf.is_leaf})


def set_sizes(spec: Any, name: str, length: int | None = None) -> None:
    """Makes an attribute of a frozen spec a tuple of plain integers, whichever integers came.

    Raises:
        ValueError: if it holds anything but positive integers, or another number of them than ``length``.
    """
    values = getattr(spec, name)
    wanted = f"{length} positive integers" if length else "positive integers"
    try:
        sizes = tuple(operator.index(value) for value in values)
    except TypeError:
        sizes = (0,)
    if (length is not None and len(sizes) != length) or min(sizes, default=1) < 1:
        raise ValueError(f"{name} must hold {wanted}, got {values!r}")
    object.__setattr__(spec, name, sizes)


def set_size(spec: Any, name: str) -> None:
    """Makes an attribute of a frozen spec a plain integer of at least 1; ValueError if it is none."""
    object.__setattr__(spec, name, check_integer(name, getattr(spec, name), 1))


def check_norm(norm: str) -> None:
    """Raises ValueError unless a norm is one of :data:`NORMS`."""
    check_choice("norm", norm, NORMS)


def check_latent(z: Tensor, latent_dim: int) -> None:
    """Raises ValueError unless latents have the shape (N, latent_dim)."""
    if z.ndim != 2 or z.shape[1] != latent_dim:
        raise ValueError(f"z must have shape (N, {latent_dim}), got {tuple(z.shape)}")


def normalise_spectrally(network: nn.Module) -> None:
    """Puts spectral norm (Miyato et al. 2018) on every convolution and linear layer."""
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            spectral_norm(module)
