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

    def test_a_layer_that_did_not_run_keeps_its_statistics(self):
        class PerClass(nn.Module):
            latent_dim = 3

            def __init__(self):
                super().__init__()
                self.norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(2))

            def forward(self, z, label=0):
                return self.norms[label](z)

        network = PerClass()
        network.norms[1].running_mean.fill_(7.0)
        network.norms[1].num_batches_tracked.fill_(5)
        recalibrate_batchnorm(network, batches=2, batch_size=8)
        assert network.norms[0].num_batches_tracked == 2
        assert network.norms[0].running_mean.abs().max() > 0
        assert torch.equal(network.norms[1].running_mean, torch.full((3,), 7.0))
        assert torch.equal(network.norms[1].running_var, torch.ones(3))
        assert network.norms[1].num_batches_tracked == 5
        recalibrate_batchnorm(network, inputs=[(torch.randn(4, 3), 1)] * 3)
        assert [int(norm.num_batches_tracked) for norm in network.norms] == [2, 3]

    @pytest.mark.parametrize(
        ("inputs", "error"),
        [
            (lambda: [], ValueError),
            (lambda: (torch.zeros(4, width) for width in (8, 8, 5)), ValueError),
            (lambda: iter_then_stop(), KeyboardInterrupt),
        ],
        ids=["no batch", "a batch that does not fit", "interrupted"],
    )
    def test_what_ends_in_an_error_leaves_everything_as_it_was(self, inputs, error):
        generator = self.generator().train()
        generator(torch.randn(4, 8))
        generator.layers.norm2.eval()
        before = {key: value.clone() for key, value in generator.state_dict().items()}
        modes = [module.training for module in generator.modules()]
        random = torch.get_rng_state()
        with pytest.raises(error):
            recalibrate_batchnorm(generator, inputs=inputs())
        assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
        assert [module.training for module in generator.modules()] == modes
        assert generator.layers.norm1.momentum == 0.1
        assert torch.equal(torch.get_rng_state(), random)

    def test_layers_that_draw_random_numbers_draw_them_from_the_seed(self):
        def statistics(seed, state):
            torch.manual_seed(state)
            network = nn.Sequential(Noise(), nn.BatchNorm1d(3))
            recalibrate_batchnorm(network, inputs=[torch.zeros(8, 3)], seed=seed)
            assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(state)))
            return network[1].running_mean

        assert torch.equal(statistics(0, 1), statistics(0, 2))
        assert not torch.equal(statistics(0, 1), statistics(1, 1))


class Noise(nn.Module):
    """Adds noise, in evaluation mode too."""

    def forward(self, x):
        return x + torch.randn_like(x)


def iter_then_stop():
    """One batch, then what Ctrl-C does."""
    yield torch.zeros(4, 8)
    raise KeyboardInterrupt
