"""Latents, and samples of a generator."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ganprune.core.checks import ArgumentTypeError, check_integer
from ganprune.core.device import placement_of
from ganprune.core.modes import call_untouched, eval_mode
from ganprune.core.random import keep_random_state, seeded, step_seed
from ganprune.masks.names import find_adapter
from ganprune.networks.checking import check_finite, check_latents, warn_of_wide_range
from ganprune.networks.fast_convolutions import fast_convolutions
from ganprune.networks.gan import built_here

LATENT_STREAM = "latent"
_CONVOLUTIONS = {
    nn.Conv1d: 1,
    nn.ConvTranspose1d: 1,
    nn.Conv2d: 2,
    nn.ConvTranspose2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose3d: 3,
}
_takes_maps: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def latent_dim_of(network: nn.Module) -> int:
    """Length of the latent vector of a generator: its spec's, or its own attribute ``latent_dim``.

    Raises:
        ValueError: if it has neither, or one that is no integer of at least 1.
    """
    for holder in (getattr(network, "spec", None), network):
        found = getattr(holder, "latent_dim", None)
        if found is not None:
            return check_integer(f"latent_dim of the generator {type(network).__name__}", found, 1)
    raise ValueError(
        f"generator {type(network).__name__} must have an attribute latent_dim (or a spec that has one)"
    )


def latent_shape_of(network: nn.Module) -> tuple[int, ...]:
    """The shape of one latent of a generator: (z,), or (z, 1, 1) where it begins with a convolution that takes maps.

    The rule, in this order:

    1. An attribute ``latent_shape`` of the generator is the answer.
    2. It is ``(latent_dim,)``, except where the first layer with weights is a convolution with ``latent_dim`` input
       channels. Some generators reshape the latent before such a layer, others want to be given maps of one pixel:
       two vectors are tried, then two maps, and the answer is what does not fail. It is remembered.

    Raises:
        ValueError: if the generator names neither ``latent_shape`` nor ``latent_dim``.
    """
    given = getattr(network, "latent_shape", None)
    if given is not None:
        return tuple(map(operator.index, given))
    latent_dim = latent_dim_of(network)
    layers = (part for part in network.modules() if next(part.parameters(recurse=False), None) is not None)
    first: Any = next(layers, None)
    dims = next((n for kind, n in _CONVOLUTIONS.items() if isinstance(first, kind)), 0)
    if built_here(network) or not dims or first.in_channels != latent_dim:
        return (latent_dim,)
    maps = (latent_dim, *[1] * dims)
    if network not in _takes_maps:
        _takes_maps[network] = not _accepts(network, (latent_dim,)) and _accepts(network, maps)
    return maps if _takes_maps[network] else (latent_dim,)


def _accepts(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a generator takes two latents of this shape; it is left as it was."""
    device, dtype = placement_of(network)
    try:
        call_untouched(network, torch.zeros(2, *shape, device=device, dtype=dtype))
    except Exception:  # whatever a stranger's code raises
        return False
    return True


def sample_latents(
    n: int, latent_dim: int | tuple[int, ...], seed: int = 0, device: str | torch.device = "cpu"
) -> Tensor:
    """Standard normal latents, drawn on the CPU so that all devices agree.

    Args:
        n: number of latents, at least 1.
        latent_dim: length of one latent, or its shape; (z,) and (z, 1, 1) get the same numbers.
        seed: determines the numbers.
        device: where they go.

    Returns:
        float32, shape (n, latent_dim), or (n, z, 1, 1) where the shape (z, 1, 1) was given.
    """
    latent_shape = latent_dim if isinstance(latent_dim, tuple) else (latent_dim,)
    shape = [check_integer("n", n, 1), *(check_integer("latent_dim", size, 1) for size in latent_shape)]
    generator = seeded(step_seed(seed, 0, LATENT_STREAM))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device)


def draw_latents(network: nn.Module, n: int, seed: int = 0) -> Tensor:
    """Standard normal latents for a generator: of the shape, on the device and in the dtype that it takes.

    Args:
        network: the generator; :func:`latent_shape_of` says by which rule the shape is found.
        n: number of latents, at least 1.
        seed: determines the numbers, on every device alike.

    Returns:
        shape (n, z) or (n, z, 1, 1).
    """
    device, dtype = placement_of(network)
    return sample_latents(n, latent_shape_of(network), seed, device).to(dtype)


def draw_inputs(network: nn.Module, n: int, seed: int = 0) -> tuple[Any, ...]:
    """What a generator is called with: latents, and whatever else its adapter draws, such as labels and noise.

    Args:
        network: the generator, perhaps inside of :func:`ganprune.adapt`.
        n: number of samples, at least 1.
        seed: determines all of it, on every device alike.

    Returns:
        The arguments of one call, on the device and in the dtype of the network; without an adapter one tensor, that
        of :func:`draw_latents`.
    """
    adapter = find_adapter(network)
    if adapter is not None and adapter.draws:
        return adapter.draw_inputs(check_integer("n", n, 1), seed)
    return (draw_latents(network, n, seed),)


