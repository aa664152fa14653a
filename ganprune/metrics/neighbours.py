"""Precision and recall, density and coverage: measures by nearest neighbours.

All four ask whether a point lies in a ball that reaches just to some other point, so points on the boundary are
common: copies of an image, or the very neighbour that sets the radius. Two floating-point sums of one distance may
differ in their last bits, and a boundary point would count or not by chance. Therefore features are first rounded to
whole multiples of a tiny step (:class:`Grid`). All products and sums are then whole numbers that float64 holds
exactly, and so are the comparisons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    Precision is the share of generated points in the reference's union, recall the share of reference points in the
    union of the generated ones. Balls are closed.

    Args:
        generated: features (N, d).
        reference: features (M, d).
        neighbours: k.

    Returns:
        (precision, recall).

    Raises:
        ValueError: if the features are not two matrices of equal width with finite entries and more than k rows.
    """
    check_features(generated, reference, neighbours)
    found = count_neighbourhoods(generated, reference, near=neighbours)
    return found["precision"], found["recall"]


def density_coverage(
    generated: Tensor, reference: Tensor, neighbours: int = DENSITY_NEIGHBOURS
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, arXiv:2002.09797, equations 4 and 5).

    Around each reference point lies a closed ball that reaches to its k-th nearest other reference point. Density is
    the number of pairs (ball, generated point in it) over k times the number of generated points; coverage the share
    of balls that hold a generated point.

    Args:
        generated: features (N, d).
        reference: features (M, d).
        neighbours: k.

    Returns:
        (density, coverage).

    Raises:
        ValueError: if the features are not two matrices of equal width with finite entries and more than k rows.
    """
    check_features(generated, reference, neighbours)
    found = count_neighbourhoods(generated, reference, wide=neighbours)
    return found["density"], found["coverage"]


@dataclass(frozen=True)
class Grid:
    """Rounds features to whole multiples of a step, about 10⁻⁶ of their spread, counted from a centre.

    Attributes:
        centre: (d,), in multiples of the step.
        step: a power of two, so that features which are short binary fractions are not rounded at all.
    """

    centre: Tensor
    step: float

    @classmethod
    def around(cls, generated: Tensor, reference: Tensor) -> Grid:
        """The finest grid on which all squared distances among two sets of features (·, d) are exact.

        Coordinates below 2ᵇ give squared distances below d · 2²ᵇ⁺², which float64 holds exactly up to 2⁵³.
        """
        middle = _widen(reference).mean(dim=0)
        spread = max(float((_widen(one) - middle).abs().max()) for one in (generated, reference))
        bits = (50 - math.ceil(math.log2(reference.shape[1]))) // 2
        step = math.ldexp(1.0, math.frexp(spread)[1] - bits) if spread else 1.0
        return cls((middle / step).round(), step)

    def __call__(self, features: Tensor) -> Tensor:
        """The rounded features (N, d), in multiples of the step: whole numbers, in float64."""
        return (_widen(features) / self.step).round() - self.centre


def _widen(features: Tensor) -> Tensor:
    """The features in float64, on the CPU if their device may have no such numbers, as Apple's GPUs have none."""
    features = features.detach()
    return (features if features.device.type in ("cpu", "cuda") else features.cpu()).to(torch.float64)


def squared_radii(points: Tensor, neighbours: int) -> Tensor:
    """Squared distances (N, neighbours) from each point to its nearest other points, ascending.

    Args:
        points: (N, d) on a grid, N greater than ``neighbours``.
        neighbours: at least 1.
    """
    norms = points.square().sum(dim=1)
    parts = []
    for start in range(0, len(points), BLOCK):
        distances = _squared_distances(points[start : start + BLOCK], points, norms)
        distances.diagonal(offset=start).fill_(math.inf)
        parts.append(_smallest(distances, neighbours))
    return torch.cat(parts)


def count_neighbourhoods(
    generated: Tensor,
    reference: Tensor,
    near: int | None = None,
    wide: int | None = None,
    known: dict[tuple[float, int], Tensor] | None = None,
) -> dict[str, float]:
    """Precision and recall, density and coverage, or one of the pairs, in one pass over all distances.

    Args:
        generated: features (N, d).
        reference: features (M, d).
        near: number of neighbours of precision and recall; None leaves the two out.
        wide: number of neighbours of density and coverage; None leaves the two out.
        known: the reference's radii of earlier calls, by step and number of neighbours; what is new is added.

    Returns:
        Numbers by name: "precision", "recall", "density", "coverage".
    """
    grid = Grid.around(generated, reference)
    points, others = grid(generated), grid(reference)
    known, key = {} if known is None else known, (grid.step, max(near or 0, wide or 0))
    radii = known[key] = known[key] if key in known else squared_radii(others, key[1])
    own = squared_radii(points, near)[:, -1] if near else None
    norms = others.square().sum(dim=1)
    inside, pairs = 0, 0
    excess, nearest = torch.full_like(norms, math.inf), torch.full_like(norms, math.inf)
    for start in range(0, len(points), BLOCK):
        distances = _squared_distances(points[start : start + BLOCK], others, norms)
        if wide:
            pairs += int((distances <= radii[:, wide - 1]).sum())
            nearest = torch.minimum(nearest, distances.amin(dim=0))
        if near and own is not None:
            inside += int((distances <= radii[:, near - 1]).any(dim=1).sum())
            excess = torch.minimum(excess, distances.sub_(own[start : start + BLOCK, None]).amin(dim=0))
    found: dict[str, float] = {}
    if near:
        found |= {"precision": inside / len(points), "recall": int((excess <= 0).sum()) / len(others)}
    if wide:
        reached = int((nearest <= radii[:, wide - 1]).sum())
        found |= {"density": pairs / (wide * len(points)), "coverage": reached / len(others)}
    return found


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
