"""How many weights each layer keeps, and which: from scores to a mask; and :func:`prune`, which does it all.

One order runs through everything here: weights are pruned by increasing score, equal scores by increasing
position (layers in order, then row-major within a layer). So counts are exact under ties, every device gives
the same mask, and the masks of one set of scores are nested as sparsity grows.
"""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ganprune.checks import check_choice, check_number
from ganprune.masks import Mask, apply_mask, check_sparsity, protected_keys, pruned_count
from ganprune.pruning.scores import get_score, score

Allocation = Callable[[dict[str, Tensor], dict[str, Tensor], int], dict[str, Tensor]]
"""(scores, candidates, number to keep) → what is kept; both flat, by layer."""


# --- Selection with exact counts ------------------------------------------------------------------


def keep_largest(scores: Tensor, keep: int) -> Tensor:
    """A bool tensor that is true for the ``keep`` largest of a flat tensor; of equal scores the later ones
    stay.

    The threshold comes from a selection in linear time (no sort); the ties at the threshold are settled by
    position.
    """
    prune = scores.numel() - keep
    if prune <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if keep <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = kth_smallest(scores, prune)
    kept = scores > threshold
    surplus = keep - int(kept.count_nonzero())  # how many of those at the threshold stay: the last ones
    if not surplus:
        return kept
    ties = positions(scores == threshold)
    kept[ties[len(ties) - surplus :]] = True
    return kept


