"""Compaction: the same outputs without channels that have no effect, and a reason for those that stay."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from unseen_networks import UNSEEN, build

import ganprune as gp
from ganprune.channels import ChannelError, compact
from ganprune.masks.apply import apply_mask
from ganprune.masks.mask import Mask, MaskError
from ganprune.masks.weights import prunable_weights, weight_slots


def samples(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def liven(network, seed=0):
    """The network with biases, scales and statistics as after training: none of them trivial."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=random)
            if key.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif key.endswith(("bias", "running_mean")):
                tensor.copy_(0.5 * noise)
    return network


@torch.no_grad()
def outputs(network, *arguments):
    return (
        copy.deepcopy(network)
        .double()
        .eval()(*(a.double() if a.is_floating_point() else a for a in arguments))
    )


def assert_same(network, result, *arguments):
    one, other = outputs(network, *arguments), outputs(result.network, *arguments)
    torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * float(one.abs().max()))


def dense(activation=nn.ReLU):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), activation(), nn.Linear(8, 8), activation()]
    return liven(nn.Sequential(*layers, nn.Linear(8, 6, bias=False), activation(), nn.Linear(6, 3)))


def convolutional(activation=nn.ReLU):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), activation()]
    layers += [nn.ConvTranspose2d(5, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), activation()]
    return liven(nn.Sequential(*layers, nn.Conv2d(4, 6, 1), activation(), nn.Conv2d(6, 3, 3, 2, 1)))


NETWORKS = {
    "dense": (dense, (16, 4)),
    "convolutional": (convolutional, (4, 2, 4, 4)),
    "generator": (lambda act: liven(gp.dcgan(width=4, latent_dim=6, device="cpu").generator), (8, 6)),
    "discriminator": (lambda act: gp.dcgan(width=4, device="cpu").discriminator, (4, 1, 28, 28)),
}


def without_effect(network, x, name, reader):
    """Output channels of a layer whose replacement by zero in front of its reader changes nothing, by trial."""
    network, x, silent = copy.deepcopy(network).double().eval(), x.double(), set()
    with torch.no_grad():
        expected = network(x)
        for channel in range(network.get_submodule(name).weight.shape[0]):
            hook = network.get_submodule(reader).register_forward_pre_hook(
                lambda _, given, c=channel: (given[0].index_fill(1, torch.tensor(c), 0.0),)
            )
            if torch.equal(network(x), expected):
                silent.add(channel)
            hook.remove()
    return silent


@settings(max_examples=24)
@given(
    name=st.sampled_from([*NETWORKS]),
    seed=st.integers(0, 10_000),
    sparsity=st.floats(0.3, 0.99),
    activation=st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.Tanh]),
)
def test_whatever_the_mask_the_outputs_are_the_same_and_the_mask_is_cut_along(
    name, seed, sparsity, activation
):
    make, shape = NETWORKS[name]
    network, x = make(activation), samples(*shape)
    mask = gp.prune(network, sparsity, score="random", allocation="uniform", seed=seed)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    result = compact(network, x, mask)
    assert_same(network, result, x)
    assert_same(network, result, 30 * samples(*shape, seed=1))
    assert result.difference <= 1e-9
    assert result.mask.kept <= mask.kept
    assert {k: m.shape for k, m in result.mask.items()} == {
        k: w.shape for k, w in prunable_weights(result.network).items()
    }
    apply_mask(result.network, result.mask)
    assert_same(network, result, x)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@given(seed=st.integers(0, 10_000), sparsity=st.floats(0.5, 0.95))
@settings(max_examples=10)
def test_all_that_is_silent_by_trial_goes_or_has_a_reason(seed, sparsity):
    network, x = dense(nn.Tanh), samples(32, 4)
    gp.prune(network, sparsity, score="random", allocation="uniform", seed=seed)
    result = compact(network, x)
    assume("last channel" not in str(result.kept))  # what only such a channel reads is silent too
    for name, reader in (("0", "3"), ("3", "5"), ("5", "7")):
        kept = {i for some in result.kept.get(name, {}).values() for i in some}
        assert without_effect(network, x, name, reader) <= {*result.removed.get(name, ()), *kept}


def test_a_dense_network_stays_as_it_is():
    network = convolutional()
    result = compact(network, samples(4, 2, 4, 4))
    assert (result.removed, result.kept, result.mask, result.difference) == ({}, {}, None, 0.0)
    assert result.network is not network
    pairs = zip(network.parameters(), result.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("reader", "folds"),
    [
        (nn.Conv2d(4, 3, 1, stride=2), True),
        (nn.Conv2d(4, 3, 3), True),
        (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), True),
        (nn.Conv2d(4, 3, 3, bias=False), True),
        (nn.Conv2d(4, 3, 3, padding=1), False),  # fewer taps at the borders
        (nn.ConvTranspose2d(4, 3, 4, 2, 1), False),  # as in DCGAN
        (nn.ConvTranspose2d(4, 3, 2, 2), False),  # one weight for each place, but not the same one
    ],
    ids=str,
)
def test_a_constant_is_folded_only_where_a_bias_can_stand_for_it(reader, folds):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), reader), samples(2, 2, 6, 6)
    with torch.no_grad():
        network[0].weight[1], network[0].bias[1] = 0, 0.5
    result = compact(network, x)
    assert result.removed == ({"0": (1,)} if folds else {})
    if not folds:
        ((reason, channels),) = result.kept["0"].items()
        assert channels == (1,)
        assert "borders" in reason
    for y in (x, samples(2, 2, 9, 9)):
        assert_same(network, result, y)
    with torch.no_grad():
        network[0].bias[1] = -0.5  # zero behind ReLU, whatever reads it
    assert compact(network, x).removed == {"0": (1,)}


