"""Metrics on bare features, against independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from single_precision import SinglePrecision
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ganprune import metrics
from ganprune.metrics import fid_kid, neighbours


def clouds(
    generated: int = 150, reference: int = 130, width: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Two overlapping clouds of features."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(generated, width, generator=generator) @ torch.randn(
        width, width, generator=generator
    )
    second = torch.randn(reference, width, generator=generator) * 2 + 0.5
    return first, second


def fid_by_matrix_root(generated: Tensor, reference: Tensor) -> float:
    x, y = generated.double().numpy(), reference.double().numpy()
    s, r = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ r)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + r - 2 * root.real))


@pytest.mark.parametrize("seed", range(3))
def test_fid_equals_the_formula_with_a_matrix_root(seed: int) -> None:
    generated, reference = clouds(seed=seed)
    assert metrics.fid(generated, reference) == pytest.approx(
        fid_by_matrix_root(generated, reference), rel=1e-8
    )


def test_fid_of_shifted_points_is_the_squared_shift() -> None:
    points = torch.randn(500, 6, dtype=torch.float64)
    shift = torch.tensor([3.0, 0, 0, 4, 0, 0], dtype=torch.float64)
    assert metrics.fid(points + shift, points) == pytest.approx(25.0, rel=1e-6)


def test_fid_is_zero_on_equal_sets_and_symmetric() -> None:
    generated, reference = clouds()
    assert metrics.fid(generated, generated.flip(0)) == pytest.approx(0.0, abs=1e-6)
    assert metrics.fid(generated, reference) == pytest.approx(metrics.fid(reference, generated), rel=1e-9)
    assert metrics.fid(generated, reference) > 1


def test_fid_grows_with_noise() -> None:
    _, reference = clouds(reference=400)
    noise = torch.randn_like(reference)
    values = [metrics.fid(reference + scale * noise, reference) for scale in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)


def kid_by_loops(generated: Tensor, reference: Tensor) -> float:
    x, y = generated.double().numpy(), reference.double().numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    own = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    real = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + real - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kid_equals_loops_over_all_pairs() -> None:
    generated, reference = clouds(40, 30)
    assert metrics.kid(generated, reference) == pytest.approx(kid_by_loops(generated, reference), rel=1e-4)


def test_kid_equals_torch_fidelity_on_one_subset_of_everything() -> None:
    generated, reference = clouds(200, 200)
    found = kid_features_to_metric(
        generated.double(), reference.double(), kid_subsets=1, kid_subset_size=200, verbose=False
    )
    assert metrics.kid(generated, reference) == pytest.approx(
        found["kernel_inception_distance_mean"], rel=1e-4
    )


def test_kid_keeps_its_precision_where_the_kernel_is_large() -> None:
    generated, reference = torch.rand(2, 3000, 32, generator=torch.Generator().manual_seed(0)) * 5
    found = kid_features_to_metric(
        generated.double(), reference.double(), kid_subsets=1, kid_subset_size=3000, verbose=False
    )
    exact = found["kernel_inception_distance_mean"]
    assert metrics.kid(generated, reference) == pytest.approx(exact, abs=2e-8 * (6.25 + 1) ** 3)


def test_kid_does_not_depend_on_the_callers_autocast() -> None:
    generated, reference = clouds(60, 50)
    plain = metrics.kid(generated, reference)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert metrics.kid(generated, reference) == plain


def test_kid_is_unbiased_on_equal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [metrics.kid(*torch.randn(2, 60, 4, generator=generator)) for _ in range(100)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / 10


def manifold_by_loops(generated: Tensor, reference: Tensor, near: int, wide: int) -> tuple[float, ...]:
    x, y = generated.double().numpy(), reference.double().numpy()

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    def within(a: np.ndarray, b: np.ndarray, r: float) -> bool:
        return bool(np.linalg.norm(a - b) <= r)

    own = [radius(x, i, near) for i in range(len(x))]
    real = [radius(y, i, near) for i in range(len(y))]
    broad = [radius(y, i, wide) for i in range(len(y))]
    precision = np.mean([any(within(a, b, r) for b, r in zip(y, real, strict=True)) for a in x])
    recall = np.mean([any(within(b, a, r) for a, r in zip(x, own, strict=True)) for b in y])
    density = sum(within(a, b, r) for a in x for b, r in zip(y, broad, strict=True)) / (wide * len(x))
    coverage = np.mean([any(within(a, b, r) for a in x) for b, r in zip(y, broad, strict=True)])
    return float(precision), float(recall), float(density), float(coverage)


@pytest.mark.parametrize(("near", "wide", "sizes"), [(3, 5, (60, 50)), (1, 1, (30, 45)), (4, 2, (45, 45))])
def test_manifold_metrics_equal_loops(near: int, wide: int, sizes: tuple[int, int]) -> None:
    generated, reference = clouds(*sizes, width=3, seed=near)
    precision, recall, density, coverage = manifold_by_loops(generated, reference, near, wide)
    assert metrics.precision_recall(generated, reference, near) == pytest.approx((precision, recall))
    assert metrics.density_coverage(generated, reference, wide) == pytest.approx((density, coverage))
    assert precision > 0
    assert 0 < recall < 1


def test_precision_and_recall_equal_torch_fidelity() -> None:
    generated, reference = clouds(700, 650)
    found = prc_features_to_metric(generated, reference, save_cpu_ram=True, verbose=False)
    assert metrics.precision_recall(generated, reference) == pytest.approx(
        (found["precision"], found["recall"])
    )


def test_blocks_do_not_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, reference = clouds(90, 70, width=4)
    whole = (metrics.precision_recall(generated, reference), metrics.density_coverage(generated, reference))
    kernel = metrics.kid(generated, reference)
    for module in (fid_kid, neighbours):
        monkeypatch.setattr(module, "BLOCK", 17)
    assert (
        metrics.precision_recall(generated, reference),
        metrics.density_coverage(generated, reference),
    ) == whole
    assert metrics.kid(generated, reference) == pytest.approx(kernel, rel=1e-4)


def test_equal_sets_have_full_precision_recall_and_coverage() -> None:
    points, _ = clouds(200)
    assert metrics.precision_recall(points, points) == (1.0, 1.0)
    assert metrics.density_coverage(points, points)[1] == 1.0


def test_a_dropped_cluster_costs_recall_and_coverage_but_no_precision() -> None:
    points = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    points[200:] += 100
    assert metrics.precision_recall(points[:200], points) == (1.0, 0.5)
    assert metrics.density_coverage(points[:200], points)[1] == 0.5


@pytest.mark.parametrize("rows", [1100, 2049])
def test_radii_of_large_sets_equal_scipys_nearest_neighbours(rows: int) -> None:
    generated, reference = clouds(rows, rows + 1, width=3, seed=rows)
    trees = [scipy.spatial.cKDTree(points.double().numpy()) for points in (generated, reference)]
    radii = [tree.query(tree.data, 4)[0][:, 3] for tree in trees]  # the nearest point is the point itself
    found = metrics.precision_recall(generated, reference)
    sides = ((trees[0], trees[1], radii[1]), (trees[1], trees[0], radii[0]))
    for share, (points, centres, reach) in zip(found, sides, strict=True):
        held = {i for ball in points.query_ball_point(centres.data, reach) for i in ball}
        assert share == pytest.approx(len(held) / points.n, abs=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_balls_are_closed(scale: float) -> None:
    for seed in range(50):
        points = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed)) * scale
        assert metrics.density_coverage(points, points) == (6 / 5, 1.0)
        assert metrics.precision_recall(points, points) == (1.0, 1.0)


def test_a_generator_that_copies_the_real_images_has_full_recall() -> None:
    points, _ = clouds(200, width=128, seed=3)
    assert metrics.precision_recall(points.repeat(5, 1), points) == (1.0, 1.0)
    assert metrics.precision_recall(points, points.repeat(5, 1)) == (1.0, 1.0)


@settings(max_examples=40)
@given(st.integers(6, 20), st.integers(6, 20), st.integers(1, 3), st.integers(0, 1000))
def test_neighbours_on_a_lattice_equal_integer_arithmetic(n: int, m: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)  # on a lattice nearly every distance is a tie
    x, y = (torch.randint(0, 4, (rows, width), generator=generator) for rows in (n, m))

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] - b[None]).square().sum(dim=2)

    def radius(points: Tensor, k: int) -> Tensor:
        return squared(points, points).sort(dim=1).values[:, k]  # column 0 is the point itself

    near = squared(x, y) <= radius(y, 3)
    wide = squared(x, y) <= radius(y, 5)
    own = squared(y, x) <= radius(x, 3)
    expected = (int(near.any(dim=1).sum()) / n, int(own.any(dim=1).sum()) / m)
    features = (x.float() * 0.375 + 7, y.float() * 0.375 + 7)
    assert metrics.precision_recall(*features) == expected
    assert metrics.density_coverage(*features) == (int(wide.sum()) / (5 * n), int(wide.any(dim=0).sum()) / m)


def test_one_feature_is_enough_for_every_metric() -> None:
    generated, reference = (torch.randn(9, 1, generator=torch.Generator().manual_seed(i)) + i for i in (0, 1))
    s, r = generated.std(), reference.std()
    by_hand = (generated.mean() - reference.mean()) ** 2 + (s - r) ** 2
    assert metrics.fid(generated, reference) == pytest.approx(float(by_hand), rel=1e-5)
    assert metrics.kid(generated, reference) == pytest.approx(kid_by_loops(generated, reference), rel=1e-4)
    expected = manifold_by_loops(generated, reference, 3, 5)
    found = metrics.precision_recall(generated, reference) + metrics.density_coverage(generated, reference)
    assert found == pytest.approx(expected)


def test_no_metric_asks_a_device_for_float64() -> None:
    plain = clouds(60, 50)
    single = [SinglePrecision(features) for features in plain]
    with pytest.raises(TypeError, match="float64"):
        single[0].double()
    for metric in (metrics.fid, metrics.kid, metrics.precision_recall, metrics.density_coverage):
        assert metric(*single) == metric(*plain)  # type: ignore[operator]
    counts = torch.tensor([3, 1]), torch.tensor([2, 2])
    assert metrics.histogram_kl(*map(SinglePrecision, counts)) == metrics.histogram_kl(*counts)


def test_histogram_divergence_by_hand() -> None:
    counts, reference = torch.tensor([3.0, 1.0]), torch.tensor([10, 10])
    assert metrics.histogram_kl(counts, reference) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    assert metrics.histogram_kl(reference, reference) == 0
    collapsed = torch.tensor([0, 7, 0, 0, 0, 0, 0, 0, 0, 0])
    assert metrics.histogram_kl(collapsed, torch.ones(10)) == pytest.approx(math.log(10))
    assert metrics.histogram_kl(torch.ones(2), torch.tensor([1, 0])) == math.inf


def test_bad_features_are_named() -> None:
    generated, reference = clouds()
    with pytest.raises(ValueError, match="matrices"):
        metrics.fid(generated, reference[:, :3])
    with pytest.raises(ValueError, match="generated must be finite"):
        metrics.kid(generated * math.inf, reference)
    with pytest.raises(ValueError, match="got 0 with 150 and 130 rows"):
        metrics.precision_recall(generated, reference, 0)
    with pytest.raises(ValueError, match="got 130 with 150 and 130 rows"):
        metrics.density_coverage(generated, reference, 130)
    with pytest.raises(ValueError, match="vectors of one length"):
        metrics.histogram_kl(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="non-negative and not all zero"):
        metrics.histogram_kl(torch.zeros(2), torch.ones(2))
