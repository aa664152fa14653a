"""Chapter 13: what it writes by hand equals the package, its derivations hold, wrong answers are told why."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.chapters import Chapter

import ganprune as gp
from ganprune.experiments.arms import arms_of
from ganprune.experiments.verdicts import Arm

TOOLS = {
    "copy": copy,
    "dataclasses": dataclasses,
    "itertools": itertools,
    "math": math,
    "torch": torch,
    "gp": gp,
}
IMP = ("scratch-largest", "scratch-rewind", "scratch-imp")


CHAPTER = Chapter("13_lottery_tickets", **TOOLS)
run_cells = CHAPTER.run


class Noise:
    """Images that follow from seed and step."""

    def batch(self, batch_size: int, seed: int, step: int) -> torch.Tensor:
        draws = gp.seeded(gp.step_seed(seed, step))
        return torch.rand(batch_size, 1, 28, 28, generator=draws) * 2 - 1


@cache
def searched() -> dict[str, Any]:
    """The chapter's own search and the package's, on noise."""
    cells = run_cells(*IMP, "scratch-parts")
    tiny, few, quiet = gp.dcgan(width=2, latent_dim=4, device="cpu"), Noise(), {"show_progress": False}
    short = gp.TrainConfig(steps=4, batch_size=8, learning_rate=2e-3)
    cells |= {"tiny": tiny, "few": few, "quiet": quiet, "short": short}
    cells["mine"] = cells["imp"](tiny, few, short, 2, 0.631)
    late = {"rewind": "late", "rewind_step": 2}
    cells["late_mine"] = cells["imp"](tiny, few, short, 2, 0.631, rewind_step=2)
    cells["theirs"] = [*gp.find_tickets(tiny, few, short, 2, keep=0.631, **quiet)]
    cells["late_theirs"] = [*gp.find_tickets(tiny, few, short, 2, keep=0.631, **late, **quiet)]
    return run_cells("scratch-compare", **cells)


# --- The toy lottery ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_toy_is_a_lottery_for_other_draws_too(seed: int) -> None:
    cells = run_cells("lottery-toy")
    starts = torch.randn(40, 6, generator=gp.seeded(seed), dtype=torch.float64)
    starts = starts[cells["train_toy"](starts, torch.ones_like(starts))[0] < 1e-3]
    losses, _ = cells["train_toy"](starts[:, None], cells["masks"])
    wins = losses < 1e-3
    assert wins.any(1).all() and not wins.all(0).any()
    assert losses[wins].max() < 1e-12 and losses[~wins].min() > 0.1  # no win is a matter of rounding


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_winner_elsewhere_is_no_better_than_its_structure_for_other_draws_too(seed: int) -> None:
    cells = run_cells("lottery-toy")
    starts = torch.randn(200, 6, generator=gp.seeded(seed), dtype=torch.float64)
    starts = starts[cells["train_toy"](starts, torch.ones_like(starts))[0] < 1e-3]
    won = (cells["train_toy"](starts[:, None], cells["masks"])[0] < 1e-3).double()
    whole = (cells["masks"][:, :3] * cells["masks"][:, 3:]).sum(-1) == 2
    assert won.any(1).double().mean() > 0.95  # nearly every start has a winner
    won = won[won.any(1)]
    elsewhere = ((won @ won.T) / won.sum(1, keepdim=True))[~torch.eye(len(won), dtype=torch.bool)].mean()
    assert whole.sum() == 3 and won[:, ~whole].sum() == 0
    assert abs(elsewhere - won[:, whole].mean()) < 0.05


def law_of_the_toy(seed: int, count: int) -> dict[str, Any]:
    """The chapter's cells up to the search, on other starts."""
    drawn = torch.randn(count, 6, generator=gp.seeded(seed), dtype=torch.float64)
    cells = run_cells("lottery-toy")
    cells["starts"] = starts = drawn[cells["train_toy"](drawn, torch.ones_like(drawn))[0] < 1e-3]
    cells["wins"] = cells["train_toy"](starts[:, None], cells["masks"])[0] < 1e-3
    cells["units"] = cells["masks"][:, :3] * cells["masks"][:, 3:]
    cells["whole"] = (cells["units"].sum(-1) == 2).expand_as(cells["wins"])
    return run_cells("toy-moved", "toy-rounds", **cells)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_law_foretells_the_winners_of_other_draws_and_magnitude_misses_most(seed: int) -> None:
    cells = law_of_the_toy(seed, 300)
    assert cells["wins"][cells["foretold"]].all()
    assert cells["foretold"][cells["wins"]].double().mean() > 0.95
    won = {
        name: (cells["train_toy"](cells["starts"], kept)[0] < 1e-3).double().mean()
        for name, kept in cells["found"].items()
    }
    assert won["in two rounds"] < won["at once"] < 0.5 and won["whole units"] > 0.9
    for kept in cells["found"].values():  # half a unit never wins
        halves = (kept[:, :3] != kept[:, 3:]).any(1)
        assert not (cells["train_toy"](cells["starts"], kept)[0] < 1e-3)[halves].any()