def test_it_goes_on_until_nothing_changes():
    network, x = dense(), samples(16, 4)
    with torch.no_grad():
        network[0].weight[:4] = 0
        network[3].weight[:3, 4:] = 0  # these read constants alone
        network[7].weight[:, 5] = 0  # nobody reads channel 5
        network[5].weight[:5, 7] = 0  # so that nobody reads channel 7
    result = compact(network, x)
    assert result.removed == {"0": (0, 1, 2, 3), "3": (0, 1, 2, 7), "5": (5,)}
    assert_same(network, result, x)


def test_a_layer_keeps_one_channel():
    network, x = dense(), samples(16, 4)
    with torch.no_grad():
        for layer in (network[0], network[3], network[5]):
            layer.weight.zero_()
    result = compact(network, x)
    assert [w.shape[0] for w in prunable_weights(result.network).values()] == [1, 1, 1, 3]
    assert "last channel" in next(iter(result.kept["0"]))
    assert_same(network, result, x)


class Coupled(nn.Module):
    """Each channel of the concatenation goes through a layer that makes and reads it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.o = nn.Linear(2, 3), nn.Linear(2, 2), nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x):
        h = torch.cat([self.a(x), self.b(x)], 1)
        return self.o(h + self.c(h))


def test_a_channel_goes_when_all_branches_of_its_sum_are_dead():
    network, x = Coupled(), samples(8, 2)
    with torch.no_grad():
        for layer, row in ((network.a, 0), (network.b, 0), (network.c, 0), (network.c, 3), (network.a, 1)):
            layer.weight[row], layer.bias[row] = 0, 0
    result = compact(network, x)
    assert result.removed == {"a": (0,), "b": (0,), "c": (0, 3)}
    assert_same(network, result, x)


class Between(nn.Module):
    """Pooling, upsampling, a reshape by the batch's size, slices of positions, PReLU, concatenation."""

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


def test_what_lies_between_layers():
    network, x = Between(), samples(4, 3)
    with torch.no_grad():
        network.first.weight[9:18], network.first.bias[9:18] = 0, 0.0
        network.two.weight[1], network.two.bias[1] = 0, 0.7
        network.last.weight[:, 8:12] = 0
    result = compact(network, x)
    assert result.removed == {"first": tuple(range(9, 18)), "one": (2,), "two": (1,)}
    assert_same(network, result, x)


def test_spectral_norm_is_folded_and_a_smaller_gan_is_saved(tmp_path):
    gan = gp.dcgan(width=4, latent_dim=6, norm="spectral", device="cpu")
    assert gan.discriminator.spec.norm == "spectral"
    mask, x = gp.prune(gan.discriminator, 0.97, allocation="uniform"), samples(4, 1, 28, 28)
    result = compact(gan.discriminator, mask=mask)
    assert_same(gan.discriminator, result, x)
    assert result.network.spec.channels != gan.discriminator.spec.channels
    small = gp.GAN(gan.generator, result.network)
    small.masks["discriminator"] = result.mask
    gp.save(tmp_path / "small.safetensors", small)
    loaded = gp.load(tmp_path / "small.safetensors", device="cpu").discriminator
    assert_same(gan.discriminator, dataclasses.replace(result, network=loaded), x)


@pytest.mark.parametrize("name", [name for name in UNSEEN if name != "tied"])
def test_networks_that_the_package_has_not_seen(name):
    network, arguments = build(name)
    mask = gp.prune(liven(network), 0.85, score="random", allocation="uniform")
    result = compact(network, arguments, mask)
    assert_same(network, result, *arguments)


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("attention", "0", "does not match"),
        ("tied", "first", "shares its weight"),
        ("frozen", "0", "is frozen"),
    ],
)
def test_what_stands_in_the_way_is_said(name, layer, reason):
    network, arguments = build(name)
    for slot in weight_slots(network).values():
        slot.raw.data.zero_()
    result = compact(network, arguments)
    assert layer not in result.removed
    assert any(reason in why for why in result.kept.get(layer, {})), result.kept


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda n, x: compact(n, x, Mask({"0.weight": torch.zeros(8, 4).bool()})), MaskError),
        (lambda n, x: compact(n, x, Mask({"9.weight": torch.ones(1, 1).bool()})), ValueError),
        (lambda n, x: compact(n, x, {"0.weight": torch.ones(8, 4).bool()}), TypeError),
        (lambda n, x: compact(n), ValueError),
        (lambda n, x: compact(nn.Sequential(nn.BatchNorm1d(3)), x), ValueError),
        (lambda n, x: torch.inference_mode(compact)(n, x), ChannelError),
    ],
)
def test_wrong_arguments_are_refused(call, error):
    with pytest.raises(error):
        call(dense(), samples(4, 4))
