"""Compaction against brute force: the same function, nothing wrongly gone, nothing without effect left behind."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm
from unseen_networks import UNSEEN, build

import ganprune as gp
from ganprune.channels import compaction
from ganprune.channels.compaction import CompactionError, compact
from ganprune.channels.graph import ChannelError
from ganprune.masks.apply import apply_mask
from ganprune.masks.mask import Mask, MaskError
from ganprune.masks.weights import prunable_weights, weight_slots
from ganprune.metrics import count_parameters, macs

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def trained(network, seed=0):
    """Biases, batch-norm scales and statistics as after training: none of them trivial."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda like: torch.randn(like.shape, generator=generator)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(0.5 * draw(module.running_mean))
                module.running_var.copy_(draw(module.running_var).abs() + 0.5)
                if module.affine:
                    module.weight.copy_(1 + 0.3 * draw(module.weight))
                    module.bias.copy_(0.7 * draw(module.bias))
            elif isinstance(module, LAYERS) and module.bias is not None:
                module.bias.copy_(0.5 * draw(module.bias))
    return network


@torch.no_grad()
def outputs(network, *arguments):
    return copy.deepcopy(network).eval()(*arguments)


def relative(one, other):
    return float(((one - other).abs().max() / one.abs().max().clamp_min(1e-30)).detach())


def assert_same(network, result, arguments, limit=1e-5):
    assert relative(outputs(network, *arguments), outputs(result.network, *arguments)) <= limit


def row(result, name):
    return next(r for r in result.report if r["name"] == name)


def gone(result, name):
    return set(result.removed.get(name, ()))


def in_double(network, arguments):
    """Both in float64, where rounding hides nothing."""
    return copy.deepcopy(network).double().eval(), [a.double() for a in arguments]


# --- The brute-force oracle -----------------------------------------------------------------------


def consumers(sequence):
    """(producer, its name, consumer) of a plain sequence of layers."""
    found = [(name, layer) for name, layer in sequence.named_children() if isinstance(layer, LAYERS)]
    return [(one, name, after) for (name, one), (_, after) in zip(found, found[1:], strict=False)]


@torch.no_grad()
def without_effect(sequence, arguments):
    """Channels whose replacement by zero, in front of the next layer, changes no output, by trial in float64."""
    network, arguments = in_double(sequence, arguments)
    expected = network(*arguments)
    found = {}
    for producer, name, consumer in consumers(network):
        count = getattr(producer, "out_channels", None) or producer.out_features
        silent = set()
        for channel in range(count):

            def silence(module, given, channel=channel, count=count):
                x = given[0].clone()
                width = x.shape[1] // count  # several features behind a Flatten
                x[:, channel * width : (channel + 1) * width] = 0
                return (x,)

            handle = consumer.register_forward_pre_hook(silence)
            if torch.equal(network(*arguments), expected):
                silent.add(channel)
            handle.remove()
        found[name] = silent
    return found


@torch.no_grad()
def varying(sequence, arguments):
    """Channels that differ between samples in front of the next layer, by trial in float64."""
    network, arguments = in_double(sequence, arguments)
    found = {}
    for producer, name, consumer in consumers(network):
        count = getattr(producer, "out_channels", None) or producer.out_features

        def look(module, given, name=name, count=count):
            x = given[0]
            maps = x.reshape(x.shape[0], count, -1)
            found[name] = set(((maps - maps[:1]).abs() > 1e-12).any(2).any(0).nonzero().flatten().tolist())

        handle = consumer.register_forward_pre_hook(look)
        network(*arguments)
        handle.remove()
    return found


@torch.no_grad()
def filled(sequence):
    """A copy in which a kernel with any weight has all of them: stride and sparse taps hide no connection."""
    network = copy.deepcopy(sequence)
    for layer in network.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            connected = layer.weight.flatten(2).any(2)[:, :, None, None]
            layer.weight.copy_(samples(*layer.weight.shape, seed=7) * connected)
    return network


