"""One trial of a search: it prunes what it was told to, fine-tunes under the mask, and leaves its GAN alone."""

from __future__ import annotations

import pytest
import torch
from tools.search import config
from tools.small_data import small_data
from tools.small_gans import equal, weights
from torch import nn

import ganprune as gp
from ganprune.experiments import studies
from ganprune.experiments.trials import build_trial, parameter_space


@pytest.fixture(scope="module")
def data():
    return small_data()


@pytest.fixture
def gan():
    return gp.mlp_gan(hidden=(6, 5), latent_dim=4, seed=1, device="cpu")


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"space": "channels"}, "space must be one of layer-sparsity, threshold, got 'channels'"),
            ({"sampler": "grid"}, "sampler must be one of tpe, nsga2, got 'grid'"),
            ({"measure": "kid"}, "measure must be one of digit_fid, fid, got 'kid'"),
            ({"trials": 0}, "trials must be an integer of at least 1, got 0"),
            ({"trials": 2.0}, "trials must be an integer of at least 1, got 2.0"),
            ({"finetune_steps": -1}, "finetune_steps must be an integer of at least 0, got -1"),
            ({"samples": True}, "samples must be an integer of at least 2, got True"),
            ({"max_sparsity": 1.0}, r"max_sparsity must be in \[0, 1\), got 1.0"),
            ({"score": "size"}, "score must be one of"),
            ({"score": "wanda"}, "score must need no inputs, got 'wanda'"),
            ({"loss": "l2"}, "loss must be one of"),
            ({"finetune_learning_rate": 0}, r"learning_rate must be in \(0, inf\), got 0"),
            ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ],
    )
    def test_what_it_refuses(self, changes, message):
        with pytest.raises(ValueError, match=message):
            config(**changes)

    def test_a_sampler_by_hand(self):
        with pytest.raises(ValueError, match="sampler must be one of tpe, nsga2, got 'cma'"):
            studies.SeededByTrial("cma", 0)


class TestTrial:
    def test_densities_are_met_by_layer(self, gan, data):
        space = parameter_space(config(max_sparsity=0.9), gan)
        assert list(space) == [f"density/layers.{name}.weight" for name in ("linear1", "linear2", "output")]
        assert all(
            (part.low, part.high, part.log) == (pytest.approx(0.1), 1.0, True) for part in space.values()
        )
        densities = dict(zip(space, (1.0, 0.5, 0.1), strict=True))
        made = build_trial(config(max_sparsity=0.9), gan, data, densities)
        kept = [row["kept"] for row in made.masks["generator"].layers()]
        assert kept == [24, 15, round(0.1 * 5 * 784)]

    def test_thresholds_reach_from_dense_to_the_highest_sparsity(self, gan, data):
        settings = config(space="threshold", max_sparsity=0.8)
        space = parameter_space(settings, gan)
        weights = gp.prunable_weights(gan.generator_ema)
        low = build_trial(settings, gan, data, {name: part.low for name, part in space.items()})
        assert low.masks["generator"].pruned == 0
        high = build_trial(settings, gan, data, {name: part.high for name, part in space.items()})
        for row in high.masks["generator"].layers():
            assert row["total"] - row["kept"] == round(0.8 * row["total"])
        middle = {name: 0.7 * part.high for name, part in space.items()}
        mask = build_trial(settings, gan, data, middle).masks["generator"]
        for key, weight in weights.items():
            assert torch.equal(mask[key], weight.detach().abs() >= middle[f"threshold/{key}"])

    def test_prunes_the_ema_weights_and_fine_tunes_under_the_mask(self, data):
        gan = gp.dcgan(width=2, latent_dim=4, device="cpu")
        with torch.no_grad():
            for parameter in gan.generator_ema.parameters():
                parameter.mul_(2)
        before = weights(gan)
        densities = dict.fromkeys(parameter_space(config(), gan), 0.3)
        still = build_trial(config(), gan, data, densities)
        mask = still.masks["generator"]
        for key, weight in gp.prunable_weights(still.generator).items():
            kept = torch.where(mask[key], gp.prunable_weights(gan.generator_ema)[key], 0.0)
            assert torch.equal(weight, kept)
        moved = build_trial(config(finetune_steps=2), gan, data, densities)
        assert moved.masks["generator"] == mask
        for network in (moved.generator, moved.generator_ema):
            gp.check_mask(network, mask)
        assert not torch.equal(moved.generator.layers.deconv4.bias, still.generator.layers.deconv4.bias)
        again = build_trial(config(finetune_steps=2), gan, data, densities)
        assert equal(weights(moved), weights(again))
        assert equal(before, weights(gan)) and not gan.masks

    def test_a_score_by_gradients_goes_through_the_discriminator(self, gan, data):
        settings = config(score="taylor", space="threshold")
        space = parameter_space(settings, gan)
        mask = build_trial(settings, gan, data, {name: part.high for name, part in space.items()}).masks[
            "generator"
        ]
        scores = gp.score(gan.generator, "taylor", gp.generator_loss(gan, loss="hinge"))
        for key, values in scores.items():
            assert torch.equal(mask[key], values >= space[f"threshold/{key}"].high)

    def test_networks_with_the_older_spectral_norm_are_copied_too(self, data):
        """Such a layer holds the weight of its last pass, which hangs on its graph; a discriminator's mask stays."""
        generator = gp.mlp_gan(hidden=(6, 5), latent_dim=4, seed=1, device="cpu").generator
        normed = torch.nn.utils.spectral_norm(nn.Linear(784, 8))
        gan = gp.GAN(
            generator, nn.Sequential(nn.Flatten(), normed, nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
        )
        gp.prune(gan, 0.5, which="discriminator")
        gan.discriminator(torch.zeros(2, 1, 28, 28))
        settings = config(finetune_steps=1)
        made = build_trial(settings, gan, data, dict.fromkeys(parameter_space(settings, gan), 0.5))
        gp.check_mask(made.discriminator, gan.masks["discriminator"])
        assert set(made.masks) == {"generator", "discriminator"} and set(gan.masks) == {"discriminator"}

    def test_other_parameters_are_refused(self, gan, data):
        with pytest.raises(
            ValueError, match="parameters must be density/layers.linear1.weight, .*got density/x"
        ):
            build_trial(config(), gan, data, {"density/x": 0.5})
        with pytest.raises(ValueError, match="got none"):
            build_trial(config(), gan, data, {})
