"""Scores by gradients against brute force, float64 autograd, finite differences, exact Hessians and closed forms."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

import ganprune as gp
from ganprune.allocation.choose import allocate
from ganprune.masks.apply import apply_mask
from ganprune.masks.weights import prunable_weights
from ganprune.metrics.work import layer_report
from ganprune.pruning import prune
from ganprune.scores.gradient import scored_weights
from ganprune.scores.registry import score
from ganprune.scores.synflow import _linearised_copy

GRADIENT_SCORES = ("snip", "taylor", "squared-gradient", "grasp")


def smooth_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(count=3, size=5, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, width, generator=generator, dtype=torch.float64) for _ in range(count)]


def loss_on(inputs):
    def loss_fn(model):
        for x in inputs:
            yield (model(x).square().sum(1) * (1 + x[:, 0])).mean()

    return loss_fn


def flat_function(model, keys, x, loss):
    """The loss as a function of one flat vector of weights; and that vector."""
    parameters = dict(model.named_parameters())
    sizes = [parameters[key].numel() for key in keys]

    def function(vector):
        parts = vector.split(sizes)
        values = {key: part.view_as(parameters[key]) for key, part in zip(keys, parts, strict=True)}
        return loss(functional_call(model, {**parameters, **values}, (x,)), x)

    return function, torch.cat([parameters[key].detach().flatten() for key in keys])


def flat(scores):
    return torch.cat([value.flatten() for value in scores.values()])


def the_loss(output, x):
    return (output.square().sum(1) * (1 + x[:, 0])).mean()


KEYS = ["0.weight", "2.weight"]


class TestSNIPAndTaylor:
    def finite_differences(self, model, x):
        """w · dL/dw by central differences of the loss when each single weight is scaled."""
        function, vector = flat_function(model, KEYS, x, the_loss)
        result, step = [], 1e-6
        for index in range(len(vector)):
            moved = vector.repeat(2, 1)
            moved[0, index] *= 1 + step
            moved[1, index] *= 1 - step
            result.append((function(moved[0]) - function(moved[1])) / (2 * step))
        return torch.stack(result)

    def test_against_finite_differences(self):
        model, inputs = smooth_network(), batches()
        slopes = torch.stack([self.finite_differences(model, x) for x in inputs])
        found = {name: flat(score(model, name, loss_fn=loss_on(inputs))) for name in ("snip", "taylor")}
        assert torch.allclose(found["snip"], slopes.sum(0).abs(), rtol=1e-5, atol=1e-9)
        assert torch.allclose(found["taylor"], slopes.square().sum(0), rtol=1e-5, atol=1e-9)

    def test_against_brute_force_where_the_loss_is_linear_in_each_weight(self):
        """Set w to zero and measure: without activation functions the first-order change is the whole change."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
        x = batches(1)[0]
        function, vector = flat_function(model, ["0.weight", "1.weight"], x, lambda out, _: out.mean())
        changes = []
        for index in range(len(vector)):
            removed = vector.clone()
            removed[index] = 0
            changes.append(function(vector) - function(removed))
        changes = torch.stack(changes)
        loss_fn = lambda model: [model(x).mean()]
        assert torch.allclose(flat(score(model, "snip", loss_fn=loss_fn)), changes.abs())
        assert torch.allclose(flat(score(model, "taylor", loss_fn=loss_fn)), changes.square())

    def test_the_square_is_inside_the_sum(self):
        """Two batches whose gradients cancel: nothing for SNIP, everything for Taylor."""
        model = nn.Linear(2, 1, bias=False)
        loss_fn = lambda model: [model(torch.ones(1, 2)).sum(), -model(torch.ones(1, 2)).sum()]
        assert not score(model, "snip", loss_fn=loss_fn)["weight"].any()
        expected = 2 * model.weight.detach().square()
        assert torch.allclose(score(model, "taylor", loss_fn=loss_fn)["weight"], expected)


