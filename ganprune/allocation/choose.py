"""From scores to a mask: how many weights each layer keeps, and which.

One order runs through everything here: weights are pruned by increasing score, equal scores by increasing
position (layers in order, then row-major within a layer). So counts are exact under ties, every device gives
the same mask, and the masks of one set of scores are nested as sparsity grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ganprune.allocation.shares import ALLOCATION_NAMES, ALLOCATIONS, PATTERNS, keep_pattern, keep_per_output
from ganprune.core.checks import check_choice, check_number
from ganprune.masks.mask import Mask, check_sparsity, pruned_count
from ganprune.masks.select import keep_among
from ganprune.masks.weights import protected_keys


def allocate(
    scores: Mapping[str, Tensor],
    sparsity: float | None = None,
    allocation: str = "global",
    *,
    threshold: float | None = None,
    layer_sparsity: Mapping[str, float] | None = None,
    protect: Iterable[str] = (),
    within: Mask | None = None,
    output_dims: Mapping[str, int] | None = None,
) -> Mask:
    """The mask that scores and an allocation give. Pure: nothing is changed, and no network is needed.

    Exactly one of ``sparsity``, ``threshold``, ``layer_sparsity`` or an N:M allocation says how much is
    pruned.

    Args:
        scores: weight name → scores in the shape of the weight, usually from
            :func:`ganprune.scores.registry.score`.
        sparsity: share of all scored weights to prune, in [0, 1); the nearest whole number of weights,
            exactly, but one weight at least is kept.
        allocation: how that is divided among the layers. "global": all weights compete. "uniform": the same
            sparsity in each layer (to the weight nearest, the total exact). "erk": density proportional to
            Σdims / ∏dims, at most 1 (Mocanu et al. 2018; Evci et al. 2020). "lamp": all compete by
            :func:`lamp_scores` (Lee et al. 2021). "per-output": uniform, and uniform within each output of a
            layer (Sun et al. 2024). "2:4" and "1:4": the best 2 (1) of 4 consecutive weights along the input
            dimension; layers that 4 does not divide stay dense, with a warning.
        threshold: prune every score below this number.
        layer_sparsity: layer or weight name → sparsity in [0, 1); layers not named stay dense.
        protect: layers to leave out of the mask altogether.
        within: a mask from before; only weights that it keeps can stay. The sparsity remains the absolute
            final one.
        output_dims: per weight, the dimension that counts outputs; only for "per-output" and N:M, and only if
            the scores do not carry it.

    Returns:
        The mask; True means kept.

    Raises:
        TypeError: if a number or a tensor is expected and something else is given.
        ValueError: if scores are not finite or all zero, an argument is out of range, or nothing would be kept.
    """
    check_choice("allocation", allocation, ALLOCATION_NAMES)
    check_amount(sparsity, threshold, layer_sparsity, allocation)
    layers = _scored_layers(scores, protect)
    candidates = _candidates(layers, within)
    dims = dict(output_dims or getattr(scores, "output_dims", {}))
    if (allocation in PATTERNS or allocation == "per-output") and any(key not in dims for key in layers):
        raise ValueError(
            f"allocation {allocation!r} needs output_dims: pass what score() returned, or give them"
        )
    if allocation in PATTERNS:
        kept = keep_pattern(
            {k: torch.where(candidates[k], v, -math.inf) for k, v in layers.items()},
            dims,
            *PATTERNS[allocation],
        )
        return Mask({key: value & candidates[key] for key, value in kept.items()})
    if threshold is not None:
        return _above(layers, candidates, threshold)
    if layer_sparsity is not None:
        return _by_layer_sparsity(layers, candidates, layer_sparsity)
    total = sum(value.numel() for value in layers.values())
    keep = total - pruned_count(check_sparsity(sparsity), total)
    _check_room(keep, candidates, total)
    if allocation == "per-output":
        kept = keep_per_output(layers, candidates, keep, dims)
    else:
        kept = ALLOCATIONS[allocation](layers, candidates, keep)
    return Mask({key: kept[key].view(value.shape) for key, value in layers.items()})


def _scored_layers(scores: Mapping[str, Tensor], protect: Iterable[str]) -> dict[str, Tensor]:
    protected = protected_keys(scores, protect)
    layers = {key: value for key, value in scores.items() if key not in protected}
    for key, value in layers.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"scores of {key} must be a tensor, got {type(value).__name__}")
        if value.numel() == 0:
            raise ValueError(f"scores of {key} have no entry; leave the layer out with protect")
    if not layers:
        raise ValueError("scores must have at least one layer that is not protected, got none")
    # NaN and infinity carry through to the extremes, in one pass
    extremes = torch.stack([torch.stack(value.aminmax()).cpu().double() for value in layers.values()])
    bad = [key for key, finite in zip(layers, extremes.isfinite().all(1).tolist(), strict=True) if not finite]
    if bad:
        raise ValueError(f"scores must be finite, got NaN or infinity in {', '.join(bad)}")
    if not extremes.any():
        raise ValueError(
            "scores are all 0, so they cannot say which weights to prune; score with data on which the loss has a "
            "gradient, or by magnitude"
        )
    return layers


def _candidates(layers: Mapping[str, Tensor], within: Mask | None) -> dict[str, Tensor]:
    if within is None:
        return {
            key: torch.ones(1, dtype=torch.bool, device=v.device).expand(v.shape) for key, v in layers.items()
        }
    wrong = [key for key, value in layers.items() if key not in within or within[key].shape != value.shape]
    if wrong:
        raise ValueError(
            f"within must have the layers and shapes of the scores; it does not for {', '.join(wrong)}"
        )
    return {key: within[key].to(value.device) for key, value in layers.items()}


def check_amount(sparsity: Any, threshold: Any, layer_sparsity: Any, allocation: str) -> None:
    """Does nothing if exactly one argument says how much to prune; an N:M allocation says it by its name.

    Raises:
        TypeError: if the sparsity is no number.
        ValueError: if the sparsity is out of range, none or several are given, or a sparsity beside an N:M allocation
            that is not its own.
    """
    if sparsity is not None:
        check_sparsity(sparsity)
    named = {"sparsity": sparsity, "threshold": threshold, "layer_sparsity": layer_sparsity}
    given = [name for name, value in named.items() if value is not None]
    if allocation in PATTERNS:
        n, m = PATTERNS[allocation]
        if given and not (given == ["sparsity"] and sparsity == 1 - n / m):
            raise ValueError(
                f"allocation {allocation!r} fixes the sparsity at {1 - n / m}; got {', '.join(given)} as well"
            )
    elif len(given) != 1:
        raise ValueError(
            f"give exactly one of sparsity, threshold, layer_sparsity; got {', '.join(given) or 'none'}"
        )


def _check_room(keep: int, candidates: Mapping[str, Tensor], total: int) -> None:
    alive = sum(int(mask.count_nonzero()) for mask in candidates.values())
    if keep > alive:
        raise ValueError(
            f"sparsity must be at least {1 - alive / total:.6f}, that of the mask given as within; leave within out "
            "to let pruned weights come back"
        )


def _above(layers: Mapping[str, Tensor], candidates: Mapping[str, Tensor], threshold: Any) -> Mask:
    least = check_number("threshold", threshold, "(-inf, inf)")
    mask = Mask({key: (value >= least) & candidates[key] for key, value in layers.items()})
    if mask.kept == 0:
        largest = max(float(value.max()) for value in layers.values())
        raise ValueError(
            f"threshold must be at most the largest score, {largest:.6g}, got {threshold!r}: nothing is kept"
        )
    return mask


def _by_layer_sparsity(
    layers: Mapping[str, Tensor], candidates: Mapping[str, Tensor], layer_sparsity: Mapping[str, float]
) -> Mask:
    asked = {}
    for name, wanted in layer_sparsity.items():
        keys = [key for key in layers if key in (name, f"{name}.weight")]
        if not keys:
            raise ValueError(f"layer_sparsity names {name}, which is not scored; layers: {', '.join(layers)}")
        asked[keys[0]] = check_sparsity(wanted, f"layer_sparsity[{name!r}]")
    kept = {}
    for key, value in layers.items():
        if key in asked:
            keep = value.numel() - pruned_count(asked[key], value.numel())
            _check_room(keep, {key: candidates[key]}, value.numel())
            kept[key] = keep_among(value.flatten(), candidates[key].flatten(), keep).view(value.shape)
        else:
            kept[key] = candidates[key].clone()
    return Mask(kept)