def input_shape_of(network: nn.Module) -> tuple[int, ...] | None:
    """The shape of one input: a latent for a generator, else what the network or its spec names, else None."""
    holders = (getattr(network, "spec", None), network)
    if any(getattr(holder, name, None) for holder in holders for name in ("latent_dim", "latent_shape")):
        return latent_shape_of(network)
    named = (getattr(holder, name, None) for name in ("image_shape", "input_shape") for holder in holders)
    shape = next(filter(None, named), None)
    return None if shape is None else tuple(shape)


def default_inputs(network: nn.Module, n: int) -> tuple[Any, ...]:
    """The arguments of one call: what an adapter draws, else standard normal inputs of the shape that is named.

    Raises:
        ValueError: if the network does not say what it takes.
    """
    adapter = find_adapter(network)
    if adapter is not None and adapter.draws:
        return adapter.draw_inputs(n, 0)
    shape = input_shape_of(network)
    if shape is None:
        raise ValueError(
            f"inputs must be given for a {type(network).__name__}, which has neither latent_dim nor a spec that names "
            "a shape; gp.adapt(network, latent=...) says it once for all"
        )
    device, dtype = placement_of(network)
    return (sample_latents(n, shape, device=device).to(dtype),)


def check_output(network: nn.Module, output: Any, wanted: str) -> Tensor:
    """The output of a network, which must be one tensor.

    Args:
        network: whose output it is, for the message.
        output: what came.
        wanted: such as "images (N, C, H, W)" or "logits (N,)".

    Raises:
        TypeError: if it is something else, such as a tuple.
    """
    if not isinstance(output, Tensor):
        raise ArgumentTypeError(
            f"{type(network).__name__} must give {wanted} as one tensor, got {type(output).__name__}; "
            "gp.adapt(network, output=...) picks it"
        )
    return output


@torch.no_grad()
def sample(
    network: nn.Module,
    n: int = 64,
    seed: int = 0,
    batch_size: int = 1_000,
    latents: Tensor | None = None,
    labels: int | Tensor | None = None,
) -> Tensor:
    """Samples of a generator in evaluation mode; the generator and the global random state are left as they were.

    Args:
        network: any module that maps latents (N, latent_dim), or maps of one pixel (N, latent_dim, 1, 1), to samples,
            or what :func:`ganprune.adapt` makes of another one.
        n: number of samples (ignored when latents are given).
        seed: determines the latents, and the labels and the noise of an adapted generator.
        batch_size: samples made at a time. What a network draws in its ``forward`` depends on it, inputs do not.
        latents: use these instead, real, shape (n, latent_dim); they are moved to the network's device and dtype.
        labels: classes for an adapted generator that takes labels: one for all, or integers (n,).

    Returns:
        float32, shape (n, C, H, W), on the generator's device. A warning says so if an adapted generator uses next to
        nothing of the range that it declares, see :func:`ganprune.networks.checking.warn_of_wide_range`.

    Raises:
        TypeError: if the network gives anything but one tensor, or the latents are complex or no tensor.
        ValueError: if labels are given and the network takes none, or they are no classes of it; or if an adapted
            generator takes latents of another shape.
        NotFiniteError: if a sample has NaN or infinity; the message names a parameter or buffer that has them too.
    """
    check_integer("batch_size", batch_size, 1)
    adapter = find_adapter(network)
    if latents is None or (adapter is not None and adapter.draws):
        arguments = draw_inputs(network, n if latents is None else len(latents), seed)
    if latents is not None:
        check_latents(latents, getattr(adapter, "latent_shape", None))
        device, dtype = placement_of(network)
        arguments = (
            torch.as_tensor(latents).to(device, dtype),
            *(arguments[1:] if adapter is not None else ()),
        )
    if labels is not None:
        if adapter is None:
            raise ValueError(
                "labels must be None: the network takes none; gp.adapt(network, labels=...) says it does"
            )
        arguments = adapter.with_labels(arguments, labels)
    count = next(len(leaf) for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))
    with ExitStack() as block:
        block.enter_context(eval_mode(network))
        block.enter_context(_seeded_noise(network, seed))
        if built_here(network):
            block.enter_context(fast_convolutions(network))
        batches = [
            network(*_rows(arguments, start, start + batch_size)) for start in range(0, count, batch_size)
        ]
    samples = torch.cat([check_output(network, batch, "images (N, C, H, W)").float() for batch in batches])
    check_finite(network, samples)
    warn_of_wide_range(network, samples)
    return samples


def _rows(arguments: tuple[Any, ...], start: int, stop: int) -> tuple[Any, ...]:
    """Some of the samples among the arguments of a call."""
    return tree_map(lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) else leaf, arguments)


@contextmanager
def _seeded_noise(network: nn.Module, seed: int) -> Iterator[None]:
    """What a network of one's own draws in ``forward`` comes from the seed; the global state stays what it was."""
    if built_here(network):
        yield
        return
    with keep_random_state(placement_of(network)[0]):
        torch.manual_seed(step_seed(seed, 0, "sample noise"))
        yield
