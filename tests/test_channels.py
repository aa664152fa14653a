"""Structured pruning: coupled channels, masking, removing, importances, promises, slimming."""

import copy
import dataclasses
import types

import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from unseen_networks import UNSEEN, build

import ganprune as gp
from ganprune.channels.compaction import compact
from ganprune.channels.folding import fold_norms, restore_spectral_norm
from ganprune.channels.importance import IMPORTANCES, channel_importance
from ganprune.channels.parts import ChannelError
from ganprune.channels.shrinking import CHANNEL_ALLOCATIONS, plan_channels, shrink_channels
from ganprune.channels.slimming import slim, slimming_penalty
from ganprune.channels.surgery import channel_groups, mask_channels, remove_channels
from ganprune.masks.weights import effective_weights, weight_slots
from ganprune.metrics import count_parameters, macs

SHRINKABLE = [name for name in UNSEEN if name not in ("linear first", "attention", "tied", "frozen")]
NORMS = {
    "spectral": parametrizations.spectral_norm,
    "weight": parametrizations.weight_norm,
    "older spectral": nn.utils.spectral_norm,
    "older weight": nn.utils.weight_norm,
}


def course(name, width=4, **options):
    """A network of the package with random buffers and biases, so that nothing is zero by accident."""
    gan = (
        gp.mlp_gan(hidden=(12, 20), device="cpu", **options)
        if name.startswith("mlp")
        else gp.dcgan(width=width, latent_dim=6, device="cpu", **options)
    )
    network = gan.generator if name.endswith("generator") else gan.discriminator
    return lively(network)