def test_the_law_foretells_the_shares_of_exercise_7() -> None:
    starts = torch.randn(200_000, 6, generator=gp.seeded(0), dtype=torch.float64)
    u, v = starts[:, :3], starts[:, 3:]
    lives = (v > 0) | (u.abs() > v.abs())
    right, left = lives & (u > 0), lives & (u < 0)
    dense = right.any(1) & left.any(1)
    pair = (right[:, 0] & left[:, 1]) | (left[:, 0] & right[:, 1])
    assert float((lives & (u > 0)).double().mean()) == pytest.approx(3 / 8, abs=0.01)
    assert float(dense.double().mean()) == pytest.approx(1 - 2 * (5 / 8) ** 3 + (1 / 4) ** 3, abs=0.01)
    assert float(pair[dense].double().mean()) == pytest.approx(0.53, abs=0.01)


def test_small_steps_keep_what_the_derivation_says() -> None:
    cells = run_cells("lottery-toy")
    starts = torch.randn(50, 6, generator=gp.seeded(5), dtype=torch.float64)
    kept = torch.ones_like(starts)

    def moved(rate: float) -> torch.Tensor:
        _, after = cells["train_toy"](starts, kept, steps=round(30 / rate), rate=rate)
        constants = [w[:, :3].square() - w[:, 3:].square() for w in (starts, after)]
        return (constants[0] - constants[1]).abs().max()

    assert moved(0.01) < 0.1 and moved(0.01) < moved(0.1) / 5


# --- Iterative magnitude pruning ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), shares=st.lists(st.floats(0.1, 0.9), min_size=1, max_size=3))
def test_without_training_iterative_pruning_is_one_shot(seed: int, shares: list[float]) -> None:
    cells = run_cells("scratch-largest")
    network = gp.dcgan(width=2, latent_dim=4, seed=seed, device="cpu").generator
    dense = dict(gp.Mask.dense(network))
    kept, count = dense, sum(flags.numel() for flags in dense.values())
    for share in shares:
        count = max(1, round(share * count))
        kept = cells["largest"](network, kept, count)
    assert gp.Mask(kept) == gp.Mask(cells["largest"](network, dense, count))
    assert gp.Mask(kept).kept == count


@pytest.mark.parametrize("late", ["", "late_"])
def test_the_hand_made_search_is_the_packages(late: str) -> None:
    found = searched()
    for (kept, state), theirs in zip(found[f"{late}mine"], found[f"{late}theirs"], strict=True):
        assert gp.Mask(kept) == theirs.ticket.masks["generator"]
        assert all(found["equal_parts"](state, theirs.state).values())


@settings(deadline=None, max_examples=60)
@given(keep=st.floats(0.05, 0.95), density=st.floats(0.01, 0.9))
def test_the_number_of_rounds_is_the_least_that_reaches_the_density(keep: float, density: float) -> None:
    number = math.ceil(math.log(density) / math.log(keep) - 1e-12)
    assert keep**number <= density * (1 + 1e-9)
    assert number == 0 or keep ** (number - 1) > density * (1 - 1e-9)


