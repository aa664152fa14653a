"""Trainings and tickets on the ring: the data, the distance, each control, and the search that chose the rates."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import ganprune as gp
from ganprune.experiments import ring_schedules, ring_training
from ganprune.experiments.arms import arms_of
from ganprune.experiments.ring_games import MODES, RADIUS, STD
from ganprune.experiments.ring_schedules import MOMENTS, RingSchedule
from ganprune.experiments.ring_tickets import RING_CONTROLS, RingTickets
from ganprune.experiments.ring_training import (
    RING_LOSSES,
    RING_RATES,
    RingPoints,
    RingTraining,
    earth_mover,
    even_points,
    ring_figures,
)
from ganprune.experiments.studies import RING_CHOSEN, ring_losses_of, study
from ganprune.lottery.iterative import Round
from ganprune.training.state import TrainState

SHORT = RingTickets(RingTraining.of("non-saturating, R1", 1e-3, 8), rounds=2, controlled=(2,))


@pytest.fixture
def _few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few points are measured: a distance takes time that grows with the cube of their number."""
    for module in (ring_training, ring_schedules):
        monkeypatch.setattr(module, "MEASURED", 80)


# ---------------------------------------------------------------- data and distance


def test_points_depend_on_seed_and_step_alone() -> None:
    source = RingPoints()
    one = source.batch(64, 3, 5)
    assert one.shape == (64, 2) and torch.equal(one, RingPoints().batch(64, 3, 5))
    for other in (source.batch(64, 4, 5), source.batch(64, 3, 6)):
        assert not torch.equal(one, other)


def test_even_points_have_as_many_of_each_cluster() -> None:
    points = even_points(4_000, 1)
    nearest = torch.cdist(points, gp.data.synthetic.ring_centres(MODES, RADIUS)).min(dim=1)
    assert torch.bincount(nearest.indices).tolist() == [500] * MODES
    assert float(nearest.values.square().mean()) == pytest.approx(2 * STD**2, rel=0.1)