def lively(network, seed=0):
    """The network with norms, biases and statistics that are neither zero nor one."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=random))
                layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=random))
                if layer.affine:
                    layer.weight.copy_(torch.randn(layer.num_features, generator=random))
                    layer.bias.copy_(torch.randn(layer.num_features, generator=random))
            elif getattr(layer, "bias", None) is not None:
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=random))
    return network


COURSE = ("generator", "discriminator", "mlp generator", "mlp discriminator")


def batch_for(network):
    spec = network.spec
    shape = (spec.latent_dim,) if hasattr(spec, "latent_dim") else getattr(spec, "image_shape", None)
    return torch.randn(5, *(shape or spec.input_shape), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def evaluated(network, *arguments):
    with gp.eval_mode(network):
        return network(*arguments)


def state(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


def close(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5 * max(1.0, float(second.abs().max())))


# --- Folding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_norms_are_folded_into_a_copy_and_the_original_is_untouched(norm):
    torch.manual_seed(0)
    network = nn.Sequential(
        NORMS[norm](nn.Conv2d(3, 4, 3)), nn.ReLU(), NORMS[norm](nn.ConvTranspose2d(4, 2, 3))
    )
    network[2].bias.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    network(x).sum().backward()  # an older hook now holds a weight that is no leaf
    expected, before, kinds = evaluated(network, x), state(network), [type(layer) for layer in network]
    plain = fold_norms(network)
    assert [type(layer) for layer in plain] == [nn.Conv2d, nn.ReLU, nn.ConvTranspose2d]
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    torch.testing.assert_close(evaluated(plain, x), expected, rtol=0, atol=0)
    assert [p.requires_grad for p in plain.parameters()] == [True, True, True, False]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    plain.load_state_dict(plain.state_dict())
    copy.deepcopy(plain)
    assert [type(layer) for layer in network] == kinds
    assert same(state(network), before)
    torch.testing.assert_close(evaluated(network, x), expected, rtol=0, atol=0)
    network.train()
    network(x)  # power iterations go on
    assert same(state(plain), {key: torch.zeros_like(value) for key, value in plain.state_dict().items()})


def test_folding_takes_a_layer_alone_an_embedding_and_what_is_wrapped():
    layer = parametrizations.spectral_norm(nn.Linear(3, 2))
    assert type(fold_norms(layer)) is nn.Linear
    table = parametrizations.spectral_norm(nn.Embedding(5, 4))
    labels = torch.arange(5)
    close(fold_norms(nn.Sequential(table))(labels), evaluated(table, labels))
    assert isinstance(fold_norms(nn.DataParallel(nn.Sequential(layer))), nn.Sequential)


# --- Groups ---------------------------------------------------------------------------------------


def test_the_groups_of_the_networks_of_the_course():
    groups = channel_groups(gp.dcgan(width=4, device="cpu").generator)
    assert [(g.name, g.channels, g.prunable) for g in groups] == [
        ("layers.deconv1", 16, True),
        ("layers.deconv2", 8, True),
        ("layers.deconv3", 4, True),
        ("layers.deconv4", 1, False),
    ]
    assert "output" in groups[-1].reason
    assert {(m.name, m.role) for m in groups[1].members} == {
        ("layers.deconv2", "output"),
        ("layers.norm2", "both"),
        ("layers.deconv3", "input"),
    }
    groups = channel_groups(gp.dcgan(width=4, device="cpu").discriminator)
    assert [g.name for g in groups if g.prunable] == ["layers.conv1", "layers.conv2", "layers.conv3"]
    groups = channel_groups(gp.mlp_gan(device="cpu").generator)
    assert [g.name for g in groups if g.prunable] == ["layers.linear1", "layers.linear2"]


EXPECTED = {
    "residual": {"block.conv1": ("block.conv1",), "block.conv2": ("block.conv2", "block.skip")},
    "linear first": {},
    "grouped": {"0": ("0", "2")},
    "1-D": {"0": ("0",)},
    "3-D": {"0": ("0",)},
    "attention": {},
    "tied": {},
    "frozen": {},
}


@pytest.mark.parametrize("name", UNSEEN)
def test_the_groups_of_networks_that_the_package_has_not_seen(name):
    network, inputs = build(name)
    before = state(network)
    groups = channel_groups(network, inputs)
    layers = {key.removesuffix(".weight") for key in gp.prunable_weights(network)}
    found = {g.name: tuple(n for n in g.layers if n in layers) for g in groups if g.prunable}
    assert found == EXPECTED[name]
    assert same(state(network), before)
    assert network.training


@pytest.mark.parametrize(
    ("name", "reason"),
    [("linear first", "first.*view"), ("tied", "first shares its weight"), ("frozen", "0 is frozen")],
)
def test_what_cannot_be_shrunk_is_refused_with_the_reason(name, reason):
    network, inputs = build(name)
    with pytest.raises(ChannelError, match=f"no channels that can be removed.*{reason}"):
        shrink_channels(network, inputs=inputs)


class Free(nn.Module):
    """A linear layer, a reshape that leaves the number of channels open, and what a test puts behind it."""

    latent_dim = 5

    def __init__(self, middle=None, channels=6):
        super().__init__()
        self.first, self.middle = nn.Linear(5, channels * 16), middle or nn.BatchNorm2d(channels)
        self.up = nn.ConvTranspose2d(channels, 2, 4, 2, 1)

    def forward(self, z):
        return torch.tanh(self.up(functional.relu(self.middle(self.first(z).view(len(z), -1, 4, 4)))))


def test_a_channel_behind_a_reshape_is_many_features():
    network = lively(Free())
    (group, _) = channel_groups(network)
    by_name = {member.name: member.indices for member in group.members}
    assert group.channels == 6
    assert by_name["first"][2] == tuple(range(32, 48))
    assert by_name["middle"][2] == by_name["up"][2] == (2,)
    z = torch.randn(3, 5)
    small = shrink_channels(network, 0.5)
    assert (small.first.out_features, small.middle.num_features, small.up.in_channels) == (48, 3, 3)
    masked = copy.deepcopy(network)
    mask_channels(masked, plan_channels(network, 0.5).removed)
    close(evaluated(small, z), evaluated(masked, z))
    with pytest.raises(ChannelError, match=r"channels \[0\] of first cannot be removed without \[1, 2"):
        remove_channels(network, {"first": [0]})


def test_a_normalisation_without_a_scale_of_its_own_keeps_zeros():
    network, z = lively(Free(nn.BatchNorm2d(6, affine=False))), torch.randn(3, 5)
    masked = copy.deepcopy(network)
    mask_channels(masked, {"first": range(32)})
    close(evaluated(remove_channels(network, {"first": range(32)}), z), evaluated(masked, z))


class PixelNorm(nn.Module):
    def forward(self, x):
        return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


class Halves(nn.Module):
    """Swaps the halves of the channels: with an even number of channels gone it may look right."""

    def forward(self, x):
        return x.roll(x.shape[1] // 2, 1)


class Recurrent(nn.GRU):
    def forward(self, x):
        return super().forward(x)[0]


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x)))


class Skip(nn.Module):
    """Adds its input; ``cat`` joins it instead."""

    def __init__(self, cat=False):
        super().__init__()
        self.cat, self.conv = cat, nn.Conv2d(6, 6, 3, padding=1)
        self.back = nn.Conv2d(12, 6, 1)

    def forward(self, x):
        h = torch.relu(self.conv(x))
        return self.back(torch.cat([x, h], 1)) if self.cat else x + h


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (PixelNorm(), "output is not that of the masked"),
        (nn.GroupNorm(2, 6), r"middle \(GroupNorm\) mixes its channels"),
        (nn.LayerNorm([6, 4, 4]), r"middle \(LayerNorm\) mixes its channels"),
        (nn.Softmax(1), "output is not that of the masked"),
        (Reused(), "middle.conv runs 2 times"),
        (nn.ChannelShuffle(2), "first"),
        (Halves(), "output is not that of the masked"),
        (
            nn.Sequential(nn.Flatten(2), Recurrent(16, 16), nn.Unflatten(2, (4, 4))),
            r"middle\.1 is a GRU, which cannot be",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_mix_channels_are_refused(middle, reason):
    with pytest.raises(ChannelError, match=reason):
        remove_channels(Free(middle), {"first": range(16)})


class Joined(nn.Sequential):
    """A concatenation behind a normalisation."""

    def __init__(self):
        super().__init__(nn.BatchNorm2d(6), Skip(cat=True))


@pytest.mark.parametrize(
    "middle", [nn.Sigmoid(), nn.PReLU(6), nn.PReLU(), nn.InstanceNorm2d(6, affine=True), Skip(), Joined()]
)
def test_layers_that_keep_channels_apart_are_followed(middle):
    torch.manual_seed(0)
    network, z = lively(Free(middle)), torch.randn(3, 5)
    assert channel_groups(network)[0].prunable
    small = remove_channels(network, {"first": [*range(16), *range(48, 64)]})
    masked = copy.deepcopy(network)
    mask_channels(masked, {"first": [*range(16), *range(48, 64)]}, consumers=True)
    assert small.up.in_channels == (6 if isinstance(middle, Joined) else 4)
    close(evaluated(small, z), evaluated(masked, z))


class Constant(nn.Module):
    """Starts at a learned constant, as style-based generators do; the noise has a strength per channel."""

    latent_dim = 5

    def __init__(self):
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.strength = nn.Parameter(torch.randn(6, 1, 1))
        self.scale, self.conv = nn.Linear(5, 6), nn.Conv2d(6, 2, 3)

    def forward(self, z):
        noise = torch.randn(len(z), 1, 4, 4)
        return self.conv(self.constant * self.scale(z)[:, :, None, None] + self.strength * noise)


def test_parameters_outside_layers_are_cut_too():
    torch.manual_seed(0)
    small = shrink_channels(Constant(), 0.5)
    assert (small.constant.shape, small.strength.shape) == ((1, 3, 4, 4), (3, 1, 1))
    assert (small.scale.out_features, small.conv.in_channels) == (3, 3)


class Gives(nn.Module):
    """Two layers, and whatever a test makes of the second one's output."""

    def __init__(self, give=lambda output: output, between=torch.relu):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.give, self.between = nn.Linear(3, 6), nn.Linear(6, 2), give, between

    def forward(self, x):
        return self.give(self.last(self.between(self.first(x))))


