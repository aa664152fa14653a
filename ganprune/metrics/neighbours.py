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
    grid = Grid.around(generated, reference)
    points, others = grid(generated), grid(reference)
    own = squared_radii(points, neighbours)[:, -1]
    return _precision_recall(points, others, own, squared_radii(others, neighbours)[:, -1])


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
    grid = Grid.around(generated, reference)
    points, others = grid(generated), grid(reference)
    return _density_coverage(points, others, squared_radii(others, neighbours)[:, -1], neighbours)


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
    """The features in float64, on the CPU if their device has no such numbers."""
    features = features.detach()
    return (features.cpu() if features.device.type == "mps" else features).to(torch.float64)


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
    generated: Tensor, reference: Tensor, known: dict[float, Tensor], wanted: set[str]
) -> dict[str, float]:
    """Precision and recall, density and coverage, as far as they are wanted, with the usual numbers of neighbours.

    Args:
        generated: features (N, d).
        reference: features (M, d).
        known: the reference's radii of earlier calls by the step of the grid; what is computed here is added.
        wanted: "precision_recall", "density_coverage" or both.

    Returns:
        Numbers by name: "precision", "recall", "density", "coverage".
    """
    grid = Grid.around(generated, reference)
    points, others = grid(generated), grid(reference)
    if grid.step not in known:
        known[grid.step] = squared_radii(others, max(PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS))
    radii = known[grid.step]
    found: dict[str, float] = {}
    if "precision_recall" in wanted:
        own = squared_radii(points, PRECISION_NEIGHBOURS)[:, -1]
        near = radii[:, PRECISION_NEIGHBOURS - 1]
        found["precision"], found["recall"] = _precision_recall(points, others, own, near)
    if "density_coverage" in wanted:
        wide = radii[:, DENSITY_NEIGHBOURS - 1]
        found["density"], found["coverage"] = _density_coverage(points, others, wide, DENSITY_NEIGHBOURS)
    return found


def _precision_recall(points: Tensor, others: Tensor, own: Tensor, radii: Tensor) -> tuple[float, float]:
    """``own`` are the squared radii around ``points``, ``radii`` those around ``others``."""
    norms = others.square().sum(dim=1)
    inside, excess = 0, torch.full_like(norms, math.inf)
    for start in range(0, len(points), BLOCK):
        distances = _squared_distances(points[start : start + BLOCK], others, norms)
        inside += int(((distances - radii).amin(dim=1) <= 0).sum())
        excess = torch.minimum(excess, distances.sub_(own[start : start + BLOCK, None]).amin(dim=0))
    return inside / len(points), int((excess <= 0).sum()) / len(others)


def _density_coverage(points: Tensor, others: Tensor, radii: Tensor, neighbours: int) -> tuple[float, float]:
    norms = others.square().sum(dim=1)
    pairs, nearest = 0, torch.full_like(norms, math.inf)
    for block in points.split(BLOCK):
        distances = _squared_distances(block, others, norms)
        pairs += int((distances <= radii).sum())
        nearest = torch.minimum(nearest, distances.amin(dim=0))
    return pairs / (neighbours * len(points)), int((nearest <= radii).sum()) / len(others)


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