def cheapest_plan(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the distance as a linear programme, whose plans may split a point."""
    n = len(one)
    sums = torch.cat([torch.kron(torch.eye(n), torch.ones(1, n)), torch.kron(torch.ones(1, n), torch.eye(n))])
    cost = torch.cdist(one.double(), other.double()).flatten().numpy()
    return float(linprog(cost, A_eq=sums.numpy(), b_eq=[1 / n] * (2 * n)).fun)


@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 1_000))
@settings(max_examples=25, deadline=None)
def test_the_distance_is_that_of_the_cheapest_plan(n: int, d: int, seed: int) -> None:
    one, other = torch.randn(2, n, d, generator=gp.seeded(seed))
    assert earth_mover(one, other) == pytest.approx(cheapest_plan(one, other), abs=1e-5)
    assert earth_mover(one, other) == pytest.approx(earth_mover(other, one))
    assert earth_mover(one, one.flip(0)) == 0
    assert earth_mover(one, one + 3) == pytest.approx(3 * math.sqrt(d), rel=1e-5)


def test_figures_tell_a_good_generator_from_a_collapsed_one() -> None:
    class Draws(torch.nn.Module):
        latent_dim = 2

        def __init__(self, modes: int) -> None:
            super().__init__()
            self.modes = modes

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            angle = torch.atan2(z[:, 1], z[:, 0])  # uniform
            chosen = ((angle / (2 * math.pi) + 0.5) * self.modes).long().clamp(max=self.modes - 1)
            centres = gp.data.synthetic.ring_centres(MODES, RADIUS)[chosen]
            length = z.norm(dim=1, keepdim=True)
            around = torch.cat([(MODES * angle[:, None]).cos(), (MODES * angle[:, None]).sin()], 1)
            return centres + STD * length * around

    good, collapsed = ring_figures(Draws(8)), ring_figures(Draws(1))
    assert good["modes"] == 8 and good["good_share"] > 0.95 and good["earth_mover"] < 0.2
    assert collapsed["modes"] == 1 and collapsed["earth_mover"] > 2


# ---------------------------------------------------------------- trainings


@pytest.mark.parametrize("loss", RING_LOSSES)
def test_a_training_is_what_its_label_says(loss: str) -> None:
    arm = RingTraining.of(loss, 3e-3, 7)
    config, gan = arm.training, arm.initial(0)
    assert config.learning_rate == 3e-3 and arm.steps == 7 and "rate 0.003, 7 steps" in arm.label
    assert config.discriminator_learning_rate is None and config.batch_size == 128
    expected = {
        "non-saturating": ("non-saturating", None, None, 1),
        "non-saturating, R1": ("non-saturating", "r1", None, 1),
        "WGAN, clipping": ("wasserstein", None, 0.1, 5),
        "WGAN-GP": ("wasserstein", "gradient", None, 5),
        "hinge, spectral norm": ("hinge", None, None, 1),
        "WGAN-GP, weight 0.1": ("wasserstein", "gradient", None, 5),
        "non-saturating, R1, five updates": ("non-saturating", "r1", None, 5),
    }[loss]
    assert (config.loss, config.penalty, config.clip, config.critic_steps) == expected
    spectral = any("parametrizations" in key for key in gan.discriminator.state_dict())
    assert spectral == (loss == "hinge, spectral norm")


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ValueError, match="loss must be one of .*'least squares'"):
        RingTraining.of("least squares", 1e-3, 7)


def test_the_chosen_rates_are_those_that_the_search_found() -> None:
    rows, search = gp.records.read_store(), arms_of("laptop").ring_search
    for loss, rates in search.items():
        found = {}
        for rate, arm in rates.items():
            seeds = {row["seed"]: row["earth_mover"] for row in gp.records.rows_of(rows, arm)}
            tried = [seeds[seed] for seed in study("ring-search").seeds]
            found[rate] = sum(map(math.log, tried))
        assert tuple(found) == RING_RATES and RING_CHOSEN[loss] == min(found, key=found.__getitem__), loss


def test_each_loss_is_measured_at_its_rate() -> None:
    chosen = ring_losses_of(arms_of("laptop"))
    assert [*chosen] == [*RING_LOSSES]
    assert len(RING_RATES) == 4 and RING_CHOSEN["hinge, spectral norm"] == max(
        RING_RATES
    )  # as chapter 3 says
    assert {name: arm.training.learning_rate for name, arm in chosen.items()} == RING_CHOSEN
    assert len({arm.steps for arm in chosen.values()}) == 1


# ---------------------------------------------------------------- tickets and their controls


@pytest.fixture(scope="module")
def last() -> tuple[Round, Any]:
    """Return the last round of a short lottery, and the scores of its dense network."""
    pair = SHORT.start.initial(3)
    rounds = [
        (one, gp.score(one.state.gan.generator, "magnitude"))
        for one in gp.find_tickets(
            pair, RingPoints(), SHORT.start.training, 2, keep=SHORT.keep, show_progress=False
        )
    ]
    return rounds[-1][0], rounds[0][1]


def start_of(arm: str, last: tuple[Round, Any], seed: int = 11) -> TrainState:
    """Return what a control trains."""
    return RING_CONTROLS[arm](SHORT, *last, seed)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Return whether two networks have the same weights."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        left[key].shape == right[key].shape and torch.equal(left[key], right[key]) for key in left
    )


@pytest.mark.parametrize("arm", RING_CONTROLS)
def test_a_control_has_as_many_weights_as_its_ticket_and_as_many_steps(arm: str, last: Any) -> None:
    state, ticket = start_of(arm, last), last[0].ticket
    count = sum(int((w != 0).sum()) for w in gp.prunable_weights(state.gan.generator).values())
    assert count == pytest.approx(ticket.kept, rel=0.05 if arm == "small and dense" else 0)
    assert state.step == 0 and state.config.steps == ticket.rewound.config.steps


@pytest.mark.parametrize(
    ("arm", "mask", "generator", "discriminator", "batches"),
    [
        ("reinitialised", True, False, False, True),
        ("fresh generator", True, False, True, True),
        ("shuffled", False, None, True, True),
        ("random", False, None, True, True),
        ("one-shot", False, None, True, True),
        ("small and dense", None, None, True, True),
        ("other batches", True, True, True, False),
    ],
)
def test_a_control_changes_what_it_is_to_change(
    arm: str, mask: bool | None, generator: bool | None, discriminator: bool, batches: bool, last: Any
) -> None:
    state, plain = start_of(arm, last), last[0].ticket.start()
    assert same(state.gan.discriminator, plain.gan.discriminator) == discriminator
    assert (state.config.seed == plain.config.seed) == batches
    if mask is None:
        assert not state.gan.masks
    else:
        assert (state.gan.masks["generator"] == plain.gan.masks["generator"]) == mask
    if generator is not None:
        assert same(state.gan.generator, plain.gan.generator) == generator
    elif mask is not None:  # other weights of the same start
        dense = gp.prunable_weights(last[0].ticket.rewound.gan.generator)
        for key, weight in gp.prunable_weights(state.gan.generator).items():
            kept = state.gan.masks["generator"][key]
            assert torch.equal(weight[kept], dense[key][kept])


def test_shuffling_keeps_the_layers_counts_and_one_shot_the_largest(last: Any) -> None:
    ticket, once = last[0].ticket.masks["generator"], last[1]
    shuffled = start_of("shuffled", last).gan.masks["generator"]
    assert [row["kept"] for row in shuffled.layers()] == [row["kept"] for row in ticket.layers()]
    chosen = start_of("one-shot", last).gan.masks["generator"]
    kept = torch.cat([once[key][chosen[key]] for key in chosen])
    gone = torch.cat([once[key][~chosen[key]] for key in chosen])
    assert kept.min() >= gone.max()


def test_a_control_leaves_its_ticket_alone(last: Any) -> None:
    before = copy.deepcopy(last[0].ticket.rewound.gan)
    for arm in RING_CONTROLS:
        gp.train(start_of(arm, last), RingPoints(), until=2, show_progress=False)
    after = last[0].ticket.rewound.gan
    assert same(before.generator, after.generator) and same(before.discriminator, after.discriminator)


@pytest.mark.usefixtures("_few_points")
def test_the_rows_of_the_ticket_are_those_of_plain_imp(last: Any) -> None:
    rows = [row for row in SHORT.run(SHORT.start.training.seed) if row["arm"] == "ticket"]
    assert [row["round"] for row in rows] == [0, 1, 2] and rows[0]["kept"] == 4_352
    assert rows[-1]["kept"] == last[0].ticket.kept


# ---------------------------------------------------------------- when to prune


def watched(moment: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[tuple[float, float]]:
    """Return the generator's sparsity and the discriminator's learning rate after each step of both cycles."""
    seen: list[tuple[float, float]] = []

    def look(state: TrainState) -> None:
        mask = state.gan.masks.get("generator")
        rate = state.optimizers["discriminator"].param_groups[0]["initial_lr"]
        seen.append((mask.sparsity if mask else 0.0, rate))

    def train(state: TrainState, source: Any, callbacks: Any, **options: Any) -> TrainState:
        return gp.train(state, source, [*callbacks, look], **options)

    monkeypatch.setattr(ring_schedules, "train", train)
    arm = RingSchedule(RingTraining.of("non-saturating, R1", 1e-3, 40), moment, **changes)
    last = [*arm.run(0)][-1]
    assert len(seen) == arm.steps == 80
    assert last["sparsity"] == pytest.approx(0.0 if moment == "dense" else 0.9, abs=1e-3)
    return seen


@pytest.mark.usefixtures("_few_points")
@pytest.mark.parametrize(
    ("moment", "first", "last"),
    [("before", 0, 0), ("during", 11, 40), ("after", 40, 40), ("gradually", 41, 60)],
)
def test_each_moment_prunes_when_it_says(
    moment: str, first: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparsities = [sparsity for sparsity, _ in watched(moment, monkeypatch)]
    assert sparsities == sorted(sparsities)
    assert next(i for i, sparsity in enumerate(sparsities) if sparsity) == pytest.approx(first, abs=1)
    assert sparsities.index(sparsities[-1]) == pytest.approx(last, abs=2)
    if first == last:
        assert len(set(sparsities)) == (1 if moment == "before" else 2)


@pytest.mark.usefixtures("_few_points")
def test_the_mask_of_the_gradual_arm_is_cut_at_once() -> None:
    """Sparse from the first step of the second cycle, by the very mask with which the gradual arm ends."""
    start = RingTraining.of("non-saturating, R1", 1e-3, 40)
    rows = {
        moment: [*RingSchedule(start, moment).run(0)] for moment in ("gradually", "its mask at once", "after")
    }
    assert all(r["sparsity"] == pytest.approx(0.9, abs=1e-3) for r in rows["its mask at once"][1:])
    assert rows["gradually"][0]["earth_mover"] == rows["its mask at once"][0]["earth_mover"]
    cut = {moment: found[1]["earth_mover"] for moment, found in rows.items()}
    assert len(set(cut.values())) == 3
    assert rows["gradually"][-1]["earth_mover"] != rows["its mask at once"][-1]["earth_mover"]


@pytest.mark.usefixtures("_few_points")
@pytest.mark.parametrize("seed", [0, 1])
def test_that_mask_is_the_gradual_arms(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def train(state: TrainState, source: Any, callbacks: Any, **options: Any) -> TrainState:
        result = gp.train(state, source, callbacks, **options)
        if "generator" in state.gan.masks:
            kept.append(dict(state.gan.masks["generator"]))
        return result

    monkeypatch.setattr(ring_schedules, "train", train)
    start = RingTraining.of("non-saturating, R1", 1e-3, 40)
    [*RingSchedule(start, "gradually").run(seed)]
    last = kept[-1]
    kept.clear()
    [*RingSchedule(start, "its mask at once").run(seed)]
    assert kept and all(torch.equal(mask[name], last[name]) for mask in kept for name in last)
    kept.clear()
    *_, row = RingSchedule(start, "its shares at once").run(seed)
    shares = kept[1]  # the first is the gradual arm's own
    assert torch.equal(kept[0][next(iter(last))], last[next(iter(last))])
    assert all(torch.equal(mask[name], shares[name]) for mask in kept[1:] for name in last)
    assert all(shares[name].sum() == last[name].sum() for name in last)
    assert any(not torch.equal(shares[name], last[name]) for name in last)
    assert row["densities"] == {name: pytest.approx(float(last[name].float().mean())) for name in last}


@pytest.mark.usefixtures("_few_points")
def test_dense_is_never_pruned_and_a_slower_judge_learns_slower_in_the_second_cycle_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = watched("dense", monkeypatch, judge_rate=0.25)
    assert {sparsity for sparsity, _ in seen} == {0.0}
    assert [rate for _, rate in seen] == [1e-3] * 40 + [0.25e-3] * 40


@pytest.mark.usefixtures("_few_points")
def test_moments_share_the_first_cycle_as_far_as_they_are_dense_in_it() -> None:
    start = RingTraining.of("non-saturating, R1", 1e-3, 6)
    firsts = {moment: next(RingSchedule(start, moment).run(1))["earth_mover"] for moment in MOMENTS}
    assert firsts["dense"] == firsts["after"] == firsts["gradually"]
    assert len({firsts["dense"], firsts["before"], firsts["during"]}) == 3


@pytest.mark.usefixtures("_few_points")
@pytest.mark.parametrize("moment", ["dense", "gradually"])
def test_looking_on_the_way_changes_nothing(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = RingSchedule(RingTraining.of("non-saturating, R1", 1e-3, 40), moment)
    looked = [*arm.run(0)]
    assert [row["stage"] for row in looked] == ["first cycle", *["second cycle"] * 8, "trained"]
    assert [row["step"] for row in looked] == [40, 0, 1, 2, 4, 8, 16, 24, 32, 40]
    monkeypatch.setattr(ring_schedules, "LOOKS", ())
    timed = {"wall_seconds", "processor_seconds"}
    for one, other in zip((looked[0], looked[-1]), arm.run(0), strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }


@pytest.mark.usefixtures("_few_points")
def test_the_first_look_sees_the_cut_and_nothing_else() -> None:
    start = RingTraining.of("non-saturating, R1", 1e-3, 40)
    cut, dense = (
        next(r for r in RingSchedule(start, m).run(0) if r["step"] == 0) for m in ("after", "dense")
    )
    assert cut["sparsity"] == pytest.approx(0.9, abs=1e-3) and dense["sparsity"] == 0
    before = next(RingSchedule(start, "dense").run(0))
    assert dense["earth_mover"] == before["earth_mover"] != cut["earth_mover"]


def test_the_lead_is_what_the_discriminator_says() -> None:
    gan = RingTraining.of("non-saturating, R1", 1e-3, 8).initial(0)
    fake = gan.generator(gp.sample_latents(1_000, 2, seed=0))
    expected = (gan.discriminator(even_points(1_000, seed=0)).mean() - gan.discriminator(fake).mean()).item()
    assert ring_schedules.lead(gan) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moment": "later"}, "moment must be one of .*'later'"),
        ({"sparsity": 1.0}, "sparsity must be in .*1.0"),
        ({"judge_rate": 0}, "judge_rate must be in .*0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_before_the_work(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RingSchedule(**changes)
