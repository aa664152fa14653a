"""Exactly so many weights, the largest first, ties by position, on every device alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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


def keep_among(scores: Tensor, candidates: Tensor, keep: int) -> Tensor:
    """As :func:`keep_largest`, among the candidates only."""
    if bool(candidates.all()):
        return keep_largest(scores, keep)
    kept = torch.zeros_like(candidates)
    kept[candidates] = keep_largest(scores[candidates], keep)
    return kept
