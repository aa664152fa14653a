"""What chapter 1 says of its laptop-sized runs, which the smoke profile is too short to show."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from torch.distributions import Normal

import ganprune as gp
from ganprune.experiments.arms import arms_of
from ganprune.experiments.ring_games import is_collapsed, is_complete, sum_up, watch

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "01_gan_from_scratch.ipynb"
DEFINITIONS = (
    "setup",
    "densities",
    "losses",
    "helpers",
    "ring-data",
    "loop-code",
    "snapshot-code",
)
SOLUTIONS = ("check-5", "solution-5-code", "solution-6-code")


@pytest.fixture(scope="module")
def chapter() -> dict[str, Any]:
    """Return the names that the chapter's definitions make; cells that also run something keep their first part."""
    source = {cell["id"]: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
    source["judge"] = source["train-judge"].split("\n\n\n")[0]
    names: dict[str, Any] = {}
    for cell in (*DEFINITIONS, "judge", *SOLUTIONS):
        exec(compile(source[cell], f"{NOTEBOOK.name}:{cell}", "exec"), names)
    return names


def late(game: Any) -> dict[str, Any]:
    """Return what is seen of a game, averaged over its last quarter."""
    looks = watch(game, 25)
    return sum_up(looks[-len(looks) // 4 :])


def test_the_game_covers_the_ring(chapter: dict[str, Any]) -> None:
    assert late(chapter["play"](500))["modes"] >= 6


@pytest.mark.parametrize("options", [{"g_steps": 5}, {"d_rate": 1e-4}], ids=["many turns of G", "slow D"])
def test_a_slow_judge_lets_the_generator_collapse(chapter: dict[str, Any], options: dict[str, Any]) -> None:
    assert late(chapter["play"](300, **options))["modes"] <= 3


def test_the_spread_of_the_data_is_what_the_rule_says(chapter: dict[str, Any]) -> None:
    points = chapter["ring"](20_000)
    assert (points - points.mean(0)).square().sum(1).mean().sqrt().item() == pytest.approx(2.0, abs=0.03)


def test_many_turns_of_the_generator_gather_its_samples_in_one_crowd(chapter: dict[str, Any]) -> None:
    assert late(chapter["play"](600, g_steps=5))["spread"] < 1


def test_packs_betray_a_collapse(chapter: dict[str, Any]) -> None:
    assert late(chapter["play_packed"](400, pack=4))["modes"] >= 4


def test_watching_does_not_change_the_game(chapter: dict[str, Any]) -> None:
    *_, (_, watched, _) = (
        (step, generator, watch([(step, generator, None)], 1)) for step, generator, _ in chapter["play"](5)
    )
    *_, (_, alone, _) = chapter["play"](5)
    assert all(a.equal(b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))


def test_after_one_step_nearly_all_dots_went_with_their_arrows(chapter: dict[str, Any]) -> None:
    before, after = (chapter["snapshot"](*players) for players in chapter["play"](2) if players[0])
    moved = after["points"] - before["points"]
    assert ((moved * before["pull"]).sum(1) > 0).float().mean() > 0.9


def test_the_divergence_of_the_solution_passes_its_check(chapter: dict[str, Any]) -> None:
    chapter["check_divergence"](chapter["revealed_divergence"])


def on_its_training_points(chapter: dict[str, Any], real: torch.Tensor, fake: torch.Tensor) -> float:
    return chapter["revealed_divergence"](real.repeat(2, 1), fake.repeat(2, 1))


def without_the_half(chapter: dict[str, Any], real: torch.Tensor, fake: torch.Tensor) -> float:
    return 2 * chapter["revealed_divergence"](real, fake)


def by_the_mean_loss(chapter: dict[str, Any], real: torch.Tensor, fake: torch.Tensor) -> float:
    loss = math.log(4) - 2 * chapter["revealed_divergence"](real, fake)
    return (math.log(4) - loss / 2) / 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda *_: None, "nothing yet"),
        (without_the_half, "factor one half"),
        (by_the_mean_loss, "sum of both means"),
        (on_its_training_points, "not trained on"),
    ],
    ids=["stub", "twice", "mean", "memory"],
)
def test_stubs_and_typical_wrong_divergences_fail_with_a_message(
    chapter: dict[str, Any], answer: Any, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        chapter["check_divergence"](lambda *points: answer(chapter, *points))


def test_two_uniforms_have_the_divergence_of_the_solution() -> None:
    x = torch.linspace(-1, 3, 400_001, dtype=torch.float64)
    for shift in (0.25, 0.5, 1.5):
        p, q = ((x >= low) & (x < low + 1) for low in (0.0, shift))
        mixture = 0.5 * (p.double() + q.double())
        terms = sum(torch.where(d, (1 / mixture.clamp(min=0.5)).log(), 0.0) for d in (p, q))
        assert torch.trapezoid(0.5 * terms, x).item() == pytest.approx(min(shift, 1) * math.log(2), abs=1e-4)


def test_the_non_saturating_loss_descends_what_the_solution_derives() -> None:
    x = torch.linspace(-15, 15, 60_001, dtype=torch.float64)
    log_p = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0).log_prob(x)

    def log_q(mean: torch.Tensor) -> torch.Tensor:
        return Normal(mean, 1.5).log_prob(x)

    def slope(value: Any) -> float:
        mean = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(value(log_q(mean)), mean)[0].item()

    def divergences(log_g: torch.Tensor) -> torch.Tensor:
        log_m = torch.logaddexp(log_p, log_g) - math.log(2)
        kl = torch.trapezoid(log_g.exp() * (log_g - log_p), x)
        twice_jsd = torch.trapezoid(log_p.exp() * (log_p - log_m) + log_g.exp() * (log_g - log_m), x)
        return kl - twice_jsd

    fixed = log_q(torch.tensor(1.0, dtype=torch.float64))
    best = (log_p - fixed).detach()
    loss = slope(lambda log_g: torch.trapezoid(-log_g.exp() * torch.nn.functional.logsigmoid(best), x))
    assert loss == pytest.approx(slope(divergences), rel=1e-6)


def test_what_the_text_says_about_the_recorded_games_is_so() -> None:
    games = arms_of("laptop").ring
    found = {name: gp.records.rows_of(gp.records.read("ring_games"), game) for name, game in games.items()}
    assert all({row["seed"] for row in rows} == set(range(10)) for rows in found.values())
    even, turns, slow, fast, narrow = (
        {step: [row for row in rows if row["step"] == step] for step in (1_000, 7_000)}
        for rows in found.values()
    )
    assert all(row["complete"] for row in even[1_000] + even[7_000])
    (other,) = (row for row in turns[1_000] if not row["collapsed"])
    assert 1 <= other["modes"] < 1.5
    for suspect in (fast, narrow):
        assert not any(row["collapsed"] for row in suspect[1_000])
        assert 0 < sum(row["complete"] for row in suspect[1_000]) < 10
    assert max(row["modes"] for row in slow[1_000]) <= 2
    lost = [row["collapsed"] for row in slow[7_000]]
    assert 5 < sum(lost) < 10 and all(row["collapsed"] != row["complete"] for row in slow[7_000])
    for row in found["D learns 10 times slower"]:
        later = (one for one in slow[7_000] if one["seed"] == row["seed"])
        assert not row["collapsed"] or all(one["collapsed"] for one in later)


def test_the_rows_of_the_record_follow_the_rule() -> None:
    for row in gp.records.read("ring_games"):
        assert row["collapsed"] == is_collapsed(row["modes"], row["spread"])
        assert row["complete"] == is_complete(row["modes"])
        assert row["commit"] and not row["commit"].endswith("+")