def test_the_recorded_study_takes_five_rounds_to_a_tenth() -> None:
    study = arms_of("laptop").tickets
    assert study.keep == 0.631 and study.rounds == 5 and study.controlled == (4, 5)
    assert round(study.keep**study.rounds, 3) == 0.1
    assert study.start.steps == 12_000 and study.samples == 10_000


def test_our_average_forgets_the_dense_generator_when_the_step_is_put_back() -> None:
    decay = gp.TrainConfig(steps=1).ema_decay
    assert round(decay**4_000, 3) == 0.018
    assert math.prod(min(decay, (1 + t) / (10 + t)) for t in range(4_000)) < 1e-20


def test_ten_rounds_on_convolutions_leave_a_fifth_of_a_generator_with_a_large_linear_layer() -> None:
    linear, convolutions = 128 * 16 * 256, 3 * (2 * 9 + 1) * 256**2 + 9 * 3 * 256
    assert round(0.8**10, 3) == 0.107
    assert round((linear + 0.8**10 * convolutions) / (linear + convolutions), 2) == 0.22


def test_each_part_left_as_trained_is_found() -> None:
    found = searched()
    (_, trained), (kept, _) = found["late_mine"][:2]
    right = found["start_again"](found["origin"], kept)
    assert all(found["equal_parts"](right, found["late_theirs"][1].ticket.start()).values())
    naive = found["equal_parts"](found["naive"], right)
    assert [part for part, same in naive.items() if same] == ["prunable weights"]
    for part in ("discriminator", "generator_ema"):
        wrong = copy.deepcopy(right)
        wrong.gan.networks()[part].load_state_dict(trained.gan.networks()[part].state_dict())
        different = [name for name, same in found["equal_parts"](wrong, right).items() if not same]
        assert different == ["D" if part == "discriminator" else "EMA"]


def test_the_hand_made_controls_change_one_thing_each() -> None:
    found = searched()
    cells = run_cells("scratch-controls", **found)
    ticket = found["theirs"][2].ticket
    kept = dict(ticket.masks["generator"])
    shuffled = cells["shuffle"](kept, 1)
    assert {name: int(flags.sum()) for name, flags in shuffled.items()} == {
        name: int(flags.sum()) for name, flags in kept.items()
    }
    assert gp.Mask(shuffled) != gp.Mask(kept)
    fresh = cells["draw_anew"](ticket.rewound, kept, 7)
    assert fresh.gan.masks["generator"] == ticket.masks["generator"] and fresh.step == 0
    same = found["equal_parts"](fresh, ticket.start())
    assert not same["prunable weights"] and not same["D"]


# --- The barrier --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.floats(0, 5),
    st.integers(2, 12),
)
def test_a_convex_quality_has_no_barrier(point: list[float], curvature: float, steps: int) -> None:
    barrier = run_cells("scratch-barrier")["barrier"]
    slope, shift, floor = point
    values = [curvature * (i / steps - shift) ** 2 + slope * i / steps + floor for i in range(steps + 1)]
    assert barrier(values) == pytest.approx(0, abs=1e-9)


def test_the_barrier_is_the_greatest_rise_above_the_line() -> None:
    barrier = run_cells("scratch-barrier")["barrier"]
    assert barrier([1.0, 5.0, 3.0]) == 3.0
    assert barrier([1.0, 2.0, 3.0]) == 0.0


def test_a_barrier_hides_what_lies_below_the_line() -> None:
    cells = run_cells("scratch-barrier")
    assert cells["above_line"]([2.0, 0.5, 1.0]) == [0.0, -1.0, 0.0]
    assert cells["barrier"]([2.0, 0.5, 1.0]) == 0.0


@pytest.mark.parametrize(("u", "v"), [(2.0, 1.0), (0.5, -3.0)])
def test_the_twins_are_one_function_and_far_apart(u: float, v: float) -> None:
    cells = run_cells("lottery-toy", "scratch-barrier", "barrier-check")
    values = [cells["twin_loss"](a, u, v) for a in (0.0, 0.5, 1.0)]
    assert values[0] == values[2] == 0 < values[1]