def assert_against_brute_force(sequence, result, arguments, complete=True):
    """``complete`` where no activation can be zero on all samples by accident."""
    silent, alive = without_effect(sequence, arguments), varying(sequence, arguments)
    unconnected = without_effect(filled(sequence), arguments)
    folds = any(entry["folded"] for entry in result.report)
    for _, name, _ in consumers(sequence):
        entry, removed = row(result, name), gone(result, name)
        assert entry["zero"] + entry["unread"] + entry["folded"] == len(removed)
        assert not (removed - silent[name]) & alive[name]  # what varied and had an effect is still there
        assert folds or removed <= silent[name]
        if complete:
            left = (silent[name] & unconnected[name]) - removed
            assert len(left) <= (1 if entry["outputs_left"] == 1 else 0), (name, left)


def convolutional(seed=0, activation=nn.LeakyReLU, padding=1):
    torch.manual_seed(seed)
    return trained(
        nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=padding),
            nn.BatchNorm2d(5),
            activation(),
            nn.ConvTranspose2d(5, 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            activation(),
            nn.Conv2d(4, 6, 1),
            activation(),
            nn.Conv2d(6, 3, 3, 2, padding),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(3 * 16 if padding else 3 * 9, 4),
        ),
        seed,
    )


def dense(seed=0, activation=nn.LeakyReLU):
    torch.manual_seed(seed)
    return trained(
        nn.Sequential(
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            activation(),
            nn.Linear(8, 8),
            activation(),
            nn.Dropout(0.5),
            nn.Linear(8, 6, bias=False),
            nn.BatchNorm1d(6),
            activation(),
            nn.Linear(6, 3),
        ),
        seed,
    )


