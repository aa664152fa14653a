"""What every allocation promises: exact totals, nested masks, ties by position, any network, any precision."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unseen_networks import UNSEEN, build

from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import ALLOCATION_NAMES, PATTERNS
from ganprune.masks.apply import check_mask
from ganprune.pruning import prune
from ganprune.scores.registry import score

FLEXIBLE = [name for name in ALLOCATION_NAMES if name not in PATTERNS]
SHAPES = st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple), min_size=1, max_size=4)
SPARSITIES = st.floats(0, 1, exclude_max=True, allow_nan=False)
every_allocation = pytest.mark.parametrize("allocation", ALLOCATION_NAMES)
every_flexible_one = pytest.mark.parametrize("allocation", FLEXIBLE)
dense_layers_are_fine = pytest.mark.filterwarnings("ignore:layers whose inputs:UserWarning")


def random_scores(shapes, seed=0, levels=None, dtype=torch.float32):
    """Positive scores per layer; with few levels there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, shape in enumerate(shapes):
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        values = (values * levels).floor().div(levels) + 1 / levels if levels else values + 1e-3
        found[f"{number}.weight"] = values.to(dtype)
    return found


def dims(scores):
    return dict.fromkeys(scores, 0)


def count(sparsity, total):
    return min(round(sparsity * total), total - 1)


@settings(max_examples=20, deadline=None)
@given(
    shapes=SHAPES,
    sparsity=SPARSITIES,
    seed=st.integers(0, 99),
    levels=st.sampled_from([None, 1, 2, 5]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
@every_flexible_one
def test_the_total_is_exact(allocation, shapes, sparsity, seed, levels, dtype):
    scores = random_scores(shapes, seed, levels, dtype)
    mask = allocate(scores, sparsity, allocation, output_dims=dims(scores))
    assert mask.pruned == count(sparsity, mask.total)


@settings(max_examples=20, deadline=None)
@given(
    shapes=SHAPES,
    pair=st.tuples(SPARSITIES, SPARSITIES).map(sorted),
    seed=st.integers(0, 99),
    levels=st.sampled_from([None, 1, 3]),
)
@every_flexible_one
def test_masks_of_one_score_tensor_are_nested(allocation, shapes, pair, seed, levels):
    scores = random_scores(shapes, seed, levels)
    less, more = (allocate(scores, s, allocation, output_dims=dims(scores)) for s in pair)
    assert less.covers(more)


@settings(max_examples=20, deadline=None)
@given(shapes=SHAPES, pair=st.tuples(SPARSITIES, SPARSITIES).map(sorted), seed=st.integers(0, 99))
@every_flexible_one
def test_within_a_mask_only_what_it_keeps_can_stay_and_the_count_is_absolute(allocation, shapes, pair, seed):
    first = allocate(random_scores(shapes, seed + 1), pair[0])
    scores = random_scores(shapes, seed)
    mask = allocate(scores, pair[1], allocation, within=first, output_dims=dims(scores))
    assert first.covers(mask)
    assert mask.pruned == count(pair[1], mask.total)


@settings(max_examples=10, deadline=None)
@given(shapes=SHAPES, sparsity=SPARSITIES, levels=st.sampled_from([1, 2]))
@every_flexible_one
def test_of_equal_scores_in_a_layer_the_later_ones_stay(allocation, shapes, sparsity, levels):
    scores = random_scores(shapes, 0, levels)
    mask = allocate(scores, sparsity, allocation, output_dims=dims(scores))
    for key, kept in mask.items():
        rows = zip(scores[key].flatten(1), kept.flatten(1), strict=True)
        flat = [(scores[key].flatten(), kept.flatten())] if allocation != "per-output" else rows
        for values, stays in flat:
            for level in values.unique():
                of_level = stays[values == level].int()
                assert (of_level.diff() >= 0).all()


@every_allocation
@dense_layers_are_fine
def test_scores_are_not_changed_and_memory_layout_does_not_matter(allocation):
    plain = {"a.weight": (torch.rand(4, 4, 3, 3) * 3).floor()}
    last = {"a.weight": plain["a.weight"].contiguous(memory_format=torch.channels_last)}
    before = copy.deepcopy(plain)
    sparsity = None if allocation in PATTERNS else 0.6
    one, other = (allocate(s, sparsity, allocation, output_dims={"a.weight": 0}) for s in (plain, last))
    assert one == other
    assert torch.equal(plain["a.weight"], before["a.weight"])


@every_allocation
@pytest.mark.parametrize("network", UNSEEN)
@dense_layers_are_fine
def test_on_unseen_networks(allocation, network):
    model, inputs = build(network)
    sparsity = None if allocation in PATTERNS else 0.5
    mask = prune(model, sparsity, allocation=allocation)
    check_mask(model, mask)
    assert model(*inputs).isfinite().all()
    if sparsity:
        assert mask.pruned == round(sparsity * mask.total)


@every_allocation
@dense_layers_are_fine
def test_scores_that_rank_nothing_are_refused(allocation):
    sparsity = None if allocation in PATTERNS else 0.5
    some = torch.rand(4, 4)
    for bad, message in (
        ({"a": torch.zeros(4, 4)}, "all 0"),
        ({"a": some, "b": torch.full((4, 4), float("nan"))}, "finite.* b"),
        ({"a": some, "b": torch.full((4, 4), float("inf"))}, "finite.* b"),
        ({"a": some, "b": torch.empty(0, 4)}, "b have no entry"),
    ):
        with pytest.raises(ValueError, match=message):
            allocate(bad, sparsity, allocation, output_dims=dims(bad))
    with pytest.raises(TypeError, match="scores of a"):
        allocate({"a": [1.0]}, sparsity, allocation, output_dims={"a": 0})


@every_flexible_one
@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan"), float("inf"), "0.5", True, [0.5]])
def test_sparsities_that_are_refused_before_anything_changes(allocation, sparsity):
    model, _ = build("grouped")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match="sparsity"):
        prune(model, sparsity, allocation=allocation)
    with pytest.raises((ValueError, TypeError), match="sparsity"):
        allocate(score(model, "magnitude"), sparsity, allocation)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_allocation
@dense_layers_are_fine
def test_global_defaults_do_not_leak_in(allocation):
    scores = random_scores([(4, 8), (3, 2)])
    sparsity = None if allocation in PATTERNS else 0.5
    expected = allocate(scores, sparsity, allocation, output_dims=dims(scores))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = allocate(scores, sparsity, allocation, output_dims=dims(scores))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected
