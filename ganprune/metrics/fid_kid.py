"""FID and KID: two distances between sets of features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def fid(generated: Tensor, reference: Tensor) -> float:
    """Fréchet distance between two sets of features (Heusel et al. 2017, arXiv:1706.08500, equation 6).

    The squared distance of the means plus tr(S + R - 2 (S R)^(1/2)) for the two covariances S and R, computed
    in float64 by torch-fidelity.

    Args:
        generated: Features (N, d), N of at least 2.
        reference: Features (M, d), M of at least 2.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: If the features are not two matrices of equal width with finite entries.
    """
    check_features(generated, reference)
    return fid_of_statistics(feature_statistics(generated), feature_statistics(reference))


def kid(generated: Tensor, reference: Tensor) -> float:
    """Kernel inception distance (Bińkowski et al. 2018, arXiv:1801.01401): MMD² with kernel (x·y/d + 1)³.

    The unbiased estimate from all pairs of different points. The usual mean over random subsets
    (torch-fidelity's) estimates the same quantity with more noise, and equals this one if the single subset
    is the whole set.

    Args:
        generated: Features (N, d), N of at least 2.
        reference: Features (M, d), M of at least 2.

    Returns:
        The estimate; slightly negative values occur when the distributions are alike.

    Raises:
        ValueError: If the features are not two matrices of equal width with finite entries.
    """
    check_features(generated, reference)
    generated, reference = generated.detach().float(), reference.detach().float()
    return kid_of_means(generated, reference, kernel_mean(reference))


def check_features(generated: Tensor, reference: Tensor, neighbours: int = 1) -> None:
    if generated.dim() != 2 or reference.dim() != 2 or generated.shape[1] != reference.shape[1]:
        raise ValueError(
            "generated and reference must be matrices (rows, features) of equal width, "
            f"got {tuple(generated.shape)} and {tuple(reference.shape)}"
        )
    if neighbours < 1 or min(len(generated), len(reference)) <= neighbours:
        raise ValueError(
            f"neighbours must be at least 1 and less than the number of rows, got {neighbours!r} "
            f"with {len(generated)} and {len(reference)} rows"
        )
    for name, features in (("generated", generated), ("reference", reference)):
        if not torch.isfinite(features).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")


def feature_statistics(features: Tensor) -> dict[str, Any]:
    from torch_fidelity.metric_fid import fid_features_to_statistics

    return fid_features_to_statistics(features.detach().cpu().double())


def fid_of_statistics(first: dict[str, Any], second: dict[str, Any]) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return max(0.0, float(np.real(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])))


def _kernel_sum(points: Tensor, others: Tensor) -> float:
    """Sum of the cubic kernel (x·y/d + 1)³ over all pairs: rows in float32, their sums in float64.

    KID is a small difference of large means, so the order of summation matters more than the products' precision.
    """
    total, one = 0.0, torch.ones(1, dtype=points.dtype, device=points.device)
    for block in points.split(BLOCK):
        kernel = torch.addmm(one, block, others.T, alpha=1 / points.shape[1])
        total += sum(kernel.square().mul_(kernel).sum(dim=1).tolist())
    return total


def kernel_mean(points: Tensor) -> float:
    """Mean of the kernel over all ordered pairs of two different points of one set."""
    own = (points.double().square().sum(dim=1) / points.shape[1] + 1).pow(3).sum()
    return (_kernel_sum(points, points) - float(own)) / (len(points) * (len(points) - 1))


def kid_of_means(generated: Tensor, reference: Tensor, reference_mean: float) -> float:
    crossed = _kernel_sum(generated, reference) / (len(generated) * len(reference))
    return kernel_mean(generated) + reference_mean - 2 * crossed


BLOCK = 100