def random_mask(network, sparsity, seed):
    """At random; behind a Flatten whole channels, so that no channel is read in some of its places only."""
    generator = torch.Generator().manual_seed(seed)
    mask = {
        k: torch.rand(w.shape, generator=generator) >= sparsity for k, w in prunable_weights(network).items()
    }
    if "11.weight" in mask:
        features = mask["11.weight"]
        mask["11.weight"] = (
            features.view(4, 3, -1)[:, :, :1].expand(4, 3, features.shape[1] // 3).reshape(4, -1)
        )
    return Mask(mask)


def samples(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestAgainstBruteForce:
    @settings(max_examples=20)
    @given(
        seed=st.integers(0, 10_000),
        sparsity=st.floats(0.3, 0.99),
        activation=st.sampled_from([nn.LeakyReLU, nn.Tanh, nn.ELU]),
    )
    def test_dense_networks(self, seed, sparsity, activation):
        network, x = dense(seed, activation), samples(64, 4)
        mask = random_mask(network, sparsity, seed)
        apply_mask(network, mask)
        result = compact(network, x, mask)
        assert_same(network, result, [x])
        assert_against_brute_force(network, result, [x])
        assert relative(*(n.double().eval()(x.double()) for n in (network, result.network))) < 1e-6
        assert sum(r["kept"] for r in result.report[:-1]) <= 3  # a bias takes up every constant

    @settings(max_examples=20)
    @given(seed=st.integers(0, 10_000), sparsity=st.floats(0.5, 0.995), padding=st.sampled_from([0, 1]))
    def test_convolutions(self, seed, sparsity, padding):
        network, x = convolutional(seed, padding=padding), samples(6, 2, 4, 4)
        if not padding:
            x = samples(6, 2, 6, 6)
        mask = random_mask(network, sparsity, seed)
        apply_mask(network, mask)
        result = compact(network, x, mask)
        assert_same(network, result, [x])
        assert_against_brute_force(network, result, [x])

    @settings(max_examples=15)
    @given(seed=st.integers(0, 10_000), sparsity=st.floats(0.5, 0.99))
    def test_behind_relu_nothing_goes_that_has_an_effect(self, seed, sparsity):
        network, x = convolutional(seed, nn.ReLU), samples(32, 2, 4, 4)
        apply_mask(network, random_mask(network, sparsity, seed))
        result = compact(network, x)
        assert_same(network, result, [x])
        assert_same(network, result, [100 * samples(32, 2, 4, 4, seed=1)])
        assert_against_brute_force(network, result, [x], complete=False)

    def test_a_dense_network_stays_as_it_is(self):
        network, x = convolutional(), samples(4, 2, 4, 4)
        result = compact(network, x)
        assert result.removed == {} and result.mask is None and result.difference == 0
        assert all(r["outputs"] == r["outputs_left"] and not r["reasons"] for r in result.report)
        assert result.network is not network
        assert all(
            torch.equal(a, b) for a, b in zip(network.parameters(), result.network.parameters(), strict=True)
        )


class TestConstants:
    """One channel of the first layer has no weight left and emits a constant."""

    def network(self, consumer, constant=0.5, after=()):
        torch.manual_seed(0)
        first = nn.Conv2d(2, 4, 3, padding=1)
        with torch.no_grad():
            first.weight[1] = 0
            first.bias[1] = constant
        return nn.Sequential(first, nn.ReLU(), consumer, *after)

    def test_folding_into_a_padded_convolution_would_be_wrong_at_the_borders(self):
        network, x = self.network(nn.Conv2d(4, 3, 3, padding=1)), samples(2, 2, 6, 6)
        result = compact(network, x)
        assert result.removed == {}
        (reason,) = row(result, "0")["reasons"]
        assert row(result, "0")["kept"] == 1 and "2" in reason and "borders" in reason
        folded = copy.deepcopy(network)  # what the careless would do
        with torch.no_grad():
            folded[2].bias += 0.5 * folded[2].weight[:, 1].sum((1, 2))
            folded[2].weight[:, 1] = 0
        wrong = (outputs(network, x) - outputs(folded, x)).abs()
        assert wrong[..., 1:-1, 1:-1].max() < 1e-6
        assert wrong[..., 0, :].min() > 1e-3 and wrong[..., :, -1].min() > 1e-3

    @pytest.mark.parametrize(
        "consumer",
        [
            nn.Conv2d(4, 3, 1),
            nn.Conv2d(4, 3, 1, stride=2),
            nn.Conv2d(4, 3, 3),
            nn.Conv2d(4, 3, 3, stride=2),
            nn.Conv2d(4, 3, 3, dilation=2),
            nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
            nn.ConvTranspose2d(4, 3, 1),
            nn.Conv2d(4, 3, 3, bias=False),
        ],
        ids=str,
    )
    def test_folded_where_that_is_exact(self, consumer):
        network, x = self.network(consumer), samples(2, 2, 6, 6)
        result = compact(network, x)
        assert result.removed == {"0": (1,)} and row(result, "0")["folded"] == 1
        assert result.network[2].bias is not None
        assert_same(network, result, [x], 1e-6)
        assert_same(network, result, [samples(2, 2, 9, 9)], 1e-6)

    @pytest.mark.parametrize(
        "consumer",
        [
            nn.ConvTranspose2d(4, 3, 4, 2, 1),  # as in DCGAN
            nn.ConvTranspose2d(4, 3, 2, 2),  # each place gets one weight, but not the same one
            nn.ConvTranspose2d(4, 3, 1, 2),  # zeros between
            nn.ConvTranspose2d(4, 3, 3),  # fewer at the borders
            nn.ConvTranspose2d(4, 3, 1, padding=0, output_padding=1, stride=2),
            nn.Conv2d(4, 3, 4, 2, 1),
        ],
        ids=str,
    )
    def test_kept_where_the_sum_depends_on_the_place(self, consumer):
        network, x = self.network(consumer), samples(2, 2, 6, 6)
        result = compact(network, x)
        assert result.removed == {} and row(result, "0")["kept"] == 1
        assert "borders" in row(result, "0")["reasons"][0]

    def test_a_negative_constant_is_zero_behind_relu(self):
        network, x = self.network(nn.ConvTranspose2d(4, 3, 4, 2, 1), constant=-0.5), samples(2, 2, 6, 6)
        result = compact(network, x)
        assert result.removed == {"0": (1,)} and row(result, "0")["zero"] == 1
        assert result.difference == 0

    def test_batch_norm_makes_its_own_constant_of_a_zero(self):
        network, x = (
            self.network(nn.BatchNorm2d(4), constant=-3.0, after=[nn.ReLU(), nn.Conv2d(4, 3, 1)]),
            None,
        )
        x = samples(2, 2, 6, 6)
        with torch.no_grad():
            network[2].bias[1] = 0.8
            network[2].running_mean[1], network[2].running_var[1] = 0.3, 2.0
        before = network[4].bias.detach().clone()
        result = compact(network, x)
        assert result.removed == {"0": (1,)}
        emitted = 0.8 + (0 - 0.3) / (2.0 + 1e-5) ** 0.5
        moved = (result.network[4].bias - before).detach()
        assert torch.allclose(moved, emitted * network[4].weight[:, 1, 0, 0].detach())

    def test_without_bias_a_running_mean_takes_it_up(self):
        network = self.network(nn.Conv2d(4, 3, 3, bias=False), after=[nn.BatchNorm2d(3), nn.Tanh()])
        trained(network[3])
        x = samples(2, 2, 6, 6)
        result = compact(network, x)
        assert result.removed == {"0": (1,)} and result.network[2].bias is None
        assert not torch.equal(result.network[3].running_mean, network[3].running_mean)
        assert_same(network, result, [x], 1e-6)

    def test_a_running_mean_that_another_path_bypasses_takes_up_nothing(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3, bias=False)
                self.norm, self.spec = nn.BatchNorm1d(3), "none"

            def forward(self, x):
                h = self.second(torch.relu(self.first(x)))
                return self.norm(h) + h

        network, x = trained(Two()), samples(5, 3)
        with torch.no_grad():
            network.first.weight[2], network.first.bias[2] = 0, 0.5
        result = compact(network, x)
        assert result.removed == {}
        assert "no bias" in row(result, "first")["reasons"][0]
        del network.spec  # now a bias may be added
        result = compact(network, x)
        assert result.removed == {"first": (2,)} and result.network.second.bias is not None
        assert_same(network, result, [x], 1e-6)

    def test_a_scale_of_zero_makes_a_constant(self):
        network = trained(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)))
        x = samples(5, 3)
        with torch.no_grad():
            network[1].weight[3] = 0
        result = compact(network, x)
        assert result.removed == {"0": (3,)} and row(result, "0")["folded"] == 1
        assert_same(network, result, [x], 1e-6)

    def test_constants_that_make_constants(self):
        network, x = dense(activation=nn.ReLU), samples(16, 4)
        with torch.no_grad():
            network[0].weight[:4] = 0
            network[3].weight[:3, 4:] = 0  # these read constants alone
        result = compact(network, x)
        assert gone(result, "0") == {0, 1, 2, 3} and gone(result, "3") == {0, 1, 2}
        assert_same(network, result, [x], 1e-6)

    def test_a_layer_keeps_one_channel_and_the_function(self):
        network, x = dense(activation=nn.ReLU), samples(16, 4)
        for layer in (network[0], network[3], network[6]):
            with torch.no_grad():
                layer.weight.zero_()
        result = compact(network, x)
        assert [r["outputs_left"] for r in result.report] == [1, 1, 1, 3]
        assert_same(network, result, [x], 1e-6)

    def test_a_last_channel_that_sums_constants_to_zero_goes_on_doing_so(self):
        network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2))
        with torch.no_grad():
            network[0].weight.zero_()
            network[0].bias.fill_(1.0)
            network[2].weight.fill_(-1.0)
            network[2].bias.fill_(2.0)  # 2 − 3 < 0: zero only because of the three constants
        x = samples(4, 2)
        result = compact(network, x)
        assert_same(network, result, [x])
        assert [r["outputs_left"] for r in result.report] == [1, 1, 2]