class TestSquaredGradient:
    def test_equals_the_exact_diagonal_hessian_where_the_likelihood_is_true(self):
        """Targets f(x) ± 1 with unit-variance Gaussian likelihood: E g² is the diagonal of the Hessian exactly."""
        model, x = smooth_network(), batches(1, size=6)[0]
        with torch.no_grad():
            targets = [model(x) + sign * side for sign in (1, -1) for side in torch.eye(2).double() * 2**0.5]

        def loss_fn(model):
            for target in targets:
                for one, aim in zip(x.split(1), target.split(1), strict=True):
                    yield 0.5 * (model(one) - aim).square().sum()

        def likelihood(output, _):
            return torch.stack([0.5 * (output - target).square().sum(1).mean() for target in targets]).mean()

        function, vector = flat_function(model, KEYS, x, likelihood)
        diagonal = torch.autograd.functional.hessian(function, vector).diagonal()
        found = flat(score(model, "squared-gradient", loss_fn=loss_fn))
        assert torch.allclose(found, 0.5 * diagonal * vector.square(), rtol=1e-8)

    def test_runs_in_evaluation_mode_and_gives_the_mode_back(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        model[0].eval()
        modes = []

        def loss_fn(model):
            modes.append([part.training for part in model])
            yield model(torch.ones(1, 3)).sum()

        score(model, "squared-gradient", loss_fn=loss_fn)
        assert modes == [[False] * 3]
        assert [part.training for part in model] == [False, True, True]


class TestGraSP:
    def exact(self, model, inputs):
        """H g of the mean loss from the whole Hessian."""
        functions = [flat_function(model, KEYS, x, the_loss) for x in inputs]
        vector = functions[0][1]
        mean_loss = lambda v: torch.stack([function(v) for function, _ in functions]).mean()
        hessian = torch.autograd.functional.hessian(mean_loss, vector)
        gradient = torch.autograd.functional.jacobian(mean_loss, vector)
        return vector, gradient, hessian @ gradient, mean_loss

    def test_against_the_whole_hessian(self):
        model, inputs = smooth_network(), batches()
        vector, _, product, _ = self.exact(model, inputs)
        assert torch.allclose(
            flat(score(model, "grasp", loss_fn=loss_on(inputs))), vector * product, rtol=1e-8
        )

    def test_against_finite_differences_of_the_gradient(self):
        model, inputs = smooth_network(1), batches(seed=1)
        vector, gradient, _, mean_loss = self.exact(model, inputs)
        step = 1e-5
        slope = lambda v: torch.autograd.functional.jacobian(mean_loss, v)
        product = (slope(vector + step * gradient) - slope(vector - step * gradient)) / (2 * step)
        found = flat(score(model, "grasp", loss_fn=loss_on(inputs)))
        assert torch.allclose(found, vector * product, rtol=1e-4, atol=1e-8)

    def test_what_scores_low_may_go_because_removing_it_raises_gradient_flow(self):
        """The sign: shrinking w by a little changes ‖g‖² by −2ε w (H g), so a low score means the flow grows."""
        model, inputs = smooth_network(), batches()
        vector, gradient, _, mean_loss = self.exact(model, inputs)
        found = flat(score(model, "grasp", loss_fn=loss_on(inputs)))
        shrink = 1e-6
        for index in (found.argmin(), found.argmax()):
            moved = vector.clone()
            moved[index] *= 1 - shrink
            flow = torch.autograd.functional.jacobian(mean_loss, moved).square().sum()
            change = (flow - gradient.square().sum()) / shrink
            assert change.item() == pytest.approx(-2 * found[index].item(), rel=1e-3)

    def test_a_loss_without_curvature_scores_zero(self):
        model = nn.Linear(2, 1)
        assert not score(model, "grasp", loss_fn=lambda model: [model(torch.ones(1, 2)).sum()])[
            "weight"
        ].any()


class TestEffectiveWeightsAndState:
    @pytest.mark.parametrize("name", GRADIENT_SCORES)
    @pytest.mark.parametrize(
        "norm",
        [
            parametrizations.spectral_norm,
            torch.nn.utils.spectral_norm,
            parametrizations.weight_norm,
            torch.nn.utils.weight_norm,
        ],
        ids=["spectral", "older spectral", "weight", "older weight"],
    )
    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
    def test_a_norm_is_folded_in(self, name, norm):
        """The scores are those of a plain network that has the effective weights."""
        torch.manual_seed(0)
        normed = nn.Sequential(norm(nn.Linear(3, 4)), nn.Tanh(), norm(nn.Linear(4, 2))).double()
        for _ in range(3):
            normed(batches(1)[0])
        plain = smooth_network()
        normed.eval()
        with torch.no_grad():
            normed(batches(1)[0])  # the older hooks set the weight in the forward pass
            for number in (0, 2):
                plain[number].weight.copy_(normed[number].weight)
                plain[number].bias.copy_(normed[number].bias)
        normed.train()
        before = {key: value.clone() for key, value in normed.state_dict().items()}
        expected = score(plain, name, loss_fn=loss_on(batches()))
        found = score(normed, name, loss_fn=loss_on(batches()))
        for key in KEYS:
            assert torch.allclose(found[key], expected[key], rtol=1e-8)
        assert all(torch.equal(value, before[key]) for key, value in normed.state_dict().items())
        optimizer = torch.optim.SGD(normed.parameters(), 0.1)
        normed(batches(1)[0]).square().mean().backward()  # it still trains
        optimizer.step()
        assert not torch.equal(normed.state_dict()[list(before)[1]], before[list(before)[1]])

    def test_plain_weights_are_the_parameters_and_flags_come_back(self):
        model = smooth_network().requires_grad_(False)
        with scored_weights(model) as weights:
            assert weights["0.weight"] is model[0].weight
            assert weights["0.weight"].requires_grad
        assert not any(p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize("name", GRADIENT_SCORES)
    def test_works_under_no_grad_and_leaves_gradients_alone(self, name):
        model = smooth_network()
        expected = score(model, name, loss_fn=loss_on(batches()))
        model(batches(1)[0]).sum().backward()
        before = model[0].weight.grad.clone()
        with torch.no_grad():
            found = score(model, name, loss_fn=loss_on(batches()))
        assert all(torch.equal(found[key], expected[key]) for key in KEYS)
        assert torch.equal(model[0].weight.grad, before)

    def test_state_comes_back_after_an_error_too(self):
        gan = gp.dcgan(width=4, latent_dim=8, device="cpu")

        def loss_fn(model):
            yield from gp.generator_loss(gan, batches=1, batch_size=2)(model)
            raise KeyError("own error")

        before = {key: value.clone() for key, value in gan.generator.state_dict().items()}
        with pytest.raises(KeyError):
            score(gan.generator, "snip", loss_fn=loss_fn)
        assert all(torch.equal(v, before[key]) for key, v in gan.generator.state_dict().items())
        assert all(p.requires_grad for p in gan.discriminator.parameters())

    @pytest.mark.parametrize("name", GRADIENT_SCORES)
    def test_a_generator_is_scored_through_its_discriminator(self, name):
        gan = gp.dcgan(width=4, latent_dim=8, device="cpu")
        found = score(gan.generator, name, loss_fn=gp.generator_loss(gan, batches=2, batch_size=4))
        assert list(found) == [f"layers.deconv{n}.weight" for n in (1, 2, 3, 4)]
        assert all(value.any() for value in found.values())
        frozen = score(gan.generator_ema, name, loss_fn=gp.generator_loss(gan, batches=2, batch_size=4))
        assert frozen.keys() == found.keys()

    @pytest.mark.parametrize(
        ("loss_fn", "error", "message"),
        [
            (0.5, TypeError, "loss_fn must be a function of the model that yields losses, got float"),
            (lambda model: [], ValueError, "loss_fn must yield at least one loss, got none"),
            (lambda model: [0.5], ValueError, "must yield scalar losses that depend on the model, got float"),
            (lambda model: [model(torch.ones(2, 2))], ValueError, r"got shape \(2, 2\)"),
            (lambda model: [torch.ones(())], ValueError, r"got shape \(\)"),
            (lambda model: [nn.Linear(1, 1)(torch.ones(1))], ValueError, "loss_fn must use the model"),
        ],
    )
    def test_closures_that_are_refused(self, loss_fn, error, message):
        with pytest.raises(error, match=message):
            score(nn.Linear(2, 2), "taylor", loss_fn=loss_fn)


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


class TestSynFlow:
    def test_one_round_is_the_sum_over_paths(self):
        model = relu_network()
        found = score(model, "synflow", inputs=torch.randn(2, 5))
        expected = path_sums([w.detach().double().numpy() for w in prunable_weights(model).values()])
        for value, paths in zip(found.values(), expected, strict=True):
            assert value.dtype == torch.float64
            assert np.allclose(value.numpy(), paths, rtol=1e-12)

    def test_biases_add_no_flow(self):
        plain, biased = relu_network(), relu_network()
        for layer in biased:
            if isinstance(layer, nn.Linear):
                layer.bias = nn.Parameter(torch.randn(layer.out_features))
        expected = score(plain, "synflow", inputs=torch.randn(1, 5))
        found = score(biased, "synflow", inputs=torch.randn(1, 5))
        assert all(torch.equal(found[key], expected[key]) for key in expected)

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

    def test_with_the_output_tanh_left_in_most_of_a_dcgan_would_not_be_scored(self):
        """What linearising is for: saturated pixels have gradient exactly zero."""
        generator = gp.dcgan(width=32, device="cpu").generator
        with torch.no_grad():
            for name, p in generator.named_parameters():
                if "deconv" in name:
                    p.mul_(5)
        network, *_ = _linearised_copy(generator)
        z = torch.ones(1, 64, dtype=torch.float64)
        linear = network.layers[:-1](z[:, :, None, None]).detach().requires_grad_(True)
        torch.tanh(linear).sum().backward()
        assert (linear.grad == 0).double().mean() > 0.5
        assert all((value > 0).all() for value in score(generator, "synflow").values())

    @settings(max_examples=25, deadline=None)
    @given(
        widths=st.lists(st.integers(2, 6), min_size=3, max_size=5),
        sparsity=st.floats(0, 0.95),
        rounds=st.integers(1, 8),
        seed=st.integers(0, 99),
    )
    def test_rounds_equal_an_independent_implementation(self, widths, sparsity, rounds, seed):
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

    @pytest.mark.parametrize(
        "name", ["transposed", "full kernel", "grouped", "tied", "in place", "embedding"]
    )
    def test_layers_that_see_one_position_are_scored_as_autograd_does(self, name):
        """Their gradients are taken as outer products, but only where that is what they are."""

        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
                self.last.weight = self.first.weight

            def forward(self, z):
                return self.last(self.first(z))

        class InPlace(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False)

            def forward(self, z):
                h = self.first(z)
                h *= 3.0
                h += 2.0
                return self.last(h)

        class Embedded(nn.Module):
            def __init__(self):
                super().__init__()
                self.labels, self.first = nn.Embedding(3, 6), nn.Linear(12, 5, bias=False)

            def forward(self, z, label):
                return self.first(torch.cat([z, self.labels(label)], dim=1))

        torch.manual_seed(0)
        reshape = nn.Unflatten(1, (6, 1, 1))
        convolutions = [nn.ConvTranspose2d(4, 2, 3, 2, bias=False), nn.Conv2d(2, 3, 3, bias=False)]
        network = {
            "transposed": lambda: nn.Sequential(
                reshape, nn.ConvTranspose2d(6, 4, 3, bias=False), *convolutions
            ),
            "full kernel": lambda: nn.Sequential(
                reshape, nn.ConvTranspose2d(6, 4, 3, bias=False), nn.Conv2d(4, 5, 3, bias=False)
            ),
            "grouped": lambda: nn.Sequential(
                reshape, nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False), *convolutions
            ),
            "tied": Tied,
            "in place": InPlace,
            "embedding": Embedded,
        }[name]()
        inputs = (torch.randn(1, 6), torch.tensor([1])) if name == "embedding" else (torch.randn(1, 6),)
        plain = copy.deepcopy(network).double()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.abs_()
        weights = list(prunable_weights(plain).values())
        alive = [torch.ones_like(w, dtype=torch.bool) for w in weights]
        total = sum(w.numel() for w in weights)
        for number in range(1, 5):
            flows = torch.autograd.grad(plain(torch.ones(1, 6).double(), *inputs[1:]).sum(), weights)
            flows = [(g * w).detach() for g, w in zip(flows, weights, strict=True)]
            flat = torch.cat([torch.where(a, f, -1.0).flatten() for a, f in zip(alive, flows, strict=True)])
            removed = round((1 - 0.2 ** (number / 4)) * total)
            stays = torch.ones(total, dtype=torch.bool)
            stays[flat.argsort(stable=True)[:removed]] = False
            alive = [
                s.view_as(w) for s, w in zip(stays.split([w.numel() for w in weights]), weights, strict=True)
            ]
            with torch.no_grad():
                for a, w in zip(alive, weights, strict=True):
                    w.mul_(a)
        found = score(network, "synflow", inputs=inputs, sparsity=0.8, rounds=4)
        for value, a, flow in zip(found.values(), alive, flows, strict=True):
            assert torch.equal(value >= 0, a)
            assert torch.allclose(value[a], flow[a], rtol=1e-12)

    def test_the_ranking_serves_lower_sparsities_and_is_nested(self):
        model = relu_network((20, 30, 20))
        scores = score(model, "synflow", inputs=torch.randn(1, 20), sparsity=0.9, rounds=10)
        masks = [allocate(scores, s) for s in (0.2, 0.5, 0.9)]
        assert masks[0].covers(masks[1])
        assert masks[1].covers(masks[2])

    def test_a_hundred_rounds_leave_no_layer_of_a_dcgan_below_one_weight_per_output_at_99_percent(
        self, recwarn
    ):
        generator = gp.dcgan(width=32, seed=0, device="cpu").generator
        mask = prune(generator, 0.99, score="synflow", rounds=100)
        assert mask.pruned == round(0.99 * mask.total)
        assert not any(row["starved"] for row in layer_report(generator, mask))
        assert not [w for w in recwarn if issubclass(w.category, UserWarning)]

    @pytest.mark.parametrize("seed", range(3))
    def test_never_empties_a_layer_where_a_single_round_does(self, seed):
        """A narrow layer between wide ones: the classic layer collapse."""
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(60, 60, bias=False), nn.ReLU(), nn.Linear(60, 2, bias=False))
        with torch.no_grad():
            model[0].weight.abs_().mul_(0.1)
        kept = {
            rounds: [
                row["kept"]
                for row in allocate(
                    score(model, "synflow", inputs=torch.randn(1, 60), sparsity=0.995, rounds=rounds), 0.995
                ).layers()
            ]
            for rounds in (1, 100)
        }
        assert min(kept[1]) == 0
        assert min(kept[100]) > 0
        assert sum(kept[1]) == sum(kept[100])

    @pytest.mark.parametrize("norm", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
    def test_spectral_norm_is_folded_and_the_original_untouched(self, norm):
        torch.manual_seed(0)
        normed = nn.Sequential(
            norm(nn.Linear(5, 6, bias=False)), nn.ReLU(), norm(nn.Linear(6, 2, bias=False))
        )
        normed(torch.randn(2, 5))
        before = {key: value.clone() for key, value in normed.state_dict().items()}
        found = score(normed, "synflow", inputs=torch.randn(2, 5))
        normed.eval()
        normed(torch.randn(2, 5))
        expected = path_sums([normed[n].weight.detach().double().numpy() for n in (0, 2)])
        for value, paths in zip(found.values(), expected, strict=True):
            assert np.allclose(value.numpy(), paths, rtol=1e-6)
        assert all(torch.equal(value, before[key]) for key, value in normed.state_dict().items())
        assert parametrize.is_parametrized(normed[0]) == (norm is parametrizations.spectral_norm)
        normed.train()(torch.randn(2, 5)).sum().backward()

    def test_restores_everything(self):
        gan = gp.dcgan(width=4, latent_dim=8, device="cpu")
        for network in (gan.generator, gan.discriminator):
            before = copy.deepcopy(network.state_dict())
            modes = [m.training for m in network.modules()]
            score(network, "synflow", sparsity=0.9, rounds=5)
            assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
            assert [m.training for m in network.modules()] == modes
            assert all(p.dtype == torch.float32 and p.requires_grad for p in network.parameters())

    def test_normalisations_of_ones_own_are_linearised(self):
        class PixelNorm(nn.Module):
            def forward(self, x):
                return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()

        class Halver(nn.Module):
            def forward(self, x):
                return x / x.sum()

        plain = relu_network()
        expected = score(plain, "synflow", inputs=torch.randn(1, 5))
        for module, options in (
            (PixelNorm(), {}),
            (Halver(), {"linearise": (Halver,)}),
            (nn.LayerNorm(7), {}),
        ):
            model = nn.Sequential(plain[0], module, *plain[1:], nn.Softmax(dim=1))
            found = score(model, "synflow", inputs=torch.randn(1, 5), **options)
            for one, other in zip(found.values(), expected.values(), strict=True):
                assert torch.allclose(one, other)

    def test_batch_norm_without_running_statistics(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
        assert all((value > 0).all() for value in score(model, "synflow", inputs=torch.randn(2, 3)).values())

    def test_a_compiled_network(self):
        model = relu_network()
        found = score(torch.compile(model, backend="eager"), "synflow", inputs=torch.randn(1, 5))
        expected = score(model, "synflow", inputs=torch.randn(1, 5))
        assert all(torch.equal(found[key], expected[key]) for key in expected)

    def test_what_it_refuses(self):
        model = relu_network()
        with pytest.raises(ValueError, match="score 'synflow' needs inputs"):
            score(model, "synflow")
        for rounds in (0, 1.5, True):
            with pytest.raises(ValueError, match="rounds must be an integer of at least 1"):
                score(model, "synflow", inputs=torch.randn(1, 5), rounds=rounds)
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got 1.0"):
            score(model, "synflow", inputs=torch.randn(1, 5), sparsity=1.0)
        huge = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(9)])
        with torch.no_grad():
            for weight in huge.parameters():
                weight.fill_(3e38)
        with pytest.raises(ValueError, match="overflows on this network"):
            score(huge, "synflow", inputs=torch.randn(1, 2))


def test_scores_of_a_masked_network_see_the_gradient_of_pruned_weights():
    """Zeros stay plain zeros in the graph, so a dense gradient is there for those who want it."""
    model = smooth_network()
    mask = prune(model, 0.5)
    with scored_weights(model) as weights:
        loss = next(iter(loss_on(batches())(model)))
        gradients = torch.autograd.grad(loss, list(weights.values()))
    assert all((g[~kept] != 0).any() for g, kept in zip(gradients, mask.values(), strict=True))
    apply_mask(model, mask)
