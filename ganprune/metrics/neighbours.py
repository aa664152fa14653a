"""Precision and recall, density and coverage: measures by nearest neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ganprune.metrics.fid_kid import BLOCK, check_features

PRECISION_NEIGHBOURS = 3


DENSITY_NEIGHBOURS = 5


def precision_recall(
    generated: Tensor, reference: Tensor, neighbours: int = PRECISION_NEIGHBOURS
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991).

    Each set spans the union of balls around its points that reach to the k-th nearest other point of the set.
    Precision is the share of generated points in the reference's union, recall the share of reference points
    in the union of the generated ones. Balls are closed.

    Args:
        generated: Features (N, d).
        reference: Features (M, d).
        neighbours: k.

    Returns:
        (precision, recall).

    Raises:
        ValueError: If the features are not two matrices of equal width with finite entries and more than k
            rows.
    """
    check_features(generated, reference, neighbours)
    found = count_neighbourhoods(
        generated.float(), reference.float(), neighbours, 0, None, {"precision_recall"}
    )
    return found["precision"], found["recall"]


def density_coverage(
    generated: Tensor, reference: Tensor, neighbours: int = DENSITY_NEIGHBOURS
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, arXiv:2002.09797, equations 4 and 5).

    Around each reference point lies a closed ball that reaches to its k-th nearest other reference point.
    Density is the number of pairs (ball, generated point in it) over k times the number of generated points;
    coverage the share of balls that hold a generated point.

    Args:
        generated: Features (N, d).
        reference: Features (M, d).
        neighbours: k.

    Returns:
        (density, coverage).

    Raises:
        ValueError: If the features are not two matrices of equal width with finite entries and more than k
            rows.
    """
    check_features(generated, reference, neighbours)
    found = count_neighbourhoods(
        generated.float(), reference.float(), 0, neighbours, None, {"density_coverage"}
    )
    return found["density"], found["coverage"]


def _squared_distances(points: Tensor, others: Tensor, other_norms: Tensor) -> Tensor:
    norms = points.square().sum(dim=1, keepdim=True)
    return torch.addmm(other_norms, points, others.T, alpha=-2).add_(norms)


def _smallest(rows: Tensor, count: int) -> Tensor:
    """The ``count`` smallest values of each row, ascending.

    They lie in the ``count`` groups with the smallest minima, so only those groups are sorted.
    """
    width, groups = rows.shape[1], 128
    if width > 8 * groups and count < groups // 4:
        depth = width // groups
        grouped = rows[:, : depth * groups].unflatten(1, (depth, groups))
        chosen = grouped.amin(dim=1).topk(count, largest=False).indices
        held = grouped.gather(2, chosen.unsqueeze(1).expand(-1, depth, -1)).flatten(1)
        rows = torch.cat([held, rows[:, depth * groups :]], dim=1)
    return rows.topk(count, largest=False, sorted=True).values


def squared_radii(features: Tensor, neighbours: int) -> Tensor:
    """Squared distances (N, neighbours) from each point to its nearest other points, ascending."""
    features = features - features.mean(dim=0)
    norms = features.square().sum(dim=1)
    parts = []
    for start in range(0, len(features), BLOCK):
        distances = _squared_distances(features[start : start + BLOCK], features, norms)
        distances.diagonal(offset=start).fill_(math.inf)
        parts.append(_smallest(distances, neighbours))
    return torch.cat(parts)


def count_neighbourhoods(
    generated: Tensor, reference: Tensor, near: int, wide: int, radii: Tensor | None, wanted: set[str]
) -> dict[str, float]:
    """Precision, recall (``near`` neighbours), density, coverage (``wide``), in one pass over blocks."""
    radii = squared_radii(reference, max(near, wide)) if radii is None else radii
    centre = reference.mean(dim=0)
    generated, reference = generated - centre, reference - centre
    norms = reference.square().sum(dim=1)
    inside, inside_count = 0, 0
    nearest = torch.full_like(norms, math.inf)
    reached = torch.full_like(norms, math.inf)
    own = squared_radii(generated, near)[:, near - 1] if "precision_recall" in wanted else None
    for start in range(0, len(generated), BLOCK):
        distances = _squared_distances(generated[start : start + BLOCK], reference, norms)
        if "density_coverage" in wanted:
            inside_count += int((distances <= radii[:, wide - 1]).sum())
            nearest = torch.minimum(nearest, distances.amin(dim=0))
        if own is not None:
            inside += int(((distances - radii[:, near - 1]).amin(dim=1) <= 0).sum())
            reached = torch.minimum(reached, distances.sub_(own[start : start + BLOCK, None]).amin(dim=0))
    found: dict[str, float] = {}
    if own is not None:
        found["precision"] = inside / len(generated)
        found["recall"] = int((reached <= 0).sum()) / len(reference)
    if "density_coverage" in wanted:
        found["density"] = inside_count / (wide * len(generated))
        found["coverage"] = int((nearest <= radii[:, wide - 1]).sum()) / len(reference)
    return found