class TestUnread:
    def test_it_cascades_to_the_front(self):
        network, x = convolutional(), samples(3, 2, 4, 4)
        with torch.no_grad():
            network[11].weight[:, 16:32] = 0  # nobody reads channel 1 of layer 8
            network[8].weight[[0, 2], 3] = 0  # so that nobody reads channel 3 of layer 6
            network[6].weight[[0, 1, 2, 4, 5], 2] = 0  # nor 2 of layer 3
            network[3].weight[4, [0, 1, 3]] = 0  # nor 4 of layer 0
        result = compact(network, x)
        assert result.removed == {"8": (1,), "6": (3,), "3": (2,), "0": (4,)}
        assert all(r["unread"] == 1 for r in result.report[:-1])
        assert_same(network, result, [x], 1e-6)

    def test_a_residual_sum_needs_all_its_branches(self):
        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.first, self.inner, self.last = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

            def forward(self, x):
                h = torch.relu(self.first(x))
                return self.last(h + self.inner(h))

        network, x = Residual(), samples(6, 3)
        with torch.no_grad():
            network.first.weight[1], network.first.bias[1] = 0, -1.0  # zero in one branch only
            network.first.weight[3], network.first.bias[3] = 0, -1.0
            network.inner.weight[3], network.inner.bias[3] = 0, 0.0  # zero in both
        result = compact(network, x)
        assert result.removed == {"first": (3,), "inner": (3,)}
        assert row(result, "first")["zero"] == 1
        assert_same(network, result, [x], 1e-6)

    def test_a_second_reader_counts(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.first, self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

            def forward(self, x):
                h = torch.tanh(self.first(x))
                return {"one": self.one(h), "two": self.two(h)}

        network, x = Two(), samples(6, 3)
        with torch.no_grad():
            network.one.weight[:, :2] = 0
            network.two.weight[:, 1:3] = 0
        result = compact(network, x)
        assert result.removed == {"first": (1,)}


class TestDCGAN:
    def killed(self, side, seed=0):
        """A generator with dead channels in every position."""
        generator = trained(
            gp.dcgan((1, side, side), width=4, latent_dim=6, seed=seed, device="cpu").generator
        )
        layers = generator.layers
        with torch.no_grad():
            for number in (1, 2, 3):
                layer, norm = getattr(layers, f"deconv{number}"), getattr(layers, f"norm{number}")
                layer.weight[:, :2] = 0
                shift = norm.weight[:2] * norm.running_mean[:2] / (norm.running_var[:2] + norm.eps).sqrt()
                norm.bias[:2] = shift + torch.tensor([-0.4, 0.4])  # behind ReLU: 0 and 0.4
                getattr(layers, f"deconv{number + 1}").weight[3] = 0  # nobody reads channel 3
        return generator

    @pytest.mark.parametrize("side", [28, 32])
    def test_dead_channels_in_every_position(self, side):
        generator = self.killed(side)
        mask = Mask.nonzero(generator)
        result = compact(generator, mask=mask)
        for number in (1, 2, 3):
            entry = row(result, f"layers.deconv{number}")
            assert gone(result, entry["name"]) == {0, 3}
            assert (entry["zero"], entry["unread"], entry["folded"], entry["kept"]) == (1, 1, 0, 1)
            assert f"layers.deconv{number + 1}" in entry["reasons"][0]
        z = samples(16, 6)
        assert_same(generator, result, [z], 1e-6)
        assert result.network.spec.channels == (14, 6, 2)
        assert count_parameters(result.network) < count_parameters(generator)
        assert macs(result.network, z) < macs(generator, z)
        assert result.mask == Mask.nonzero(result.network)

    @pytest.mark.parametrize("side", [28, 32])
    @pytest.mark.parametrize("sparsity", [0.95, 0.99, 0.995])
    def test_pruned_generators(self, side, sparsity, tmp_path):
        gan = gp.dcgan((1, side, side), width=8, latent_dim=16, device="cpu")
        generator = trained(gan.generator)
        mask = gp.prune(generator, sparsity=sparsity)
        result = compact(generator, mask=mask)
        assert_same(generator, result, [samples(8, 16)])
        assert sum(r["outputs"] - r["outputs_left"] for r in result.report) > 0
        assert result.mask.kept <= mask.kept and result.mask.total < mask.total
        gan.generator, gan.generator_ema = result.network, copy.deepcopy(result.network)
        gp.save(tmp_path / "small.safetensors", gan, masks={"generator": result.mask})
        loaded = gp.load(tmp_path / "small.safetensors", device="cpu")
        assert loaded.masks["generator"] == result.mask
        assert_same(
            generator, compaction.CompactionResult(loaded.generator, None, [], {}, 0), [samples(8, 16)]
        )

    @pytest.mark.parametrize("norm", ["spectral", "batch", "none"])
    def test_discriminators(self, norm):
        network = trained(gp.dcgan((1, 28, 28), width=4, norm=norm, device="cpu").discriminator)
        mask = gp.prune(network, sparsity=0.97, allocation="uniform")
        result = compact(network, mask=mask)
        assert_same(network, result, [samples(4, 1, 28, 28)])
        assert result.removed and result.network.spec.channels != network.spec.channels
        assert result.mask.kept <= mask.kept

    def test_the_last_convolution_sees_one_place_only_so_a_constant_folds_into_it(self):
        network = trained(gp.dcgan((1, 28, 28), width=2, norm="none", device="cpu").discriminator)
        with torch.no_grad():
            network.layers.conv3.weight[5] = 0
        result = compact(network)
        assert result.removed == {"layers.conv3": (5,)}
        assert row(result, "layers.conv3")["folded"] == 1
        assert_same(network, result, [samples(4, 1, 28, 28)])

    def test_modes_and_the_original_are_left_alone(self):
        generator = self.killed(28).train()
        generator.layers.norm2.eval()
        before = {k: v.clone() for k, v in generator.state_dict().items()}
        result = compact(generator)
        assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())
        modes = [m.training for m in generator.modules()]
        assert modes == [m.training for m in result.network.modules()] and not all(modes)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in generator.modules())

    def test_fully_connected(self):
        gan = gp.mlp_gan(hidden=(12, 16), device="cpu")
        for network, x in [(gan.generator, samples(8, 64)), (gan.discriminator, samples(8, 1, 28, 28))]:
            mask = gp.prune(trained(network), sparsity=0.98)
            result = compact(network, mask=mask)
            assert_same(network, result, [x])
            assert result.removed and result.network.spec.hidden != network.spec.hidden
            assert result.mask.kept <= mask.kept