def test_a_blend_ends_at_its_ends_and_leaves_them_alone() -> None:
    one, other = (gp.dcgan(width=2, latent_dim=4, seed=seed, device="cpu").generator for seed in (0, 1))
    blend = run_cells("scratch-barrier", batches=2)["blend"]
    before = copy.deepcopy(one.state_dict())
    for a, end in ((0.0, one), (1.0, other)):
        mixed = blend(one, other, a)
        assert all(p.allclose(q) for p, q in zip(mixed.parameters(), end.parameters(), strict=True))
    assert all(value.equal(before[name]) for name, value in one.state_dict().items())


# --- The exercises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((None, True, False, True), "answer all four"),
        ((False, False, False, True), "may depend on the start"),
        ((True, True, False, True), "no mask is at most"),
        ((True, False, True, True), "says nothing about others"),
        ((True, False, False, False), "15 from the fresh one"),
    ],
)
def test_wrong_winners_are_told_why(answers: tuple[Any, ...], message: str) -> None:
    check = run_cells("exercise-1-check")["check_winners"]
    check(True, False, False, True)
    with pytest.raises(AssertionError, match=message):
        check(*answers)


def test_the_table_of_the_first_exercise_says_what_the_check_says() -> None:
    dense, masks = (10, 12), {1: (9, 15), 2: (14, 11), 3: (13, 13)}
    wins = {mask: [q <= bar for q, bar in zip(found, dense, strict=True)] for mask, found in masks.items()}
    assert all(any(won[start] for won in wins.values()) for start in (0, 1))
    assert not any(all(won) for won in wins.values())


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((5, 24_000, 21_500, 0.6), "not of all"),
        ((13, 56_000, 49_500, 0.6), "round up"),
        ((14, 56_000, 49_000, 0.6), "round 0 is a training too"),
        ((14, 60_000, 52_500, 0.6), "begins at step 0"),
        ((14, 60_000, 53_000, 0.652), "32,000"),
        ((14, 60_000, 53_000, 0.8), "six rounds"),
        ((0, 0, 0, 0.0), "solve"),
    ],
)
def test_wrong_prices_are_told_why(numbers: tuple[float, ...], message: str) -> None:
    check = run_cells("exercise-2-check")["check_price"]
    check(14, 60_000, 53_000, 0.607)
    with pytest.raises(AssertionError, match=message):
        check(*numbers)


def exercise_3() -> dict[str, Any]:
    found = searched()
    namespace = {name: value for name, value in found.items() if name != "__builtins__"}
    return run_cells("exercise-3-check", **namespace)


def start_of_all(cells: dict[str, Any]) -> Any:
    origin = gp.TrainState(copy.deepcopy(cells["tiny"]), cells["short"])
    return lambda state, kept: cells["start_again"](origin, kept)


def empty_optimisers(cells: dict[str, Any]) -> Any:
    def answer(state: Any, kept: Any) -> Any:
        gan = copy.deepcopy(state.gan)
        gan.masks["generator"] = gp.Mask(kept)
        return gp.TrainState(gan, state.config)

    return answer


def in_place(cells: dict[str, Any]) -> Any:
    def answer(state: Any, kept: Any) -> Any:
        state.step = 0
        return cells["start_again"](state, kept)

    return answer


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (start_of_all, "not the trained weights"),
        (lambda cells: cells["start_again"], "the step is not 0"),
        (empty_optimisers, "not as training left it: moments"),
        (in_place, "copy it"),
    ],
    ids=["rewound", "step forgotten", "empty optimisers", "in place"],
)
def test_wrong_replays_are_told_why(wrong: Any, message: str) -> None:
    cells = exercise_3()
    kept_safe = copy.deepcopy(cells["mine"])
    cells["mine"] = kept_safe
    with pytest.raises(AssertionError, match=message):
        cells["check_replay"](wrong(cells))


def one_permutation(flags: torch.Tensor, seed: int) -> torch.Tensor:
    rows = flags.movedim(1, 0).flatten(1)
    order = torch.randperm(rows.shape[1], generator=gp.seeded(seed))
    inputs, outputs, *kernel = flags.shape
    return rows[:, order].view(outputs, inputs, *kernel).movedim(0, 1)


