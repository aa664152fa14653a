"""Games on the ring: the package plays chapter 1's game number by number, and its rules fit known cases."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tools.chapters import Chapter
from torch import nn
from torch.nn import functional as F

import ganprune as gp
from ganprune.data.synthetic import ring_centres
from ganprune.experiments import ring_games
from ganprune.experiments.arms import PROFILES, arms_of
from ganprune.experiments.ring_games import (
    MODES,
    SPREAD,
    RingGame,
    is_collapsed,
    is_complete,
    look_at,
    sum_up,
)

CHAPTER = Chapter("01_gan_from_scratch", math=math, torch=torch, nn=nn, F=F, gp=gp)
SHORT = RingGame(steps=8, moment=8, every=1)


@pytest.fixture(scope="module")
def by_hand() -> dict[str, Any]:
    """Return what the chapter's own cells define."""
    definitions = CHAPTER.sources["train-judge"].split("\n\n\n")[0]
    names = CHAPTER.run("losses", "helpers", "ring-data")
    exec(definitions, names)
    exec(CHAPTER.sources["loop-code"], names)
    return names


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"discriminator_learning_rate": 1e-4}, {"d_rate": 1e-4}),
        ({"generator_updates": 5}, {"g_steps": 5}),
        ({"discriminator_updates": 5}, {"d_steps": 5}),
        ({"latent_dim": 1}, {"latent_dim": 1}),
    ],
    ids=["even", "slow D", "turns of G", "turns of D", "narrow latent"],
)
@pytest.mark.parametrize("seed", [0, 3])
def test_the_game_is_that_of_the_chapter(
    by_hand: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any], seed: int
) -> None:
    *_, (step, *players) = dataclasses.replace(SHORT, **ours).play(seed)
    *_, (same, *expected) = by_hand["play"](8, seed=seed, **theirs)
    assert step == same == 8
    for one, other in zip(players, expected, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_modes_are_counted_as_in_the_chapter(by_hand: dict[str, Any]) -> None:
    for spread in (0.1, 0.5, 2.0):
        points = gp.data.gaussian_ring(5_000, 1, std=spread)
        seen = look_at(points)
        assert (seen["modes"], seen["good_share"]) == by_hand["count_modes"](points)


def test_what_is_seen_of_the_data_is_known() -> None:
    points = gp.data.gaussian_ring(200_000, 0, modes=MODES, radius=ring_games.RADIUS, std=ring_games.STD)
    seen = look_at(points)
    assert seen["modes"] == 8 and seen["good_share"] == pytest.approx(1 - math.exp(-4.5), abs=1e-3)
    assert seen["spread"] == pytest.approx(SPREAD, abs=0.01) and math.hypot(*seen["mean"]) < 0.02


def test_one_point_is_one_mode_without_spread() -> None:
    seen = look_at(ring_centres()[3].repeat(100, 1))
    assert (seen["modes"], seen["good_share"]) == (1, 1.0) and seen["spread"] < 1e-3


def test_the_data_are_neither_collapsed_nor_incomplete_and_a_crowd_is_both() -> None:
    data, crowd = (8.0, SPREAD), (1.0, 0.2)
    assert is_complete(data[0]) and not is_collapsed(*data)
    assert is_collapsed(*crowd) and not is_complete(crowd[0])
    assert not is_collapsed(1.0, SPREAD), "scattered samples are no crowd"
    assert not is_collapsed(8.0, 0.2), "a narrow ring would still have all modes"


@given(st.floats(0, 8), st.floats(0, 4), st.floats(0, 8), st.floats(0, 4))
def test_what_has_less_of_both_is_collapsed_as_well(a: float, b: float, c: float, d: float) -> None:
    if is_collapsed(a, b):
        assert is_collapsed(min(a, c), min(b, d))


def test_looks_are_averaged_and_the_way_of_the_mean_is_measured() -> None:
    looks = [
        {"step": step, "modes": modes, "good_share": 0.5, "spread": 0.2, "mean": mean}
        for step, modes, mean in ((10, 0, (0.0, 0.0)), (20, 1, (3.0, 4.0)), (30, 1, (3.0, 3.0)))
    ]
    row = sum_up(looks)
    assert row["step"] == 30 and row["modes"] == pytest.approx(2 / 3) and row["travelled"] == 3.0
    assert row["collapsed"] and not row["complete"]


def test_rows_are_means_over_the_quarters_that_end_at_their_moments() -> None:
    game = RingGame(steps=40, moment=20, every=5)
    looks, rows = game.watch(1), list(game.run(1))
    assert [look["step"] for look in looks] == list(range(0, 41, 5))
    assert [row["step"] for row in rows] == [20, 40]
    for row, pair in zip(rows, (looks[3:5], looks[7:9]), strict=True):
        assert row["spread"] == pytest.approx(sum(look["spread"] for look in pair) / 2)
        assert row["collapsed"] == is_collapsed(row["modes"], row["spread"])


def test_a_game_leaves_the_global_generator_alone_and_is_left_alone_by_it() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    *_, (_, undisturbed, _) = SHORT.play(2)
    assert torch.equal(before, torch.get_rng_state())
    game = SHORT.play(2)
    *_, (_, disturbed, _) = ((torch.randn(3), *players)[1:] for players in game)
    for a, b in zip(undisturbed.parameters(), disturbed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_shorter_game_is_the_beginning_of_a_longer_one() -> None:
    long = dataclasses.replace(SHORT, steps=16)
    assert next(iter(long.run(4))) == next(iter(SHORT.run(4)))


@pytest.mark.parametrize("profile", PROFILES)
def test_all_games_of_a_profile_have_a_row_at_the_same_first_moment(profile: str) -> None:
    games = arms_of(profile).ring
    assert {game.moment for game in games.values()} == {PROFILES[profile].ring_steps}
    assert len(games) == 5
    for game in games.values():  # where they differ, they differ in one field beside their length
        even = dataclasses.asdict(dataclasses.replace(games["one update each"], steps=game.steps))
        other = dataclasses.asdict(game)
        assert sum(even[name] != other[name] for name in even) == (game != games["one update each"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"generator_updates": 1.5}, "generator_updates must be"),
        ({"moment": 3}, "moment must divide the 8 steps, got 3"),
        ({"every": 3}, "every must divide moment = 8 into four or more, got 3"),
        ({"every": 4}, "every must divide moment = 8 into four or more, got 4"),
    ],
)
def test_wrong_games_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        dataclasses.replace(SHORT, **wrong)


def test_looks_need_a_distance() -> None:
    with pytest.raises(ValueError, match="every must be"):
        ring_games.watch(SHORT.play(0), 0)
