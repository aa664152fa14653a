"""Chapter 7: its derivations hold, its handwork equals the package, and typical wrong answers are told why."""

from __future__ import annotations

import copy
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.chapters import DRAWINGS, Chapter
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.nn.functional import softplus

import ganprune as gp

ROOT = Path(__file__).parents[1]


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


TOOLS = {
    "copy": copy,
    "math": math,
    "torch": torch,
    "nn": nn,
    "hessian": hessian,
    "jacobian": jacobian,
    "softplus": softplus,
    "gp": gp,
    "flat": flat,
}


CHAPTER = Chapter("07_gradient_criteria", **TOOLS)
run_cells = CHAPTER.run


@pytest.fixture(scope="module")
def small() -> gp.GAN:
    return gp.dcgan(width=4, latent_dim=8, seed=0, device="cpu")


# --- The price of a weight ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return run_cells("scratch-tiny", "scratch-obd")


def test_gradients_of_samples_and_the_hessian_are_autograds(tiny: dict[str, Any]) -> None:
    w = tiny["w"]
    for i in (0, 7):
        point = w.clone().requires_grad_()
        loss = tiny["tiny_loss"](point, tiny["x"][i : i + 1], tiny["y"][i : i + 1])
        assert torch.autograd.grad(loss, point)[0].allclose(tiny["singly"][i])
    assert tiny["g"].abs().max() < 1e-9
    gauss_newton = tiny["J"].T @ tiny["J"] / len(tiny["x"]) / 0.01
    assert (tiny["H"] - gauss_newton).norm() < 0.05 * gauss_newton.norm()


def test_the_rest_of_the_expansion_is_of_third_order(tiny: dict[str, Any]) -> None:
    cells = run_cells("obd-check", **tiny)
    assert cells["error"](0.02) / cells["error"](0.01) == pytest.approx(8, rel=0.05)


def test_with_its_pairs_the_expansion_holds_for_several_weights(tiny: dict[str, Any]) -> None:
    step = 0.01 * tiny["removals"][:6].sum(0)
    exact, pairs = tiny["change"](step), float(step @ tiny["H"] @ step) / 2
    alone = float((tiny["H"].diagonal() * step**2).sum()) / 2
    assert abs(exact - pairs) < 0.1 * abs(exact - alone)


def test_for_four_weights_the_sum_of_single_prices_lacks_the_pairs(tiny: dict[str, Any]) -> None:
    cells = run_cells("obd-pairs", **tiny)
    missed, alone, pairs = cells["missed"], cells["alone"], cells["pairs"]
    assert len(pairs) == math.comb(18, 4)
    v = tiny["removals"][cells["fours"][7]].sum(0)
    assert float(v @ tiny["H"] @ v) / 2 == pytest.approx(float(pairs[7]))
    assert missed(pairs, 0.01) < 0.01 < 0.3 < missed(alone, 0.01)
    assert 0.1 < missed(pairs, 1) < missed(alone, 1)


def test_the_labels_noise_gives_the_slope_that_the_text_names(tiny: dict[str, Any]) -> None:
    draws = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(1_000, generator=draws, dtype=torch.float64)
    point = tiny["w"].clone().requires_grad_()
    loss = tiny["tiny_loss"](point, y=tiny["net"](tiny["w"], tiny["x"]) + noise)
    (slope,) = torch.autograd.grad(loss, point)
    assert torch.allclose(slope, -tiny["J"].T @ noise / (1000 * 0.1**2))


def test_a_pruned_weight_takes_its_own_share_of_the_speed_with_it(tiny: dict[str, Any]) -> None:
    def slope(w: Tensor) -> Tensor:
        w = w.clone().requires_grad_()
        return torch.autograd.grad(tiny["tiny_loss"](w), w)[0]

    def missed(i: int, size: float) -> tuple[float, float]:
        # what the formula of the text misses, and what it misses with g_i instead of the gradient after
        away = tiny["w"] + 0.3 * torch.sin(torch.arange(18.0)).double()
        away[i] = size
        g, H = slope(away), hessian(tiny["tiny_loss"], away)
        after = slope(away.clone().index_fill(0, torch.tensor([i]), 0))
        after = after.index_fill(0, torch.tensor([i]), 0)  # it no longer moves
        change = (after.square().sum() - g.square().sum()) / 2 + size * (H @ g)[i]
        return tuple(abs(float(change + share**2 / 2)) for share in (g[i] - H[i, i] * size, g[i]))

    for i in range(0, 18, 3):
        (ours, stale), (shorter, stale_shorter) = missed(i, 2e-4), missed(i, 1e-4)
        assert ours / shorter == pytest.approx(4, rel=0.05)  # half the step, a quarter of the rest
        assert stale / stale_shorter == pytest.approx(2, rel=0.1)
        assert ours < stale / 10


