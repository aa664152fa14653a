"""SynFlow against sums over paths, autograd, and its invariants: equal flow, no empty layer, every pixel counts."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import ganprune as gp
from ganprune.allocation.choose import allocate
from ganprune.masks.weights import prunable_weights
from ganprune.metrics.work import layer_report
from ganprune.pruning import prune
from ganprune.scores.registry import score


def relu_network(widths=(5, 7, 6, 4), seed=0):
    torch.manual_seed(seed)
    layers = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def path_sums(weights):
    """R's derivative times the weight, from products of absolute matrices in NumPy: sums over paths."""
    matrices = [np.abs(w) for w in weights]
    result = []
    for index, matrix in enumerate(matrices):
        arriving = np.ones(matrices[0].shape[1])
        for before in matrices[:index]:
            arriving = before @ arriving
        leaving = np.ones(matrices[-1].shape[0])
        for after in reversed(matrices[index + 1 :]):
            leaving = leaving @ after
        result.append(matrix * np.outer(leaving, arriving))
    return result


def check_equal_to_paths(found, matrices, rtol=1e-12):
    for value, paths in zip(found.values(), path_sums(matrices), strict=True):
        assert np.allclose(value.numpy(), paths, rtol=rtol)


def check_same(found, expected):
    assert list(found) == list(expected)
    for key, value in found.items():
        assert torch.allclose(value, expected[key], rtol=1e-9)


class TestFlow:
    def test_one_round_is_the_sum_over_paths(self):
        model = relu_network()
        found = score(model, "synflow", inputs=torch.randn(2, 5))
        check_equal_to_paths(found, [w.detach().double().numpy() for w in prunable_weights(model).values()])
        assert {value.dtype for value in found.values()} == {torch.float64}

    def test_biases_add_no_flow(self):
        plain, biased = relu_network(), relu_network()
        for layer in biased:
            if isinstance(layer, nn.Linear):
                layer.bias = nn.Parameter(torch.randn(layer.out_features))
        check_same(*(score(one, "synflow", inputs=torch.randn(1, 5)) for one in (biased, plain)))

    def test_flow_is_the_same_through_every_layer_of_a_bias_free_relu_network(self):
        sums = [float(v.sum()) for v in score(relu_network(), "synflow", inputs=torch.randn(2, 5)).values()]
        assert sums == pytest.approx([sums[0]] * 3, rel=1e-12)

    def test_and_of_a_dcgan_generator_whose_tanh_and_batch_norm_are_linearised(self):
        generator = gp.dcgan(width=4, latent_dim=8, device="cpu").generator
        with torch.no_grad():
            for name, p in generator.named_parameters():
                if "norm" in name:
                    p.normal_()  # also negative scales
            generator.layers.norm1.running_mean.normal_()
            generator.layers.deconv4.bias.fill_(3.0)
        sums = [float(v.sum()) for v in score(generator, "synflow").values()]
        assert sums == pytest.approx([sums[0]] * 4, rel=1e-9)

    def test_every_pixel_counts_where_the_tanh_would_saturate(self):
        """The last layer's scores of a constant network are sums over all pixels that each weight reaches."""
        model = nn.Sequential(nn.ConvTranspose2d(1, 1, 2, 2, bias=False), nn.Tanh())
        with torch.no_grad():
            model[0].weight.fill_(50.0)
        found = score(model, "synflow", inputs=torch.randn(1, 1, 3, 3))
        assert torch.equal(found["0.weight"], torch.full((1, 1, 2, 2), 50.0 * 9, dtype=torch.float64))

    def test_grouped_transposed_and_shared_layers_against_autograd(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False)
                self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
                self.last.weight = self.first.weight
                self.labels = nn.Embedding(3, 4)

            def forward(self, z, label):
                h = functional.relu(self.up(z[:, :, None, None]))
                h = functional.relu(h) + h
                h += 2.0 * h
                return self.last(self.first(h.mean((2, 3)) * self.labels(label)))

        torch.manual_seed(0)
        network, label = Net(), torch.tensor([1])
        positive = copy.deepcopy(network).double()
        with torch.no_grad():
            for p in positive.parameters():
                p.abs_()
        weights = prunable_weights(positive)
        slopes = torch.autograd.grad(positive(torch.ones(1, 6).double(), label).sum(), list(weights.values()))
        expected = {
            key: (w * slope).detach() for (key, w), slope in zip(weights.items(), slopes, strict=True)
        }
        check_same(score(network, "synflow", inputs=(torch.randn(2, 6), label)), expected)


