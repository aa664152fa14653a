"""Chapter 2: what it writes by hand equals torch and the package, and its derivations hold beyond its examples."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tools.chapters import Chapter
from torch import nn

import ganprune as gp
from ganprune.experiments.arms import arms_of

ROOT = Path(__file__).resolve().parents[1]
matplotlib.use("Agg")
CHAPTER = Chapter(
    "02_dcgan",
    math=math,
    torch=torch,
    nn=nn,
    F=F,
    gp=gp,
    stats=stats,
    latent_dim=64,
    arms_of=arms_of,
)
run_cells = CHAPTER.run


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


geometry = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2)).filter(
    lambda g: g[0] > 2 * g[2]
)


# --- Transposed convolutions ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(geometry, st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_stamps_equal_torch_and_have_the_derived_size(
    shape: tuple[int, int, int], channels: int, height: int, columns: int
) -> None:
    (k, stride, padding), stamp = shape, run_cells("scratch-deconv")["transposed_convolution"]
    maps, weight = noise(channels, height, columns), noise(channels, 2, k, k, seed=1)
    ours = stamp(maps, weight, stride, padding)
    assert ours.shape[1:] == tuple((n - 1) * stride + k - 2 * padding for n in (height, columns))
    expected = F.conv_transpose2d(maps[None], weight, None, stride, padding)[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(geometry, st.integers(2, 6))
def test_zero_insertion_is_the_same_layer(shape: tuple[int, int, int], side: int) -> None:
    k, stride, padding = shape
    insert = run_cells("check-3", "solution-3-code")["by_zero_insertion"]
    maps, weight = noise(2, 3, side, side), noise(3, 4, k, k, seed=1)
    expected = F.conv_transpose2d(maps, weight, None, stride, padding)
    torch.testing.assert_close(insert(maps, weight, stride, padding), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", range(2, 8))
@pytest.mark.parametrize("stride", [2, 3])
def test_stamps_overlap_evenly_where_the_stride_divides_the_kernel(k: int, stride: int) -> None:
    counts = F.conv_transpose1d(torch.ones(1, 1, 30), torch.ones(1, 1, k), stride=stride)[0, 0, k:-k]
    assert set(counts.tolist()) == {k // stride, -(-k // stride)}


def test_kernels_5_and_6_give_what_the_box_says(capsys: pytest.CaptureFixture[str]) -> None:
    stamp = run_cells("scratch-deconv")["transposed_convolution"]
    exec(
        CHAPTER.sources["overlap-counts"].replace("(4, 3)", "(5, 6)"),
        {"torch": torch, "transposed_convolution": stamp},
    )
    assert capsys.readouterr().out.split("stamps")[:2] == [
        "kernel 5: pixels inside get [4, 6, 9] ",
        "\nkernel 6: pixels inside get [9] ",
    ]


def test_an_untrained_deconv2_starts_with_the_checkerboard_of_its_stamps() -> None:
    networks = {"generator": gp.dcgan(device="cpu").generator, "plt": matplotlib.pyplot}
    spread = run_cells("setup", "scratch-deconv", "overlap-counts", "overlap", **networks)["spread"]
    stamps = F.conv_transpose2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), None, 2, 1)[0, 0]
    ratio = spread / stamps.sqrt()
    assert ratio.max() / ratio.min() < 1.25
    assert spread.max() / spread.min() > 1.7


def test_the_drawing_says_how_many_stamps_there_are() -> None:
    drawing = (ROOT / "book" / "drawings" / "stamps.svg").read_text(encoding="utf-8")
    counts = F.conv_transpose2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 4, 4), stride=2).int()
    canvas = drawing.split("canvas:")[1]
    for count in counts.unique().tolist():
        assert canvas.count(f">{count}</text>") == int((counts == count).sum())


# --- The loss -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.floats(-2.5, 2.5), st.floats(0.6, 2.0), st.floats(0.6, 2.0))
def test_the_pull_is_the_slope_of_kl_minus_twice_jsd(theta: float, wide: float, narrow: float) -> None:
    """By quadrature and finite differences, for normal distributions with other means and spreads."""
    x = torch.linspace(-25, 25, 40_001, dtype=torch.float64)
    data = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), wide)
    p = data.log_prob(x)

    def log_q(mean: float) -> torch.Tensor:
        return torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), narrow).log_prob(x)

    def falls(mean: float) -> float:
        q = log_q(mean)
        m = torch.logaddexp(p, q) - math.log(2)
        kl, jsd = q.exp() * (q - p), 0.5 * (p.exp() * (p - m) + q.exp() * (q - m))
        return float(torch.trapezoid(kl - 2 * jsd, x))

    q = log_q(theta)
    pull = (q - p).sigmoid() * (-x / wide**2 + (x - theta) / narrow**2)
    pulled = float(torch.trapezoid(q.exp() * pull, x))
    slope = (falls(theta + 1e-4) - falls(theta - 1e-4)) / 2e-4
    assert pulled == pytest.approx(-slope, abs=1e-5)


def test_the_price_of_half_of_the_modes_is_what_the_text_says() -> None:
    data, half = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    mixture = (data + half) / 2
    kl, terms = (torch.special.xlogy(half, half / data).sum(), torch.special.xlogy(half, half / mixture))
    twice_jsd = terms.sum() + torch.special.xlogy(data, data / mixture).sum()
    assert kl.item() == pytest.approx(math.log(2))
    said = CHAPTER.sources["best"]
    assert f"gives {twice_jsd.item():.2f} of these {kl.item():.2f} back" in said


@settings(deadline=None, max_examples=60)
@given(st.floats(0.01, 5), st.floats(0.01, 5), st.floats(-3, 3))
def test_the_best_logit_is_the_log_ratio(p: float, q: float, other: float) -> None:
    def integrand(logit: float) -> float:
        return p * math.log1p(math.exp(-logit)) + q * math.log1p(math.exp(logit))

    assert integrand(math.log(p / q)) <= integrand(math.log(p / q) + other) + 1e-12


# --- The toy game ---------------------------------------------------------------------------------------------


def radius(path: torch.Tensor) -> torch.Tensor:
    return path.square().sum(1).sqrt()


@settings(deadline=None, max_examples=60)
@given(st.floats(0.01, 0.5), st.floats(-2, 2), st.floats(-2, 2))
def test_one_simultaneous_step_changes_the_radius_as_derived(eta: float, theta: float, psi: float) -> None:
    a, sigma = psi * theta, lambda t: 1 / (1 + math.exp(-t))
    moved = theta + eta * sigma(-a) * psi, psi - eta * sigma(a) * theta
    change = sum(x * x for x in moved) - theta**2 - psi**2
    derived = -2 * eta * a * math.tanh(a / 2) + eta**2 * (sigma(-a) ** 2 * psi**2 + sigma(a) ** 2 * theta**2)
    assert change == pytest.approx(derived, abs=1e-12)
    r2 = theta**2 + psi**2
    if 1e-9 < r2 < 4 * eta * sigma(-r2 / 2) ** 2:
        assert change > 0
    minimax = theta + eta * sigma(a) * psi, psi - eta * sigma(a) * theta
    assert sum(x * x for x in minimax) == pytest.approx(r2 * (1 + eta**2 * sigma(a) ** 2))


def test_the_four_games_end_where_the_text_says() -> None:
    paths = run_cells("play", "games")["paths"]
    ends = {name: float(radius(path)[-1]) for name, path in paths.items()}
    assert ends["simultaneous"] == pytest.approx(math.sqrt(2 * 0.2), rel=0.08)
    assert radius(paths["simultaneous"]).diff()[:100].min() > 0
    assert 0.15 < ends["alternating"] < 0.3
    assert ends["alternating, R1"] < 1e-3
    assert ends["alternating, lazy R1"] < 1e-3


def test_with_much_friction_the_lazy_game_runs_away_and_the_other_creeps() -> None:
    play = run_cells("play")["play"]
    creeping, lazy = play(0.2, gamma=4.0), play(0.2, gamma=4.0, lazy=8)
    assert radius(play(0.2, gamma=0.3))[100] < radius(creeping)[100] < radius(creeping)[0]
    assert radius(lazy)[-1] > 1e3


@pytest.mark.parametrize("gamma", [0.0, 0.03, 0.05, 0.07, 0.3])
@pytest.mark.parametrize("alternate", [True, False])
def test_the_matrices_are_the_steps_near_the_equilibrium(gamma: float, alternate: bool) -> None:
    play, eta = run_cells("play")["play"], 0.2
    path = play(eta, gamma=gamma, alternate=alternate, steps=200, start=1e-5)
    growth = float((radius(path)[200] / radius(path)[100]).log() / 100)
    determinant = 1 - eta * gamma + (0 if alternate else eta**2 / 4)
    assert growth == pytest.approx(0.5 * math.log(determinant), abs=2e-3)


# --- The loop -------------------------------------------------------------------------------------------------

LOOP = ("loop-d", "loop-g", "loop-step", "loop-code")


@pytest.fixture(scope="module")
def train_split() -> Any:
    return gp.mnist(device="cpu").train


@pytest.mark.parametrize("seed", [1, 2])
def test_the_loop_by_hand_is_gp_train(train_split: Any, seed: int) -> None:
    by_hand = run_cells(*LOOP)["train_by_hand"]
    first, second = (gp.dcgan(width=4, seed=seed, device="cpu") for _ in range(2))
    ours = by_hand(first, train_split, steps=10, batch_size=32, seed=seed)
    config = gp.TrainConfig(
        steps=10, batch_size=32, precision="float32", channels_last=False, log_every=1, seed=seed
    )
    history = gp.train(gp.TrainState(second, config), train_split, show_progress=False).history
    theirs = [(row["discriminator_loss"], row["generator_loss"]) for row in history]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-4, rtol=0)


def test_the_average_by_hand_moves_weights_and_copies_statistics() -> None:
    average, network = (gp.dcgan(width=2, seed=seed, device="cpu").generator for seed in (0, 1))
    network.layers.norm1.running_mean += 3.0
    old = average.layers.deconv1.weight.detach().clone()
    run_cells("loop-g")["move_average"](average, network, 0.9)
    torch.testing.assert_close(average.layers.deconv1.weight, 0.9 * old + 0.1 * network.layers.deconv1.weight)
    torch.testing.assert_close(average.layers.norm1.running_mean, network.layers.norm1.running_mean)


def test_the_penalty_by_hand_is_the_squared_slope() -> None:
    penalty, w = run_cells("loop-d")["r1_penalty"], noise(784)
    found = penalty(lambda images: images.flatten(1) @ w, noise(5, 1, 28, 28))
    torch.testing.assert_close(found, w.square().sum())


def test_the_recipe_of_the_text_is_the_default() -> None:
    config = gp.TrainConfig(steps=1)
    assert (config.learning_rate, config.betas, config.decay_from) == (1e-3, (0.0, 0.99), 0.25)
    assert (config.penalty, config.penalty_weight, config.penalty_every) == ("r1", 1.0, 8)
    assert (config.ema_decay, config.batch_size, config.loss) == (0.999, 64, "non-saturating")
    assert arms_of("laptop").dense.training == gp.TrainConfig(steps=arms_of("laptop").dense.steps)


# --- The record -----------------------------------------------------------------------------------------------

RECORD = ("record-rows", "record-table")


def exact_p(losses: list[float], distances: list[float]) -> float:
    """Return the share of all orders of the losses that rank the distances at least as well, or as badly."""
    found = abs(stats.spearmanr(losses, distances)[0])
    others = [abs(stats.spearmanr(order, distances)[0]) for order in permutations(losses)]
    return sum(other >= found - 1e-9 for other in others) / len(others)


def test_what_the_text_says_about_the_record_is_so() -> None:
    found = run_cells(*RECORD, "record-facts", "rank")
    assert found["seeds"] == [0, 1, 2, 3, 4]
    over_seeds, moments = found["over_seeds"], found["moments"]
    at, late = found["at"], found["late"]
    for earlier, later in zip(moments, moments[1:-1], strict=False):
        pairs = zip(at("digit_fid", later), at("digit_fid", earlier), strict=True)
        assert all(new < old for new, old in pairs)
    for name in ("precision", "recall", "coverage"):
        assert over_seeds(name, moments[-1]).low > over_seeds(name, moments[0]).high
    assert moments[-2:] == [12_000, 16_000]
    assert late["digit_fid"].low < 1 < late["digit_fid"].high
    assert late["coverage"].low > 0
    assert found["averaged"].interval().high < 1
    steps, generator, judge = found["ranks"]
    assert all(float(rho) <= -0.9 for rho in steps["each seed"].split(", "))
    assert all(float(rho) >= 0.9 for rho in generator["each seed"].split(", "))
    means = [over_seeds("discriminator_loss", step).mean for step in moments]
    assert means[0] < means[1]
    assert means[2] > means[3] > means[4]
    assert max(means) < 2 * math.log(2)
    assert f"{2 * math.log(2):.3f}" in CHAPTER.sources["title"]
    proved = [
        math.log(2) - (over_seeds("real_loss", step).mean + over_seeds("fake_loss", step).mean) / 2
        for step in (moments[0], moments[-1])
    ]
    assert 0 < min(proved) <= max(proved) < 0.05 * math.log(2)
    assert len(found["raw"]) == len(found["tested"]) == len(found["seeds"])
    for name in (
        "generator_loss",
        "discriminator_loss",
    ):  # five finished trainings cannot be ranked by their losses
        assert exact_p(at(name, moments[-1]), at("digit_fid", moments[-1])) > 0.05
    judged = [float(rho) for rho in judge["each seed"].split(", ")]
    assert max(judged) < min(float(rho) for rho in generator["each seed"].split(", "))


# --- Checks of the exercises ----------------------------------------------------------------------------------


def flip_forgotten(maps: Any, weight: Any, stride: int, padding: int) -> Any:
    batch, channels, height, columns = maps.shape
    spread = maps.new_zeros(batch, channels, (height - 1) * stride + 1, (columns - 1) * stride + 1)
    spread[:, :, ::stride, ::stride] = maps
    return F.conv2d(spread, weight.transpose(0, 1), padding=weight.shape[-1] - 1 - padding)


def padding_kept(maps: Any, weight: Any, stride: int, padding: int) -> Any:
    batch, channels, height, columns = maps.shape
    spread = maps.new_zeros(batch, channels, (height - 1) * stride + 1, (columns - 1) * stride + 1)
    spread[:, :, ::stride, ::stride] = maps
    return F.conv2d(spread, weight.flip(2, 3).transpose(0, 1), padding=padding)


def doubled(old: Any) -> Any:
    layer = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    return nn.Sequential(nn.Upsample(scale_factor=2), layer)


def with_bias(old: Any) -> Any:
    layer = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1)
    return nn.Sequential(nn.Upsample(size=(7, 7)), layer)


def the_same_again(old: Any) -> Any:
    return nn.ConvTranspose2d(old.in_channels, old.out_channels, 3, 2, 1, bias=False)


@pytest.mark.parametrize(
    ("cell", "checker", "answer", "message"),
    [
        ("check-3", "check_zero_insertion", lambda *_: None, "nothing yet"),
        ("check-3", "check_zero_insertion", flip_forgotten, "not turned by 180 degrees"),
        ("check-3", "check_zero_insertion", padding_kept, "pad by k - 1 - p"),
        ("check-4", "check_resize", lambda _: None, "nothing yet"),
        ("check-4", "check_resize", doubled, "not by the factor 2"),
        ("check-4", "check_resize", with_bias, "leave the bias out"),
        ("check-4", "check_resize", the_same_again, "still alternates"),
        ("check-5", "check_rest", lambda *_: None, "nothing yet"),
        ("check-5", "check_rest", lambda eta, gamma: gamma > 0, "you judge the flow"),
        ("check-5", "check_rest", lambda eta, gamma: gamma > eta / 4, "overshoots"),
        ("check-5", "check_rest", lambda eta, gamma: True, "without friction"),
        ("check-5", "check_rest", lambda eta, gamma: eta / 4 < gamma < 1 / eta, "does not overshoot"),
        ("check-5", "check_rest", lambda eta, gamma: gamma == 0.3, "at any step size"),
    ],
)
def test_stubs_and_typical_wrong_answers_fail_with_a_message(
    cell: str, checker: str, answer: Any, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        run_cells(cell)[checker](answer)


def test_the_chapter_runs_without_its_live_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANPRUNE_PROFILE", "smoke")
    found = run_cells("setup", "record-rows", "record-table", "record-facts", "record-glue")
    assert found["facts"]["live-steps"] == f"{found['steps']:,}"
    assert found["samples"] > 0