@dataclasses.dataclass
class Images:
    images: torch.Tensor
    name: str = "images"


@pytest.mark.parametrize(
    "give",
    [
        lambda y: (y, None),
        lambda y: {"images": [y], "name": "some", "scale": 2.0},
        Images,
        lambda y: (y, y > 0),
        lambda y: (y, y.argmax(1)),
        torch.fft.fft,
    ],
    ids=["none", "mapping", "dataclass", "bool", "integer", "complex"],
)
def test_whatever_holds_the_outputs(give):
    network, x = Gives(give), torch.randn(4, 3)
    assert [g.prunable for g in channel_groups(network, x)] == [True, False]
    small, masked = remove_channels(network, {"first": [1, 2]}, x), copy.deepcopy(network)
    mask_channels(masked, {"first": [1, 2]}, x)
    small.give = masked.give = lambda y: y
    close(evaluated(small, x), evaluated(masked, x))


def test_outputs_that_are_not_found_are_not_taken_for_equal():
    network = Gives(lambda y: types.SimpleNamespace(images=y))
    with pytest.raises(ChannelError, match="returns a SimpleNamespace, in which no tensor is found"):
        remove_channels(network, {"last": [0]}, torch.randn(4, 3))


class Together(Gives):
    """Does something else once two layers have both become smaller, and its outputs are tiny."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Linear(6, 5)
        self.last = nn.Linear(5, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1e-3)

    def forward(self, x):
        h = self.last(torch.relu(self.middle(torch.relu(self.first(x)))))
        return -h if self.first.out_features < 6 and self.middle.out_features < 5 else h


def test_what_goes_wrong_only_together_is_found_even_where_outputs_are_tiny():
    network, x = Together(), torch.randn(4, 3)
    for name in ("first", "middle"):
        remove_channels(network, {name: [0]}, x)
    with pytest.raises(ChannelError, match="channels of first, middle the network's output is not that"):
        remove_channels(network, {"first": [0], "middle": [0]}, x)


def test_a_module_with_two_names_is_one_and_stays_one():
    network, x = Gives(), torch.randn(4, 3)
    network.alias = network.first
    small = remove_channels(network, {"first": [0]}, x)
    assert small.alias is small.first
    assert small.first.out_features == 5


def test_around_it():
    """Averages are unwrapped; autocast, the random state and the sum of gradients are the caller's own."""
    generator = gp.dcgan(width=2, latent_dim=4, device="cpu").generator
    averaged = torch.optim.swa_utils.AveragedModel(generator)
    assert type(shrink_channels(averaged)) is type(generator)
    for model in (generator, nn.Sequential(nn.Linear(3, 6), nn.Dropout(), nn.Linear(6, 2))):
        inputs = None if model is generator else torch.randn(4, 3)
        before = torch.get_rng_state()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            shrink_channels(model, inputs=inputs)
        assert torch.equal(torch.get_rng_state(), before)
    local = nn.Sequential(nn.Conv2d(3, 6, 1), nn.LocalResponseNorm(3), nn.Conv2d(6, 1, 1))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ChannelError, match="output is not that"):
        remove_channels(lively(local), {"0": [1]}, torch.randn(2, 3, 5, 5))  # rounding would hide it
    with torch.inference_mode(), pytest.raises(ChannelError, match="inside torch.inference_mode"):
        shrink_channels(generator)


class Doubled(Gives):
    """Changes its inputs in place, which come as the test has it."""

    def forward(self, factor, given):
        images = given["images"][0] if isinstance(given, dict) else given
        return super().forward(images.mul_(2)) * factor


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"images": [x]}], ids=["tensor", "nested"])
def test_inputs_may_be_nested_and_stay_as_they_are(wrap):
    x, network = torch.randn(4, 3), Doubled()
    before, inputs = x.clone(), (torch.tensor(2.0), wrap(x))
    assert plan_channels(network, 0.5, inputs=inputs).dense_macs == 3 * 6 + 6 * 2
    shrink_channels(network, 0.5, inputs=inputs)
    compact(network, inputs)
    assert torch.equal(x, before)


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(ChannelError, match="Gives could not be followed on the inputs: mat1 and mat2"):
        channel_groups(Gives(), torch.randn(4, 5))


def test_a_network_without_prunable_weights_or_inputs_is_a_clear_error():
    with pytest.raises(ValueError, match="no prunable weight"):
        channel_groups(nn.Sequential(nn.BatchNorm2d(3)), torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match="inputs must be given for a Sequential"):
        channel_groups(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))


# --- Masking and removing -------------------------------------------------------------------------


@given(st.sampled_from(COURSE), st.data())
@settings(max_examples=10)
def test_a_network_of_the_course_without_channels_equals_the_masked_one(name, data):
    network = course(name, norm=data.draw(st.sampled_from(["spectral", "none"])))
    groups = [g for g in channel_groups(network) if g.prunable]
    channels = {
        g.name: data.draw(st.sets(st.integers(0, g.channels - 1), max_size=g.channels - 1)) for g in groups
    }
    before, x = state(network), batch_for(network)
    small = remove_channels(network, channels)
    masked = fold_norms(network)
    mask = mask_channels(masked, channels)
    close(evaluated(small, x), evaluated(masked, x))
    widths = tuple(g.channels - len(channels[g.name]) for g in groups)
    assert getattr(small.spec, "channels", getattr(small.spec, "hidden", None)) == widths
    assert mask.kept == sum(int(p.count_nonzero()) for p in gp.prunable_weights(masked).values())
    assert same(state(network), before)
    assert small.training is network.training is True


@pytest.mark.parametrize("name", SHRINKABLE)
def test_an_unseen_network_without_channels_equals_the_masked_one(name):
    for ratio, seed in ((0.3, 0), (0.5, 1), (0.8, 2)):
        network, inputs = build(name, seed)
        lively(network, seed)
        plan = plan_channels(network, ratio, inputs=inputs)
        small = shrink_channels(network, ratio, inputs=inputs)
        masked = fold_norms(network)
        mask_channels(masked, plan.removed, inputs)
        close(evaluated(small, *inputs), evaluated(masked, *inputs))
        assert count_parameters(small) == plan.parameters
        assert plan.parameters < plan.dense_parameters == count_parameters(fold_norms(network))


