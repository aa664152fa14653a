"""Applying a mask to a network, and checking that it holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ganprune.masks.mask import Mask, MaskError
from ganprune.masks.spectral import power_iteration
from ganprune.masks.weights import WeightSlot, slots_of_parameters, spectral_parts, weight_slots

Pairs = list[tuple[WeightSlot, Tensor]]
_EMPTIED = (
    "mask empties what a norm divides by its length, which would be 0 / 0 (allocation 'per-output' keeps as much of "
    "each output, 'erk' and 'uniform' take less from small layers than 'global')"
)


def match_slots(
    network: nn.Module, mask: Mapping[str, Tensor], role: str = "network", others: Mask | None = None
) -> Pairs:
    """Pairs of weight and mask, and then of other parameters and theirs.

    Raises:
        TypeError: if the mask is not a :class:`Mask`.
        ValueError: if a layer of the mask is missing or has another shape; all are listed.
    """
    for name, one in (("mask", mask), ("others", others)):
        if not isinstance(one, Mask) and (one is not None or name == "mask"):
            raise TypeError(f"{name} must be a Mask, got {type(one).__name__}")
    wanted: dict[str, Tensor] = {**mask, **(others or {})}
    slots = weight_slots(network)
    if others is not None:
        slots = {**slots, **slots_of_parameters(network, others)}
    problems = [f"{key} is missing" for key in wanted if key not in slots]
    problems += [
        f"{key} has shape {tuple(slots[key].raw.shape)}, its mask {tuple(kept.shape)}"
        for key, kept in wanted.items()
        if key in slots and slots[key].raw.shape != kept.shape
    ]
    if problems:
        raise ValueError(f"mask does not fit the {role}: " + "; ".join(problems))
    return [(slots[key], kept.to(slots[key].raw.device)) for key, kept in wanted.items()]


def check_fit(network: nn.Module, mask: Mask) -> None:
    """Does nothing if the network has every layer of the mask, in its shape.

    Raises:
        TypeError: if ``mask`` is not a :class:`Mask`.
        ValueError: if a layer is missing or has another shape; all are listed.
    """
    match_slots(network, mask)


def _refuse(pairs: Pairs, flags: list[Tensor], message: str) -> None:
    """Raises for the layers whose flag is true; one wait for the device in all."""
    bad = torch.stack([flag.cpu() for flag in flags]).tolist() if flags else []
    names = [slot.key for (slot, _), is_bad in zip(pairs, bad, strict=True) if is_bad]
    if names:
        raise ValueError(f"{message}: {', '.join(names)}")


@torch.no_grad()
def apply_mask(
    network: nn.Module, mask: Mask, ema: nn.Module | None = None, others: Mask | None = None
) -> None:
    """Sets the pruned weights to (positive) zero in the network and in its EMA copy.

    Left alone, an EMA copy has no sparsity at all a thousand steps later. Under spectral norm the power
    iteration is run again, because its vectors belong to the weights of before. All is checked before
    anything is written.

    Args:
        network: changed in place.
        mask: as :func:`prunable_weights` names the layers; the network may be frozen.
        ema: a copy of the network that shares the mask, or None.
        others: entries of other parameters that become zero too, as for :func:`keep_mask`.

    Raises:
        TypeError: if ``mask`` or ``others`` is not a :class:`Mask`.
        ValueError: if the mask does not fit, a weight is NaN or infinite, or the mask empties something that
            a spectral or weight norm divides by its norm.
    """
    networks = {"network": network} | ({"EMA copy": ema} if ema is not None else {})
    matched = {role: match_slots(network, mask, role, others) for role, network in networks.items()}
    for role, pairs in matched.items():
        not_finite = [~torch.isfinite(slot.raw).all() for slot, _ in pairs]
        _refuse(pairs, not_finite, f"weights of the {role} must be finite, got NaN or infinity in")
        emptied = [~slot.normed_groups(kept).all() for slot, kept in pairs]
        _refuse(pairs, emptied, f"{_EMPTIED}, in")
        changed = [torch.tensor(not _keeps_zeros(slot, kept)) for slot, kept in pairs]
        _refuse(
            pairs,
            changed,
            "what makes the weight (a parametrisation, or the effective weight of a registered layer) does not keep "
            "zeros in",
        )
    for slot, kept in (pair for pairs in matched.values() for pair in pairs):
        raw = slot.raw.detach()
        stale = bool(spectral_parts(slot)) and bool((raw[~kept] != 0).any())
        raw.masked_fill_(~kept, 0.0)
        if stale:  # where the mask held already the vectors stay, so that resuming is bit-identical
            _refresh_spectral_norm(slot)


def _keeps_zeros(slot: WeightSlot, kept: Tensor) -> bool:
    """Whether the effective weight is zero where the raw one is; tried out under parametrisations unknown
    here."""
    parts = list(slot.owner.children()) if slot.kind == "parametrized" else []
    own = slot.own is not None and slot.own[1].effective is not None
    if not own and (len(parts) == len(spectral_parts(slot)) or slot.attribute == "original1"):
        return True
    weight = slot.raw.detach()
    before = weight.clone()
    weight.masked_fill_(~kept, 0.0)
    result = bool((slot.effective()[~kept] == 0).all())
    weight.copy_(before)
    return result


@torch.no_grad()
def _refresh_spectral_norm(slot: WeightSlot) -> None:
    """Power iterations until u and v are the leading singular vectors of the weight as it is now."""
    for u, v, dim in spectral_parts(slot):
        left, right = power_iteration(slot.raw.detach().movedim(dim, 0).flatten(1), u)
        u.copy_(left)
        v.copy_(right)


def check_mask(network: nn.Module, mask: Mask) -> None:
    """Does nothing if every pruned weight is zero and every weight is finite.

    Saving, exporting and evaluating a masked network call it, so that no number is reported for a mask that
    was lost.

    Raises:
        MaskError: if a pruned weight is not zero, or a weight is NaN or infinite.
        ValueError: if the mask does not fit the network.
    """
    check_pairs(match_slots(network, mask))


@torch.no_grad()
def check_pairs(pairs: Pairs) -> None:
    counts = torch.stack(
        [
            torch.stack([((slot.raw != 0) & ~kept).sum(), (~torch.isfinite(slot.raw)).sum()]).cpu()
            for slot, kept in pairs
        ]
    ).tolist()
    for (slot, _), (alive, not_finite) in zip(pairs, counts, strict=True):
        if not_finite:
            raise MaskError(f"{slot.key} has {not_finite} weights that are NaN or infinite")
        if alive:
            raise MaskError(
                f"{slot.key} has {alive} non-zero weights under its mask; "
                "keep_mask holds a mask while an optimiser steps"
            )