def test_curvature_orders_prices_better_than_magnitude_in_nine_draws_of_ten() -> None:
    source, won = CHAPTER.sources["scratch-tiny"], 0
    for seed in range(100, 160):
        namespace = dict(TOOLS)
        exec(source.replace("manual_seed(1)", f"manual_seed({seed})"), namespace)
        assert namespace["draws"].initial_seed() == seed
        exec(CHAPTER.sources["scratch-obd"], namespace)
        correlation, exact = namespace["rank_correlation"], namespace["exact"]
        won += correlation(namespace["obd"], exact) > correlation(namespace["w"].abs(), exact)
    assert 54 <= won < 60


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8, unique=True))
def test_rank_correlation_is_spearmans(values: list[int]) -> None:
    from scipy.stats import spearmanr

    cells = run_cells("scratch-tiny", "scratch-obd")
    one = torch.tensor(values).double()
    other = one.sin()
    expected = spearmanr(one, other).statistic
    assert cells["rank_correlation"](one, other) == pytest.approx(expected, abs=1e-9)


# --- Scores by hand -----------------------------------------------------------------------------------------


def test_two_sums_of_gradients_give_three_scores(small: gp.GAN) -> None:
    network = small.generator.eval()
    for name, size in (("snip", 8), ("taylor", 8), ("squared-gradient", 1)):
        loss_fn = gp.generator_loss(small, batches=5, batch_size=size)
        ours = run_cells("scratch-scores")["score_by_hand"](network, loss_fn)[name]
        theirs = flat(gp.score(network, name, loss_fn).values())
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6 * float(theirs.max()))


def test_grasp_by_hand_is_the_packages(small: gp.GAN) -> None:
    network, loss_fn = small.generator.eval(), gp.generator_loss(small, batches=3, batch_size=8)
    ours = run_cells("scratch-grasp")["grasp_by_hand"](network, loss_fn)
    theirs = flat(gp.score(network, "grasp", loss_fn).values())
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
    assert bool((ours < 0).any())


def test_single_removals_are_those_of_the_loss(small: gp.GAN) -> None:
    gan = copy.deepcopy(small)
    for network in (gan.generator, gan.discriminator):
        network.double().eval()
    before = copy.deepcopy(gan.generator.state_dict())
    loss_fn = gp.generator_loss(gan, batches=1, batch_size=8)
    places, changes = run_cells("scratch-single", gan=copy.deepcopy(small))["try_singly"](
        gan.generator, loss_fn, each=2
    )
    assert all(value.equal(before[name]) for name, value in gan.generator.state_dict().items())
    whole = float(next(iter(loss_fn(gan.generator))))
    sizes = [w.numel() for w in gp.prunable_weights(gan.generator).values()]
    assert len(places) == len(changes) == 2 * len(sizes)
    for place, change in zip(places, changes.tolist(), strict=True):
        cut = copy.deepcopy(gan.generator)
        for weight, before_it in zip(
            gp.prunable_weights(cut).values(), itertools.accumulate(sizes, initial=0), strict=False
        ):
            if 0 <= place - before_it < weight.numel():
                weight.data.view(-1)[place - before_it] = 0
        assert float(next(iter(loss_fn(cut)))) - whole == pytest.approx(change, abs=1e-12)


