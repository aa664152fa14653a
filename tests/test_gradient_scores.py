"""Scores by gradients against brute force, finite differences, exact Hessians and closed forms."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import ganprune as gp
from ganprune.masks.apply import apply_mask
from ganprune.pruning import prune
from ganprune.scores.gradient import scored_weights
from ganprune.scores.registry import score

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
        with pytest.raises(ValueError, match="all 0"):
            score(model, "snip", loss_fn=loss_fn)
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

    def test_a_loss_without_curvature_cannot_rank(self):
        with pytest.raises(ValueError, match="all 0"):
            score(nn.Linear(2, 1), "grasp", loss_fn=lambda model: [model(torch.ones(1, 2)).sum()])

    def test_both_passes_see_the_same_random_numbers(self):
        """With other dropout in the second pass, H and g would belong to two losses."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.Linear(40, 1)).double()
        x, seen = batches(1)[0], []

        def loss_fn(model):
            output = model(x)
            seen.append(output.detach().clone())
            yield output.square().mean()

        score(model, "grasp", loss_fn=loss_fn)
        assert len(seen) == 2
        assert torch.equal(*seen)


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
            (0.5, TypeError, "loss_fn must be a function of the network that yields losses, got float"),
            (lambda model: [], ValueError, "loss_fn must yield at least one loss, got none"),
            (
                lambda model: [0.5],
                ValueError,
                "must yield scalar losses that depend on the network, got float",
            ),
            (lambda model: [model(torch.ones(2, 2))], ValueError, r"got shape \(2, 2\)"),
            (lambda model: [torch.ones(())], ValueError, r"got shape \(\)"),
            (lambda model: [nn.Linear(1, 1)(torch.ones(1))], ValueError, "loss_fn must use the network"),
        ],
    )
    def test_closures_that_are_refused(self, loss_fn, error, message):
        with pytest.raises(error, match=message):
            score(nn.Linear(2, 2), "taylor", loss_fn=loss_fn)


def test_layers_that_take_no_part_in_the_loss_are_named():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(3, 3)})
    with pytest.warns(UserWarning, match=r"no part in the loss.*: idle\.weight"):
        found = score(model, "snip", loss_fn=lambda model: [model["used"](torch.ones(1, 2)).square().sum()])
    assert not found["idle.weight"].any()
    assert found["used.weight"].all()


def test_scores_of_a_masked_network_see_the_gradient_of_pruned_weights():
    """Zeros stay plain zeros in the graph, so a dense gradient is there for those who want it."""
    model = smooth_network()
    mask = prune(model, 0.5)
    with scored_weights(model) as weights:
        loss = next(iter(loss_on(batches())(model)))
        gradients = torch.autograd.grad(loss, list(weights.values()))
    assert all((g[~kept] != 0).any() for g, kept in zip(gradients, mask.values(), strict=True))
    apply_mask(model, mask)
