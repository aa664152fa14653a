"""Each allocation against an independent one; thresholds, explicit sparsities, and pruning in one call.

What all allocations have in common is in test_every_allocation.
"""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import apportion, lamp_scores
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.masks.weights import prunable_weights
from ganprune.pruning import prune, prune_generator
from ganprune.scores.registry import score

FLEXIBLE = ("global", "uniform", "erk", "lamp", "per-output")
shapes = st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple), min_size=1, max_size=4)
sparsities = st.floats(0, 1, exclude_max=True, allow_nan=False)


def random_scores(shapes, seed=0, levels=None, dtype=torch.float32):
    """Scores per layer; with few levels there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    draw = {}
    for number, shape in enumerate(shapes):
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        draw[f"{number}.weight"] = (
            (values * levels).floor().div(levels).to(dtype) if levels else values.to(dtype)
        )
    return draw


def dims(scores):
    return dict.fromkeys(scores, 0)


def expected_count(sparsity, total):
    return min(round(sparsity * total), total - 1)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 4), nn.Flatten(), nn.Linear(54, 10)
    )


class TestCountsAndTies:
    @settings(max_examples=50, deadline=None)
    @given(
        shapes=shapes, sparsity=sparsities, seed=st.integers(0, 99), levels=st.sampled_from([None, 1, 2, 4])
    )
    def test_global_selection_equals_a_stable_sort(self, shapes, sparsity, seed, levels):
        scores = random_scores(shapes, seed, levels)
        assume(any(value.any() for value in scores.values()))
        mask = allocate(scores, sparsity)
        flat = np.concatenate([value.numpy().ravel() for value in scores.values()])
        expected = np.ones(len(flat), dtype=bool)
        expected[np.argsort(flat, kind="stable")[: expected_count(sparsity, len(flat))]] = False
        found = np.concatenate([kept.numpy().ravel() for kept in mask.values()])
        assert np.array_equal(found, expected)

    def test_all_equal_weights_go_by_position(self):
        mask = allocate({"a.weight": torch.ones(2, 2), "b.weight": torch.ones(1, 4)}, 5 / 8)
        assert mask["a.weight"].tolist() == [[False, False], [False, False]]
        assert mask["b.weight"].tolist() == [[False, True, True, True]]

    def test_one_weight_is_always_kept(self):
        assert allocate({"a.weight": torch.rand(10)[:, None]}, 0.999).kept == 1


class TestAgainstTorch:
    @pytest.mark.parametrize("amount", [0.1, 0.5, 0.8, 0.973])
    def test_global_magnitude(self, amount):
        model, twin = network(), network()
        mask = prune(model, amount)
        layers = [twin[n] for n in (0, 2, 4)]
        torch_prune.global_unstructured(
            [(m, "weight") for m in layers], torch_prune.L1Unstructured, amount=amount
        )
        for kept, layer in zip(mask.values(), layers, strict=True):
            assert torch.equal(kept, layer.weight_mask.bool())

    @pytest.mark.parametrize("amount", [0.25, 0.5, 0.8])
    def test_magnitude_within_one_layer(self, amount):
        layer, twin = nn.Linear(20, 10), nn.Linear(20, 10)
        twin.load_state_dict(layer.state_dict())
        mask = prune(layer, amount)
        torch_prune.l1_unstructured(twin, "weight", amount)
        assert torch.equal(mask["weight"], twin.weight_mask.bool())

    def test_uniform_allocation_layer_by_layer(self):
        model, twin = network(), network()
        mask = prune(model, 0.5, allocation="uniform")
        for kept, number in zip(mask.values(), (0, 2, 4), strict=True):
            torch_prune.l1_unstructured(twin[number], "weight", 0.5)
            assert torch.equal(kept, twin[number].weight_mask.bool())


class TestApportion:
    @settings(max_examples=40, deadline=None)
    @given(
        layers=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=5),
        data=st.data(),
    )
    def test_equals_handing_out_one_seat_at_a_time(self, layers, data):
        claims, capacities = [a for a, _ in layers], [c for _, c in layers]
        seats = data.draw(st.integers(0, sum(capacities)))
        expected = [0] * len(layers)
        for _ in range(seats):
            open_layers = [i for i in range(len(layers)) if expected[i] < capacities[i]]
            best = max(open_layers, key=lambda i: (claims[i] / (2 * expected[i] + 1), -i))
            expected[best] += 1
        assert apportion(seats, claims, capacities) == expected

    def test_is_fast_for_millions_of_weights(self):
        shares = apportion(7_654_321, [1000, 3000, 77], [10_000_000, 2_000_000, 5_000])
        assert sum(shares) == 7_654_321
        assert shares[1:] == [2_000_000, 5_000]

    def test_too_many_seats(self):
        with pytest.raises(ValueError, match=r"seats must be in \[0, 5\], got 6"):
            apportion(6, [1, 1], [2, 3])


class TestERK:
    def test_density_follows_the_formula(self):
        shapes = [(64, 32, 3, 3), (128, 64, 3, 3), (10, 4096)]
        mask = allocate(random_scores(shapes), 0.9, "erk")
        raw = [sum(shape) / math.prod(shape) for shape in shapes]
        factor = mask.kept / sum(r * math.prod(shape) for r, shape in zip(raw, shapes, strict=True))
        for row, density in zip(mask.layers(), raw, strict=True):
            assert row["kept"] == pytest.approx(factor * density * row["total"], abs=1)

    def test_no_density_above_one_and_the_rest_is_shared_out(self):
        """As in Evci et al. 2020: layers that would exceed 1 become dense, the others share."""
        shapes = [(32, 1, 4, 4), (64, 32, 4, 4), (128, 64, 3, 3), (1, 128, 4, 4)]
        sizes, raw = [math.prod(s) for s in shapes], [sum(s) / math.prod(s) for s in shapes]
        keep, dense = sum(sizes) - round(0.9 * sum(sizes)), set()
        while True:
            free = [i for i in range(4) if i not in dense]
            factor = (keep - sum(sizes[i] for i in dense)) / sum(raw[i] * sizes[i] for i in free)
            exceeding = {i for i in free if raw[i] * factor > 1}
            if not exceeding:
                break
            dense |= exceeding
        expected = [1.0 if i in dense else raw[i] * factor for i in range(4)]
        assert dense
        for row, density in zip(allocate(random_scores(shapes), 0.9, "erk").layers(), expected, strict=True):
            assert row["kept"] == pytest.approx(density * row["total"], abs=1)


class TestLAMP:
    def reference(self, weights):
        """Equation 3 of Lee et al. 2021, literally; ties ordered by index."""
        flat = weights.flatten().double().abs().tolist()
        order = sorted(range(len(flat)), key=lambda i: (flat[i], i))
        result = [0.0] * len(flat)
        for rank, i in enumerate(order):
            below = sum(flat[j] ** 2 for j in order[rank:])
            result[i] = flat[i] ** 2 / below if below else 0.0
        return torch.tensor(result).view(weights.shape)

    @settings(max_examples=40, deadline=None)
    @given(shapes=shapes, seed=st.integers(0, 99), levels=st.sampled_from([None, 1, 3]))
    def test_equals_the_definition(self, shapes, seed, levels):
        for key, value in lamp_scores(random_scores(shapes, seed, levels)).items():
            expected = self.reference(random_scores(shapes, seed, levels)[key])
            assert torch.allclose(value.float(), expected, rtol=1e-5)

    @settings(max_examples=40, deadline=None)
    @given(shapes=shapes, seed=st.integers(0, 99), levels=st.sampled_from([None, 2]), spare=st.integers(0, 5))
    def test_no_layer_is_emptied_while_as_many_weights_as_layers_are_kept(self, shapes, seed, levels, spare):
        scores = {key: value + 0.25 for key, value in random_scores(shapes, seed, levels).items()}
        total = sum(value.numel() for value in scores.values())
        keep = min(len(shapes) + spare, total)
        mask = allocate(scores, 1 - keep / total, "lamp")
        assert mask.kept >= keep
        assert all(row["kept"] > 0 for row in mask.layers())
        assert all(value.max() == 1 for value in lamp_scores(scores).values())

    def test_an_all_zero_layer_scores_zero_and_huge_weights_do_not_overflow(self):
        found = lamp_scores({"a": torch.zeros(3), "b": torch.tensor([1e200, 2e200], dtype=torch.float64)})
        assert found["a"].tolist() == [0, 0, 0]
        assert found["b"].tolist() == pytest.approx([0.2, 1.0])

    def test_minus_zero_is_zero(self):
        one, other = torch.tensor([-0.0, 0.0, 2.0, -0.0, 2.0]), torch.tensor([0.0, 0.0, 2.0, 0.0, 2.0])
        assert torch.equal(lamp_scores({"a": one})["a"], lamp_scores({"a": other})["a"])

    def test_negative_scores_are_refused(self):
        with pytest.raises(ValueError, match="negative ones in a.*global"):
            allocate({"a": torch.tensor([[-1.0, 2.0]])}, 0.5, "lamp")


class TestPerOutput:
    def test_each_output_has_the_same_number_to_within_one(self):
        scores = score(network(), "magnitude")
        mask = allocate(scores, 0.7, "per-output")
        for key, kept in mask.items():
            rows = kept.movedim(scores.output_dims[key], 0).flatten(1).sum(1)
            assert rows.max() - rows.min() <= 1

    def test_the_best_of_each_output_of_a_transposed_convolution(self):
        values = torch.tensor([[1.0, 6.0], [2.0, 5.0], [3.0, 4.0]])  # (in, out)
        mask = allocate({"a": values}, 1 / 3, "per-output", output_dims={"a": 1})
        assert mask["a"].tolist() == [[False, True], [True, True], [True, False]]

    def test_it_needs_to_know_the_outputs(self):
        with pytest.raises(ValueError, match="allocation 'per-output' needs output_dims"):
            allocate({"a": torch.rand(2, 2)}, 0.5, "per-output")


class TestPatterns:
    @pytest.mark.parametrize(("pattern", "n"), [("2:4", 2), ("1:4", 1)])
    def test_at_most_n_of_four_along_the_inputs_and_the_best_ones(self, pattern, n):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 3, 3), nn.ConvTranspose2d(8, 3, 3, groups=1), nn.Linear(12, 5))
        scores = score(model, "magnitude")
        mask = allocate(scores, allocation=pattern)
        assert mask.sparsity == 1 - n / 4
        for key, kept in mask.items():
            input_dim = 1 - scores.output_dims[key]
            groups, values = (t.movedim(input_dim, -1).reshape(-1, 4).float() for t in (kept, scores[key]))
            assert (groups.sum(1) == n).all()
            assert torch.equal((groups * values).sum(1), values.topk(n).values.sum(1))

    def test_ties_by_position(self):
        mask = allocate({"a": torch.ones(1, 4)}, allocation="2:4", output_dims={"a": 0})
        assert mask["a"].tolist() == [[False, False, True, True]]

    def test_layers_that_do_not_divide_stay_dense_and_are_reported(self):
        model = nn.Sequential(nn.Linear(8, 4), nn.Linear(6, 4))
        with pytest.warns(UserWarning, match=r"no multiple of 4 stay dense under 2:4: 1\.weight \(4, 6\)"):
            mask = prune(model, allocation="2:4")
        assert mask["1.weight"].all()
        assert mask["0.weight"].sum() == 16
        check_mask(model, mask)

    def test_the_sparsity_is_fixed(self):
        model = nn.Linear(8, 4)
        assert prune(model, 0.5, allocation="2:4").sparsity == 0.5
        with pytest.raises(ValueError, match=r"allocation '2:4' fixes the sparsity at 0\.5"):
            prune(model, 0.6, allocation="2:4")


class TestThresholdAndLayers:
    @settings(max_examples=40, deadline=None)
    @given(threshold=st.floats(0, 0.4), seed=st.integers(0, 99))
    def test_threshold_prunes_what_is_below_and_is_idempotent(self, threshold, seed):
        model = network(seed)
        before = {key: weight.detach().clone() for key, weight in prunable_weights(model).items()}
        assume(max(float(w.abs().max()) for w in before.values()) >= threshold)
        mask = prune_generator(model, threshold)
        for key, kept in mask.items():
            assert torch.equal(kept, before[key].abs() >= threshold)
        if threshold > 0:
            assert prune_generator(model, threshold) == mask

    def test_threshold_that_leaves_nothing_or_is_no_number(self):
        model = network()
        with pytest.raises(ValueError, match="threshold must be at most the largest score"):
            prune_generator(model, 9)
        with pytest.raises(ValueError, match="threshold"):
            prune_generator(model, float("nan"))
        with pytest.raises(TypeError, match="threshold"):
            prune_generator(model, "0.1")

    def test_explicit_sparsities(self):
        model = network()
        mask = prune(model, layer_sparsity={"0": 0.5, "4.weight": 0.9})
        assert [row["sparsity"] for row in mask.layers()] == pytest.approx([0.5, 0.0, 0.9], abs=0.001)
        with pytest.raises(ValueError, match="layer_sparsity names 1, which is not scored"):
            prune(model, layer_sparsity={"1": 0.5})
        with pytest.raises(ValueError, match=r"layer_sparsity\['0'\]"):
            prune(model, layer_sparsity={"0": 1.5})

    def test_protected_layers_are_neither_pruned_nor_counted(self):
        model = network()
        before = model[4].weight.detach().clone()
        mask = prune(model, 0.5, protect=["4"])
        assert list(mask) == ["0.weight", "2.weight"]
        assert mask.pruned == round(0.5 * (216 + 768))
        assert torch.equal(model[4].weight.detach(), before)
        assert allocate(score(network(), "magnitude"), 0.5, protect="4") == mask
        with pytest.raises(ValueError, match="protect names 5"):
            prune(model, 0.5, protect=["5"])


class TestWithin:
    def test_a_lower_sparsity_than_before_is_refused(self):
        scores = random_scores([(4, 5)])
        with pytest.raises(ValueError, match=r"sparsity must be at least 0\.500000"):
            allocate(scores, 0.3, within=allocate(scores, 0.5))
        with pytest.raises(ValueError, match=r"within must have the layers and shapes .* 1\.weight"):
            allocate(random_scores([(4, 5), (2, 2)]), 0.6, within=allocate(scores, 0.5))

    def test_for_threshold_layers_and_patterns(self):
        scores = {"a": torch.tensor([[4.0, 3.0, 2.0, 1.0]])}
        within = Mask({"a": torch.tensor([[False, True, True, True]])})
        assert allocate(scores, threshold=2, within=within)["a"].tolist() == [[False, True, True, False]]
        assert allocate(scores, layer_sparsity={"a": 0.75}, within=within)["a"].tolist() == [
            [False, True, False, False]
        ]
        pattern = allocate(scores, allocation="2:4", within=within, output_dims={"a": 0})
        assert pattern["a"].tolist() == [[False, True, True, False]]


class TestPrune:
    @settings(max_examples=40, deadline=None)
    @given(sparsity=st.floats(0, 0.99), seed=st.integers(0, 99), allocation=st.sampled_from(FLEXIBLE))
    def test_magnitude_pruning_is_idempotent_and_absolute(self, sparsity, seed, allocation):
        model = network(seed)
        first = prune(model, sparsity, allocation=allocation)
        assert prune(model, sparsity, allocation=allocation) == first
        check_mask(model, first)

    def test_the_ema_copy_gets_the_same_zeros(self):
        model = network()
        ema = copy.deepcopy(model).requires_grad_(False)
        check_mask(ema, prune(model, 0.5, ema=ema))

    def test_exactly_one_amount(self):
        with pytest.raises(ValueError, match="exactly one of"):
            prune(network())
        with pytest.raises(ValueError, match="got sparsity, threshold"):
            prune(network(), 0.5, threshold=0.1)

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="allocation must be one of"):
            prune(network(), 0.5, allocation="local")
        with pytest.raises(ValueError, match=r"score must be one of .*magnitude"):
            prune(network(), 0.5, score="size")

    def test_scores_without_a_layer(self):
        with pytest.raises(ValueError, match="at least one layer that is not protected"):
            allocate({"a": torch.rand(2)}, 0.5, protect=["a"])