class TestUnseenNetworks:
    @pytest.mark.parametrize("name", UNSEEN)
    @pytest.mark.parametrize("seed", [0, 1])
    def test_right_or_kept_with_a_reason(self, name, seed):
        network, arguments = build(name, seed)
        trained(network, seed)
        mask = gp.prune(network, sparsity=0.85, score="random", allocation="uniform", seed=seed)
        result = compact(network, arguments, mask)
        assert_same(network, result, arguments)
        for entry in result.report:
            assert not entry["kept"] or entry["reasons"]
        assert {k: w.shape for k, w in prunable_weights(result.network).items() if k in result.mask} == {
            k: m.shape for k, m in result.mask.items()
        }

    @pytest.mark.parametrize(("name", "producer", "dead"), [("1-D", "0", 2), ("3-D", "0", 1)])
    def test_transposed_convolutions_in_other_dimensions(self, name, producer, dead):
        network, arguments = build(name)
        with torch.no_grad():
            weight = network[0].weight
            weight[:, dead] = 0
            network[0].bias[dead] = 0
            network[1].bias[dead] = -1
        result = compact(network, arguments)
        assert gone(result, producer) == {dead}
        assert_same(network, result, arguments)

    @pytest.mark.parametrize(
        ("name", "layer", "because"),
        [
            ("linear first", "first", "does its code fix their number"),
            ("grouped", "0", "grouped"),
            ("attention", "0", "no channel"),
            ("tied", "first", "shares"),
            ("frozen", "0", "frozen"),
            ("residual", "first", "channel"),
        ],
    )
    def test_what_stands_in_the_way_is_said(self, name, layer, because):
        network, arguments = build(name)
        slot = weight_slots(network)[f"{layer}.weight"]
        with torch.no_grad():
            slot.raw.zero_()
            slot.layer.bias.zero_()
        result = compact(network, arguments)
        assert row(result, layer)["kept"] and gone(result, layer) == set()
        assert any(because in reason for reason in row(result, layer)["reasons"]), row(result, layer)
        assert_same(network, result, arguments)

    def test_a_depthwise_channel_goes_with_its_producer(self):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(2, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.ReLU(),
            nn.Conv2d(4, 2, 1),
        )
        with torch.no_grad():
            network[4].weight[:, 1] = 0
            network[2].weight[3], network[2].bias[3] = 0, -1
        x = samples(2, 2, 5, 5)
        mask = Mask.nonzero(network)
        result = compact(network, x, mask)
        assert result.removed == {"0": (1, 3), "2": (1, 3)}
        assert result.mask == Mask.nonzero(result.network)
        assert_same(network, result, [x])

    def test_between_layers(self):
        """Pooling, upsampling, reshapes by the batch's size, slices of positions, PReLU, concatenation."""

        class Between(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.first = nn.Linear(3, 4 * 9)
                self.one, self.two = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 3, 1)
                self.slope, self.last = nn.PReLU(6), nn.Linear(6 * 4, 2)

            def forward(self, z):
                h = functional.gelu(self.first(z).view(z.shape[0], -1, 3, 3))
                h = functional.interpolate(h, scale_factor=2, mode="bilinear")
                h = torch.cat([self.one(h), self.two(h)], 1)[:, :, 1:5, 1:5]
                return self.last(functional.max_pool2d(self.slope(h), 2).flatten(1))

        network, x = Between(), samples(4, 3)
        with torch.no_grad():
            network.first.weight[9:18], network.first.bias[9:18] = 0, 0.0
            network.two.weight[1], network.two.bias[1] = 0, 0.7
            network.last.weight[:, 8:12] = 0
        result = compact(network, x)
        assert result.removed == {"first": tuple(range(9, 18)), "one": (2,), "two": (1,)}
        assert row(result, "two")["folded"] == 1
        assert_same(network, result, [x])

    def test_padding_of_one_side_leaves_channels_apart(self):
        class Padded(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

            def forward(self, x):
                return self.last(functional.pad(torch.relu(self.first(x)), (1, 0)))

        network, x = Padded(), samples(2, 3, 4, 4)
        with torch.no_grad():
            network.last.weight[:, 2] = 0
        result = compact(network, x)
        assert result.removed == {"first": (2,)}
        assert_same(network, result, [x])

    def test_spectral_norm_of_both_kinds_is_folded(self):
        for norm in (spectral_norm, torch.nn.utils.spectral_norm):
            torch.manual_seed(0)
            network = nn.Sequential(norm(nn.Linear(3, 6)), nn.ReLU(), norm(nn.Linear(6, 2)))
            mask = Mask(
                {"0.weight": torch.ones(6, 3).bool(), "2.weight": torch.arange(12).view(2, 6) % 6 != 2}
            )
            apply_mask(network, mask)
            x = samples(4, 3)
            result = compact(network, x, mask)
            assert result.removed == {"0": (2,)} and type(result.network[0]) is nn.Linear
            assert_same(network, result, [x])


class Odd(nn.Module):
    """Two linear layers, the second of which does not read the first channel, and something odd between."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.between = nn.Linear(3, 4), nn.Linear(4, 2), between
        with torch.no_grad():
            self.last.weight[:, 0] = 0

    def forward(self, x):
        return self.last(self.between(self.first(x)))


OUTSIDE = torch.ones(4)


def read_number(x):
    return x if float(x.detach().sum()) > 1e9 else -x


def changed_through_a_view(x):
    x.view(-1).relu_()
    return x


def other_bits(x):
    return x.view(torch.int32).view(torch.float32)


def part_of_the_channels(x):
    return torch.cat([x[:, :2], x[:, 2:]], 1)


class TestWhatCannotBeFollowed:
    @pytest.mark.parametrize(
        ("between", "because"),
        [
            (read_number, "reads numbers out of tensors"),
            (changed_through_a_view, "in place through another view"),
            (lambda x: x + OUTSIDE, "comes from outside"),
            (lambda x: torch.softmax(x, 1), "softmax is not followed"),
            (lambda x: x + torch.randn_like(x), "followed|no channel"),
            (lambda x: x * torch.arange(4.0), "no channel"),
            (part_of_the_channels, "takes a part"),
            (other_bits, "view is not followed"),
            (lambda x: torch.cat(x.chunk(2, 1), 1), "counts channels"),
            (lambda x: functional.dropout(x, 0.5), "dropout is not followed"),
        ],
    )
    def test_everything_is_kept_and_the_report_says_why(self, between, because):
        result = compact(Odd(between), samples(4, 3))
        assert result.removed == {} and result.difference == 0
        reasons = row(result, "first")["reasons"]
        assert len(reasons) == 1 and any(word in reasons[0] for word in because.split("|")), reasons

    def test_a_layer_called_twice(self):
        network = Odd(torch.tanh)
        network.forward = lambda x: network.last(network.first(network.first(x)[:, :3]))
        result = compact(network, samples(4, 3))
        assert result.removed == {}
        assert any("more than once" in reason for reason in row(result, "first")["reasons"])

    def test_what_is_not_a_number_in_both_is_no_difference(self):
        """The random inputs that it is compared on are negative as well."""

        class Logarithm(Odd):
            def forward(self, x):
                return super().forward(x.log())

        network = Logarithm(torch.tanh)
        result = compact(network, samples(4, 3).abs() + 0.1)
        assert result.removed == {"first": (0,)}
        assert result.difference < 1e-5

    def test_an_output_that_holds_no_tensor(self):
        network = Odd(torch.tanh)
        network.forward = lambda x: "nothing"
        assert "str" in row(compact(network, samples(4, 3)), "first")["reasons"][0]

    def test_the_same_network_without_oddities_is_compacted(self):
        result = compact(Odd(lambda x: functional.dropout(x, 0.5, training=False)), samples(4, 3))
        assert result.removed == {"first": (0,)}

    def test_parts_that_cannot_go_together_are_kept(self, monkeypatch):
        def one_at_a_time(analysis, cut):
            if sum(role == "output" for _, role in cut) > 1:
                raise ChannelError("only one layer at a time")
            return finish(analysis, cut)

        finish = compaction.finish
        monkeypatch.setattr(compaction, "finish", one_at_a_time)
        network, x = dense(), samples(16, 4)
        with torch.no_grad():
            network[3].weight[:, 0] = 0
            network[6].weight[:, 1] = 0
        result = compact(network, x)
        assert result.removed == {}
        assert row(result, "0")["reasons"] == row(result, "3")["reasons"] == ["only one layer at a time"]


class TestErrors:
    def test_weights_under_the_mask(self):
        network = dense()
        with pytest.raises(MaskError, match="non-zero weights under its mask"):
            compact(network, samples(4, 4), random_mask(network, 0.5, 0))

    def test_a_mask_of_another_network(self):
        with pytest.raises(ValueError, match="does not fit"):
            compact(dense(), samples(4, 4), Mask({"9.weight": torch.ones(1, 1).bool()}))

    def test_a_mask_of_another_type(self):
        with pytest.raises(TypeError, match="must be a Mask"):
            compact(dense(), samples(4, 4), {"0.weight": torch.ones(8, 4).bool()})

    def test_inputs_are_needed(self):
        with pytest.raises(ValueError, match="inputs must be given"):
            compact(dense())

    def test_inference_mode(self):
        with torch.inference_mode(), pytest.raises(ChannelError, match="leave it, or use no_grad"):
            compact(dense(), samples(4, 4))

    def test_nothing_prunable(self):
        with pytest.raises(ValueError, match="no prunable weight"):
            compact(nn.Sequential(nn.BatchNorm1d(3), nn.PReLU()), samples(4, 3))

    def test_a_difference_is_never_let_pass(self, monkeypatch):
        def wrong(analysis, cut):
            small = finish(analysis, cut)
            with torch.no_grad():
                small.last.bias += 1e-3
            return small

        finish = compaction.finish
        monkeypatch.setattr(compaction, "finish", wrong)
        with pytest.raises(CompactionError, match="differ by"):
            compact(Odd(torch.tanh), samples(4, 3))