def positions(flags: Tensor) -> Tensor:
    """Where a flat bool tensor is true, ascending."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))  # several times as fast as nonzero
    return flags.nonzero().flatten()


def positions_up_to(values: Tensor, bound: float | Tensor) -> Tensor:
    """Where a flat tensor is at most ``bound``, ascending."""
    if values.device.type == "cpu" and values.dtype == torch.float64:
        return torch.from_numpy(np.flatnonzero(values.numpy() <= float(bound)))  # as above
    return positions(values <= bound)


def kth_smallest(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest value (k from 1), in linear time."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        values = scores.detach().numpy()
        return torch.from_numpy(np.partition(values, k - 1)[k - 1 : k])[0]
    if scores.device.type == "mps":
        return scores.cpu().kthvalue(k).values.to(scores.device)
    return scores.kthvalue(k).values


def _keep_among(scores: Tensor, candidates: Tensor, keep: int) -> Tensor:
    """As :func:`keep_largest`, among the candidates only."""
    if bool(candidates.all()):
        return keep_largest(scores, keep)
    kept = torch.zeros_like(candidates)
    kept[candidates] = keep_largest(scores[candidates], keep)
    return kept


def apportion(seats: int, claims: Sequence[int], capacities: Sequence[int]) -> list[int]:
    """Divides ``seats`` among layers in proportion to their claims, none above its capacity.

    Webster's method: the next seat goes to the layer with the largest claim / (2 · seats so far + 1), the
    first one if equal. As it adds one seat at a time, no layer loses a seat when there are more to divide
    (largest remainders do not have that property, and would break the nesting of masks). Computed in exact
    arithmetic.

    Args:
        seats: at most the sum of the capacities.
        claims: positive integers.
        capacities: the most that each layer can take.
    """
    if seats < 0 or seats > sum(capacities):
        raise ValueError(f"seats must be in [0, {sum(capacities)}], got {seats!r}")

    unit = 2**48  # quotients are integers in units of 1 / unit

    def given(quotient: int) -> list[int]:
        shares = ((2 * a * quotient + unit) // (2 * unit) for a in claims)
        return [min(share, c) for share, c in zip(shares, capacities, strict=True)]

    low, high = 0, unit
    while sum(given(high)) < seats:
        high *= 2
    while high - low > 1:  # the largest quotient that does not give out too many
        middle = (low + high) // 2
        low, high = (middle, high) if sum(given(middle)) <= seats else (low, middle)
    shares = given(low)
    queue = [(-Fraction(a, 2 * n + 1), i) for i, (a, n) in enumerate(zip(claims, shares, strict=True))]
    queue = [entry for entry in queue if shares[entry[1]] < capacities[entry[1]]]
    heapq.heapify(queue)
    for _ in range(seats - sum(shares)):
        _, index = heapq.heappop(queue)
        shares[index] += 1
        if shares[index] < capacities[index]:
            heapq.heappush(queue, (-Fraction(claims[index], 2 * shares[index] + 1), index))
    return shares


# --- Allocations ----------------------------------------------------------------------------------


def _global(scores: dict[str, Tensor], candidates: dict[str, Tensor], keep: int) -> dict[str, Tensor]:
    sizes = [value.numel() for value in scores.values()]
    flat = torch.cat([value.flatten() for value in scores.values()])
    kept = _keep_among(flat, torch.cat([value.flatten() for value in candidates.values()]), keep)
    return dict(zip(scores, kept.split(sizes), strict=True))


def _by_shares(
    scores: dict[str, Tensor], candidates: dict[str, Tensor], keep: int, claims: Sequence[int]
) -> dict[str, Tensor]:
    capacities = [int(mask.count_nonzero()) for mask in candidates.values()]
    shares = apportion(keep, claims, capacities)
    return {
        key: _keep_among(value.flatten(), candidates[key].flatten(), share)
        for (key, value), share in zip(scores.items(), shares, strict=True)
    }


def _uniform(scores: dict[str, Tensor], candidates: dict[str, Tensor], keep: int) -> dict[str, Tensor]:
    return _by_shares(scores, candidates, keep, [value.numel() for value in scores.values()])


def _erk(scores: dict[str, Tensor], candidates: dict[str, Tensor], keep: int) -> dict[str, Tensor]:
    # density proportional to Σdims / ∏dims means a number of weights proportional to Σdims
    return _by_shares(scores, candidates, keep, [sum(value.shape) for value in scores.values()])


def lamp_scores(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """w² / Σ u² over the weights u of the same layer that come no earlier than w in the order of magnitude.

    Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", equation 3. Ties are ordered
    by position, so each layer's best score is 1 and every other at most one half; an all-zero layer scores 0.

    Raises:
        ValueError: if a score is negative.
    """
    result = {}
    for key, value in scores.items():
        flat = value.detach().flatten().to(torch.float64 if value.device.type != "mps" else torch.float32)
        if bool((flat < 0).any()):
            raise ValueError(
                f"allocation 'lamp' needs scores of at least 0 (magnitudes), got negative ones in {key}"
            )
        order = _ascending(flat)
        ordered = flat[order]
        largest = ordered[-1]
        squares = (ordered / largest).square() if largest > 0 else torch.zeros_like(ordered)
        sums = squares.flip(0).cumsum(0).flip(0)
        ratios = torch.where(sums > 0, squares / sums.clamp_min(torch.finfo(sums.dtype).tiny), 0.0)
        result[key] = torch.empty_like(flat).scatter_(0, order, ratios).view(value.shape)
    return result


def _ascending(values: Tensor) -> Tensor:
    """The stable order of numbers of at least 0.

    Their bits, read as integers, have the same order, and integers are sorted several times faster than floats.
    """
    integers = torch.int64 if values.dtype == torch.float64 else torch.int32
    return (values + 0.0).view(integers).sort(stable=True)[1]  # + 0.0: minus zero has other bits than zero


def _lamp(scores: dict[str, Tensor], candidates: dict[str, Tensor], keep: int) -> dict[str, Tensor]:
    alive = {key: torch.where(candidates[key], value, 0.0) for key, value in scores.items()}
    return _global(lamp_scores(alive), candidates, keep)


def _rows(value: Tensor, output_dim: int) -> Tensor:
    return value.movedim(output_dim, 0).flatten(1)


def _evenly(seats: int, capacities: Tensor) -> Tensor:
    """What :func:`apportion` gives when all claims are equal: one seat each in turn, as far as there is
    room."""
    low, high = 0, int(capacities.max())
    while low < high:  # the most rounds that can be completed
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(capacities.clamp(max=middle).sum()) <= seats else (low, middle - 1)
    shares = capacities.clamp(max=low)
    shares[(capacities > low).nonzero().flatten()[: seats - int(shares.sum())]] += 1
    return shares


def _per_output(
    scores: dict[str, Tensor], candidates: dict[str, Tensor], keep: int, output_dims: Mapping[str, int]
) -> dict[str, Tensor]:
    """Uniform over layers, then uniform over the outputs of a layer; compared within an output (Sun et al.
    2024)."""
    capacities = [int(mask.count_nonzero()) for mask in candidates.values()]
    shares = apportion(keep, [value.numel() for value in scores.values()], capacities)
    kept = {}
    for (key, value), share in zip(scores.items(), shares, strict=True):
        dim = output_dims[key]
        rows, alive = _rows(value, dim), _rows(candidates[key], dim)
        per_row = _evenly(share, alive.sum(1))
        lowest = torch.where(alive, rows, -math.inf)
        order = lowest.argsort(dim=1, stable=True)  # ascending; of equals the earlier one is pruned first
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(rows.shape[1], device=rows.device).expand_as(order)
        )
        chosen = (rank >= rows.shape[1] - per_row[:, None]) & alive
        moved = value.movedim(dim, 0)
        kept[key] = chosen.view(moved.shape).movedim(0, dim).contiguous().flatten()
    return kept


ALLOCATIONS: dict[str, Allocation] = {"global": _global, "uniform": _uniform, "erk": _erk, "lamp": _lamp}
PATTERNS = {"2:4": (2, 4), "1:4": (1, 4)}
ALLOCATION_NAMES = (*ALLOCATIONS, "per-output", *PATTERNS)


def _pattern(
    scores: Mapping[str, Tensor], output_dims: Mapping[str, int], n: int, m: int
) -> dict[str, Tensor]:
    """The best ``n`` of every ``m`` consecutive weights along the input dimension."""
    kept, skipped = {}, []
    for key, value in scores.items():
        input_dim = 1 - output_dims[key]
        if value.shape[input_dim] % m:
            skipped.append(f"{key} {tuple(value.shape)}")
            kept[key] = torch.ones_like(value, dtype=torch.bool)
            continue
        last = value.movedim(input_dim, -1)
        groups = last.reshape(-1, m)
        order = groups.argsort(dim=1, stable=True)
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, m - n :], True)
        kept[key] = chosen.view(last.shape).movedim(-1, input_dim).contiguous()
    if skipped:
        warnings.warn(
            f"layers whose inputs are no multiple of {m} stay dense under {n}:{m}: {', '.join(skipped)}",
            UserWarning,
            stacklevel=4,
        )
    return kept


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
            :func:`ganprune.pruning.scores.score`.
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
        ValueError: if scores are not finite, an argument is out of range, or nothing would be kept.
    """
    layers = _scored_layers(scores, protect)
    candidates = _candidates(layers, within)
    dims = dict(output_dims or getattr(scores, "output_dims", {}))
    check_choice("allocation", allocation, ALLOCATION_NAMES)
    if (allocation in PATTERNS or allocation == "per-output") and any(key not in dims for key in layers):
        raise ValueError(
            f"allocation {allocation!r} needs output_dims: pass what score() returned, or give them"
        )
    _check_amount(sparsity, threshold, layer_sparsity, allocation)
    if allocation in PATTERNS:
        kept = _pattern(
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
        kept = _per_output(layers, candidates, keep, dims)
    else:
        kept = ALLOCATIONS[allocation](layers, candidates, keep)
    return Mask({key: kept[key].view(value.shape) for key, value in layers.items()})


def _scored_layers(scores: Mapping[str, Tensor], protect: Iterable[str]) -> dict[str, Tensor]:
    protected = protected_keys(scores, protect)
    layers = {key: value for key, value in scores.items() if key not in protected}
    for key, value in layers.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"scores of {key} must be a tensor, got {type(value).__name__}")
    if not layers:
        raise ValueError("scores must have at least one layer that is not protected, got none")
    # NaN and infinity carry through to the extremes, in one pass
    extremes = (
        torch.stack([torch.stack(value.aminmax()).cpu().double() for value in layers.values()])
        .isfinite()
        .all(1)
    )
    bad = [key for key, finite in zip(layers, extremes.tolist(), strict=True) if not finite]
    if bad:
        raise ValueError(f"scores must be finite, got NaN or infinity in {', '.join(bad)}")
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