class TestRounds:
    @settings(max_examples=25, deadline=None)
    @given(
        widths=st.lists(st.integers(2, 6), min_size=3, max_size=5),
        sparsity=st.floats(0, 0.95),
        rounds=st.integers(1, 8),
        seed=st.integers(0, 99),
    )
    def test_equal_an_independent_implementation(self, widths, sparsity, rounds, seed):
        model = relu_network(tuple(widths), seed)
        weights = [w.detach().double().numpy().copy() for w in prunable_weights(model).values()]
        total = sum(w.size for w in weights)
        alive = np.ones(total, dtype=bool)
        for number in range(1, rounds + 1):
            values = np.concatenate([s.ravel() for s in path_sums(weights)])
            remove = min(round((1 - (1 - sparsity) ** (number / rounds)) * total), total - 1)
            if number == rounds:
                remove = min(round(sparsity * total), total - 1)
            order = np.lexsort((np.arange(total), np.where(alive, values, -1.0)))
            alive[:] = True
            alive[order[:remove]] = False
            start = 0
            for w in weights:
                w[~alive[start : start + w.size].reshape(w.shape)] = 0
                start += w.size
        scores = score(model, "synflow", inputs=torch.randn(1, widths[0]), sparsity=sparsity, rounds=rounds)
        mask = allocate(scores, sparsity)
        assert mask.kept == alive.sum()
        ties = len(np.unique(values[alive])) < alive.sum()
        if not ties:
            assert np.array_equal(torch.cat([k.flatten() for k in mask.values()]).numpy(), alive)

    def test_the_ranking_serves_lower_sparsities_and_is_nested(self):
        scores = score(
            relu_network((20, 30, 20)), "synflow", inputs=torch.randn(1, 20), sparsity=0.9, rounds=10
        )
        masks = [allocate(scores, s) for s in (0.2, 0.5, 0.9)]
        assert masks[0].covers(masks[1])
        assert masks[1].covers(masks[2])

    def test_a_hundred_leave_no_layer_of_a_dcgan_below_one_weight_per_output_at_99_percent(self):
        generator = gp.dcgan(width=32, seed=0, device="cpu").generator
        mask = prune(generator, 0.99, score="synflow", rounds=100)
        assert mask.pruned == round(0.99 * mask.total)
        assert not any(row["starved"] for row in layer_report(generator, mask))

    @pytest.mark.parametrize("seed", range(3))
    def test_never_empty_a_layer_where_a_single_round_does(self, seed):
        """A narrow layer after a wide one: the classic layer collapse."""
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(60, 60, bias=False), nn.ReLU(), nn.Linear(60, 2, bias=False))
        with torch.no_grad():
            model[0].weight.abs_().mul_(0.1)
        kept = {}
        for rounds in (1, 100):
            scores = score(model, "synflow", inputs=torch.randn(1, 60), sparsity=0.995, rounds=rounds)
            kept[rounds] = [row["kept"] for row in allocate(scores, 0.995).layers()]
        assert min(kept[1]) == 0
        assert min(kept[100]) > 0
        assert sum(kept[1]) == sum(kept[100])


