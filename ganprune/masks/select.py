"""Exactly so many weights, the largest first, ties by position, on every device alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def keep_largest(scores: Tensor, keep: int) -> Tensor:
    """Which entries of a flat tensor are its ``keep`` largest; of equal scores the later ones stay.

    The threshold comes from a selection in linear time (no sort); the ties at the threshold are settled by
    position.

    Args:
        scores: shape (n,), any number type.
        keep: at most 0 keeps none, at least n keeps all.

    Returns:
        A bool tensor of shape (n,) on the same device.
    """
    prune = scores.numel() - keep
    if prune <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if keep <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _kth_smallest(scores, prune)
    kept = scores > threshold
    surplus = keep - int(kept.count_nonzero())  # how many of those at the threshold stay: the last ones
    if not surplus:
        return kept
    ties = _positions(scores == threshold)
    kept[ties[len(ties) - surplus :]] = True
    return kept


def _positions(flags: Tensor) -> Tensor:
    """Where a flat bool tensor is true, ascending."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))  # several times as fast as nonzero
    return flags.nonzero().flatten()


def _kth_smallest(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest value (k from 1), in linear time."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        values = scores.detach().numpy()
        return torch.from_numpy(np.partition(values, k - 1)[k - 1 : k])[0]
    if scores.device.type == "mps":
        return scores.cpu().kthvalue(k).values.to(scores.device)
    return scores.kthvalue(k).values


def keep_among(scores: Tensor, candidates: Tensor, keep: int) -> Tensor:
    """The ``keep`` largest among the candidates, as :func:`keep_largest` gives them.

    Args:
        scores: shape (n,).
        candidates: bool, shape (n,); where it is false nothing is kept.
        keep: how many stay.

    Returns:
        A bool tensor of shape (n,).
    """
    if bool(candidates.all()):
        return keep_largest(scores, keep)
    kept = torch.zeros_like(candidates)
    kept[candidates] = keep_largest(scores[candidates], keep)
    return kept