def along_inputs(flags: torch.Tensor, seed: int) -> torch.Tensor:
    draws, rows = gp.seeded(seed), flags.flatten(1)
    return torch.stack([row[torch.randperm(len(row), generator=draws)] for row in rows]).view_as(flags)


def unseeded(flags: torch.Tensor, seed: int) -> torch.Tensor:
    rows = flags.movedim(1, 0).flatten(1)
    moved = torch.stack([row[torch.rand(len(row)).argsort()] for row in rows])
    return moved.view(5, 8, 3, 3).movedim(0, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (along_inputs, "another number than before"),
        (one_permutation, "draw one for each"),
        (lambda flags, seed: flags, "nothing has moved"),
        (unseeded, "the seed fixes nothing"),
    ],
)
def test_wrong_shuffles_are_told_why(wrong: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run_cells("exercise-4-check")["check_shuffle"](wrong)


def ratios(one: dict[int, float], other: dict[int, float]) -> list[float]:
    return [one[seed] / other[seed] for seed in sorted(one.keys() & other.keys())]


def in_their_order(one: dict[int, float], other: dict[int, float]) -> tuple[float, float, float]:
    e = gp.records.interval([a / b for a, b in zip(one.values(), other.values(), strict=False)], log=True)
    return e.mean, e.low, e.high


def unpaired(one: dict[int, float], other: dict[int, float]) -> tuple[float, float, float]:
    one = {seed: one[seed] for seed in other}
    middle = math.exp(sum(map(math.log, other.values())) / len(other))
    e = gp.records.interval([value / middle for value in one.values()], log=True)
    return e.mean, e.low, e.high


def arithmetic(one: dict[int, float], other: dict[int, float]) -> tuple[float, float, float]:
    e = gp.records.interval(ratios(one, other))
    return e.mean, e.low, e.high


def with_a_stranger(one: dict[int, float], other: dict[int, float]) -> tuple[float, float, float]:
    e = gp.records.interval([*ratios(one, other), one[99]], log=True)
    return e.mean, e.low, e.high


def ninety(one: dict[int, float], other: dict[int, float]) -> tuple[float, float, float]:
    e = gp.records.interval(ratios(one, other), log=True, confidence=0.9)
    return e.mean, e.low, e.high


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (in_their_order, "are the seeds paired"),
        (unpaired, "are the seeds paired"),
        (arithmetic, "the mean of ratios"),
        (with_a_stranger, "has no partner"),
        (ninety, "the ends"),
    ],
)
def test_wrong_costs_are_told_why(wrong: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run_cells("exercise-6-check")["check_cost"](wrong)


def test_what_the_solution_says_of_whose_luck_it_is() -> None:
    namespace: dict[str, Any] = {"rows": gp.records.read_store(), "Arm": Arm}
    studies = {"usual": arms_of("laptop").ring_tickets, "ring": arms_of("laptop").ring_tickets_searched}
    cells = run_cells("exercise-6-check", "solution-6-code", "solution-6-costs", **namespace, **studies)
    low, high = cells["lines"]
    assert (low["rate"], high["rate"]) == ("0.001", "0.003")

    def ends(text: str) -> list[float]:
        return [float(x) for x in re.findall(r"[\d.]+", text)]

    assert all(ends(line["fresh G"])[1] > 1 for line in (low, high))
    assert ends(low["fresh D too"])[1] < 1 < ends(low["fresh D too"])[2] and ends(high["fresh D too"])[1] > 1
    assert ends(low["nine seeds"])[0] > 90 and ends(low["nine seeds"])[1] < 110
    assert ends(high["nine seeds"])[0] > 50
    single = ends(high["single seeds"])
    assert single[0] == pytest.approx(100 / 7, abs=1) and single[1] == pytest.approx(1_000, rel=0.1)


def largest_of_the_start(start: torch.Tensor) -> torch.Tensor:
    return torch.zeros(6).scatter(0, start.abs().topk(4).indices, 1.0)


def first_two(start: torch.Tensor) -> torch.Tensor:
    return torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])