def test_a_smaller_generator_is_the_larger_ones_slices():
    """By hand, without the dependency graph."""
    network = course("generator").eval()
    removed = {"layers.deconv1": [0, 5, 6], "layers.deconv2.weight": [7], "layers.deconv3": [1, 2]}
    small = remove_channels(network, removed)
    sizes, keep = network.spec.channels, []
    for size, gone in zip(sizes, removed.values(), strict=True):
        keep.append([i for i in range(size) if i not in gone])
    spec = dataclasses.replace(network.spec, channels=tuple(map(len, keep)))
    hand = spec.build().eval()
    ins = [list(range(6)), *keep]
    with torch.no_grad():
        for number in range(1, 5):
            theirs, mine = (getattr(net.layers, f"deconv{number}") for net in (network, hand))
            outs = keep[number - 1] if number < 4 else [0]
            mine.weight.copy_(theirs.weight[ins[number - 1]][:, outs])
            if number == 4:
                mine.bias.copy_(theirs.bias)
                continue
            theirs, mine = (getattr(net.layers, f"norm{number}") for net in (network, hand))
            for attribute in ("weight", "bias", "running_mean", "running_var"):
                getattr(mine, attribute).copy_(getattr(theirs, attribute)[outs])
    assert small.spec == spec
    assert not small.training
    assert same(state(small), state(hand))


@pytest.mark.parametrize("name", ["generator", "mlp discriminator"])
def test_the_removal_equals_that_of_torch_pruning(name):
    network = course(name)
    theirs, inputs = copy.deepcopy(network), batch_for(network)
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, inputs, verbose=False)
    first = theirs.layers[0]
    prune = graph.get_pruner_of_module(first).prune_out_channels
    graph.get_pruning_group(first, prune, [1, 3]).prune()
    name_of = "layers.deconv1" if name == "generator" else "layers.linear1"
    assert same(state(remove_channels(network, {name_of: [1, 3]})), state(theirs))


def test_a_masked_channel_is_zero_with_its_scale_and_shift():
    network = course("generator")
    before, seen = copy.deepcopy(network), {}
    mask = mask_channels(network, {"layers.deconv1": [2], "layers.deconv2": [0, 3]})
    for name in ("norm1", "norm2", "norm3"):
        getattr(network.layers, name).register_forward_hook(
            lambda layer, given, out, name=name: seen.update({name: out.clone()})
        )
    evaluated(network, batch_for(network))
    zero = {name: (out == 0).all(dim=(0, 2, 3)).nonzero().flatten().tolist() for name, out in seen.items()}
    assert zero == {"norm1": [2], "norm2": [0, 3], "norm3": []}
    for name, gone in zero.items():
        for attribute in ("weight", "bias"):
            now, then = (getattr(getattr(n.layers, name), attribute) for n in (network, before))
            expected = then.clone()
            expected[gone] = 0
            assert torch.equal(now, expected)
    assert not mask["layers.deconv1.weight"][:, 2].any()
    assert mask["layers.deconv2.weight"][2].all(dim=(1, 2)).tolist() == [c not in (0, 3) for c in range(8)]
    assert mask["layers.deconv4.weight"].all()
    mask = mask_channels(network, {"layers.deconv1": [2]}, consumers=True)
    assert not mask["layers.deconv2.weight"][2].any()
    assert not network.layers.deconv2.weight[2].any()


def test_a_masked_channel_under_spectral_norm_stays_normed():
    network = course("discriminator")
    mask_channels(network, {"layers.conv2": range(4)})
    weight = network.layers.conv2.weight
    assert not weight[:4].any()
    assert torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("channels", "error", "message"),
    [
        ({"layers.deconv9": [0]}, ValueError, "'layers.deconv9', which is no layer; layers: layers.deconv1"),
        ({"layers.deconv1": [16]}, ValueError, r"layers.deconv1 must be in \[0, 16\), got \[16\]"),
        ({"layers.deconv1": [-1]}, ValueError, r"got \[-1\]"),
        ({"layers.deconv4": [0]}, ChannelError, "layers.deconv4 cannot be removed: these channels reach"),
        ({"layers.deconv3": range(4)}, ChannelError, "all 4 channels of layers.deconv3 would go"),
        ({"layers.deconv1": [True, False]}, TypeError, "layers.deconv1 must be integers, got True"),
        ({"layers.deconv1": torch.ones(16).bool()}, TypeError, "layers.deconv1 must be integers, got True"),
        ({"layers.deconv1": [1.5]}, TypeError, "must be integers, got 1.5"),
        ({"layers.deconv1": "12"}, TypeError, "must be integers, got '1'"),
        (["layers.deconv1"], TypeError, "channels must map layers to indices of channels, got list"),
    ],
)
@pytest.mark.parametrize("function", [remove_channels, mask_channels])
def test_wrong_channels_are_refused(function, channels, error, message):
    network = course("generator")
    before = state(network)
    with pytest.raises(error, match=message):
        function(network, channels)
    assert same(state(network), before)


# --- Importance -----------------------------------------------------------------------------------


def theirs(network, inputs, importance):
    """What torch-pruning finds for each convolution or linear layer's outputs."""
    graph = torch_pruning.DependencyGraph().build_dependency(network, inputs, verbose=False)
    groups = graph.get_all_groups(root_module_types=(nn.modules.conv._ConvNd, nn.Linear))
    return {graph._module2name[g[0].dep.target.module]: importance(g) for g in groups}


