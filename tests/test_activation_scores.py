"""Scores by activations against activations that the tests collect for themselves, and Wanda against its formula."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm
from unseen_networks import build

import ganprune as gp
from ganprune.allocation.choose import allocate
from ganprune.masks.weights import effective_weights
from ganprune.pruning import prune
from ganprune.scores.activation import channel_scores
from ganprune.scores.registry import score


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 64, 6),
        nn.ReLU(),
    )


def inputs(seed=0, batches=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 4, 4, generator=generator) for _ in range(batches)]


def relu_outputs(model, batches):
    """What each ReLU gives, all batches, channel first; collected by running the layers one by one."""
    collected = [[], [], []]
    model = model.eval()
    with torch.no_grad():
        for x in batches:
            number = 0
            for layer in model:
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    collected[number].append(x.movedim(1, 0).flatten(1).clone())
                    number += 1
    return [torch.cat(parts, 1) for parts in collected]


class TestChannels:
    def test_apoz_is_the_share_of_zeros(self):
        model = network()
        found = channel_scores(model, "apoz", inputs())
        for value, activations in zip(found.values(), relu_outputs(model, inputs()), strict=True):
            zeros = (activations == 0).float().mean(1)
            assert torch.allclose(value, 1 - zeros)

    def test_mean_activation(self):
        model = network()
        found = channel_scores(model, "mean-activation", inputs())
        for value, activations in zip(found.values(), relu_outputs(model, inputs()), strict=True):
            assert torch.allclose(value, activations.abs().mean(1), rtol=1e-5)

    def test_mean_activation_of_a_layer_without_activation_function_is_that_of_its_normalised_output(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.2), nn.Linear(4, 5), nn.BatchNorm1d(5)).eval()
        model[3].running_mean.fill_(0.3)
        x = torch.randn(7, 3)
        found = channel_scores(model, "mean-activation", x)
        with torch.no_grad():
            assert torch.allclose(found["0.weight"], model[:2](x).abs().mean(0))
            assert torch.allclose(found["2.weight"], model(x).abs().mean(0), rtol=1e-5)

    def test_functions_are_followed_as_well_as_modules_and_through_a_reshape(self):
        model, (z,) = build("linear first")
        model.eval()
        found = channel_scores(model, "apoz", z, protect=["up"])
        with torch.no_grad():
            active = functional.relu(model.norm(model.first(z).view(-1, 6, 4, 4)))
        assert torch.allclose(found["first.weight"], (active > 0).flatten(1).float().mean(0))

    def test_one_dimensional_volumes_and_linear_layers_over_sequences(self):
        for model, x in (
            (nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()), torch.randn(4, 2, 9)),
            (nn.Sequential(nn.ConvTranspose3d(2, 3, 2), nn.ReLU()), torch.randn(2, 2, 3, 3, 3)),
        ):
            with torch.no_grad():
                expected = (model(x) > 0).movedim(1, 0).flatten(1).float().mean(1)
            assert torch.allclose(channel_scores(model, "apoz", x)["0.weight"], expected)
        model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 5, 4)
        with torch.no_grad():
            expected = (model(x) > 0).flatten(0, 1).float().mean(0)
        assert torch.allclose(channel_scores(model, "apoz", x)["0.weight"], expected)

    @pytest.mark.parametrize(
        ("activation", "named"),
        [
            (nn.LeakyReLU(0.2), "leaky_relu"),
            (nn.Tanh(), "tanh"),
            (nn.Sigmoid(), "sigmoid"),
            (nn.Identity(), "none"),
        ],
    )
    def test_apoz_is_refused_behind_anything_but_relu(self, activation, named):
        model = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2), nn.ReLU())
        with pytest.raises(ValueError, match=rf"0\.weight \(followed by {named}\); use protect=\('0',\)"):
            score(model, "apoz", inputs=torch.randn(2, 3))
        assert list(score(model, "apoz", inputs=torch.randn(2, 3), protect=["0"])) == ["2.weight"]

    def test_apoz_of_a_dcgan_generator_leaves_out_the_layer_before_tanh(self):
        generator = gp.dcgan(width=4, latent_dim=8, device="cpu").generator
        with pytest.raises(ValueError, match=r"layers\.deconv4\.weight \(followed by tanh\)"):
            score(generator, "apoz", inputs=torch.randn(4, 8))
        found = score(generator, "apoz", inputs=torch.randn(4, 8), protect=["layers.deconv4"])
        assert [value.shape[1] for value in found.values()] == [16, 8, 4]

    def test_every_weight_that_feeds_a_channel_has_the_score_of_the_channel(self):
        model = network()
        channels, weights = channel_scores(model, "apoz", inputs()), score(model, "apoz", inputs=inputs())
        assert torch.equal(weights["0.weight"], channels["0.weight"].view(1, 4, 1, 1).expand(3, 4, 4, 4))
        assert torch.equal(weights["3.weight"], channels["3.weight"].view(5, 1, 1, 1).expand(5, 4, 3, 3))
        assert torch.equal(weights["6.weight"], channels["6.weight"].view(6, 1).expand(6, 320))

    def test_a_layer_that_is_used_twice_counts_both_times(self):
        layer = nn.Linear(3, 3)
        model = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU())
        x = torch.randn(6, 3)
        with torch.no_grad():
            first, second = model[:2](x), model(x)
        expected = (torch.cat([first, second]) > 0).float().mean(0)
        assert torch.allclose(channel_scores(model, "apoz", x)["0.weight"], expected)

    def test_what_is_refused(self):
        model = network()
        with pytest.raises(ValueError, match="got 'wanda'"):
            channel_scores(model, "wanda", inputs())
        with pytest.raises(ValueError, match="inputs must hold at least one batch"):
            channel_scores(model, "apoz", [])
        idle = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        idle.unused = nn.Linear(2, 2)
        idle.forward = lambda x: functional.relu(idle[0](x))
        for name in ("mean-activation", "wanda"):
            with pytest.raises(ValueError, match=r"did not run on the inputs; protect them: unused\.weight"):
                score(idle, name, inputs=torch.randn(1, 2))


class TestWanda:
    def test_linear_layer_against_the_formula(self):
        model, x = nn.Linear(4, 3), torch.randn(10, 4)
        expected = model.weight.detach().abs() * x.norm(dim=0)
        assert torch.allclose(score(model, "wanda", inputs=x)["weight"], expected)

    def test_batches_add_up_as_squares(self):
        model, x = nn.Linear(4, 3), torch.randn(10, 4)
        whole, parts = (score(model, "wanda", inputs=batch)["weight"] for batch in (x, list(x.split(3))))
        assert torch.allclose(whole, parts)

    @pytest.mark.parametrize("groups", [1, 2])
    def test_convolutions_read_the_right_channels(self, groups):
        x = torch.randn(5, 4, 6, 6)
        norms = x.movedim(1, 0).flatten(1).norm(dim=1)
        model = nn.Conv2d(4, 6, 3, groups=groups)
        found = score(model, "wanda", inputs=x)["weight"]
        for output in range(6):
            for position in range(4 // groups):
                read = (output // (6 // groups)) * (4 // groups) + position
                expected = model.weight[output, position].abs() * norms[read]
                assert torch.allclose(found[output, position], expected)
        model = nn.ConvTranspose2d(4, 6, 3, groups=groups)
        found = score(model, "wanda", inputs=x)["weight"]
        for channel in range(4):
            assert torch.allclose(found[channel], model.weight[channel].abs() * norms[channel])

    def test_for_one_linear_layer_it_is_the_change_of_the_output_when_a_weight_is_removed(self):
        """Brute force: set w to zero and measure ‖Δoutput‖ over the batch."""
        model, x = nn.Linear(3, 2, bias=False).double(), torch.randn(8, 3).double()
        found = score(model, "wanda", inputs=x)["weight"]
        for row in range(2):
            for column in range(3):
                removed = model.weight.detach().clone()
                removed[row, column] = 0
                change = (x @ (model.weight.detach() - removed).T).norm()
                assert found[row, column].item() == pytest.approx(change.item())

    def test_prune_compares_within_an_output_unless_told_otherwise(self):
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        with torch.no_grad():
            model.weight[0].mul_(100)
        x = torch.randn(16, 8)
        scores = score(model, "wanda", inputs=x)
        assert allocate(scores, 0.5, "per-output")["weight"].sum(1).tolist() == [4, 4, 4, 4]
        assert allocate(scores, 0.5)["weight"].sum(1).tolist() != [4, 4, 4, 4]
        mask = prune(model, 0.5, score="wanda", inputs=x)
        assert mask == allocate(scores, 0.5, "per-output")

    def test_the_effective_weight_counts_under_spectral_norm(self):
        model = spectral_norm(nn.Linear(4, 3))
        x = torch.randn(5, 4)
        expected = effective_weights(model)["weight"].abs() * x.norm(dim=0)
        assert torch.allclose(score(model, "wanda", inputs=x)["weight"], expected)

    def test_several_arguments(self):
        model, arguments = build("residual")
        found = score(model, "wanda", inputs=arguments)
        twice = score(model, "wanda", inputs=[arguments, arguments])
        for key, value in found.items():
            assert torch.allclose(twice[key], value * 2**0.5)


@pytest.mark.parametrize("name", ["apoz", "mean-activation"])
def test_a_layer_that_returns_no_tensor_is_named(name):
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    network = nn.ModuleDict({"pair": Pair(3, 2)})
    network.forward = lambda x: network["pair"](x)[0]
    with pytest.raises(ValueError, match="layer pair must return a tensor.*got tuple"):
        score(network, name, inputs=torch.randn(4, 3))
