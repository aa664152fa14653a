"""The registry of scores, magnitude and random, and what is said about networks that are hard to score.

What all scores have in common is in test_every_score.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ganprune as gp
from ganprune.masks.weights import prunable_weights
from ganprune.pruning import prune
from ganprune.scores.registry import SCORES, get_score, register_score, score


class TestMagnitudeAndRandom:
    def test_magnitude(self):
        layer = nn.Linear(3, 4)
        assert torch.equal(score(layer, "magnitude")["weight"], layer.weight.detach().abs())

    @pytest.mark.parametrize("norm", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
    def test_magnitude_under_spectral_norm_is_that_of_the_effective_weight(self, norm):
        """Scaling a raw weight changes nothing in the network, so it must change nothing in the scores."""
        torch.manual_seed(0)
        model = nn.Sequential(norm(nn.Linear(6, 6)), norm(nn.Linear(6, 6)))
        expected = score(model, "magnitude")
        with torch.no_grad():
            prunable_weights(model)["0.weight"].mul_(100)
        for key, value in score(model, "magnitude").items():
            assert torch.allclose(value, expected[key], rtol=1e-4)

    def test_random_is_seeded_and_uniform(self):
        model = nn.Linear(100, 100)
        one, again, other = (score(model, "random", seed=seed)["weight"] for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert 0 <= one.min() <= one.max() < 1
        assert one.mean().item() == pytest.approx(0.5, abs=0.02)


class TestRegistry:
    def test_what_each_family_needs_is_declared(self):
        assert {name: set(entry.needs) for name, entry in SCORES.items()} == {
            "magnitude": set(),
            "random": {"seed"},
            "snip": {"loss_fn"},
            "grasp": {"loss_fn"},
            "taylor": {"loss_fn"},
            "squared-gradient": {"loss_fn"},
            "synflow": {"sparsity"},
            "apoz": {"inputs"},
            "mean-activation": {"inputs"},
            "wanda": {"inputs"},
        }
        assert get_score("synflow").optional == {"inputs"}

    def test_a_score_of_ones_own_gets_what_it_declares(self):
        seen = {}

        @register_score("alternating", allocation="uniform", needs=("seed", "sparsity"), options=("period",))
        def alternating(network, seed, sparsity, period=2, protect=()):
            seen.update(seed=seed, sparsity=sparsity)
            return {
                k: (torch.arange(w.numel()) % period).view(w.shape)
                for k, w in prunable_weights(network).items()
            }

        try:
            mask = prune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 0.5, score="alternating", seed=7)
            assert mask["0.weight"].flatten().tolist() == [False, True] * 8
            assert seen == {"seed": 7, "sparsity": 0.5}
            thirds = score(nn.Linear(3, 2), "alternating", period=3)["weight"]
            assert thirds.tolist() == [[0, 1, 2], [0, 1, 2]]
            with pytest.raises(TypeError, match="no option width; its options: period"):
                score(nn.Linear(3, 2), "alternating", width=3)
        finally:
            del SCORES["alternating"]

    def test_unknown_needs_and_names_are_refused(self):
        with pytest.raises(ValueError, match="needs must be one of loss_fn, inputs, seed, sparsity"):
            register_score("mine", needs=("labels",))
        with pytest.raises(ValueError, match="got 'size'"):
            score(nn.Linear(2, 2), "size")
        with pytest.raises(ValueError, match="use gp.dynamic.MovementPruning"):
            score(nn.Linear(2, 2), "movement")


class Equalised(nn.Module):
    """A layer of one's own: its weight is not in an ``nn.Linear``."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.shape[1] ** 0.5)


class TestLayersOfOnesOwn:
    def network(self, width):
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Equalised(8, width), nn.ReLU())

    def test_a_large_part_that_stays_dense_is_named_with_its_size(self):
        for call in (lambda n: score(n, "magnitude"), lambda n: prune(n, 0.9)):
            with pytest.warns(UserWarning, match=r"4,096 of the 4,168 .*2\.weight \(512, 8\)") as caught:
                call(self.network(512))
            assert len(caught) == 1

    def test_a_convolution_whose_weight_was_renamed(self):
        """As the spectral norm of many published GANs does it."""
        layer = nn.Conv2d(8, 16, 3)
        weight = layer._parameters.pop("weight")
        layer.register_parameter("weight_bar", nn.Parameter(weight.data))
        network = nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 1))
        with pytest.warns(UserWarning, match=r"0\.weight_bar \(16, 8, 3, 3\)"):
            assert list(score(network, "magnitude")) == ["2.weight"]

    @pytest.mark.parametrize("name", ["snip", "wanda"])
    def test_vectors_that_a_norm_of_ones_own_moves_come_back(self, name):
        class Moving(nn.Linear):
            def __init__(self):
                super().__init__(4, 4)
                self.register_buffer("replaced", torch.zeros(3))
                self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

            def forward(self, x):
                self.replaced = self.replaced + 1
                self.frozen.data = self.frozen.data + 1
                return super().forward(x)

        network, x = Moving(), torch.randn(2, 4)
        score(network, name, loss_fn=lambda network: [network(x).square().sum()], inputs=x)
        assert not network.replaced.any()
        assert not network.frozen.any()

    def test_a_small_part_is_not_worth_a_word(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            score(self.network(1), "magnitude")
            score(gp.dcgan(width=4, device="cpu").discriminator, "magnitude")


class TestUntrainedSpectralNorm:
    def discriminator(self):
        norm = torch.nn.utils.spectral_norm
        torch.manual_seed(0)
        return nn.Sequential(
            norm(nn.Conv2d(1, 32, 4, 2, 1)),
            nn.ReLU(),
            norm(nn.Conv2d(32, 64, 4, 2, 1)),
            nn.ReLU(),
            nn.Flatten(),
            norm(nn.Linear(64 * 49, 1)),
        )

    def test_its_vectors_are_settled_while_scores_are_computed(self):
        gan = gp.GAN(gp.dcgan(width=4, device="cpu").generator, self.discriminator())
        before = {key: value.clone() for key, value in gan.discriminator.state_dict().items()}
        losses = gp.generator_loss(gan, batches=2, batch_size=4, loss="non-saturating")
        assert all(0 < loss.item() < 10 for loss in losses(gan.generator))
        found = score(gan.generator, "snip", loss_fn=losses)
        assert all(value.any() for value in found.values())
        own = gp.losses.discriminator_loss(gan, gp.mnist("cpu").test, batches=1, batch_size=4)
        gan.discriminator.eval()
        for value in score(gan.discriminator, "taylor", loss_fn=own).values():
            assert value.max() < 1e3
        assert all(torch.equal(value, before[k]) for k, value in gan.discriminator.state_dict().items())
