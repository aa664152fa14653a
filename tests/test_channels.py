"""Coupled channels: which ones hang together, as disturbing them one by one shows, and what is refused."""

import copy
import dataclasses
import types

import pytest
import torch
from hypothesis import given, settings
from tools.channel_families import FOLLOWED, OTHER, REFUSED, Together
from tools.channel_networks import (
    Do,
    Gives,
    Join,
    cat,
    close,
    course,
    drawn_networks,
    evaluated,
    free,
    lively,
    reshaped,
    state,
)
from tools.coupling import coupled, units_of
from tools.small_gans import equal
from torch import nn
from unseen_networks import UNSEEN, build

import ganprune as gp
from ganprune.channels import (
    ChannelError,
    channel_groups,
    compact,
    mask_channels,
    plan_channels,
    remove_channels,
    shrink_channels,
)

LATENTS = torch.randn(4, 3)


def units_in(groups, reason=""):
    """All that goes with each channel that may go, or that stays for this reason."""
    return [unit for group in groups if group.reason == reason for unit in units_of(group)]


def hidden_units(network, batch):
    """All that hangs together and does not reach the output."""
    return {unit for unit, shown in coupled(network, batch).items() if not shown}


@given(drawn_networks())
@settings(max_examples=80)
def test_what_may_go_is_what_hangs_together(network):
    """Nothing else may go; and all of it may, but for a few limits, which are refused and never taken wrongly."""
    before, hidden = state(network), hidden_units(network, network.batch)
    groups = channel_groups(network, network.batch)
    found = units_in(groups)
    assert {*found} <= hidden
    assert len({*found}) == len(found)
    kinds = {layer.how if isinstance(layer, Join) else type(layer) for layer in network}
    if cat not in kinds and not kinds >= {Do, nn.Flatten}:
        assert {*found, *units_in(groups, "there is only one such channel")} == hidden
    assert len({group.name for group in groups}) == len(groups)
    assert equal(state(network), before)
    assert network.training


@pytest.mark.parametrize("name", [name for name in FOLLOWED if name != "loose parameters"])
def test_networks_as_others_write_them_are_followed(name):
    make, batch, _ = FOLLOWED[name]
    torch.manual_seed(0)
    network = lively(make())
    assert {*units_in(channel_groups(network, batch))} == hidden_units(network, batch)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("generator", {"deconv1": 16, "deconv2": 8, "deconv3": 4}),
        ("discriminator", {"conv1": 4, "conv2": 8, "conv3": 16}),
        ("mlp generator", {"linear1": 12, "linear2": 20}),
        ("mlp discriminator", {"linear1": 20, "linear2": 12}),
    ],
)
def test_the_groups_of_the_networks_of_the_course(name, widths):
    network = course(name, norm="none")
    groups = channel_groups(network)
    assert {g.name.removeprefix("layers."): g.channels for g in groups if g.prunable} == widths
    assert groups[-1].reason == "these channels reach the network's output"
    assert {*units_in(groups)} == hidden_units(network, network.batch)
    normed, averaged = course(name), torch.optim.swa_utils.AveragedModel(network)
    assert channel_groups(normed) == channel_groups(averaged) == groups
    assert type(shrink_channels(averaged)) is type(network)


EXPECTED = {
    "linear first": {"first": ("first",)},
    "residual": {
        "first": ("first",),
        "block.conv1": ("block.conv1",),
        "block.conv2": ("block.conv2", "block.skip"),
    },
    "grouped": {"0": ("0", "2")},
    "1-D": {"0": ("0",)},
    "3-D": {"0": ("0",)},
}
REASONS = {
    "attention": "0: the dependency graph does not match",
    "tied": "first: first shares its weight",
    "frozen": "0: 0 is frozen",
}


@pytest.mark.parametrize("name", UNSEEN)
def test_the_groups_of_networks_that_the_package_has_not_seen(name):
    network, inputs = build(name)
    before, layers = state(network), {key.removesuffix(".weight") for key in gp.prunable_weights(network)}
    groups = channel_groups(network, inputs)
    found = {g.name: tuple(n for n in g.layers if n in layers) for g in groups if g.prunable}
    assert found == EXPECTED.get(name, {})
    if name in REASONS:
        with pytest.raises(ChannelError, match=f"no channels that can be removed: (.*; )?{REASONS[name]}"):
            shrink_channels(network, inputs=inputs)
    assert equal(state(network), before)
    assert network.training


