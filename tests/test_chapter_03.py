"""Chapter 3: what it writes by hand equals torch, scipy and the package; bounds hold; checks explain mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from scipy.stats import wasserstein_distance
from tools.chapters import Chapter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import ganprune as gp

TOOLS = {
    "copy": copy,
    "math": math,
    "torch": torch,
    "nn": nn,
    "F": F,
    "gp": gp,
    "linear_sum_assignment": linear_sum_assignment,
    "linprog": linprog,
    "wasserstein_distance": wasserstein_distance,
    "spectral_norm": spectral_norm,
}


CHAPTER = Chapter("03_wasserstein", **TOOLS)
run_cells = CHAPTER.run


BASE = ("scratch-sort", "scratch-penalty", "fit-critic", "fit-critic-2")
by_hand = run_cells(*BASE, "scratch-operator")


# --- The distance -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), seed=st.integers(0, 999))
def test_sorting_equals_scipy_and_every_matching_costs_as_much_or_more(n: int, seed: int) -> None:
    x, y = torch.randn(2, n, generator=gp.seeded(seed), dtype=torch.float64)
    found = by_hand["earth_mover"](x, 3 * y + 1)
    assert found == pytest.approx(wasserstein_distance(x.numpy(), (3 * y + 1).numpy()), abs=1e-9)
    shuffled = torch.randperm(n, generator=gp.seeded(seed))
    assert found <= float((x - (3 * y + 1)[shuffled]).abs().mean()) + 1e-12


@pytest.mark.parametrize("theta", [0.0, 0.25, 1.0, 1.5, 4.0])
def test_the_divergence_of_the_pair_is_that_of_chapter_1(theta: float) -> None:
    assert by_hand["jensen_shannon"](theta) == pytest.approx(min(theta, 1.0) * math.log(2), abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 7), seed=st.integers(0, 999))
def test_the_function_built_from_prices_reaches_the_cheapest_plan(n: int, seed: int) -> None:
    real, fake = torch.randn(2, n, 3, generator=gp.seeded(seed)).double()
    cost = torch.cdist(real, fake)
    cheapest = float(cost[linear_sum_assignment(cost)].mean())
    eye, one = torch.eye(n), torch.ones(n, 1)
    sums = torch.cat([torch.kron(eye, one), torch.kron(one, eye)], dim=1)
    limits = {"A_ub": sums.numpy(), "b_ub": cost.flatten().numpy(), "bounds": (None, None)}
    prices = linprog([-1 / n] * (2 * n), **limits)
    unloading = torch.tensor(prices.x[n:])

    def critic(x: Tensor) -> Tensor:
        return (torch.cdist(x, fake) - unloading).min(dim=1).values

    assert -prices.fun == pytest.approx(cheapest, rel=1e-6)
    assert float(critic(real).mean() - critic(fake).mean()) == pytest.approx(cheapest, rel=1e-6)
    a, b = 3 * torch.randn(2, 200, 3, generator=gp.seeded(seed + 1)).double()
    assert bool(((critic(a) - critic(b)).abs() <= (a - b).norm(dim=1) + 1e-9).all())


# --- Three approximations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_the_penalty_by_hand_is_the_packages(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 8), nn.Tanh(), nn.Linear(8, 1))
    real, fake = torch.randn(2, 9, *shape)
    draws = gp.seeded(gp.step_seed(5, 0, "mix"))
    mix = torch.rand(9, generator=draws).view(-1, *[1] * len(shape))
    ours = by_hand["penalise"](critic, real, fake, mix)
    assert float(ours.detach()) == pytest.approx(
        float(gp.losses.gradient_penalty(critic, real, fake, seed=5).detach()), rel=1e-5
    )
    assert float(by_hand["slopes"](critic, real).detach().square().mean()) == pytest.approx(
        float(gp.losses.r1_penalty(critic, real).detach()), rel=1e-5
    )


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 999))
def test_power_iteration_finds_the_largest_singular_value(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=gp.seeded(seed))
    found = float(by_hand["largest_singular"](matrix, turns=2_000))
    assert found == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=2e-3)


def test_power_iteration_fails_from_a_start_without_a_share_in_the_first_direction() -> None:
    start = torch.randn(2, generator=gp.seeded(0))
    across = F.normalize(torch.stack([-start[1], start[0]]), dim=0)
    matrix = 5 * torch.outer(across, across) + torch.outer(start, start) / start.square().sum()
    assert float(by_hand["largest_singular"](matrix, turns=3)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("theta", [0.5, 2.0])
def test_a_straight_critic_under_the_penalty_is_too_steep_by_the_formula(theta: float) -> None:
    slopes = torch.linspace(-3, 3, 600_001, dtype=torch.float64)  # b > 0 points the right way
    gain = slopes * theta - 10 * (slopes.abs() - 1) ** 2
    assert float(slopes[gain.argmax()]) == pytest.approx(1 + theta / 20, abs=1e-4)
    wrong = torch.where(slopes < 0, gain, -torch.inf)
    trapped = int(wrong.argmax())
    assert float(slopes[trapped]) == pytest.approx(-(1 - theta / 20), abs=1e-4)
    assert gain[trapped] > gain[trapped - 1]
    assert gain[trapped] > gain[trapped + 1]


def test_the_wrong_sign_stays_on_a_line_and_turns_in_a_plane() -> None:
    unit = by_hand["unit"]
    for dimensions, wrong_ways in ((1, True), (2, False)):
        real = torch.cat([unit, 0 * unit], dim=1)[:, :dimensions]
        fake = real + torch.eye(dimensions)[0] * 2.0
        critic = by_hand["fit_critic"]("penalty", real, fake, 150, seed=0, free=0)
        with torch.no_grad():
            found = float(critic(real).mean() - critic(fake).mean())
        assert (found < 0) == wrong_ways


def test_clipped_weights_allow_the_slope_that_the_text_says() -> None:
    network = by_hand["network"](1)
    for part in network.parameters():
        part.data.fill_(0.1)
    slope = float(by_hand["slopes"](network, torch.ones(1, 1)).detach())
    assert slope == pytest.approx(1024 * 0.1**3, rel=1e-4)


@pytest.mark.parametrize("pair", ["shifted", "torn"])
def test_clipping_errs_in_both_directions(pair: str) -> None:
    cells = run_cells(*BASE, "critics")
    clouds = cells["pairs"][pair]
    distance = by_hand["earth_mover"](*clouds)
    low, high = (
        cells["estimate"](by_hand["fit_critic"]("clipping", *clouds, c=c), *clouds) for c in (0.05, 0.2)
    )
    assert low < 0.1 * distance
    assert high > 1.5 * distance


@pytest.fixture(scope="module")
def walks() -> dict[str, list[float]]:
    """Where each judge of the moving picture leads the samples."""
    cells = run_cells(*BASE, "critics", "frames-code")
    return {**cells["paths"], "in the plane": [t for t, _ in cells["descend"]("penalty", dimensions=2)]}


def test_judges_lead_the_samples_as_the_text_says(walks: dict[str, list[float]]) -> None:
    ends = {how: path[-1] for how, path in walks.items()}
    assert {len(path) for path in walks.values()} == {81}
    assert ends["exact JSD"] == 2 and ends["exact EM"] == 0 and abs(ends["spectral norm"]) < 0.15
    assert max(abs(a - b) for a, b in zip(walks["spectral norm"], walks["exact EM"], strict=True)) < 0.3
    assert ends["penalty"] < -1.5 and min(walks["in the plane"]) < -0.2 and abs(ends["in the plane"]) < 0.3
    moves = [walks["recipe"][step] - walks["recipe"][step + 20] for step in (0, 20, 40, 60)]
    assert moves == sorted(moves, reverse=True) and min(moves) > 0
    assert ends["recipe"] > 0.3 and -0.2 < ends["clipping"] < 0.6 and walks["clipping"][40] > 0.9


def test_the_exact_divergence_gives_no_slope_where_the_samples_start() -> None:
    assert by_hand["jensen_shannon"](2.0) == pytest.approx(by_hand["jensen_shannon"](1.9), abs=1e-6)


def test_the_cone_is_the_best_critic_of_a_blur() -> None:
    """All earth goes to one point, so any plan is the cheapest, and the cone shows its length."""
    digits = torch.rand(30, 784, generator=gp.seeded(0))
    blur = torch.rand(784, generator=gp.seeded(1))
    cone = (digits - blur).norm(dim=1)
    cost = torch.cdist(digits, blur.repeat(30, 1))
    assert float(cone.mean()) == pytest.approx(float(cost.mean()), rel=1e-4)
    other = torch.rand(30, 784, generator=gp.seeded(2))
    steep = (cone - (other - blur).norm(dim=1)).abs() / (digits - other).norm(dim=1)
    assert float(steep.max()) <= 1


def test_the_cones_tips_lie_on_the_samples_and_have_no_slope_there() -> None:
    """Points of the figure: moved a little either way, a sample shows the critic less than the distance."""
    data, prices = torch.tensor([0.0, 3.0]), torch.zeros(2)

    def critic(x: torch.Tensor) -> torch.Tensor:
        return ((x[:, None] - torch.tensor([1.0, 2.0])).abs() - prices).min(dim=1).values

    for moved, distance in ((0.9, 0.95), (1.0, 1.0), (1.1, 1.05)):
        fake = torch.tensor([moved, 2.0])
        assert by_hand["earth_mover"](data, fake) == pytest.approx(distance)
        shown = float(critic(data).mean() - critic(fake).mean())
        assert shown == pytest.approx(1.0 if moved == 1 else 0.95)


def test_only_the_pairs_between_two_counts_cross_a_place() -> None:
    x, y = torch.randn(2, 40, generator=gp.seeded(3)).sort(dim=1).values
    for place in torch.linspace(-2, 2, 41):
        ends = sorted((int((x <= place).sum()), int((y <= place).sum())))
        crossing = torch.nonzero((x <= place) != (y <= place)).flatten().tolist()
        assert crossing == list(range(*ends))


# --- The operator -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    k=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),  # not more than half of the kernel
    side=st.integers(4, 8),
    seed=st.integers(0, 99),
)
def test_the_operator_is_the_whole_matrix_and_keeps_the_bound(
    k: int, stride: int, padding: int, side: int, seed: int
) -> None:
    padding = min(padding, k // 2)
    weight = torch.randn(3, 2, k, k, generator=gp.seeded(seed))
    pixels = torch.eye(2 * side * side).view(-1, 2, side, side)
    matrix = F.conv2d(pixels, weight, stride=stride, padding=padding).flatten(1).T
    true = float(torch.linalg.matrix_norm(matrix, 2))
    found = by_hand["operator_norm"](weight, side, stride, padding, turns=400)
    assert found == pytest.approx(true, rel=2e-2)
    assert true <= -(-k // stride) * by_hand["kernel_norm"](weight) * (1 + 1e-5)


def test_r1_bounds_slopes_by_what_is_left_of_log_4() -> None:
    """At a discriminator that is no worse than zero; here one on a line, found by search over its scale."""
    real, fake = torch.randn(2, 4_000, 1, generator=gp.seeded(0))
    fake = fake + 1
    best = min((scale / 100 for scale in range(200)), key=lambda a: objective(a, real, fake)[0])
    total, loss, square = objective(best, real, fake)
    assert total <= math.log(4)
    assert square <= math.log(4) - loss


def objective(scale: float, real: Tensor, fake: Tensor) -> tuple[float, float, float]:
    """Loss with R1 of weight 1, loss alone, mean squared slope, of D(x) = scale (1/2 - x)."""
    logits = (scale * (0.5 - cloud) for cloud in (real, fake))
    loss = float(F.softplus(-next(logits)).mean() + F.softplus(next(logits)).mean())
    return loss + scale**2, loss, scale**2


# --- The exercises ------------------------------------------------------------------------------------------

CHECKED = (
    "tried",
    "exercise-1-check",
    "exercise-3-check",
    "exercise-4-check",
    "exercise-4-plot-check",
    "exercise-5-check",
    "exercise-6-check",
    "exercise-6-numbers",
)


@pytest.fixture(scope="module")
def checks() -> dict[str, Any]:
    return run_cells(*BASE, *CHECKED)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((6, 10, 1, 0.798), "only half of the mass"),
        ((3, 1, 1, 0.798), "every move becomes longer"),
        ((3, 10, 10, 0.798), "cancel in a ratio"),
        ((3, 10, 1, 0), "earth must move outwards"),
        ((3, 10, 1, 1), "root of the squared cost"),
    ],
)
def test_wrong_numbers_are_told_why(checks: dict[str, Any], numbers: tuple[float, ...], message: str) -> None:
    checks["check_earth"]((3, 10, 1, math.sqrt(2 / math.pi)))
    with pytest.raises(AssertionError, match=message):
        checks["check_earth"](numbers)


def cut_to_the_smaller(x: Tensor, y: Tensor) -> float:
    n = min(len(x), len(y))
    return float((x.sort().values[:n] - y.sort().values[:n]).abs().mean())


def unweighted(x: Tensor, y: Tensor) -> float:
    places = torch.cat([x, y]).sort().values
    one, other = (torch.searchsorted(c.sort().values, places, right=True) / len(c) for c in (x, y))
    return float((one - other).abs().mean())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x, y: float((x.mean() - y.mean()).abs()), "equal means"),
        (cut_to_the_smaller, "may be left out"),
        (unweighted, "weigh each difference"),
    ],
)
def test_wrong_clouds_are_told_why(
    checks: dict[str, Any], answer: Callable[..., float], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        checks["check_clouds"](answer)


def without_graph(critic: nn.Module, points: Tensor) -> Tensor:
    points = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points)
    return F.relu(gradient.flatten(1).norm(dim=1) - 1).square().mean()


def one_norm_of_all(critic: nn.Module, points: Tensor) -> Tensor:
    points = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return F.relu(gradient.norm() - 1).square()


def two_sided(critic: nn.Module, points: Tensor) -> Tensor:
    return (by_hand["slopes"](critic, points) - 1).square().mean()


@pytest.mark.parametrize(
    ("answer", "message"),
    [(without_graph, "no graph"), (two_sided, "both sides"), (one_norm_of_all, "one norm per point")],
)
def test_wrong_penalties_are_told_why(checks: dict[str, Any], answer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        checks["check_one_sided"](answer)


def with_the_sign(b: Tensor, theta: float, weight: float) -> tuple[Tensor, Tensor]:
    excess = b + 1  # instead of |b| - 1
    return b * theta + weight * excess**2, b * theta + weight * F.relu(excess) ** 2


def without_the_length(b: Tensor, theta: float, weight: float) -> tuple[Tensor, Tensor]:
    excess = b - 1  # instead of |b| - 1
    return b * theta + weight * excess**2, b * theta + weight * F.relu(excess) ** 2


def the_gain(b: Tensor, theta: float, weight: float) -> tuple[Tensor, Tensor]:
    excess = b.abs() - 1
    return weight * excess**2 - b * theta, weight * F.relu(excess) ** 2 - b * theta


def the_sides_swapped(b: Tensor, theta: float, weight: float) -> tuple[Tensor, Tensor]:
    excess = b.abs() - 1
    return b * theta + weight * F.relu(excess) ** 2, b * theta + weight * excess**2


def without_the_square(b: Tensor, theta: float, weight: float) -> tuple[Tensor, Tensor]:
    excess = b.abs() - 1
    return b * theta + weight * excess.abs(), b * theta + weight * F.relu(excess)


def twice_the_same(b: Tensor, theta: float, weight: float) -> tuple[Tensor, Tensor]:
    loss = b * theta + weight * (b.abs() - 1) ** 2
    return loss, loss


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (with_the_sign, "length of the gradient is"),
        (without_the_length, "length of the gradient is"),
        (the_gain, "lowers L_D"),
        (the_sides_swapped, "both sides: another loss at b = 0.0; slopes below 1 cost, too"),
        (without_the_square, "another loss"),
        (twice_the_same, "one side: another loss at b = 0.0; slopes below 1 cost nothing"),
    ],
)
def test_wrong_landscapes_are_told_why(checks: dict[str, Any], answer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        checks["check_landscape"](answer)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((-8.0, -7.0, -7.5, -7.4), "real minus generated"),
        ((8.0, 8.0, 7.5, 7.4), "the same images twice"),
        ((7.0, 8.0, 7.5, 7.4), "Is the order right"),
        ((7.5, 7.4, 8.0, 7.0), "the same few in every update"),
    ],
)
def test_wrong_estimates_are_told_why(
    checks: dict[str, Any], numbers: tuple[float, ...], message: str
) -> None:
    checks["check_estimates"]((8.0, 7.0, 7.5, 7.4))
    with pytest.raises(AssertionError, match=message):
        checks["check_estimates"](numbers)


def climbs_to_the_bias(layer: nn.Module, shape: tuple[int, ...], turns: int = 200) -> float:
    x = torch.randn(1, *shape, generator=gp.seeded(0))
    for _ in range(turns):
        x = (x / x.norm()).requires_grad_()
        y = layer(x)
        (x,) = torch.autograd.grad(y, x, grad_outputs=y.detach())
    return float(x.norm().sqrt())


def stretched(layer: nn.Module, shape: tuple[int, ...], turns: int = 200) -> float:
    solved: Callable[..., float] = run_cells(*BASE, *CHECKED, "solution-6-code")["stretch_solved"]
    return solved(layer, shape, turns)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (climbs_to_the_bias, "bias set aside"),
        (lambda layer, shape: stretched(layer, shape) ** 2, "its square"),
        (lambda layer, shape: stretched(layer, shape, turns=1), "Conv2d: .* not "),
    ],
)
def test_wrong_stretches_are_told_why(checks: dict[str, Any], answer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        checks["check_stretch"](answer)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((0.1363, 0.0682), "factor γ/2"), ((0.0682, 0.1363), "twice the divergence"), ((0, 0), "left for it")],
)
def test_wrong_bounds_are_told_why(checks: dict[str, Any], numbers: tuple[float, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        checks["check_bounds"](numbers)


@pytest.mark.parametrize(
    ("number", "stub", "more"),
    [
        (3, "earth_mover_any", ()),
        (4, "one_sided", ("exercise-4-plot-check",)),
        (6, "stretch", ("exercise-6-numbers",)),
    ],
)
def test_stubs_fail_and_solutions_pass(
    checks: dict[str, Any], number: int, stub: str, more: tuple[str, ...]
) -> None:
    with pytest.raises(NotImplementedError):
        checks[stub](torch.ones(2), torch.ones(2))
    run_cells(*BASE, "tried", f"exercise-{number}-check", *more, f"solution-{number}-code")


def test_the_landscape_has_the_minima_that_the_solution_names() -> None:
    cells = run_cells(*BASE, "tried", "exercise-4-check", "exercise-4-plot-check", "solution-4-code")
    with pytest.raises(NotImplementedError):
        cells["landscape"](torch.ones(1), 2.0, 10.0)
    b = torch.linspace(-2, 2, 401, dtype=torch.float64)
    both, one = cells["landscape_solved"](b, 2.0, 10.0)
    for loss, expected in ((both, [-1.1, 0.9]), (one, [-1.1])):
        valleys = (loss[1:-1] < loss[:-2]) & (loss[1:-1] < loss[2:])
        assert b[1:-1][valleys].tolist() == pytest.approx(expected)
    assert float(both[200]) == pytest.approx(10)


@settings(deadline=None, max_examples=30)
@given(width=st.integers(1, 40), seed=st.integers(0, 999))
def test_a_bend_costs_what_exercise_2_says(width: int, seed: int) -> None:
    random = gp.seeded(seed)
    v, w = F.normalize(torch.randn(2, width, generator=random), dim=1)
    bias = torch.randn(width, generator=random)
    places = torch.linspace(-4, 4, 801)[:, None]
    slopes = (v * w * torch.where(places * w + bias > 0, 1.0, 0.2)).sum(1)
    assert float(slopes.max() - slopes.min()) <= 0.8 + 1e-5


# --- The record ---------------------------------------------------------------------------------------------


def glued(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], dict[str, Any]]:
    """Return what the cells of the record glue, and their names."""
    import myst_nb

    texts: dict[str, str] = {}
    monkeypatch.setattr(myst_nb, "glue", lambda name, text, display: texts.__setitem__(name, text))
    names = ("batches", "ring-table", "claims", "arms-glue")
    profile, data = gp.profile(), gp.mnist()
    cells = run_cells(*BASE, *names, glue=myst_nb.glue, profile=profile, data=data)
    return texts, cells


def invented(seeds: int, path: Path) -> None:
    """Rows as the study writes them, with figures that nobody measured."""
    from ganprune.experiments.arms import arms_of
    from ganprune.experiments.studies import losses_of
    from ganprune.records.store import config_hash

    distances = {"non-saturating": 8.0, "wasserstein": 8.1, "hinge": 9.5}
    for name, arm in losses_of(arms_of("laptop")).items():
        for seed in range(seeds):
            shared = {"stage": "trained", "network": "generator_ema", "digit_fid_floor": 1.77}
            shared |= {"digit_fid": distances[name] * (1 + 0.005 * seed), "precision": 0.7, "recall": 0.8}
            rows = [shared | {"split": split, "processor_seconds": 50.0} for split in ("test", "validation")]
            gp.records.append(path, {"key": config_hash(arm), "seed": seed, "rows": rows})


def test_the_record_of_digits_is_shown_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = Path(gp.__file__).parent / "assets" / "records"
    for name in ("ring_training.jsonl", "critic_and_blur.jsonl"):
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    monkeypatch.setattr("ganprune.records.store.SHIPPED", tmp_path)
    texts, cells = glued(monkeypatch)
    assert {texts[f"03-2{letter}"] for letter in "abc"} == {"not measured yet"}
    assert cells["waiting"] == ["2a", "2b", "2c"]
    assert (texts["03-digits"], texts["03-claims"]) == ("no record yet", "claims 25 and 30")
    invented(5, tmp_path / "from_scratch.jsonl")
    texts, cells = glued(monkeypatch)
    assert (texts["03-digits"], texts["03-claims"]) == ("its record follows", "claims 2, 25 and 30")
    assert texts["03-2a"].startswith("supported, ratio 1.01 [")
    assert texts["03-2b"].startswith("not supported, ratio 1.19 [")
    assert not cells["waiting"]
    assert texts["03-ring-steps"] == "2,000"


def test_the_table_of_the_ring_is_that_of_ten_seeds_and_not_of_the_search() -> None:
    from ganprune.experiments.arms import arms_of
    from ganprune.experiments.studies import ring_losses_of

    rows = run_cells("ring-table")["rows"]
    record = gp.records.read_store()
    for row, arm in zip(rows, ring_losses_of(arms_of("laptop")).values(), strict=True):
        found = [one for one in gp.records.rows_of(record, arm) if one["seed"] in range(10)]
        assert len(found) == 10
        mean = math.exp(sum(math.log(one["earth_mover"]) for one in found) / 10)
        assert row["distance"].startswith(f"{mean:.3g} [") and row["distance"].endswith("(n = 10)")
        assert row["fewest clusters"] == min(one["modes"] for one in found)