# --- Conservation and SynFlow -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(widths=st.lists(st.integers(1, 6), min_size=3, max_size=6), seed=st.integers(0, 100))
def test_saliency_is_conserved_for_any_loss_of_a_homogeneous_chain(widths: list[int], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(after, before, generator=draws, dtype=torch.float64, requires_grad=True)
        for before, after in zip(widths, widths[1:], strict=False)
    ]
    y = torch.randn(5, widths[0], generator=draws, dtype=torch.float64)
    for number, w in enumerate(weights):
        y = y @ w.T
        y = nn.functional.leaky_relu(y, 0.2) if number < len(weights) - 1 else y
    slopes = torch.autograd.grad((y.sin() + y**2).mean(), weights)
    sums = torch.stack([(w * s).sum() for w, s in zip(weights, slopes, strict=True)])
    assert torch.allclose(sums, sums[0].expand_as(sums), atol=1e-9, rtol=1e-6)


def test_a_bias_breaks_conservation() -> None:
    draws = torch.Generator().manual_seed(0)
    one, two = (torch.randn(4, 4, generator=draws).requires_grad_() for _ in range(2))
    y = (torch.ones(4) @ one + 1).relu() @ two
    slopes = torch.autograd.grad(y.sum(), (one, two))
    sums = [float((w * s).detach().sum()) for w, s in zip((one, two), slopes, strict=True)]
    assert abs(sums[0] - sums[1]) > 0.1