def largest_of_each_side(start: torch.Tensor) -> torch.Tensor:
    sides = [(side * start[:3].abs()).argmax() for side in (start[:3] > 0, start[:3] < 0)]
    flags = torch.zeros(3)
    flags[torch.stack(sides)] = 1
    if flags.sum() < 2:
        flags[int((1 - flags).argmax())] = 1
    return flags.repeat(2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.ones_like, "four of the six"),
        (lambda start: start[:3], "six zeros and ones"),
        (largest_of_the_start, "half a unit"),
        (first_two, "each side of 0"),
        (largest_of_each_side, "do both of your units live"),
    ],
)
def test_wrong_foresight_is_told_why(wrong: Any, message: str) -> None:
    cells = run_cells("lottery-toy", "exercise-7-check")
    with pytest.raises(AssertionError, match=message):
        cells["check_foresee"](wrong)


def test_stubs_fail_and_solutions_pass() -> None:
    for cells, check, stub, solution in (
        (exercise_3(), "check_replay", "replay", "solution-3-code"),
        (run_cells("exercise-4-check"), "check_shuffle", "shuffle_outputs", "solution-4-code"),
        (run_cells("exercise-6-check"), "check_cost", "cost", "solution-6-code"),
        (run_cells("lottery-toy", "exercise-7-check"), "check_foresee", "foresee", "solution-7-code"),
    ):
        with pytest.raises(NotImplementedError):
            cells[check](cells[stub])
        run_cells(solution, **cells)
    run_cells("exercise-1-check", "solution-1-code")
    run_cells("exercise-2-check", "solution-2-code")


# --- The record ---------------------------------------------------------------------------------------------


def glued(monkeypatch: pytest.MonkeyPatch, *cells: str, **names: Any) -> dict[str, str]:
    import myst_nb

    texts: dict[str, str] = {}

    def glue(name: str, text: str, display: bool) -> None:
        texts[name] = text

    monkeypatch.setattr(myst_nb, "glue", glue)
    run_cells(*cells, glue=glue, **names)
    return texts


def invented(seeds: int, path: Path, gain: float = 0.7) -> None:
    """Rows as the study writes them, with figures that nobody measured; later rounds are worse."""
    from ganprune.records.store import config_hash

    study = arms_of("laptop").tickets
    shares = dict.fromkeys(("precision", "recall", "density", "coverage"), 0.7)
    for seed in range(seeds):
        rows = []
        for number, split in itertools.product(range(study.rounds + 1), ("validation", "test")):
            controls = ("reinitialised", "shuffled", "random") if number in study.controlled else ()
            for arm in ("ticket", *controls):
                fid = (5.0 + 0.01 * seed) * (1 + 0.03 * number) * (1 if arm == "ticket" else 1 / gain)
                row = {"stage": "trained", "network": "generator_ema", "split": split, "round": number}
                rows.append({**row, **shares, "arm": arm, "digit_fid": fid, "digit_fid_floor": 1.77})
        gp.records.append(path, {"key": config_hash(study), "seed": seed, "rows": rows})