@pytest.mark.parametrize("reshape", [reshaped(), nn.Unflatten(1, (-1, 4, 4))])
def test_a_channel_behind_a_reshape_is_many_features(reshape):
    network = free(reshape=reshape)
    indices = {member.name: member.indices[2] for member in channel_groups(network)[0].members}
    assert indices == {"first": tuple(range(32, 48)), "middle": (2,), "up": (2,)}
    with pytest.raises(ChannelError, match=r"channels \[0\] of first cannot be removed without \[1, 2"):
        remove_channels(network, {"first": [0]})


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_is_refused_with_the_reason_and_nothing_changes(name):
    make, batch, layer, reason = REFUSED[name]
    network = make()
    evaluated(network, batch)
    before = state(network)
    for function in (remove_channels, mask_channels):
        with pytest.raises(ChannelError, match=reason):
            function(network, {layer: [0]}, batch)
    if name == "modulated":  # the search through the graph is bounded
        with pytest.raises(ChannelError, match="no channels that can be removed: first: .*; style: "):
            shrink_channels(network, inputs=batch)
    assert equal(state(network), before)


def test_what_goes_wrong_only_together_is_found_even_where_outputs_are_tiny():
    network = Together()
    for name in ("first", "middle"):
        remove_channels(network, {name: [0]}, LATENTS)
    with pytest.raises(ChannelError, match="channels of first, middle the network's output is not that"):
        remove_channels(network, {"first": [0], "middle": [0]}, LATENTS)


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
def test_wrong_channels_are_refused(channels, error, message):
    network = course("generator")
    before = state(network)
    for function in (remove_channels, mask_channels):
        with pytest.raises(error, match=message):
            function(network, channels)
    assert equal(state(network), before)


def test_networks_and_inputs_that_do_not_fit_are_clear_errors():
    with pytest.raises(ValueError, match="no prunable weight"):
        channel_groups(nn.Sequential(nn.BatchNorm2d(3)), torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match="inputs must be given for a Sequential"):
        channel_groups(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))
    with pytest.raises(ChannelError, match="Gives could not be followed on the inputs: mat1 and mat2"):
        channel_groups(Gives(), torch.randn(4, 5))
    with pytest.raises(ChannelError, match="returns a SimpleNamespace, in which no tensor is found"):
        remove_channels(Gives(lambda y: types.SimpleNamespace(images=y)), {"last": [0]}, LATENTS)
    with torch.inference_mode(), pytest.raises(ChannelError, match="inside torch.inference_mode"):
        shrink_channels(course("generator"))


@dataclasses.dataclass
class Images:
    images: torch.Tensor
    name: str = "images"


GIVEN = {
    "none": lambda y: (y, None),
    "mapping": lambda y: {"images": [y], "name": "some", "scale": 2.0},
    "dataclass": Images,
    "bool": lambda y: (y, y > 0),
    "integer": lambda y: (y, y.argmax(1)),
    "complex": torch.fft.fft,
}


@pytest.mark.parametrize("name", GIVEN)
def test_whatever_holds_the_outputs(name):
    network = Gives(GIVEN[name])
    network.alias = network.first  # a module with two names is one, and stays one
    assert [g.prunable for g in channel_groups(network, LATENTS)] == [True, False]
    small, masked = remove_channels(network, {"first": [1, 2]}, LATENTS), copy.deepcopy(network)
    assert small.alias is small.first
    mask_channels(masked, {"first": [1, 2]}, LATENTS)
    small.give = masked.give = lambda y: y
    close(evaluated(small, LATENTS), evaluated(masked, LATENTS))


class Doubled(Gives):
    """Changes its inputs in place, which come as the test has it."""

    def forward(self, factor, given):
        images = given["images"][0] if isinstance(given, dict) else given
        return super().forward(images.mul_(2)) * factor


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"images": [x]}], ids=["tensor", "nested"])
def test_inputs_may_be_nested_and_stay_as_they_are(wrap):
    x, network = LATENTS.clone(), Doubled()
    inputs = (torch.tensor(2.0), wrap(x))
    assert plan_channels(network, 0.5, inputs=inputs).dense_macs == 3 * 6 + 6 * 2
    shrink_channels(network, 0.5, inputs=inputs)
    compact(network, inputs)
    assert torch.equal(x, LATENTS)


def test_latents_may_be_images_of_one_pixel():
    network = nn.Sequential(nn.ConvTranspose2d(8, 16, 7), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 4))
    network.latent_dim = 8
    assert shrink_channels(network)[0].out_channels == 8


def test_autocast_and_the_random_state_are_the_callers_own():
    for network in (course("generator"), nn.Sequential(nn.Linear(3, 6), nn.Dropout(), nn.Linear(6, 2))):
        before = torch.get_rng_state()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            shrink_channels(network, inputs=getattr(network, "batch", LATENTS))
        assert torch.equal(torch.get_rng_state(), before)
    local = nn.Sequential(nn.Conv2d(3, 6, 1), nn.LocalResponseNorm(3), nn.Conv2d(6, 1, 1))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ChannelError, match=OTHER):
        remove_channels(lively(local), {"0": [1]}, torch.randn(2, 3, 5, 5))  # rounding would hide it
