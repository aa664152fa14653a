"""Pruning in one call: score, allocate, apply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, overload

from torch import nn

from ganprune.allocation.choose import allocate, check_amount
from ganprune.core.checks import check_choice
from ganprune.losses import generator_loss
from ganprune.masks.apply import apply_mask
from ganprune.masks.mask import Mask
from ganprune.networks.gan import GAN, MASKED_NETWORKS
from ganprune.scores.registry import get_score
from ganprune.scores.registry import score as compute_scores

__all__ = ["prune", "prune_generator"]


@overload
def prune(
    network: GAN, sparsity: float | None = None, *, which: Literal["both"], **options: Any
) -> dict[str, Mask]: ...
@overload
def prune(
    network: GAN | nn.Module, sparsity: float | None = None, *, which: str = "generator", **options: Any
) -> Mask: ...
def prune(
    network: GAN | nn.Module,
    sparsity: float | None = None,
    *,
    which: str = "generator",
    threshold: float | None = None,
    score: str = "magnitude",
    allocation: str | None = None,
    layer_sparsity: Mapping[str, float] | None = None,
    protect: Iterable[str] = (),
    within: Mask | None = None,
    seed: int = 0,
    loss_fn: Any = None,
    inputs: Any = None,
    ema: nn.Module | None = None,
    **options: Any,
) -> Mask | dict[str, Mask]:
    """Scores a network's weights, sets the least important ones to zero, and returns the mask.

    One-shot and immediate. A GAN remembers the mask in ``gan.masks``, its EMA generator gets the same zeros, and
    :func:`ganprune.train` keeps them. The zeros of a network on its own are kept by :func:`ganprune.keep_mask`.

    Args:
        network: a GAN, or any module; changed in place.
        sparsity: absolute final share of zeros among the prunable weights, in [0, 1). (In
            ``torch.nn.utils.prune`` the amount is relative: 0.5 twice gives 0.75.)
        which: of a GAN: "generator", "discriminator", or "both", each at the same sparsity.
        threshold: prune scores below this number instead.
        score: one of ``gp.scores.SCORES``.
        allocation: as for :func:`ganprune.allocate`; None for the score's own, which is "global" except for Wanda.
        layer_sparsity: explicit sparsities instead, by layer.
        protect: names of layers to leave alone.
        within: a mask from before; only weights that it keeps can stay.
        seed: for scores that draw random numbers.
        loss_fn: for scores by gradients, see :func:`ganprune.score`; of a GAN's generator, None stands for
            :func:`ganprune.generator_loss`.
        inputs: for scores by activations.
        ema: an EMA copy of a module that is no GAN; it gets the same zeros.
        options: further arguments of the score.

    Returns:
        The mask, or for "both" a dictionary of two; ``mask.sparsity`` is the sparsity reached.

    Raises:
        ValueError: as :func:`ganprune.score`, :func:`ganprune.allocate` and :func:`ganprune.apply_mask` do. Nothing is
            changed then.
    """
    targets = _networks_to_prune(network, which, ema)
    allocation = get_score(score).allocation if allocation is None else allocation
    check_amount(sparsity, threshold, layer_sparsity, allocation)
    masks = {}
    for name, target in targets.items():
        loss = loss_fn
        if isinstance(network, GAN) and name == "generator" and "loss_fn" in get_score(score).needs:
            loss = generator_loss(network, seed=seed) if loss_fn is None else loss_fn
        scores = compute_scores(
            target, score, loss, inputs, protect=protect, seed=seed, sparsity=sparsity, **options
        )
        masks[name] = allocate(
            scores, sparsity, allocation, threshold=threshold, layer_sparsity=layer_sparsity, within=within
        )
    for name, mask in masks.items():
        if isinstance(network, GAN):
            network.masks[name] = mask
        else:
            apply_mask(network, mask, ema)
    return masks if which == "both" else masks[which]


def _networks_to_prune(network: GAN | nn.Module, which: str, ema: nn.Module | None) -> dict[str, nn.Module]:
    """The networks that are meant, by name; a module on its own is called the generator."""
    if not isinstance(network, GAN):
        if which != "generator":
            raise ValueError(f"which must be left alone unless a GAN is pruned, got {which!r}")
        return {"generator": network}
    if ema is not None:
        raise ValueError("ema must be None with a GAN, which has an EMA generator of its own")
    check_choice("which", which, (*MASKED_NETWORKS, "both"))
    return {name: network.networks()[name] for name in (MASKED_NETWORKS if which == "both" else (which,))}


def prune_generator(generator: GAN | nn.Module, threshold: float) -> Mask:
    """Sets every weight of a generator with ``|w| < threshold`` to zero: a thin wrapper over :func:`prune`.

    Args:
        generator: a GAN, or a generator alone; changed in place; all convolutions and linear layers are pruned.
        threshold: absolute, in the units of the weights.

    Returns:
        The mask, to be kept while the generator is trained again.

    Raises:
        TypeError: if the threshold is no number.
        ValueError: if it is not finite, or so large that no weight is left.
    """
    return prune(generator, threshold=threshold, score="magnitude")