@pytest.mark.parametrize(
    ("seeds", "winners"), [(0, "not measured yet"), (1, "none"), (3, "none"), (5, "1, 2, 3")]
)
def test_sentences_follow_the_record(
    seeds: int, winners: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganprune.records.store.SHIPPED", tmp_path)
    invented(seeds, tmp_path / "tickets.jsonl")
    texts = glued(monkeypatch, "ring", "recorded", "recorded-table", "winners", "recorded-glue")
    assert texts["chapter-13-winners"] == winners
    assert texts["chapter-13-setting"].startswith("5 rounds that keep 63.1%")


@pytest.mark.parametrize(("seeds", "count"), [(0, 0), (5, 12)])
def test_the_recorded_table_has_a_row_for_each_arm_that_was_measured(
    seeds: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganprune.records.store.SHIPPED", tmp_path)
    invented(seeds, tmp_path / "tickets.jsonl")
    lines = run_cells("ring", "recorded", "recorded-table")["lines"]
    assert len(lines) == count
    assert all("–" not in line.values() for line in lines)


def ring_rows(usual: bool = False) -> list[dict[str, Any]]:
    """Return the recorded rows of the lottery on the ring, at the searched learning rate or the usual one."""
    arms = arms_of("laptop")
    study = arms.ring_tickets if usual else arms.ring_tickets_searched
    return gp.records.rows_of(gp.records.read_store(), study)


def test_the_figure_of_the_ring_draws_the_means_of_the_record() -> None:
    import matplotlib.pyplot as plt

    cells = run_cells("ring", "ring-figure", plt=plt)
    handles, labels = cells["ax"].get_legend_handles_labels()
    values: dict[str, dict[int, list[float]]] = {}
    for row in ring_rows():
        values.setdefault(row["arm"], {}).setdefault(row["round"], []).append(math.log(row["earth_mover"]))
    values = {cells["words"].get(name, name): found for name, found in values.items()}
    assert sorted(labels) == sorted(values) and labels[0] == "ticket"
    for handle, label in zip(handles, labels, strict=True):
        means = [math.exp(sum(logs) / len(logs)) for logs in values[label].values()]
        assert [float(y) for y in handle.lines[0].get_ydata()] == pytest.approx(means, rel=1e-6)
    plt.close("all")


def test_the_table_of_the_ring_says_what_both_learning_rates_decide() -> None:
    cells = run_cells("ring", "ring-table")
    assert [line["claim"] for line in cells["lines"]] == [f"28{part}" for part in "abcdefg"]
    for line in cells["lines"]:
        found, other = cells["book"][line["claim"]], cells["book"][line["claim"].replace("28", "26")]
        assert found.n == 10 and line["at 0.003"].startswith(f"{found.verdict}: {found.effect:#.3g} [")
        assert line["at 0.001 (26)"] == other.verdict and line["in words"] in other.text
    assert cells["ring"].start.training.learning_rate == 0.003
    assert cells["usual"].start.training.learning_rate == 0.001
    assert len({row["seed"] for row in ring_rows()}) == 10


def test_what_is_said_of_the_ring_follows_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = glued(monkeypatch, "ring", "ring-glue", "ring-assert", math=math)

    def mean(usual: bool, number: int, arm: str) -> float:
        found = [row for row in ring_rows(usual) if (row["round"], row["arm"]) == (number, arm)]
        return sum(math.log(row["earth_mover"]) for row in found) / len(found)

    ratio = math.exp(mean(True, 7, "ticket") - mean(True, 0, "ticket"))
    assert texts["chapter-13-last"] == f"{ratio:.1f}" and texts["chapter-13-last-share"] == "4%"
    lead = math.exp(mean(True, 7, "ticket") - mean(True, 7, "small and dense"))
    assert texts["chapter-13-lead"].startswith(f"{lead:.2f} [")
    nearer = math.exp(mean(False, 3, "ticket") - mean(False, 0, "ticket"))
    assert texts["chapter-13-nearer"].startswith(f"{nearer:.2f} [")
    ticket, fresh, both = (mean(False, 5, arm) for arm in ("ticket", "fresh generator", "reinitialised"))
    assert texts["chapter-13-fresh"] == f"{(fresh - ticket) / (both - ticket):.0%}"
    assert texts["chapter-13-ring-weights"] == "4,352" and texts["chapter-13-ring-steps"] == "2,000"
    assert texts["chapter-13-26a"].endswith("10 seeds") and texts["chapter-13-28a"].startswith("supported")


def test_the_small_generator_has_as_many_biases_fewer_as_the_text_says() -> None:
    start, biases = arms_of("laptop").ring_tickets.start, []
    kept = {row["arm"]: row["kept"] for row in ring_rows() if row["round"] == 5 and row["seed"] == 0}
    for width in (64, round(math.sqrt(kept["ticket"] + 4) - 2)):
        generator = replace(start, hidden=(width, width)).initial(0).generator
        sizes = [weight.numel() for weight in gp.prunable_weights(generator).values()]
        biases.append(sum(part.numel() for part in generator.parameters()) - sum(sizes))
    assert sum(sizes) == kept["small and dense"]
    assert f"with {biases[0] - biases[1]} biases fewer" in CHAPTER.sources["ring-read"]