@pytest.mark.parametrize("name", ["l1", "l2", "bn"])
def test_magnitudes_equal_those_of_torch_pruning(name):
    network = course("generator")
    kinds = [nn.BatchNorm2d] if name == "bn" else [nn.ConvTranspose2d]
    oracle = torch_pruning.importance.GroupMagnitudeImportance(
        p=2 if name == "l2" else 1, group_reduction="sum", normalizer=None, target_types=kinds
    )
    expected = theirs(copy.deepcopy(network), batch_for(network), oracle)
    for key, found in channel_importance(network, name).items():
        torch.testing.assert_close(found.square() if name == "l2" else found, expected[key])


def test_coupled_and_grouped_layers_are_summed():
    """By the norm of what removing a channel takes away."""
    for name in ("residual", "grouped"):
        network, inputs = build(name)
        plain = fold_norms(network)
        total = sum(w.abs().sum() for w in gp.prunable_weights(plain).values())
        for key, values in channel_importance(network, "l1", inputs=inputs).items():
            group = next(g for g in channel_groups(network, inputs) if g.name == key)
            member = next(m for m in group.members if m.name == key)
            for channel, expected in enumerate(values):
                small = remove_channels(network, {key: member.indices[channel]}, inputs)
                left = sum(w.abs().sum() for w in gp.prunable_weights(small).values())
                torch.testing.assert_close(total - left, expected, rtol=1e-4, atol=1e-5)


def test_taylor_equals_that_of_torch_pruning_where_one_layer_reads():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.ConvTranspose2d(5, 1, 3))
    x, copied = torch.randn(4, 2, 6, 6), copy.deepcopy(network)
    loss_fn = lambda model: [model(x).square().mean()]
    copied.zero_grad()
    loss_fn(copied)[0].backward()
    oracle = torch_pruning.importance.GroupTaylorImportance(
        group_reduction="sum", normalizer=None, multivariable=True, target_types=[nn.ConvTranspose2d]
    )
    expected = theirs(copied, x, oracle)["0"]
    found = channel_importance(network, "taylor", loss_fn, x)["0"]
    torch.testing.assert_close(found.sqrt(), expected)


def test_taylor_is_the_square_of_what_removing_a_channel_does_to_a_linear_loss():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    batches = [torch.randn(5, 3).double() for _ in range(3)]
    loss_fn = lambda model: (model(x).sum() for x in batches)
    found = channel_importance(network, "taylor", loss_fn, batches)["0"]
    for channel in range(4):
        small = remove_channels(network, {"0": [channel]}, batches)
        changes = [one - other for one, other in zip(loss_fn(network), loss_fn(small), strict=True)]
        torch.testing.assert_close(found[channel], sum(change.square() for change in changes))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_taylor_of_a_generator_goes_through_the_discriminator_and_changes_nothing():
    gan = gp.dcgan(width=2, latent_dim=4, device="cpu")
    before = {name: state(network) for name, network in gan.networks().items()}
    loss_fn = gp.generator_loss(gan, batches=2, batch_size=4)
    found = channel_importance(gan.generator, "taylor", loss_fn=loss_fn)["layers.deconv3"]
    probe = copy.deepcopy(gan.generator)
    weight, epsilon = probe.layers.deconv4.weight, 1e-3
    expected = torch.zeros(2)
    for channel in range(2):
        moved = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.copy_(gan.generator.layers.deconv4.weight)
                weight[channel] *= 1 + sign * epsilon
                moved.append(torch.stack(list(loss_fn(probe))))
        expected[channel] = ((moved[0] - moved[1]) / (2 * epsilon)).square().sum()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-12)
    assert all(same(state(network), before[name]) for name, network in gan.networks().items())


def test_activations_are_measured_behind_the_activation_function():
    network = course("generator")
    batches = [torch.randn(4, 6), torch.randn(2, 6)]
    outputs = []
    network.layers.relu2.register_forward_hook(lambda layer, given, out: outputs.append(out.clone()))
    found = {
        name: channel_importance(network, name, inputs=batches)["layers.deconv2"]
        for name in ("activation", "apoz")
    }
    outputs.clear()
    for z in batches:
        evaluated(network, z)
    rows = torch.cat(outputs).movedim(1, 0).flatten(1)
    torch.testing.assert_close(found["activation"], rows.abs().mean(1))
    torch.testing.assert_close(found["apoz"], (rows > 0).float().mean(1))


def test_no_batch_of_a_generator_is_lost():
    network = course("generator")
    batches = [torch.randn(4, 6), torch.randn(2, 6)]
    listed, drawn = (channel_importance(network, "activation", inputs=x) for x in (batches, iter(batches)))
    assert all(torch.equal(drawn[key], values) for key, values in listed.items())
    plans = [plan_channels(network, 0.5, "activation", inputs=x) for x in (batches, iter(batches))]
    assert plans[0] == plans[1]


