"""The registry of scores, magnitude and random; and every score on networks the package has not seen."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from unseen_networks import UNSEEN, build

from ganprune.allocation.shares import ALLOCATION_NAMES
from ganprune.masks.apply import check_mask
from ganprune.masks.weights import prunable_weights
from ganprune.pruning import prune
from ganprune.scores.registry import SCORES, Scores, register_score, score

WITHOUT_APOZ = [name for name in SCORES if name != "apoz"]


def loss_of(inputs):
    def loss_fn(model):
        for _ in range(2):
            yield model(*inputs).square().mean()

    return loss_fn


def state_of(model):
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [part.training for part in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


def same(one, other):
    return all(torch.equal(value, other[0][key]) for key, value in one[0].items()) and one[1:] == other[1:]


class TestMagnitudeAndRandom:
    def test_magnitude(self):
        layer = nn.Linear(3, 4)
        assert torch.equal(score(layer, "magnitude")["weight"], layer.weight.detach().abs())

    def test_magnitude_under_spectral_norm_is_that_of_the_effective_weight(self):
        """Scaling a raw weight changes nothing in the network, so it must change nothing in the scores."""
        torch.manual_seed(0)
        model = nn.Sequential(spectral_norm(nn.Linear(6, 6)), spectral_norm(nn.Linear(6, 6)))
        expected = score(model, "magnitude")
        with torch.no_grad():
            model[0].parametrizations.weight.original.mul_(100)
        for key, value in score(model, "magnitude").items():
            assert torch.allclose(value, expected[key], rtol=1e-4)

    def test_random_is_seeded_and_uniform(self):
        model = nn.Linear(100, 100)
        one, again, other = (score(model, "random", seed=seed)["weight"] for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert 0 <= one.min() <= one.max() < 1
        assert one.mean().item() == pytest.approx(0.5, abs=0.02)

    def test_scores_know_their_outputs(self):
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 2, 3), nn.Linear(2, 2))
        found = score(model, "magnitude")
        assert isinstance(found, Scores)
        assert found.output_dims == {"0.weight": 0, "1.weight": 1, "2.weight": 0}

    def test_protected_layers_have_no_score(self):
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        for name in ("magnitude", "random"):
            assert list(score(model, name, protect="0")) == ["1.weight"]


class TestRegistry:
    def test_all_families_are_there(self):
        assert set(SCORES) >= {
            "magnitude",
            "random",
            "snip",
            "grasp",
            "synflow",
            "taylor",
            "squared-gradient",
            "apoz",
            "mean-activation",
            "wanda",
        }

    def test_every_docstring_says_what_it_computes(self):
        assert all(len(entry.function.__doc__ or "") > 60 for entry in SCORES.values())

    def test_a_score_of_ones_own(self):
        @register_score("alternating", allocation="uniform")
        def alternating(model, period=2, protect=()):
            return {
                k: (torch.arange(w.numel()) % period).view(w.shape)
                for k, w in prunable_weights(model).items()
            }

        try:
            model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            mask = prune(model, 0.5, score="alternating")
            assert mask["0.weight"].flatten().tolist() == [False, True] * 8
            with pytest.raises(
                TypeError, match="score 'alternating' knows no option width; its options: period"
            ):
                score(model, "alternating", width=3)
        finally:
            del SCORES["alternating"]

    def test_what_is_refused(self):
        model = nn.Linear(2, 2)
        with pytest.raises(ValueError, match=r"score must be one of apoz, .* got 'size'"):
            score(model, "size")
        with pytest.raises(ValueError, match="score 'snip' needs loss_fn"):
            score(model, "snip")
        with pytest.raises(ValueError, match="score 'wanda' needs inputs"):
            score(model, "wanda")
        with pytest.raises(ValueError, match="use MovementPruning with train"):
            score(model, "movement")
        with pytest.raises(TypeError, match="score 'magnitude' knows no option rounds; its options: none"):
            score(model, "magnitude", rounds=3)
        model.weight.data[0, 0] = float("nan")
        with pytest.raises(ValueError, match="weights must be finite, got NaN or infinity in weight"):
            score(model, "magnitude")

    def test_a_score_that_is_not_finite_is_refused(self):
        with pytest.raises(ValueError, match="scores 'snip' must be finite, got NaN or infinity in weight"):
            score(
                nn.Linear(2, 2), "snip", loss_fn=lambda model: [model(torch.ones(1, 2)).sum() * float("nan")]
            )


@pytest.mark.parametrize("network", UNSEEN)
@pytest.mark.parametrize("name", WITHOUT_APOZ)
def test_every_score_on_unseen_networks_has_the_shapes_of_the_weights_and_changes_no_state(name, network):
    model, inputs = build(network)
    model(*inputs)  # batch norm and spectral norm have seen something
    before = state_of(model)
    found = score(
        model,
        name,
        loss_fn=loss_of(inputs),
        inputs=inputs,
        **({"sparsity": 0.5, "rounds": 5} if name == "synflow" else {}),
    )
    assert same(before, state_of(model))
    weights = prunable_weights(model)
    assert list(found) == list(weights)
    for key, value in found.items():
        assert value.shape == weights[key].shape
        assert value.isfinite().all()
    assert any(value.any() for value in found.values())


@pytest.mark.parametrize("network", UNSEEN)
@pytest.mark.parametrize("allocation", ALLOCATION_NAMES)
@pytest.mark.filterwarnings("ignore:layers whose inputs:UserWarning")
def test_every_allocation_on_unseen_networks(allocation, network):
    model, inputs = build(network)
    ema = copy.deepcopy(model).requires_grad_(False)
    sparsity = None if ":" in allocation else 0.5
    mask = prune(model, sparsity, allocation=allocation, ema=ema)
    check_mask(model, mask)
    assert model(*inputs).isfinite().all()
    if sparsity:
        assert mask.pruned == round(sparsity * mask.total)
