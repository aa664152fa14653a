"""Chapter 6: what it writes by hand equals the package; its naive pruner is as wrong as it says."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tools.chapters import DRAWINGS, Chapter
from torch import nn

import ganprune as gp
from ganprune.experiments.claims import shipped_verdicts
from ganprune.plots import Table

CHAPTER = Chapter("06_magnitude_pruning", copy=copy, torch=torch, nn=nn, gp=gp)
run_cells = CHAPTER.run


def small_generator(seed: int = 0) -> nn.Module:
    return gp.dcgan(width=2, latent_dim=8, seed=seed, device="cpu").generator


# --- The ten lines ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.99),
    few_values=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_ten_lines_equal_allocate_even_under_ties(
    sizes: list[tuple[int, int]], sparsity: float, few_values: bool, seed: int
) -> None:
    magnitude_mask = run_cells("scratch")["magnitude_mask"]
    random = torch.Generator().manual_seed(seed)
    weights = {f"layer{i}": torch.randn(size, generator=random) for i, size in enumerate(sizes)}
    if few_values:
        weights = {name: w.round() for name, w in weights.items()}
    total = sum(w.numel() for w in weights.values())
    assume(round(sparsity * total) < total)  # the package keeps one weight at least
    assume(any(w.any() for w in weights.values()))  # and refuses scores that are all zero
    expected = gp.allocate({name: w.abs() for name, w in weights.items()}, sparsity)
    assert gp.Mask(magnitude_mask(weights, sparsity)) == expected
    assert expected.pruned == round(sparsity * total)


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
def test_ten_lines_equal_torch(sparsity: float) -> None:
    generator = small_generator()
    mine = run_cells("scratch")["magnitude_mask"](gp.prunable_weights(generator), sparsity)
    layers = [(part, "weight") for part in generator.modules() if isinstance(part, nn.ConvTranspose2d)]
    nn.utils.prune.global_unstructured(layers, nn.utils.prune.L1Unstructured, amount=sparsity)
    assert gp.masks.from_torch_prune(generator) == gp.Mask(mine)


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_lamp_draws_one_mask_for_a_generator_and_its_rescaled_twin(factor: float) -> None:
    generator = small_generator()
    twin = copy.deepcopy(generator)
    with torch.no_grad():
        twin.layers.deconv2.weight.mul_(factor)
    scores = [gp.score(network, "magnitude") for network in (generator, twin)]
    assert gp.allocate(scores[0], 0.8, "lamp") == gp.allocate(scores[1], 0.8, "lamp")
    assert gp.allocate(scores[0], 0.8) != gp.allocate(scores[1], 0.8)


# --- The exercises ------------------------------------------------------------------------------------------


def test_typical_wrong_answers_about_lamp_are_named() -> None:
    check = run_cells("exercise-4-check", dense=small_generator())["check_lamp"]

    def all_squares(weight: torch.Tensor) -> torch.Tensor:
        return weight.square() / weight.square().sum()

    def without_itself(weight: torch.Tensor) -> torch.Tensor:
        flat = weight.flatten().square()
        order = flat.argsort(stable=True)
        left = flat[order].flip(0).cumsum(0).flip(0) - flat[order]
        found = torch.zeros_like(flat)
        found[order] = flat[order] / left.clamp(min=1e-9)
        return found.view_as(weight)

    def of_all_others(weight: torch.Tensor) -> torch.Tensor:
        return weight.square() / (weight.square().sum() - weight.square())

    def not_squared(weight: torch.Tensor) -> torch.Tensor:
        return weight.abs() / weight.square().sum()

    for wrong, message in (
        (all_squares, "no smaller, not over all"),
        (without_itself, "includes the weight"),
        (of_all_others, "includes the weight"),
        (not_squared, "scores 1"),
    ):
        with pytest.raises(AssertionError, match=message):
            check(wrong)


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_hand_made_lamp_is_the_packages_even_under_ties(sparsity: float) -> None:
    lamp = run_cells("exercise-4-check", "solution-4-code", dense=small_generator())["lamp"]
    draws = torch.Generator().manual_seed(1)
    layers = {name: torch.randint(1, 4, (6, 5), generator=draws).float() for name in ("one", "other")}
    mine = gp.allocate({name: lamp(weight) for name, weight in layers.items()}, sparsity)
    assert mine == gp.allocate(layers, sparsity, "lamp")


def test_typical_wrong_answers_about_shuffling_are_named() -> None:
    check = run_cells("exercise-5-check", dense=small_generator())["check_shuffle"]

    def over_the_network(mask: gp.Mask, seed: int) -> dict[str, torch.Tensor]:
        draws = torch.Generator().manual_seed(seed)
        flat = torch.cat([kept.flatten() for kept in mask.values()])
        parts = iter(
            flat[torch.randperm(len(flat), generator=draws)].split([k.numel() for k in mask.values()])
        )
        return {name: next(parts).view_as(kept) for name, kept in mask.items()}

    with pytest.raises(AssertionError, match="count per layer"):
        check(over_the_network)
    with pytest.raises(AssertionError, match="places must change"):
        check(lambda mask, seed: dict(mask.items()))
    with pytest.raises(AssertionError, match="another seed"):
        check(lambda mask, seed: dict(mask.shuffled(7).items()))


# --- Batch norm after pruning -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(a=st.floats(0.05, 1.5), mix=st.floats(-0.9, 1.0), shift=st.floats(-1, 1), seed=st.integers(0, 100))
def test_both_distances_are_what_the_formula_says(a: float, mix: float, shift: float, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, 1, 4_000, generator=draws, dtype=torch.float64)
    y = a * (mix * x + (1 - mix**2) ** 0.5 * noise) + shift
    x = 3 * x + 1
    y = 3 * y + 1
    measured, rho, delta = run_cells("compare-function")["compare"](x, y)
    standard = (x - x.mean()) / x.std()
    stale = ((y - x.mean()) / x.std() - standard).square().mean()
    fresh = ((y - y.mean()) / y.std() - standard).square().mean()
    assert stale == pytest.approx(float(1 + measured**2 - 2 * rho * measured + delta**2), rel=1e-2, abs=1e-3)
    assert fresh == pytest.approx(float(2 - 2 * rho), rel=1e-2, abs=1e-3)


def test_the_drawing_of_a_channel_keeps_to_the_formula() -> None:
    """Its five values: stale ones shifted and narrow, fresh ones with the dense mean and deviation, but apart."""
    drawing = (DRAWINGS / "fresh_statistics.svg").read_text(encoding="utf-8")
    panels = re.split(r"<!-- .+: -->", drawing)[1:]
    ends = [re.findall(r"M([\d.]+) 228 L([\d.]+) 288", panel) for panel in panels]
    dense, stale, fresh = torch.tensor([[[float(x) for x in pair] for pair in each] for each in ends])
    middles = [float(x) for x in re.findall(r"M(\d+) 48 V178", drawing)]
    assert dense[:, 0].equal(dense[:, 1])
    x = dense[:, 0] - middles[0]
    assert all(torch.allclose(each[:, 0] - m, x) for each, m in zip((stale, fresh), middles[1:], strict=True))
    shifted, scaled = stale[:, 1] - middles[1], fresh[:, 1] - middles[2]
    sigma = x.std(unbiased=False)
    assert torch.allclose(
        torch.stack([scaled.mean(), scaled.std(unbiased=False) - sigma]), torch.zeros(2), atol=0.1
    )
    a, delta = shifted.std(unbiased=False) / sigma, shifted.mean() / sigma
    rho = torch.corrcoef(torch.stack([x, shifted]))[0, 1]
    apart = [float(((y - x) / sigma).square().mean()) for y in (shifted, scaled)]
    assert apart == pytest.approx([float(1 + a**2 - 2 * rho * a + delta**2), float(2 - 2 * rho)], rel=0.01)
    assert apart[1] < apart[0] and delta**2 > (1 - a) * (1 + a - 2 * rho)


def test_uncorrelated_losses_leave_the_best_factor() -> None:
    kept, lost = torch.randn(2, 1, 100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, rho, delta = run_cells("compare-function")["compare"](kept + 0.7 * lost, kept)
    assert float(a) == pytest.approx(float(rho), abs=0.01) and abs(float(delta)) < 0.02


def test_the_shipped_generators_behave_as_the_text_says() -> None:
    """At 80% fresh statistics are worse than stale ones, contrast helps these alone; half-way is no such harm."""
    profile, data = gp.profile(), gp.mnist(device="cpu")
    given = {"profile": profile, "data": data, "latents": gp.sample_latents(500, 64, seed=0)}
    cells = run_cells("repairs", "repairs-table", "exercise-3-run", **given)
    mixtures = [cells["try_shares"](seed, (0.0, 0.5, 1.0)) for seed in (0, 1, 2)]
    assert all(found["50% fresh"] < 0.8 * found["100% fresh"] for found in mixtures)
    assert sum(found["50% fresh"] < 0.9 * found["0% fresh"] for found in mixtures) == 1
    for seed in (0, 1, 2):
        found, bright = cells["try_repairs"](seed)
        assert found["dense"] < found["fresh, contrast"] < found["stale"] < found["fresh"]
        assert found["fresh"] < found["fresh, shift"] and found["stale, contrast"] > 1.9 * found["stale"]
        assert bright["fresh, shift"] < bright["fresh"] < 0.8 * bright["dense"]
        assert bright["stale, contrast"] > 2 * bright["dense"]
        assert abs(bright["fresh, contrast"] / bright["dense"] - 1) < 0.12
        if seed == 2:  # the third: enough ink is not enough
            assert abs(bright["stale"] / bright["dense"] - 1) < 0.12
        whole = gp.load_pretrained("dcgan-mnist", "cpu", seed=seed).generator_ema.eval()
        stale = copy.deepcopy(whole)
        gp.prune(stale, 0.8)
        fresh = copy.deepcopy(stale)
        gp.recalibrate_batchnorm(fresh)
        narrowest, narrow, wide = (cells["before_tanh"](network).std() for network in (stale, fresh, whole))
        assert narrowest < 0.7 * narrow and narrow < 0.93 * wide


def test_the_pruned_channels_behave_as_the_text_says() -> None:
    dense = gp.load_pretrained("dcgan-mnist", device="cpu").generator_ema.eval()
    network = copy.deepcopy(dense)
    mask = gp.prune(network, 0.8)
    by_chance = copy.deepcopy(dense)
    gp.prune(by_chance, 0.8, score="random", seed=0)
    latents = gp.sample_latents(500, 64, seed=0)
    names = ("channels", "compare-function", "compare-channels")
    lines = run_cells(
        *names,
        dense=dense,
        mask=mask,
        by_magnitude={0.8: network},
        by_chance={0.8: by_chance},
        latents=latents,
        profile=gp.profile(),
    )["lines"]
    first, *others = lines[:3]
    assert all(line["share nearer with fresh"] > 0.5 for line in lines[4:6])
    assert all(line["share nearer with fresh"] < 0.5 for line in lines[6:])
    assert first["a"] == pytest.approx(first["ρ"], abs=0.02) and first["|δ|"] < 0.02
    assert first["share nearer with fresh"] == 0
    for line in others:
        assert line["a"] < line["ρ"] and line["share nearer with fresh"] > 0.5


def test_new_units_of_half_a_layer_fool_every_allocation(capsys: pytest.CaptureFixture[str]) -> None:
    dense = gp.load_pretrained("dcgan-mnist", device="cpu").generator_ema.eval()
    run_cells("twin", "units", dense=dense)
    said = [line.rpartition(": ") for line in capsys.readouterr().out.splitlines() if "fooled" in line]
    fooled = {name.removesuffix(": fooled by new units"): word == "True" for name, _, word in said}
    assert {name for name, word in fooled.items() if not word} == {
        f"a layer, {n}" for n in ("uniform", "erk", "lamp")
    }
    assert len(fooled) == 8


@pytest.mark.parametrize("seed", range(5))
def test_fresh_statistics_are_nearer_exactly_by_the_rule(seed: int) -> None:
    draws = gp.seeded(seed)
    a, rho, delta = torch.rand(3, 1_000, generator=draws, dtype=torch.float64) * 2 - 0.5
    stale, fresh = 1 + a**2 - 2 * rho * a + delta**2, 2 - 2 * rho
    assert (fresh < stale).equal(delta**2 > (1 - a) * (1 + a - 2 * rho))


# --- The recorded experiment --------------------------------------------------------------------------------


def test_the_record_says_what_the_chapter_says_of_it() -> None:
    cells = run_cells("opening-glue", glue=lambda *_, **__: None)
    arms, values = cells["arms"], cells["values"]
    for sparsity in (0.5, 0.8, 0.9):
        chosen = values(arms.pruned(sparsity), "digit_fid", "pruned")
        by_chance = values(arms.pruned(sparsity, score="random"), "digit_fid", "pruned")
        assert chosen.keys() == by_chance.keys() == set(range(5))
        assert all(chosen[seed] < by_chance[seed] for seed in chosen)
    dense, pruned = (
        {name: values(arm, name, stage) for name in ("precision", "recall")}
        for arm, stage in ((arms.dense, "trained"), (arms.pruned(0.7), "pruned"))
    )
    assert all(abs(pruned["precision"][seed] - dense["precision"][seed]) < 0.03 for seed in range(5))
    assert all(pruned["recall"][seed] < 0.75 * dense["recall"][seed] for seed in range(5))


# --- Tables -------------------------------------------------------------------------------------------------


def test_table_as_text_and_as_html() -> None:
    table = Table(
        [
            {"arm": "dense <0>", "digit-FID": 1289.31, "kept": 1000},
            {"arm": "random", "digit-FID": 65.25, "kept": None},
        ]
    )
    assert repr(table).splitlines() == [
        "arm        digit-FID   kept",
        "dense <0>      1,289  1,000",
        "random          65.2      –",
    ]
    page = table._repr_html_()
    assert page.count("<tr>") == 3
    assert '<td style="text-align: left">dense &lt;0&gt;</td>' in page
    assert '<td style="text-align: right">1,289</td>' in page
    assert "yes" in repr(Table([{"holds": True}]))


def test_table_refuses_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Table([])
    with pytest.raises(ValueError, match=r"row 1 must have the headings \['a'\], got \['b'\]"):
        Table([{"a": 1}, {"b": 2}])


def test_recalibration_in_the_record_is_what_the_chapter_says() -> None:
    cells = run_cells("opening-glue", glue=lambda *_, **__: None)
    arms, values = cells["arms"], cells["values"]

    def raised(sparsity: float, **how: str) -> int:
        stale, fresh = (
            values(arms.pruned(sparsity, **how), "digit_fid", stage) for stage in ("pruned", "recalibrated")
        )
        return sum(fresh[seed] > stale[seed] for seed in stale)

    def ratio(sparsity: float) -> float:
        found = [values(arms.pruned(sparsity), "digit_fid", stage) for stage in ("recalibrated", "pruned")]
        return gp.records.paired_ratio(*([one[seed] for seed in range(5)] for one in found)).mean

    assert all(0.95 < ratio(sparsity) < 1.05 for sparsity in (0.1, 0.2, 0.3, 0.5))
    assert [raised(sparsity) for sparsity in (0.7, 0.8, 0.9, 0.95)] == [5] * 4
    assert sum(raised(sparsity, score="random") for sparsity in (0.5, 0.7, 0.8, 0.9)) <= 3


def test_protecting_the_output_layer_costs_before_training_on_and_pays_after_it() -> None:
    cells = run_cells("opening-glue", glue=lambda *_, **__: None)
    arms, values = cells["arms"], cells["values"]
    for stage, plain, worse in (("pruned", arms.pruned(0.9), True), ("recovered", arms.recovery(0.9), False)):
        found = [values(arm, "digit_fid", stage) for arm in (arms.protected(0.9), plain)]
        ends = gp.records.paired_ratio(*([one[seed] for seed in range(5)] for one in found))
        assert ends.low > 1 if worse else ends.high < 1


@pytest.mark.parametrize("asked", ["allocations", "others"])
def test_what_is_not_decided_yet_is_said_by_the_record(asked: str) -> None:
    """Sentences about claims whose runs are not all in read well with any verdict, and name their claims."""
    said: dict[str, str] = {}
    names = ["opening-glue", "opening-glue-2", "recorded-glue", "recalibration-glue"]
    source = "\n".join(CHAPTER.sources[name].replace("from myst_nb import glue", "") for name in names)
    exec(source, CHAPTER.tools | {"glue": lambda name, value, **_: said.update({name: value}), "n": 1})
    verdicts = shipped_verdicts()
    for number in {"allocations": ("5a", "5b", "5c"), "others": ("21b", "21c")}[asked]:
        assert f"({number}): {verdicts[number].in_words()}" in said[f"06-{asked}"]


def test_trained_on_it_is_density_that_the_first_costly_sparsity_takes_more_of() -> None:
    from ganprune.experiments.arms import arms_of
    from ganprune.experiments.verdicts import Arm

    arms, record = arms_of("laptop"), gp.records.read_store()

    def share(measure: str, sparsity: float) -> float:
        both = (
            Arm(arm, "recovered").values(record, measure) for arm in (arms.recovery(sparsity), arms.control)
        )
        pruned, control = both
        return math.exp(sum(math.log(pruned[seed] / control[seed]) for seed in control) / len(control))

    assert share("recall", 0.95) < 0.75 < share("recall", 0.9)
    assert share("precision", 0.95) > 0.9 > share("density", 0.95)
    assert shipped_verdicts()["22b"].effect == pytest.approx(share("density", 0.95), rel=1e-3)
