"""FID and KID: two distances between sets of features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganprune.core.modes import full_precision

BLOCK = 100
"""Rows for which distances or kernels are computed at a time."""


def fid(generated: Tensor, reference: Tensor) -> float:
    """Fréchet distance between two sets of features (Heusel et al. 2017, arXiv:1706.08500, equation 6).

    The squared distance of the means plus tr(S + R - 2 (S R)^(1/2)) for the two covariances S and R, computed in
    float64 by torch-fidelity.

    Args:
        generated: features (N, d), N of at least 2.
        reference: features (M, d), M of at least 2.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: if the features are not two matrices of equal width with finite entries.
    """
    check_features(generated, reference)
    return fid_of_statistics(feature_statistics(generated), feature_statistics(reference))


def kid(generated: Tensor, reference: Tensor) -> float:
    """Kernel inception distance (Bińkowski et al. 2018, arXiv:1801.01401): MMD² with kernel (x·y/d + 1)³.

    The unbiased estimate from all pairs of different points. The usual mean over random subsets (torch-fidelity's)
    estimates the same quantity with more noise, and equals this one if the single subset is the whole set.

    Args:
        generated: features (N, d), N of at least 2.
        reference: features (M, d), M of at least 2.

    Returns:
        The estimate; slightly negative values occur when the distributions are alike.

    Raises:
        ValueError: if the features are not two matrices of equal width with finite entries.
    """
    check_features(generated, reference)
    generated, reference = generated.detach().float(), reference.detach().float()
    with full_precision(generated.device):
        return kid_of_means(generated, reference, kernel_mean(reference))


def check_features(generated: Tensor, reference: Tensor, neighbours: int = 1) -> None:
    """Does nothing if two sets of features can be compared.

    Raises:
        ValueError: if they are not two matrices of equal width with finite entries and more rows than ``neighbours``.
    """
    shapes = f"{tuple(generated.shape)} and {tuple(reference.shape)}"
    if generated.dim() != 2 or reference.dim() != 2 or generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"generated and reference must be matrices (rows, features) of equal width, got {shapes}"
        )
    if generated.shape[1] == 0:
        raise ValueError(f"generated and reference must have at least one feature, got {shapes}")
    if neighbours < 1 or min(len(generated), len(reference)) <= neighbours:
        raise ValueError(
            f"neighbours must be at least 1 and less than the number of rows, got {neighbours!r} "
            f"with {len(generated)} and {len(reference)} rows"
        )
    for name, features in (("generated", generated), ("reference", reference)):
        if not torch.isfinite(features).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")


def feature_statistics(features: Tensor) -> dict[str, Any]:
    """Mean (d,) and covariance (d, d) of features, as torch-fidelity names them: "mu" and "sigma", in float64."""
    values = features.detach().cpu().double().numpy()
    return {"mu": values.mean(axis=0), "sigma": np.atleast_2d(np.cov(values, rowvar=False))}


def fid_of_statistics(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The Fréchet distance between two Gaussians that :func:`feature_statistics` describes."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return max(0.0, float(np.real(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])))


def kernel_mean(points: Tensor) -> float:
    """Mean of the kernel over all ordered pairs of two different points of one set."""
    own = (points.cpu().double().square().sum(dim=1) / points.shape[1] + 1).pow(3).sum()
    return (_kernel_sum(points, points) - float(own)) / (len(points) * (len(points) - 1))


def kid_of_means(generated: Tensor, reference: Tensor, reference_mean: float) -> float:
    """KID, where the reference's own :func:`kernel_mean` is known."""
    crossed = _kernel_sum(generated, reference) / (len(generated) * len(reference))
    return kernel_mean(generated) + reference_mean - 2 * crossed


def _kernel_sum(points: Tensor, others: Tensor) -> float:
    """Sum of the cubic kernel (x·y/d + 1)³ over all pairs: rows in float32, their sums in float64.

    KID is a small difference of large means, so the order of summation matters more than the products' precision.
    """
    total, one = 0.0, points.new_ones(1)
    for block in points.split(BLOCK):
        kernel = torch.addmm(one, block, others.T, alpha=1 / points.shape[1])
        total += sum(kernel.square().mul_(kernel).sum(dim=1).tolist())
    return total