def test_random_importance_has_a_seed():
    network = course("generator")
    first, again, other = (channel_importance(network, "random", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_importances_refuse_what_they_cannot_do():
    network = course("generator")
    with pytest.raises(ValueError, match=f"importance must be one of {', '.join(IMPORTANCES)}, got 'size'"):
        channel_importance(network, "size")
    with pytest.raises(ValueError, match="'taylor' needs loss_fn"):
        channel_importance(network, "taylor")
    with pytest.raises(ValueError, match="loss_fn must yield at least one"):
        channel_importance(network, "taylor", loss_fn=lambda model: [])
    images = batch_for(network)
    with pytest.raises(ValueError, match="loss_fn must yield scalar losses"):
        channel_importance(network, "taylor", loss_fn=lambda model: [model(images)])
    with pytest.raises(ValueError, match="'taylor' is NaN or infinite in layers.deconv1, layers.deconv2"):
        plan_channels(network, 0.5, "taylor", loss_fn=lambda model: [model(images).mean() * float("nan")])
    with pytest.raises(ChannelError, match="layers.linear1 is followed by no batch norm"):
        channel_importance(course("mlp generator"), "bn")
    with pytest.raises(ValueError, match="protect names nothing"):
        channel_importance(network, "l1", protect=["nothing"])


# --- Shrinking ------------------------------------------------------------------------------------


@given(
    st.sampled_from(COURSE),
    st.floats(0, 0.95),
    st.sampled_from(["l1", "l2", "random"]),
    st.sampled_from(CHANNEL_ALLOCATIONS),
    st.sampled_from([1, 2, 8]),
)
@settings(max_examples=16)
def test_the_promise_is_kept(name, ratio, importance, allocation, round_to):
    network = course(name)
    options = {"allocation": allocation, "round_to": round_to, "seed": 3}
    plan = plan_channels(network, ratio, importance, **options)
    small = shrink_channels(network, ratio, importance, **options)
    assert (count_parameters(small), macs(small)) == (plan.parameters, plan.macs)
    plain = fold_norms(network)
    assert (count_parameters(plain), macs(plain)) == (plan.dense_parameters, plan.dense_macs)
    masked = fold_norms(network)
    mask_channels(masked, plan.removed)
    close(evaluated(small, batch_for(network)), evaluated(masked, batch_for(network)))
    totals = {g.name: g.channels for g in channel_groups(network) if g.prunable}
    assert all(1 <= kept <= totals[key] for key, kept in plan.kept.items())
    assert all(kept % round_to == 0 or kept == totals[key] for key, kept in plan.kept.items())
    if round_to == 1 and allocation == "global":
        assert sum(totals.values()) - sum(plan.kept.values()) <= round(ratio * sum(totals.values()))
    if round_to == 1 and allocation == "uniform":
        assert plan.kept == {k: max(n - round(ratio * n), 1) for k, n in totals.items()}
    assert plan.macs_fraction <= 1
    assert plan.parameters_fraction <= 1


def test_the_least_important_go_first_and_of_equal_ones_the_first():
    network = course("mlp generator")
    values = {"layers.linear1": torch.tensor([3.0, 1, 2, 1, 1, 5, 6, 7, 8, 9, 10, 11])}
    plan = plan_channels(network, 0.25, values)
    assert plan.removed == {"layers.linear1": (1, 3, 4)}
    assert plan.kept == {"layers.linear1": 9}


def test_a_global_threshold_takes_the_least_of_all_and_empties_no_layer():
    network = course("generator")
    with torch.no_grad():
        for number in (1, 2, 3):
            norm = getattr(network.layers, f"norm{number}")
            norm.weight.copy_(torch.linspace(0.1, 1, norm.num_features) * (0.01 if number == 2 else -1.0))
    plan = plan_channels(network, 0.5, "bn", allocation="global")
    assert plan.kept["layers.deconv2"] == 1  # all of it is below the threshold
    assert sum(plan.kept.values()) == 14
    kept = [getattr(network.layers, f"norm{n}").weight.abs() for n in (1, 3)]
    gone = torch.cat(
        [w[list(plan.removed.get(f"layers.deconv{n}", ()))] for n, w in zip((1, 3), kept, strict=True)]
    )
    stay = torch.cat(kept).sort().values[len(gone) :]
    assert gone.max() <= stay.min()
    assert plan_channels(network, 0.9, "bn", allocation="global", minimum=3).kept == {
        f"layers.deconv{number}": 3 for number in (1, 2, 3)
    }


def test_globally_compared_magnitudes_are_divided_by_their_mean_in_the_group():
    network = course("mlp generator")
    values = channel_importance(network, "l1")
    relative = {key: (v / v.mean()).tolist() for key, v in values.items()}
    least = sorted((value, key) for key, found in relative.items() for value in found)[:16]  # of 12 + 20
    kept = plan_channels(network, 0.5, "l1", allocation="global").kept
    assert kept == {k: len(v) - sum(key == k for _, key in least) for k, v in relative.items()}
    plain = sorted((float(value), key) for key, found in values.items() for value in found)[:16]
    assert kept != {k: len(v) - sum(key == k for _, key in plain) for k, v in values.items()}


def test_a_ratio_takes_its_share_of_the_weights_of_interior_layers():
    network = gp.dcgan(width=8, device="cpu").generator
    for ratio in (0.25, 0.5, 0.75):
        small = shrink_channels(network, ratio)
        for name in ("deconv2", "deconv3"):
            before, after = (getattr(net.layers, name).weight.numel() for net in (network, small))
            assert 1 - after / before == pytest.approx(1 - (1 - ratio) ** 2)


def test_rounding_protection_and_minimum():
    network = course("generator")  # 16, 8, 4
    assert plan_channels(network, 0.3, round_to=8).kept == {
        "layers.deconv1": 8, "layers.deconv2": 8, "layers.deconv3": 4,
    }  # fmt: skip
    assert plan_channels(network, 0.9, minimum=3).kept == {
        "layers.deconv1": 3, "layers.deconv2": 3, "layers.deconv3": 3,
    }  # fmt: skip
    assert set(plan_channels(network, 0.5, protect="layers.deconv2").removed) == {
        "layers.deconv1",
        "layers.deconv3",
    }
    assert plan_channels(network, 0.9, minimum=3, round_to=2).kept == {
        "layers.deconv1": 4, "layers.deconv2": 4, "layers.deconv3": 4,
    }  # fmt: skip
    with pytest.raises(ChannelError, match="layers.deconv1: protected"):
        plan_channels(network, 0.5, protect=["layers"])


def test_a_share_of_the_multiply_accumulates_can_be_asked_for():
    network = gp.dcgan(width=8, device="cpu").generator
    for fraction in (1.0, 0.5, 0.1):
        plan = plan_channels(network, macs_fraction=fraction)
        assert plan.macs <= fraction * macs(network)
        one_more = {key: kept + (kept < 32) for key, kept in plan.kept.items()}
        larger = dataclasses.replace(network.spec, channels=tuple(one_more.values())).build()
        assert fraction == 1 or macs(larger) > fraction * macs(network)
        assert macs(shrink_channels(network, macs_fraction=fraction)) == plan.macs
    with pytest.raises(ChannelError, match="macs_fraction 0.0001 cannot be reached"):
        plan_channels(network, macs_fraction=0.0001)


def test_layers_that_are_called_by_keyword_are_counted():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.ConvTranspose2d(3, 6, 2), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.last(torch.relu(self.first(input=x)))

    network, x = Keyword(), torch.randn(2, 3, 5, 5)
    assert plan_channels(network, 0.5, inputs=x).dense_macs == 3 * 6 * 4 * 25 + 6 * 2 * 36
    shrink_channels(network, 0.5, inputs=x)


def test_nothing_removed_is_the_same_network():
    network = course("generator")
    small = shrink_channels(network, 0.0)
    assert small is not network
    assert small.spec == network.spec
    assert same(state(small), state(network))


def test_modes_flags_and_layout_come_along():
    gan = gp.dcgan(width=4, device="cpu")
    small = shrink_channels(gan.generator_ema)
    assert not small.training
    assert not any(parameter.requires_grad for parameter in small.parameters())
    network = course("generator").to(memory_format=torch.channels_last)
    close(
        evaluated(shrink_channels(network), batch_for(network)),
        evaluated(shrink_channels(course("generator")), batch_for(network)),
    )
    double = course("discriminator").double()
    assert next(shrink_channels(double).parameters()).dtype == torch.float64


def test_a_shrunk_gan_is_saved_and_loaded(tmp_path):
    gan = gp.dcgan(width=4, device="cpu")
    lively(gan.generator)
    small = gp.GAN(
        shrink_channels(gan.generator, 0.5),
        shrink_channels(gan.discriminator, 0.25),
        shrink_channels(gan.generator_ema, 0.5),
    )
    gp.save(tmp_path / "small.safetensors", small)
    back = gp.load(tmp_path / "small.safetensors", device="cpu")
    assert back.spec == small.spec
    assert back.spec.generator.channels == (8, 4, 2)
    assert back.spec.discriminator.channels == (3, 6, 12)
    assert (back.spec.discriminator.norm, back.spec.discriminator.logit_gain) == ("none", 20.0)
    for name, network in small.networks().items():
        assert same(state(back.networks()[name]), state(network))


def test_spectral_norm_can_be_put_back():
    network = course("discriminator")
    small = shrink_channels(network)
    normed = restore_spectral_norm(small)
    assert normed.spec == dataclasses.replace(small.spec, norm="spectral")
    for key, weight in effective_weights(normed).items():
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-4)
        raw = dict(small.named_parameters())[key]
        torch.testing.assert_close(gp.prunable_weights(normed)[key], raw)
    with torch.no_grad():
        for key, slot in weight_slots(small).items():
            slot.raw.copy_(effective_weights(normed)[key])  # of norm one: nothing changes any more
    x, again = batch_for(network), restore_spectral_norm(small)
    torch.testing.assert_close(evaluated(again, x), evaluated(small, x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="spec whose norm is 'none'"):
        restore_spectral_norm(network)


def test_a_spec_that_the_package_does_not_know_is_refused():
    network = Free()
    network.spec = dataclasses.make_dataclass("OwnSpec", [("latent_dim", int)], frozen=True)(5)
    with pytest.raises(ChannelError, match="not known how the spec OwnSpec looks"):
        shrink_channels(network)
    del network.spec
    assert shrink_channels(network).up.in_channels == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channel_ratio": 1.0}, ValueError, r"channel_ratio must be in \[0, 1\), got 1.0"),
        ({"channel_ratio": float("nan")}, ValueError, "channel_ratio must be in"),
        ({"channel_ratio": "half"}, TypeError, "channel_ratio must be a number"),
        ({"macs_fraction": 0.0}, ValueError, r"macs_fraction must be in \(0, 1\]"),
        ({"allocation": "erk"}, ValueError, "allocation must be one of uniform, global, got 'erk'"),
        ({"round_to": 0}, ValueError, "round_to must be an integer of at least 1, got 0"),
        ({"minimum": 1.5}, ValueError, "minimum must be an integer of at least 1, got 1.5"),
        ({"importance": "size"}, ValueError, "importance must be one of"),
        (
            {"importance": {"layers.deconv9": torch.ones(2)}},
            ValueError,
            "importance must be keyed by some of",
        ),
        ({"importance": {"layers.deconv1": torch.ones(2)}}, ValueError, "must be 16 finite numbers"),
        ({"protect": ["nothing"]}, ValueError, "protect names nothing"),
        ({"importance": 3}, ValueError, "importance must be one of"),
        ({"importance": {"layers.deconv1": [1.0] * 16}}, TypeError, "must be a tensor, got list"),
        ({"macs_fraction": "half"}, TypeError, r"macs_fraction must be a number in \(0, 1\]"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        shrink_channels(course("generator"), **options)


# --- Slimming -------------------------------------------------------------------------------------


def test_slimming_adds_the_gradient_of_the_penalty():
    network = course("generator")
    twin, z, strength, found = copy.deepcopy(network), torch.randn(4, 6), 0.3, []
    with torch.no_grad():
        for one in (network, twin):
            one.layers.norm1.weight[3] = 0.0  # the subgradient there is zero
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    other = torch.optim.SGD(twin.parameters(), lr=0.1)
    network(z).square().mean().backward()
    with slim(network, strength, optimizer):
        handle = optimizer.register_step_pre_hook(
            lambda *_: found.extend(p.grad.clone() for p in network.parameters())
        )
        optimizer.step()
        handle.remove()
    (twin(z).square().mean() + strength * slimming_penalty(twin)).backward()
    other.step()
    assert all(torch.equal(grad, p.grad) for grad, p in zip(found, twin.parameters(), strict=True))
    assert same(state(network), state(twin))
    assert slimming_penalty(network).item() == pytest.approx(
        sum(float(getattr(network.layers, f"norm{n}").weight.abs().sum().detach()) for n in (1, 2, 3))
    )
    before = state(network)
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()  # the hook is gone
    assert same(state(network), before)


def test_slimming_trains_with_the_loop_of_the_package():
    left = []
    for strength in (None, 1.0):
        gan = gp.dcgan(width=2, latent_dim=4, device="cpu")
        config = gp.TrainConfig(steps=3, batch_size=4, precision="float32", learning_rate=1e-2)
        training = gp.TrainState(gan, config)
        if strength is None:
            gp.train(training, gp.mnist("cpu").train)
        else:
            with slim(gan.generator, strength, training.optimizers["generator"]):
                gp.train(training, gp.mnist("cpu").train)
        left.append(float(slimming_penalty(gan.generator).detach()))
    assert left[1] < left[0]


def test_the_shift_of_a_slimmed_channel_is_gone_with_it():
    """γ = 0 leaves ReLU(β) in the network; the mask and the smaller network have neither."""
    network = course("generator")
    with torch.no_grad():
        network.layers.norm2.weight[5], network.layers.norm2.bias[5] = 0.0, 2.0
    plan = plan_channels(network, 1 / 28, "bn", allocation="global")
    assert plan.removed == {"layers.deconv2": (5,)}
    x, masked = batch_for(network), copy.deepcopy(network)
    mask_channels(masked, plan.removed)
    small = shrink_channels(network, 1 / 28, "bn", allocation="global")
    close(evaluated(small, x), evaluated(masked, x))
    assert not torch.allclose(evaluated(small, x), evaluated(network, x), atol=1e-3)


def test_slimming_refuses_what_it_cannot_do():
    network = course("generator")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for strength in (0, -1.0, float("nan"), "much"):
        with (
            pytest.raises((TypeError, ValueError), match=r"strength must be (a number )?in \(0, inf\), got"),
            slim(network, strength, optimizer),
        ):
            pass
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got NoneType"):
        slim(network, 1.0, None).__enter__()
    other = torch.optim.SGD(course("generator").parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer does not hold"), slim(network, 1.0, other):
        pass
    with pytest.raises(ValueError, match="no batch norm with a scale"):
        slimming_penalty(course("mlp generator"))


# --- Networks as others write them ----------------------------------------------------------------


class Concatenated(nn.Module):
    """Two producers side by side, and a layer that both are coupled to."""

    def __init__(self, kind, reader_first=False):
        super().__init__()
        self.kind, groups = kind, 10 if kind == "depth-wise" else 1
        reader = nn.Conv2d(10, 10, 3, 1, 1, groups=groups)
        if reader_first:
            self.c = reader
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.c, self.o = reader, nn.Conv2d(10, 2, 1)

    def forward(self, x):
        h = torch.relu(torch.cat([self.a(x), self.b(x)], 1))
        c = self.c(h)
        return self.o({"depth-wise": c, "residual": h + c, "gate": h * torch.sigmoid(c)}[self.kind])


@pytest.mark.parametrize("reader_first", [False, True])
@pytest.mark.parametrize("kind", ["depth-wise", "residual", "gate"])
def test_channels_coupled_to_two_groups_shrink(kind, reader_first):
    torch.manual_seed(0)
    network, x = Concatenated(kind, reader_first), torch.randn(2, 3, 5, 5)
    plan = plan_channels(network, 0.5, inputs=x)
    small, masked = shrink_channels(network, 0.5, inputs=x), copy.deepcopy(network)
    mask_channels(masked, plan.removed, x, consumers=True)
    close(evaluated(small, x), evaluated(masked, x))
    assert (small.a.out_channels, small.b.out_channels, small.c.out_channels) == (2, 3, 5)


class Modulated(nn.Module):
    """Folds samples into the groups of a convolution, as StyleGAN2 does, and sums images."""

    def __init__(self):
        super().__init__()
        self.first, self.style = nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 8)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(o, 8, 1, 1)) for o in (8, 3, 8, 3))

    def modulate(self, x, weight, style):
        b, c, h, w = x.shape
        k = (weight[None] * (style[:, None, :, None, None] + 1)).reshape(-1, c, 1, 1)
        return functional.conv2d(x.reshape(1, -1, h, w), k, groups=b).reshape(b, -1, h, w)

    def forward(self, z):
        x, image, style = self.first(z[:, :, None, None].expand(-1, -1, 4, 4)), 0, self.style(z)
        for hidden, shown in (self.weights[:2], self.weights[2:]):
            x = functional.leaky_relu(self.modulate(x, hidden, style), 0.2)
            image = image + self.modulate(x, shown, style)
        return image


def test_the_search_through_the_graph_is_bounded():
    with pytest.raises(ChannelError, match="no channels that can be removed"):
        shrink_channels(Modulated(), 0.5, inputs=torch.randn(2, 8))


def test_an_inplace_activation_behind_instance_norm_shrinks():
    layers = [nn.Conv2d(4, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.ReLU(True), nn.Conv2d(16, 3, 1)]
    small = shrink_channels(nn.Sequential(*layers), 0.5, inputs=torch.randn(2, 4, 8, 8))
    assert small[1].num_features == small[3].in_channels == 8


def test_a_gated_linear_unit_is_refused_with_the_reason():
    network = nn.Sequential(nn.Conv2d(4, 32, 3), nn.BatchNorm2d(32), nn.GLU(1), nn.Conv2d(16, 3, 3))
    with pytest.raises(ChannelError, match="gated linear unit"):
        shrink_channels(network, 0.5, inputs=torch.randn(2, 4, 8, 8))


def test_a_part_called_module():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.head = nn.Linear(2, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.module(x))

    assert shrink_channels(Own(), inputs=torch.randn(2, 2)).module.out_features == 2


def test_latents_may_be_images_of_one_pixel():
    network = nn.Sequential(nn.ConvTranspose2d(8, 16, 7), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 4))
    network.latent_dim = 8
    assert shrink_channels(network)[0].out_channels == 8


def test_taylor_takes_a_loss_that_is_returned():
    network, z = course("generator"), torch.ones(2, 6)
    returned = channel_importance(network, "taylor", lambda model: model(z).mean())
    yielded = channel_importance(network, "taylor", lambda model: [model(z).mean()])
    assert all(torch.equal(returned[key], values) for key, values in yielded.items())