def test_the_drawing_of_pipes_shows_what_synflow_computes_and_its_caption_what_it_prunes() -> None:
    drawing = (DRAWINGS / "synflow_pipes.svg").read_text(encoding="utf-8")

    def numbers(part: str) -> list[int]:
        group = drawing.split(f"<!-- {part}: -->")[1].split("</g>\n  <!--")[0]
        return [int(number) for number in re.findall(r">(\d+)</text>", group)]

    # in the drawing, the weights of one input or unit stand together
    chain = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    first, second = (layer.weight for layer in chain)
    a, b, c, d, e, f = numbers("weights")
    first.data, second.data = torch.tensor([[a, c], [b, d]]).float(), torch.tensor([[e, f]]).float()
    ones = torch.ones(1, 2)
    signals = [*ones[0].tolist(), *chain[0](ones)[0].tolist(), chain(ones).item()]
    assert numbers("signal") == signals
    chain(ones).sum().backward()
    scores = (first * first.grad).detach(), (second * second.grad).detach()
    assert numbers("scores") == [*scores[0].flatten().tolist(), *scores[1].flatten().tolist()]
    assert scores[0].sum() == scores[1].sum() == signals[-1]
    once, twice = (
        gp.allocate(gp.score(chain, "synflow", inputs=ones, sparsity=4 / 6, rounds=rounds), 4 / 6)
        for rounds in (1, 2)
    )
    assert [layer["kept"] for layer in once.layers()] == [0, 2]
    assert [layer["kept"] for layer in twice.layers()] == [1, 1]


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_synflow_by_hand_is_the_packages(small: gp.GAN, sparsity: float) -> None:
    cells = run_cells("scratch-twin", "scratch-synflow")
    before = copy.deepcopy(small.generator.state_dict())
    mask, sums = cells["synflow_by_hand"](small.generator, sparsity, rounds=20)
    assert all(value.equal(before[name]) for name, value in small.generator.state_dict().items())
    scores = gp.score(small.generator, "synflow", sparsity=sparsity, rounds=20)
    assert mask == gp.allocate(scores, sparsity)
    assert torch.allclose(sums, sums[:, :1].expand_as(sums), rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(widths=st.lists(st.integers(1, 7), min_size=3, max_size=6), seed=st.integers(0, 1000))
def test_a_round_below_a_share_of_one_in_layers_keeps_the_flow(widths: list[int], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    weights = [
        torch.rand(after, before, generator=draws, dtype=torch.float64) ** 8 + 1e-9
        for before, after in zip(widths, widths[1:], strict=False)
    ]
    layers, left = len(weights), sum(w.numel() for w in weights)
    while pruned := (left - 1) // layers:  # the most that is fewer than N / K
        assert pruned < left / layers
        leaves = [w.clone().requires_grad_() for w in weights]
        flow = torch.ones(widths[0], dtype=torch.float64)
        for leaf in leaves:
            flow = leaf @ flow
        slopes = torch.autograd.grad(flow.sum(), leaves)
        q = torch.cat([(w * s).flatten() for w, s in zip(weights, slopes, strict=True)])
        alive = torch.cat([w.flatten() for w in weights]) > 0
        order = torch.where(alive, q, math.inf).argsort()[:pruned]
        gone = torch.zeros(len(q), dtype=torch.bool).index_fill(0, order, True)
        parts = gone.split([w.numel() for w in weights])
        for w, part in zip(weights, parts, strict=True):
            w.masked_fill_(part.view(w.shape), 0)
        left -= pruned
        flow = torch.ones(widths[0], dtype=torch.float64)
        for w in weights:
            flow = w @ flow
        assert float(flow.sum()) > 0
        assert all(bool(w.any()) for w in weights)


def test_the_branch_beside_a_skip_is_emptied(capsys: pytest.CaptureFixture[str]) -> None:
    run_cells("skip-check")
    said = capsys.readouterr().out
    assert re.search(r"first\.weight +keeps 0 of 64", said)
    assert re.search(r"second\.weight +keeps 0 of 64", said)


@pytest.mark.parametrize(("rounds", "certified"), [(16, False), (17, True), (100, True)])
def test_the_shares_that_the_text_names(rounds: int, certified: bool) -> None:
    assert (1 - 0.01 ** (1 / rounds) < 1 / 4) == certified
    share = 1 - 0.01 ** (1 / 100)
    assert round(100 * share, 1) == 4.5


def test_scores_in_rounds_are_those_of_the_network_that_is_left(small: gp.GAN) -> None:
    source = CHAPTER.sources["scratch-rounds"]
    namespace = {**TOOLS}
    exec(source[: source.index("network = fresh")], namespace)
    network, loss_fn = small.generator, gp.generator_loss(small, batches=2, batch_size=8)
    before = copy.deepcopy(network.state_dict())
    score_in_rounds = namespace["score_in_rounds"]
    once = score_in_rounds("taylor", network, loss_fn, 0.9, rounds=1)
    same = gp.score(network, "taylor", loss_fn)
    assert all(torch.allclose(once[name], same[name]) for name in same)
    mask = gp.allocate(score_in_rounds("taylor", network, loss_fn, 0.9, rounds=4), 0.9)
    assert mask != gp.allocate(once, 0.9)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    by_hand = copy.deepcopy(network)
    for share in (0.1**0.25, 0.1**0.5, 0.1**0.75, 0.1):
        expected = gp.allocate(gp.score(by_hand, "taylor", loss_fn), 1 - share)
        gp.apply_mask(by_hand, expected)
    assert mask == expected


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_on_other_untrained_generators_too_rounds_spare_the_layer_and_the_trained_critic_does_not(
    seed: int,
) -> None:
    source = CHAPTER.sources["scratch-rounds"]
    namespace = {**TOOLS}
    exec(source[: source.index("network = fresh")], namespace)
    fresh = gp.dcgan(width=32, seed=seed, device="cpu")
    trained = gp.load_pretrained("dcgan-mnist", device="cpu")
    loss_fn = gp.generator_loss(fresh, batches=2, seed=seed)
    once = gp.score(fresh.generator, "snip", loss_fn)
    judged = gp.score(fresh.generator, "snip", gp.generator_loss(trained, batches=2))
    in_five = namespace["score_in_rounds"]("snip", fresh.generator, loss_fn, 0.99, rounds=5)
    first = [gp.allocate(q, 0.99).layers()[0]["kept"] for q in (once, judged, in_five)]
    assert max(first[:2]) < 128 <= first[2]


# --- Swapping and shuffling ---------------------------------------------------------------------------------


def test_a_swap_takes_counts_from_one_and_order_from_the_other(small: gp.GAN) -> None:
    source = "".join(next(c for c in CHAPTER.notebook["cells"] if c["id"] == "predict-swap-code")["source"])
    namespace = {**TOOLS}
    exec(source[source.index("def swap") : source.index("names, swaps")], namespace)
    magnitude = gp.score(small.generator, "magnitude")
    other = gp.allocate(gp.score(small.generator, "random", seed=3), 0.7)
    swapped = namespace["swap"](magnitude, other)
    for name, kept in swapped.items():
        assert int(kept.sum()) == int(other[name].sum())
        if 0 < int(kept.sum()) < kept.numel():
            assert magnitude[name][kept].min() >= magnitude[name][~kept].max()
    assert namespace["swap"](magnitude, gp.allocate(magnitude, 0.7)) == gp.allocate(magnitude, 0.7)


def test_synflows_order_is_best_by_all_counts_and_its_counts_worst_for_taylors_order() -> None:
    gan, data = gp.load_pretrained("dcgan-mnist", device="cpu"), gp.mnist(device="cpu")
    dense, loss_fn = gan.generator_ema.eval(), gp.generator_loss(gan, batches=2)
    names = "magnitude", "synflow", "taylor"
    scores = {name: gp.score(dense, name, loss_fn, sparsity=0.8) for name in names}
    masks = {name: gp.allocate(found, 0.8) for name, found in scores.items()}

    def judge_mask(mask: gp.Mask) -> list[Any]:
        network = copy.deepcopy(dense)
        gp.apply_mask(network, mask)
        return [gp.evaluate(network, data.validation, 500, metrics=("fid",))]

    cells = run_cells("predict-swap-code", scores=scores, masks=masks, judge_mask=judge_mask)
    assert set(cells["partner"].values()) == {"synflow"}
    of_taylor = {counts: cells["swaps"]["taylor", counts] for counts in names}
    assert max(of_taylor, key=of_taylor.__getitem__) == "synflow"


# --- The exercises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((2, 0.2, 2, 0.02), "add the gradients first"),
        ((0, 0.2, 0, 0.04), "inside the sum"),
        ((0, 0.2, 2, 0.2), "not 0.2"),
    ],
)
def test_wrong_numbers_of_two_batches_are_told_why(numbers: tuple[float, ...], message: str) -> None:
    check = run_cells("tried", "exercise-1-check")["check_two_batches"]
    check((0, 0.2, 2, 0.02))
    with pytest.raises(AssertionError, match=message):
        check(numbers)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda layers, sparsity: math.ceil(sparsity * layers), "what is \\*left\\*"),
        (lambda layers, sparsity: int(math.log(1 - sparsity) / math.log(1 - 1 / layers)), "16 rounds"),
        (lambda layers, sparsity: math.ceil(math.log(1 - sparsity) / math.log(1 - 1 / layers)), "strictly"),
        (lambda layers, sparsity: {4: 17, 2: 3}.get(layers, 0), "other numbers"),
    ],
)
def test_wrong_rounds_are_told_why(answer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run_cells("tried", "exercise-3-check")["check_rounds"](answer)


def two_alone(w: Tensor, H: Tensor) -> tuple[int, ...]:
    return tuple(sorted((H.diagonal() * w**2).argsort()[:2].tolist()))


def one_twice(w: Tensor, H: Tensor) -> tuple[int, int]:
    scaled = H * w[:, None] * w
    single = scaled.diagonal() / 2
    return divmod(int((single[:, None] + single + scaled).argmin()), len(w))


@pytest.mark.parametrize("wrong", ["alone", "half", "first", "backwards", "twice"])
def test_wrong_pairs_are_told_why(wrong: str) -> None:
    cells = run_cells("tried", "exercise-4-check", "exercise-4-run")
    answers = {
        "alone": (two_alone, "H_ij"),
        "half": (lambda w, H: cells["best_by"](w, H, 0.5), "occurs twice"),
        "first": (lambda w, H: (0, 1), "not the cheapest pair"),
        "backwards": (lambda w, H: cells["best_by"](w, H, 1)[::-1], "the smaller position comes first"),
        "twice": (one_twice, "two positions"),
    }
    answer, message = answers[wrong]
    with pytest.raises(AssertionError, match=message):
        cells["check_pair"](answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda path: (path[-1] ** 2 - path[0] ** 2) / 2, "approximation"),
        (lambda path: -(path[:-1] * path.diff()).sum(), "sign"),
        (lambda path: (path[1:] * path.diff()).sum(), "is not"),
    ],
)
def test_wrong_movements_are_told_why(answer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run_cells("tried", "exercise-5-check")["check_movement"](answer)


@pytest.mark.parametrize(
    ("number", "before", "check", "stub"),
    [
        (3, ("exercise-3-check",), "check_rounds", "rounds_needed"),
        (4, ("exercise-4-check", "exercise-4-run"), "check_pair", "cheapest_pair"),
        (5, ("exercise-5-check",), "check_movement", "movement_of_path"),
    ],
)
def test_stubs_fail_and_solutions_pass(number: int, before: tuple[str, ...], check: str, stub: str) -> None:
    cells = run_cells("tried", *before)
    with pytest.raises(NotImplementedError):
        cells[check](cells[stub])
    run_cells("tried", *before, f"solution-{number}-code")


# --- The record ---------------------------------------------------------------------------------------------


def glued(monkeypatch: pytest.MonkeyPatch, *names: str) -> tuple[dict[str, str], dict[str, Any]]:
    import myst_nb

    texts: dict[str, str] = {}
    monkeypatch.setattr(myst_nb, "glue", lambda name, text, display: texts.__setitem__(name, text))
    return texts, run_cells(*names)


def test_the_opening_says_what_the_record_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, cells = glued(monkeypatch, "records", "records-masks")
    kept = cells["recorded_masks"]["snip"]["deconv1"]
    assert texts["chapter-07-snip-kept"].startswith(f"{min(kept)} to {max(kept)} ")
    assert all(number < 128 for number in kept)
    starved = cells["starved"]  # the text says it of GraSP, too
    assert starved["magnitude"] == starved["random"] == 0 < starved["grasp"]
    assert all(min(layer) > 0 for layer in cells["recorded_masks"]["synflow"].values())


def test_what_the_text_says_of_the_squared_gradient_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    _, cells = glued(monkeypatch, "records", "records-masks", "recorded-criteria")
    lines = {line["criterion"]: line for line in cells["lines"]}
    ours, magnitude = lines["squared-gradient"], lines["magnitude"]
    for measure in ("precision", "recall"):
        low, high = (float(line[measure].split(" ")[0]) for line in (ours, magnitude))
        assert low < high
    for number in ("6b", "6a"):
        assert cells["verdicts"][number].n >= 5
    measured = [line["criterion"] for line in cells["lines"] if line["seeds"]]
    assert not set(measured) & set(cells["waiting"])
    assert {*measured, *cells["waiting"]} == set(cells["listed"])


def invented(path: Path) -> None:
    """Rows as the study writes them, with distances that nothing had."""
    from ganprune.experiments.arms import arms_of
    from ganprune.records.store import config_hash

    arms = arms_of("laptop")
    for score, distance in (("magnitude", 100.0), ("taylor", 50.0)):
        for seed in range(5):
            figures = {
                "digit_fid": distance + seed,
                "precision": 0.5,
                "recall": 0.25,
                "density": 0.5,
                "split": "test",
            }
            row = {"stage": "pruned", "network": "generator_ema", "digit_fid_floor": 2.0, **figures}
            key = config_hash(arms.pruned(0.8, score=score))
            gp.records.append(path, {"key": key, "seed": seed, "rows": [row]})


@pytest.mark.parametrize("measured", [False, True])
def test_the_table_of_criteria_follows_the_record(
    measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("initial_masks",):
        source = ROOT / "ganprune" / "assets" / "records" / f"{name}.jsonl"
        (tmp_path / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    if measured:
        invented(tmp_path / "recovery.jsonl")
    monkeypatch.setattr("ganprune.records.store.SHIPPED", tmp_path)
    texts, cells = glued(monkeypatch, "records", "records-masks", "recorded-criteria")
    line = cells["recorded"]("taylor")
    assert line["seeds"] == (5 if measured else 0)
    assert line["digit-FID"].startswith("52 (" if measured else "not measured yet")
    assert line["recall"].startswith("0.25" if measured else "–")
    expected = "not decided, ratio 0.5" if measured else "not measured yet"  # no dense arm, no verdict
    assert texts["chapter-07-6a"].startswith(expected)


def test_trained_on_the_squared_gradient_leads_in_digit_fid_and_neither_in_precision_nor_in_recall() -> None:
    from ganprune.experiments.arms import arms_of
    from ganprune.experiments.verdicts import Arm, Comparison

    arms, record = arms_of("laptop"), gp.records.read_store()
    ends = [
        Arm(arm, "recovered") for arm in (arms.recovery(0.8, score="squared-gradient"), arms.recovery(0.8))
    ]
    fid = Comparison(*ends).contrast(record).interval()
    assert fid.n == 5 and fid.high < 1
    for measure in ("precision", "recall"):
        assert abs(Comparison(*ends, measure).contrast(record).interval().mean) < 0.01
