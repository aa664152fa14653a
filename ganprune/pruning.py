"""Pruning in one call: score, allocate, apply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ganprune.allocation.choose import allocate, check_amount
from ganprune.masks.apply import apply_mask
from ganprune.masks.mask import Mask, check_sparsity
from ganprune.scores.registry import get_score, score


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    *,
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
) -> Mask:
    """Scores a network's weights, sets the least important ones to zero, and returns the mask.

    One-shot and immediate. To keep the zeros while training, pass the mask to ``keep_mask`` or to a
    ``TrainState``.

    Args:
        model: changed in place.
        sparsity: absolute final share of zeros among the prunable weights, in [0, 1). (In
            ``torch.nn.utils.prune`` the amount is relative: 0.5 twice gives 0.75.)
        threshold: prune scores below this number instead.
        score: one of ``SCORES``.
        allocation: as for :func:`allocate`; None for the score's own, which is "global" except for Wanda.
        layer_sparsity: explicit sparsities instead, by layer.
        protect: names of layers to leave alone.
        within: a mask from before; only weights that it keeps can stay.
        seed: for scores that draw random numbers.
        loss_fn: for scores by gradients, see :func:`ganprune.scores.registry.score`.
        inputs: for scores by activations.
        ema: an EMA copy of the model, which gets the same zeros.
        options: further arguments of the score.

    Returns:
        The mask; ``mask.sparsity`` is the sparsity reached.

    Raises:
        ValueError: as :func:`ganprune.scores.registry.score`, :func:`allocate` and ``apply_mask`` do.
    """
    if allocation is None:
        allocation = get_score(score).allocation
    if sparsity is not None:
        check_sparsity(sparsity)
    check_amount(sparsity, threshold, layer_sparsity, allocation)
    scores = _score(model, score, loss_fn, inputs, protect=protect, seed=seed, sparsity=sparsity, **options)
    mask = allocate(
        scores, sparsity, allocation, threshold=threshold, layer_sparsity=layer_sparsity, within=within
    )
    apply_mask(model, mask, ema)
    return mask


_score = score  # `prune` has an argument of that name


def prune_generator(generator: nn.Module, threshold: float) -> Mask:
    """Sets every weight of a generator with ``|w| < threshold`` to zero: a thin wrapper over :func:`prune`.

    Args:
        generator: changed in place; all convolutions and linear layers are pruned.
        threshold: absolute, in the units of the weights.

    Returns:
        The mask, to be kept while the generator is trained again.

    Raises:
        TypeError: if the threshold is no number.
        ValueError: if it is not finite, or so large that no weight is left.
    """
    return prune(generator, threshold=threshold, score="magnitude")
