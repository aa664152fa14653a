"""How many weights each layer keeps: uniform, ERK, LAMP, per output, and N:M patterns."""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from ganprune.masks.select import keep_among

Allocation = Callable[[dict[str, Tensor], dict[str, Tensor], int], dict[str, Tensor]]
"""(scores, candidates, number to keep) → what is kept; both flat, by layer."""


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

    Returns:
        The seats of each layer; they add up to ``seats``.

    Raises:
        ValueError: if there are more seats than the capacities hold.
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


def _global(scores: dict[str, Tensor], candidates: dict[str, Tensor], keep: int) -> dict[str, Tensor]:
    sizes = [value.numel() for value in scores.values()]
    flat = torch.cat([value.flatten() for value in scores.values()])
    kept = keep_among(flat, torch.cat([value.flatten() for value in candidates.values()]), keep)
    return dict(zip(scores, kept.split(sizes), strict=True))


def _by_shares(
    scores: dict[str, Tensor], candidates: dict[str, Tensor], keep: int, claims: Sequence[int]
) -> dict[str, Tensor]:
    capacities = [int(mask.count_nonzero()) for mask in candidates.values()]
    shares = apportion(keep, claims, capacities)
    return {
        key: keep_among(value.flatten(), candidates[key].flatten(), share)
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
                f"allocation 'lamp' needs scores of at least 0 (magnitudes), got negative ones in {key}; "
                "allocation='global' and 'erk' take any scores"
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


def keep_per_output(
    scores: dict[str, Tensor], candidates: dict[str, Tensor], keep: int, output_dims: Mapping[str, int]
) -> dict[str, Tensor]:
    """Uniform over layers, then uniform over the outputs of a layer; weights compete within an output.

    Sun et al. 2024, "A simple and effective pruning approach for large language models", section 3.

    Args:
        scores: weight name → scores in the shape of the weight.
        candidates: bool tensors of the same shapes; what is false here cannot stay.
        keep: how many weights stay in all.
        output_dims: per weight, the dimension that counts outputs.

    Returns:
        What is kept, flat, by layer.
    """
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
"""Name → (n, m): at most n of m consecutive weights are kept."""

ALLOCATION_NAMES = (*ALLOCATIONS, "per-output", *PATTERNS)


def keep_pattern(
    scores: Mapping[str, Tensor], output_dims: Mapping[str, int], n: int, m: int
) -> dict[str, Tensor]:
    """The best ``n`` of every ``m`` consecutive weights along the input dimension.

    Layers whose number of inputs ``m`` does not divide stay dense, with a warning that names them.

    Returns:
        What is kept, by layer, in the shape of the weight.
    """
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