def _check_amount(sparsity: Any, threshold: Any, layer_sparsity: Any, allocation: str) -> None:
    named = {"sparsity": sparsity, "threshold": threshold, "layer_sparsity": layer_sparsity}
    given = [name for name, value in named.items() if value is not None]
    if allocation in PATTERNS:
        n, m = PATTERNS[allocation]
        if given and not (given == ["sparsity"] and check_sparsity(sparsity) == 1 - n / m):
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
            f"sparsity must be at least {1 - alive / total:.6f}, that of the mask given as within"
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
            kept[key] = _keep_among(value.flatten(), candidates[key].flatten(), keep).view(value.shape)
        else:
            kept[key] = candidates[key].clone()
    return Mask(kept)


# --- Prune ----------------------------------------------------------------------------------------


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
        loss_fn: for scores by gradients, see :func:`ganprune.pruning.scores.score`.
        inputs: for scores by activations.
        ema: an EMA copy of the model, which gets the same zeros.
        options: further arguments of the score.

    Returns:
        The mask; ``mask.sparsity`` is the sparsity reached.

    Raises:
        ValueError: as :func:`ganprune.pruning.scores.score`, :func:`allocate` and ``apply_mask`` do.
    """
    if allocation is None:
        allocation = get_score(score).allocation
    if sparsity is not None:
        check_sparsity(sparsity)
    _check_amount(sparsity, threshold, layer_sparsity, allocation)
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
