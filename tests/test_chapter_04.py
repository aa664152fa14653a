"""Chapter 4: its measures by hand equal the package's, its derivations hold, and its checks explain wrong answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from tools.chapters import Chapter
from torch import Tensor

import ganprune as gp

CHAPTER = Chapter("04_is_it_any_good", torch=torch, math=math, gp=gp)
run_cells = CHAPTER.run


def cloud(n: int, features: int, seed: int = 0) -> Tensor:
    """Points of a skewed distribution, in float64."""
    random = gp.seeded(seed)
    points = torch.randn(n, features, generator=random, dtype=torch.float64)
    mixing = torch.randn(features, features, generator=random, dtype=torch.float64)
    return points.abs() @ mixing + torch.randn(features, generator=random, dtype=torch.float64)


sizes = st.tuples(st.integers(8, 40), st.integers(8, 40), st.integers(1, 6), st.integers(0, 99))
by_hand = run_cells("frechet-scratch", "kid-scratch", "balls-scratch")


# --- Measures by hand -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_the_measures_equal_the_package(shape: tuple[int, int, int, int]) -> None:
    n, m, features, seed = shape
    one, other = cloud(n, features, seed), cloud(m, features, seed + 100)
    assert by_hand["frechet"](one, other) == pytest.approx(gp.metrics.fid(one, other), rel=1e-3, abs=1e-3)
    assert by_hand["kid"](one, other) == pytest.approx(gp.metrics.kid(one, other), rel=1e-3, abs=1e-3)
    for name in ("precision_recall", "density_coverage"):
        expected = getattr(gp.metrics, name)(one, other)
        assert by_hand[name](one, other) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(5, 30), st.integers(1, 5), st.integers(0, 99))
def test_the_distance_is_below_the_cost_of_every_plan(n: int, features: int, seed: int) -> None:
    """Steps 1 to 4: the cheapest matching of two clouds costs at least their Fréchet distance."""
    one, other = cloud(n, features, seed), cloud(n, features, seed + 1)
    costs = torch.cdist(one, other).square()
    cheapest = costs[linear_sum_assignment(costs.numpy())].mean()
    shrunk = [(c - c.mean(0)) * math.sqrt((n - 1) / n) + c.mean(0) for c in (one, other)]
    assert by_hand["frechet"](*shrunk) <= cheapest * (1 + 1e-9) + 1e-9


def test_it_is_reached_by_the_plan_of_step_five() -> None:
    root, one, other = by_hand["root"], cloud(500, 4, 1), cloud(500, 4, 2)
    first, second = one.T.cov(), other.T.cov()
    u, _, vh = torch.linalg.svd(root(second) @ root(first))
    whitened = torch.linalg.solve(root(first), (one - one.mean(0)).T)
    moved = other.mean(0) + (root(second) @ u @ vh @ whitened).T
    torch.testing.assert_close(moved.T.cov(), second)
    shift = (one.mean(0) - other.mean(0)).square().sum()
    centred = (one - one.mean(0)) - (moved - moved.mean(0))
    price = shift + centred.square().sum() / (len(one) - 1)
    assert float(price) == pytest.approx(by_hand["frechet"](one, other), rel=1e-9)


# --- How they depend on the number of images ------------------------------------------------------------------


def test_few_points_look_worse_and_by_at_least_the_trace() -> None:
    reference, true = cloud(4_000, 5, 3), cloud(60_000, 5, 4)
    frechet = by_hand["frechet"]
    mean = sum(frechet(part, reference) for part in true.split(60)) / 1_000
    assert mean > frechet(true, reference) + 0.95 * float(true.T.cov().trace()) / 60


def test_the_root_term_is_concave() -> None:
    root, one, other, fixed = by_hand["root"], *(cloud(50, 4, seed).T.cov() for seed in range(3))

    def overlap(covariance: Tensor) -> Tensor:
        return torch.linalg.svdvals(root(fixed) @ root(covariance)).sum()

    for share in (0.2, 0.5, 0.9):
        mixed = overlap(share * one + (1 - share) * other)
        assert mixed >= share * overlap(one) + (1 - share) * overlap(other)


def test_a_line_is_found() -> None:
    code = CHAPTER.sources["line"].split("\n\n\n")[0]
    namespace: dict[str, Any] = {"torch": torch}
    exec(code, namespace)
    limit, slope = namespace["line_through"]({n: [2 + 300 / n - 1, 2 + 300 / n + 1] for n in (10, 50, 200)})
    assert (limit, slope) == pytest.approx((2, 300))


@pytest.mark.parametrize(("m", "n", "k"), [(60, 60, 5), (80, 20, 3)])
def test_a_perfect_generator_covers_what_the_equation_says(m: int, n: int, k: int) -> None:
    found = []
    for seed in range(200):
        points = torch.randn(m + n, 3, generator=gp.seeded(seed))
        found.append(by_hand["density_coverage"](points[:n], points[n:], k)[1])
    expected = 1 - math.prod((m - 1 - j) / (m - 1 - j + n) for j in range(k))
    assert sum(found) / len(found) == pytest.approx(expected, abs=0.02)


def test_the_slope_of_a_gaussian_is_what_exercise_two_says() -> None:
    sides = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    given = {**by_hand, "reference": cloud(200, 4), "slope": 0.0}
    gaussian_slope = run_cells("solution-2-code", **given)["gaussian_slope"]
    found = 0.0
    for seed in range(400):
        points = torch.randn(200, 5, generator=gp.seeded(seed), dtype=torch.float64) * sides
        covariance = by_hand["root"](points.T.cov()) @ torch.diag(sides)
        overlap = torch.linalg.svdvals(covariance).sum()
        found += points.mean(0).square().sum() + points.T.cov().trace() + sides.square().sum() - 2 * overlap
    assert float(found) / 400 * 200 == pytest.approx(gaussian_slope(torch.diag(sides**2)), rel=0.05)


@pytest.mark.parametrize("n", [2, 3, 20])
def test_however_few_the_points_their_distance_has_a_bound_and_the_line_has_none(n: int) -> None:
    reference, true = cloud(2_000, 6, 5), cloud(400 * n, 6, 6)
    frechet = by_hand["frechet"]
    mean = sum(frechet(part, reference) for part in true.split(n)) / 400
    shift = float((true.mean(0) - reference.mean(0)).square().sum())
    first, second = (float(c.T.cov().trace()) for c in (true, reference))
    assert mean <= 1.05 * (shift + first / n + first + second)


def test_kid_with_equal_points_left_in_has_the_bias_of_exercise_two() -> None:
    points = torch.randn(20_000, 2, generator=gp.seeded(0)).double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return ((a * b).sum(1) / 2 + 1) ** 3

    difference = float(kernel(points, points).mean() - kernel(points[::2], points[1::2]).mean())
    naive = [float(((part @ part.T / 2 + 1) ** 3).mean()) for part in points.split(10)]
    clean = float(kernel(points[::2], points[1::2]).mean())
    assert sum(naive) / len(naive) - clean == pytest.approx(difference / 10, rel=0.15)


def test_the_best_accuracy_is_a_half_and_a_quarter_of_the_difference() -> None:
    p, q = (torch.rand(50, generator=gp.seeded(seed)).double() for seed in range(2))
    p, q = p / p.sum(), q / q.sum()
    best = float(torch.maximum(p, q).sum() / 2)
    assert best == pytest.approx(0.5 + 0.25 * float((p - q).abs().sum()))


# --- Exercises ------------------------------------------------------------------------------------------------

checks = run_cells("tried", "check-3", "check-4", "stub-4")


def by_wrong_axis(found: dict[int, list[float]], tolerance: float) -> int:
    """Fit against N instead of 1 / N."""
    slope = (found[4_000][0] - found[500][0]) / 3_500
    return math.ceil(slope / tolerance)


def without_subtracting(found: dict[int, list[float]], tolerance: float) -> int:
    """Take the whole distance for the bias."""
    return math.ceil(5_000 / (tolerance - 3))


def rounded_down(found: dict[int, list[float]], tolerance: float) -> int:
    """Cut instead of rounding up."""
    return int(5_000 / tolerance)


@pytest.mark.parametrize(
    ("answer", "help"),
    [
        (by_wrong_axis, "slope / N"),
        (without_subtracting, "the limit is no bias"),
        (rounded_down, "round up"),
        (lambda found, tolerance: 5_000 / tolerance, "whole"),
        (lambda found, tolerance: None, "return"),
    ],
)
def test_wrong_numbers_of_images_are_explained(answer: Callable[..., Any], help: str) -> None:
    assert help in checks["tried"](checks["check_images_needed"], answer)


def all_of_both(generated: Tensor, train: Tensor, held_out: Tensor) -> float:
    """Forget that the larger set has the nearer neighbour."""
    near = [torch.cdist(generated, one).amin(dim=1) for one in (train, held_out)]
    return float((near[0] < near[1]).double().mean())


def over_the_wrong_axis(generated: Tensor, train: Tensor, held_out: Tensor) -> float:
    """Take the minimum over generated points."""
    near = [torch.cdist(generated, one[:300]).amin(dim=0) for one in (train, held_out)]
    return float((near[0] < near[1]).double().mean())


def reversed_comparison(generated: Tensor, train: Tensor, held_out: Tensor) -> float:
    return 1 - all_of_both(generated, train[:300], held_out[:300])


@pytest.mark.parametrize(
    ("check", "answer", "help"),
    [
        ("check_honest", all_of_both, "equally many"),
        ("check_copies", over_the_wrong_axis, "dim=1"),
        ("check_copies", reversed_comparison, "reversed"),
        ("check_copies", lambda *_: torch.tensor(1.0), "float"),
    ],
)
def test_wrong_shares_are_explained(check: str, answer: Callable[..., Any], help: str) -> None:
    assert help in checks["tried"](checks[check], answer)


def test_stubs_fail_and_solutions_pass() -> None:
    for check, stub in (("images_needed", "images_needed"), ("copies", "share_nearer_to_train")):
        assert checks["tried"](checks[f"check_{check}"], checks[stub]).startswith("not yet")
    assert "solved" in CHAPTER.sources["solution-3-code"]
    assert "solved" in CHAPTER.sources["solution-4-code"]


# --- The chapter as a whole -----------------------------------------------------------------------------------


def test_the_record_has_every_arm_with_five_seeds() -> None:
    seeds: dict[str, set[int]] = {}
    for row in gp.records.read("spoilt_images"):
        seeds.setdefault(json.dumps(row["config"]), set()).add(row["seed"])
    assert len(seeds) == 12
    assert set.intersection(*seeds.values()) >= {0, 1, 2, 3, 4}