class OwnSpectralNorm(nn.Linear):
    """Divides by σ in ``forward``, as many published generators do."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)
        self.register_buffer("u", functional.normalize(torch.randn(outputs), dim=0))

    def made(self):
        w = self.weight.detach()
        v = functional.normalize(w.T @ self.u, dim=0)
        u = functional.normalize(w @ v, dim=0)
        return self.weight / (u @ self.weight @ v)

    def forward(self, x):
        return functional.linear(x, self.made())


class Equalised(nn.Linear):
    """Multiplies its weight by a constant in ``forward``."""

    def made(self):
        return self.weight * 3.0

    def forward(self, x):
        return functional.linear(x, self.made())


class TestNorms:
    @pytest.mark.parametrize("norm", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
    def test_spectral_norm_is_folded_in(self, norm):
        torch.manual_seed(0)
        normed = nn.Sequential(
            norm(nn.Linear(5, 6, bias=False)), nn.ReLU(), norm(nn.Linear(6, 2, bias=False))
        )
        for _ in range(30):
            normed(torch.randn(2, 5))
        found = score(normed, "synflow", inputs=torch.randn(2, 5))
        normed.eval()
        normed(torch.randn(2, 5))
        check_equal_to_paths(found, [normed[n].weight.detach().double().numpy() for n in (0, 2)], rtol=1e-5)
        normed.train()(torch.randn(2, 5)).sum().backward()

    @pytest.mark.parametrize("layer", [OwnSpectralNorm, Equalised])
    def test_what_a_layer_makes_of_its_weight_is_scored(self, layer):
        torch.manual_seed(0)
        model = nn.Sequential(layer(5, 6), nn.ReLU(), layer(6, 2))
        found = score(model, "synflow", inputs=torch.randn(2, 5))
        check_equal_to_paths(found, [model[n].made().detach().double().numpy() for n in (0, 2)], rtol=1e-5)

    @pytest.mark.parametrize("seed", range(4))
    def test_an_own_spectral_norm_at_a_high_sparsity(self, seed):
        torch.manual_seed(seed)
        widths = (8, 32, 32, 4)
        layers = [OwnSpectralNorm(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()
        mask = prune(model, 0.99, score="synflow", inputs=torch.randn(4, 8))
        assert min(row["kept"] for row in mask.layers()) > 0

    def test_normalisations_are_the_identity_whatever_their_name(self):
        class NormalizationLayer(nn.Module):
            def forward(self, x):
                return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)

        class Unit(nn.Module):
            def forward(self, x):
                return x / x.norm(dim=1, keepdim=True)

        class Halver(nn.Module):
            def forward(self, x):
                return x / x.sum()

        plain = relu_network()
        expected = score(plain, "synflow", inputs=torch.randn(1, 5))
        for module, options in (
            (NormalizationLayer(), {}),
            (Unit(), {}),
            (nn.LayerNorm(7), {}),
            (nn.Dropout(0.5), {}),
            (Halver(), {"linearise": (Halver,)}),
        ):
            model = nn.Sequential(plain[0], module, *plain[1:], nn.Softmax(dim=1))
            check_same(
                dict(
                    zip(
                        expected,
                        score(model, "synflow", inputs=torch.randn(1, 5), **options).values(),
                        strict=True,
                    )
                ),
                expected,
            )

    def test_batch_norm_without_running_statistics(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
        assert all((value > 0).all() for value in score(model, "synflow", inputs=torch.randn(2, 3)).values())


class TestNetworksOfOnesOwn:
    def test_several_outputs_are_summed(self):
        class Both(nn.Linear):
            def forward(self, x):
                return super().forward(x), None, {"again": super().forward(x)}

        model = Both(8, 4, bias=False)
        found = score(model, "synflow", inputs=torch.randn(2, 8))
        assert torch.allclose(found["weight"], 2 * model.weight.detach().abs().double())

    def test_noise_made_in_forward_is_an_input_of_ones(self):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.strength = nn.Conv2d(1, 8, 1)

            def forward(self, x):
                return x + self.strength(torch.randn(len(x), 1, 4, 4))

        model = Noisy()
        found = score(model, "synflow", inputs=torch.randn(2, 8, 4, 4))
        assert torch.allclose(found["strength.weight"], 16 * model.strength.weight.detach().abs().double())

    def test_a_compiled_network(self):
        model = relu_network()
        compiled = torch.compile(model, backend="eager")
        check_same(*(score(one, "synflow", inputs=torch.randn(1, 5)) for one in (compiled, model)))

    def test_layers_without_flow_are_named(self):
        class Half(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.idle = nn.Linear(5, 3), nn.Linear(3, 3)

            def forward(self, x):
                return self.used(x)

        model = Half()
        with pytest.warns(UserWarning, match=r"no part in the output.*: idle\.weight"):
            score(model, "synflow", inputs=torch.randn(1, 5), sparsity=0.5, rounds=3)

    def test_what_it_refuses(self):
        model, x = relu_network(), torch.randn(1, 5)
        with pytest.raises(ValueError, match="needs inputs"):
            score(model, "synflow")
        for rounds in (0, 1.5, True):
            with pytest.raises(ValueError, match="rounds"):
                score(model, "synflow", inputs=x, rounds=rounds)
        with pytest.raises(ValueError, match="sparsity"):
            score(model, "synflow", inputs=x, sparsity=1.0)
        with pytest.raises(ValueError, match="float64 copy"):
            score(model, "synflow", inputs=torch.randn(1, 6))

    def test_flow_that_is_infinite_or_zero_names_the_remedy(self):
        class Centred(nn.Module):
            def forward(self, x):
                return x - x

        huge = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(9)])
        with torch.no_grad():
            for weight in huge.parameters():
                weight.fill_(3e38)
        with pytest.raises(ValueError, match="flow of inf.*linearise"):
            score(huge, "synflow", inputs=torch.randn(1, 2))
        with pytest.raises(ValueError, match="flow of 0.*linearise"):
            score(nn.Sequential(nn.Linear(2, 2), Centred()), "synflow", inputs=torch.randn(1, 2))


def test_latents_may_be_maps_of_one_pixel():
    class Maps(nn.Module):
        latent_dim = 8

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.ConvTranspose2d(8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 4)
            )

        def forward(self, z):
            return self.layers(z)

    network = Maps()
    expected = gp.score(network, "synflow", inputs=torch.ones(1, 8, 1, 1), sparsity=0.5)
    found = gp.score(network, "synflow", sparsity=0.5)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
