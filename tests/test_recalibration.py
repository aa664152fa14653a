"""Recalibrating batch norm: plain averages, nothing else touched."""

import pytest
import torch
from torch import nn

from ganprune.networks.convolutional import DCGANGeneratorSpec
from ganprune.training.recalibration import recalibrate_batchnorm


class TestRecalibration:
    def generator(self):
        torch.manual_seed(0)
        return DCGANGeneratorSpec(8, (8, 6, 4), (1, 28, 28)).build()

    def test_statistics_are_the_plain_average_over_batches(self):
        generator = self.generator()
        latents = torch.randn(3, 10, 8)
        seen = []
        handle = generator.layers.norm1.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].detach())
        )
        recalibrate_batchnorm(generator, inputs=iter(latents))
        handle.remove()
        means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
        variances = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
        assert torch.allclose(generator.layers.norm1.running_mean, means, atol=1e-6)
        assert torch.allclose(generator.layers.norm1.running_var, variances, rtol=1e-5)
        assert generator.layers.norm1.num_batches_tracked == 3

    def test_it_forgets_what_was_before_and_restores_modes_and_momenta(self):
        one, other = self.generator(), self.generator()
        other.layers.norm2.running_mean.fill_(7.0)
        one.eval()
        other.train()
        for generator in (one, other):
            recalibrate_batchnorm(generator, batches=2, batch_size=4, seed=3)
        assert torch.equal(one.layers.norm2.running_mean, other.layers.norm2.running_mean)
        assert not any(m.training for m in one.modules())
        assert all(m.training for m in other.modules())
        assert one.layers.norm1.momentum == 0.1

    def test_weights_stay_and_so_does_a_network_without_batch_norm(self):
        generator = self.generator()
        before = {key: p.detach().clone() for key, p in generator.named_parameters()}
        recalibrate_batchnorm(generator, batches=1, batch_size=4)
        assert all(torch.equal(p, before[key]) for key, p in generator.named_parameters())
        recalibrate_batchnorm(nn.Linear(2, 2))

    def test_what_it_refuses(self):
        with pytest.raises(ValueError, match="batches must be an integer of at least 1, got 0"):
            recalibrate_batchnorm(self.generator(), batches=0)
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 2, got 1"):
            recalibrate_batchnorm(self.generator(), batch_size=1)
        with pytest.raises(ValueError, match="latent_dim"):
            recalibrate_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
