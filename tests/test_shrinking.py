"""Smaller networks: they are the masked ones, have what was promised, and can be saved like any other."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tools.channel_families import FOLLOWED
from tools.channel_networks import close, course, courses, drawn_networks, evaluated, free, lively, state
from tools.coupling import entries, units_of
from tools.small_gans import equal
from torch import nn
from torch.nn.utils import parametrizations
from unseen_networks import build

import ganprune as gp
from ganprune.channels import (
    CHANNEL_ALLOCATIONS,
    ChannelError,
    channel_groups,
    channel_importance,
    fold_norms,
    mask_channels,
    plan_channels,
    remove_channels,
    restore_spectral_norm,
    shrink_channels,
)
from ganprune.masks.weights import effective_weights, weight_slots
from ganprune.metrics import count_parameters, macs


def groups_of(network):
    """The groups that may go, if there is one."""
    groups = [group for group in channel_groups(network, network.batch) if group.prunable]
    assume(groups)
    return groups


def check_masked(small, network, removed, *inputs):
    """Compares a smaller network with the masked one, norms on whose weights are folded in."""
    masked = fold_norms(network)
    mask_channels(masked, removed, inputs, consumers=True)
    close(evaluated(small, *inputs), evaluated(masked, *inputs))


# --- Masking and removing -------------------------------------------------------------------------


@given(drawn_networks() | courses(), st.data())
@settings(max_examples=32)
def test_without_channels_a_network_is_the_masked_one_and_the_one_that_does_not_read_them(network, data):
    """What belongs to a channel is known by brute force: entries of parameters with a gradient."""
    before, batch, units, channels = state(network), network.batch, set(), {}
    for group in groups_of(network):
        some = data.draw(st.sets(st.integers(0, group.channels - 1), max_size=group.channels - 1))
        units.update(*(units_of(group)[number] for number in some))
        member = data.draw(st.sampled_from([m for m in group.members if m.role == "output"]))
        name = member.name + data.draw(st.sampled_from(["", ".weight"]))  # either names the layer
        for number in some:
            channels.setdefault(name, []).extend(member.indices[number])
    plain = fold_norms(network)
    made, read = entries(plain, units, "output", "both"), entries(plain, units, "input")
    small, masked, deaf, blind = remove_channels(network, channels, batch), *map(copy.deepcopy, [plain] * 3)
    mask = mask_channels(masked, channels, batch)
    wider = mask_channels(deaf, channels, batch, consumers=True)
    with torch.no_grad():
        for name, parameter in blind.named_parameters():
            cut, layer = small.get_parameter(name), plain.get_submodule(name.rpartition(".")[0])
            assert torch.equal(cut.flatten(), parameter[~(made[name] | read[name])])
            slope = isinstance(layer, nn.PReLU)  # which leaves zero at zero
            zero = parameter.masked_fill(made[name] & (not slope), 0.0)
            assert torch.equal(masked.get_parameter(name), zero)
            assert torch.equal(deaf.get_parameter(name), zero.masked_fill(read[name], 0.0))
            parameter[read[name]] = 0.0
    for name, role, index in units:
        if role == "both" and hasattr(plain.get_submodule(name), "running_mean"):
            assert masked.get_submodule(name).running_mean[index] == 0
    assert all(torch.equal(kept, ~made[key]) for key, kept in mask.items())
    assert all(torch.equal(kept, ~(made[key] | read[key])) for key, kept in wider.items())
    expected = evaluated(blind, batch)
    for one in (small, masked, deaf):
        close(evaluated(one, batch), expected)
    assert equal(state(network), before)
    assert small.training is network.training is True
    if hasattr(network, "spec"):
        widths = getattr(small.spec, "channels", None) or small.spec.hidden
        assert widths == tuple(w.shape["deconv" in k] for k, w in gp.prunable_weights(small).items())[:-1]


def test_a_masked_network_under_spectral_norm_stays_normed():
    network = course("discriminator")
    mask_channels(network, {"layers.conv2": range(4)})
    weight = network.layers.conv2.weight.detach()
    assert not weight[:4].any()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


# --- The promise ----------------------------------------------------------------------------------


@given(
    drawn_networks() | courses(),
    st.floats(0, 0.95),
    st.sampled_from(["l1", "l2", "random"]),
    st.sampled_from(CHANNEL_ALLOCATIONS),
    st.sampled_from([1, 2, 8]),
)
@settings(max_examples=20)
def test_the_promise_is_kept(network, ratio, importance, allocation, round_to):
    options = {"allocation": allocation, "round_to": round_to, "seed": 3, "inputs": network.batch}
    totals = {group.name: group.channels for group in groups_of(network)}
    plan, plain = plan_channels(network, ratio, importance, **options), fold_norms(network)
    small = shrink_channels(network, ratio, importance, **options)
    assert (count_parameters(small), macs(small, network.batch)) == (plan.parameters, plan.macs)
    assert (count_parameters(plain), macs(plain, network.batch)) == (plan.dense_parameters, plan.dense_macs)
    assert plan.parameters_fraction == plan.parameters / plan.dense_parameters <= 1
    assert plan.macs_fraction == plan.macs / plan.dense_macs <= 1
    check_masked(small, network, plan.removed, network.batch)
    assert plan.kept.keys() == totals.keys()
    assert all(1 <= kept <= totals[key] for key, kept in plan.kept.items())
    assert (plan.parameters == plan.dense_parameters) == (dict(plan.kept) == totals)


@pytest.mark.parametrize("name", [*FOLLOWED, "residual block", "grouped", "1-D", "3-D"])
def test_networks_as_others_write_them_shrink(name):
    torch.manual_seed(0)
    if name in FOLLOWED:
        make, inputs, shapes = FOLLOWED[name]
        network, inputs = make(), (inputs,)
    else:
        (network, inputs), shapes = build(name.removesuffix(" block")), {}
    plain = fold_norms(lively(network))
    for ratio in (0.3, 0.8, 0.5):
        plan = plan_channels(network, ratio, inputs=inputs)
        small = shrink_channels(network, ratio, inputs=inputs)
        check_masked(small, network, plan.removed, *inputs)
        assert (count_parameters(small), macs(small, inputs)) == (plan.parameters, plan.macs)
        assert (count_parameters(plain), macs(plain, inputs)) == (plan.dense_parameters, plan.dense_macs)
        assert plan.parameters < plan.dense_parameters
    assert {key: tuple(state(small)[key].shape) for key in shapes} == shapes


# --- How many go, and which -----------------------------------------------------------------------


def chosen(values, ratio, allocation, round_to, minimum):
    """What goes from each group, as the manual has it: the least important, of equal ones the first."""
    order = {key: sorted(range(len(v)), key=lambda i, v=v: (v[i], i)) for key, v in values.items()}
    gone = {key: round(ratio * len(v)) for key, v in values.items()}
    if allocation == "global":
        pool = sorted(
            (values[k][i], n, k) for n, k in enumerate(values) for i in order[k][: -minimum or None]
        )
        least = [key for *_, key in pool[: round(ratio * sum(map(len, values.values())))]]
        gone = {key: least.count(key) for key in values}
    for key, total in ((key, len(v)) for key, v in values.items()):
        multiples = max(math.floor((total - gone[key]) / round_to + 0.5), math.ceil(minimum / round_to))
        gone[key] = max(total - multiples * round_to, 0)
    return {key: tuple(sorted(order[key][: gone[key]])) for key in values if gone[key]}


@given(
    st.lists(st.integers(0, 9), min_size=32, max_size=32),
    st.floats(0, 0.97),
    st.sampled_from(CHANNEL_ALLOCATIONS),
    st.integers(1, 8),
    st.integers(1, 13),
)
@settings(max_examples=20)
def test_the_least_important_go_as_many_as_asked_for(numbers, ratio, allocation, round_to, minimum):
    options = {"allocation": allocation, "round_to": round_to, "minimum": minimum}
    values = {"layers.linear1": numbers[:12], "layers.linear2": numbers[12:]}
    tensors = {key: torch.tensor(some).float() for key, some in values.items()}
    plan = plan_channels(course("mlp generator"), ratio, tensors, **options)
    assert plan.removed == chosen(values, ratio, **options)
    assert plan.kept == {key: len(some) - len(plan.removed.get(key, ())) for key, some in values.items()}
    alone = {"layers.linear1": tensors["layers.linear1"]}  # what is not named stays whole
    assert plan_channels(course("mlp generator"), ratio, alone, **options).kept.keys() == alone.keys()


def test_globally_compared_magnitudes_are_divided_by_their_mean_in_the_group():
    network = course("mlp generator")
    values = channel_importance(network, "l1")
    relative = {key: (v.double() / v.double().mean()).tolist() for key, v in values.items()}
    plain = {key: v.tolist() for key, v in values.items()}
    removed = plan_channels(network, 0.5, "l1", allocation="global").removed
    assert removed == chosen(relative, 0.5, "global", 1, 1) != chosen(plain, 0.5, "global", 1, 1)


def test_a_channel_whose_scale_has_become_zero_goes_first_and_its_shift_goes_with_it():
    """γ = 0 leaves ReLU(β) in the network; the mask and the smaller network have neither."""
    network = course("generator")
    with torch.no_grad():
        network.layers.norm2.weight[5], network.layers.norm2.bias[5] = 0.0, 2.0
    plan = plan_channels(network, 1 / 28, "bn", allocation="global")
    assert plan.removed == {"layers.deconv2": (5,)}
    small, x = shrink_channels(network, 1 / 28, "bn", allocation="global"), network.batch
    check_masked(small, network, plan.removed, x)
    assert not torch.allclose(evaluated(small, x), evaluated(network, x), atol=1e-3)
    with torch.no_grad():
        network.layers.norm2.weight.mul_(1e-3)  # all of it is below the threshold, and one channel stays
    assert plan_channels(network, 0.5, "bn", allocation="global").kept["layers.deconv2"] == 1


@pytest.mark.parametrize(
    ("ratio", "options", "kept"),
    [
        (0.3, {"round_to": 8}, (8, 8, 4)),
        (0.9, {"minimum": 3}, (3, 3, 3)),
        (0.9, {"minimum": 3, "round_to": 2}, (4, 4, 4)),
        (0.5, {"protect": "layers.deconv2"}, (8, 8, 2)),
        (0.25, {}, (12, 6, 3)),
        (0.75, {}, (4, 2, 1)),
        (0.0, {}, (16, 8, 4)),
    ],
)
def test_widths_of_a_generator_and_shares_of_its_weights(ratio, options, kept):
    network = course("generator")
    small = shrink_channels(network, ratio, **options)
    assert small.spec == dataclasses.replace(network.spec, channels=kept)
    if not options:  # interior layers lose channels on both sides
        for name in ("deconv2", "deconv3"):
            before, after = (getattr(net.layers, name).weight.numel() for net in (network, small))
            assert 1 - after / before == pytest.approx(1 - (1 - ratio) ** 2)
    assert small is not network
    assert ratio or equal(state(small), state(network))


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1])
def test_a_share_of_the_multiply_accumulates_can_be_asked_for(fraction):
    network = gp.dcgan(width=8, device="cpu").generator
    plan = plan_channels(network, macs_fraction=fraction)
    assert plan.macs <= fraction * macs(network)
    one_more = {key: kept + (kept < 32) for key, kept in plan.kept.items()}
    larger = dataclasses.replace(network.spec, channels=tuple(one_more.values())).build()
    assert fraction == 1 or macs(larger) > fraction * macs(network)
    assert macs(shrink_channels(network, macs_fraction=fraction)) == plan.macs
    with pytest.raises(ChannelError, match="macs_fraction 0.0001 cannot be reached"):
        plan_channels(network, macs_fraction=0.0001)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channel_ratio": 1.0}, ValueError, r"channel_ratio must be in \[0, 1\), got 1.0"),
        ({"channel_ratio": float("nan")}, ValueError, "channel_ratio must be in"),
        ({"channel_ratio": "half"}, TypeError, "channel_ratio must be a number"),
        ({"macs_fraction": 0.0}, ValueError, r"macs_fraction must be in \(0, 1\]"),
        ({"macs_fraction": "half"}, TypeError, r"macs_fraction must be a number in \(0, 1\]"),
        ({"allocation": "erk"}, ValueError, "allocation must be one of uniform, global, got 'erk'"),
        ({"round_to": 0}, ValueError, "round_to must be an integer of at least 1, got 0"),
        ({"minimum": 1.5}, ValueError, "minimum must be an integer of at least 1, got 1.5"),
        ({"importance": "size"}, ValueError, "importance must be one of"),
        ({"importance": 3}, ValueError, "importance must be one of"),
        ({"importance": {"layers.deconv9": torch.ones(2)}}, ValueError, "must be keyed by some of layers"),
        ({"importance": {"layers.deconv1": torch.ones(2)}}, ValueError, "must be 16 finite numbers"),
        ({"importance": {"layers.deconv1": [1.0] * 16}}, TypeError, "must be a tensor, got list"),
        ({"protect": ["nothing"]}, ValueError, "protect names nothing"),
        ({"protect": ["layers"]}, ChannelError, "layers.deconv1: protected"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        shrink_channels(course("generator"), **options)


# --- What comes along -----------------------------------------------------------------------------


def test_modes_flags_and_layout_come_along():
    gan = gp.dcgan(width=4, norm="spectral", device="cpu")
    small = shrink_channels(gan.generator_ema)
    assert not small.training
    assert not any(parameter.requires_grad for parameter in small.parameters())
    network = course("generator").to(memory_format=torch.channels_last)
    expected = evaluated(shrink_channels(course("generator")), network.batch)
    close(evaluated(shrink_channels(network), network.batch), expected)
    double = course("discriminator").double()
    assert next(shrink_channels(double).parameters()).dtype == torch.float64


def test_a_shrunk_gan_is_saved_and_loaded(tmp_path):
    gan = gp.dcgan(width=4, norm="spectral", device="cpu")
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
        assert equal(state(back.networks()[name]), state(network))


def test_a_spec_that_the_package_does_not_know_is_refused():
    network = free()
    network.spec = dataclasses.make_dataclass("OwnSpec", [("latent_dim", int)], frozen=True)(5)
    with pytest.raises(ChannelError, match="not known how the spec OwnSpec looks"):
        shrink_channels(network)
    del network.spec
    assert shrink_channels(network).up.in_channels == 3


# --- Norms on weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.weight_norm,
    ],
    ids=["spectral", "weight", "older spectral", "older weight"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_norms_are_folded_into_a_copy_and_the_original_is_untouched(norm):
    torch.manual_seed(0)
    network = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), norm(nn.ConvTranspose2d(4, 2, 3)))
    network[2].bias.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    network(x).sum().backward()  # an older hook now holds a weight that is no leaf
    expected, before, kinds = evaluated(network, x), state(network), [type(layer) for layer in network]
    plain = fold_norms(network)
    assert [type(layer) for layer in plain] == [nn.Conv2d, nn.ReLU, nn.ConvTranspose2d]
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    torch.testing.assert_close(evaluated(plain, x), expected, rtol=0, atol=0)
    assert [p.requires_grad for p in plain.parameters()] == [True, True, True, False]
    for parameter in plain.parameters():
        parameter.data.zero_()
    plain.load_state_dict(plain.state_dict())
    copy.deepcopy(plain)
    assert [type(layer) for layer in network] == kinds
    assert equal(state(network), before)
    torch.testing.assert_close(evaluated(network, x), expected, rtol=0, atol=0)
    network.train()
    network(x)  # power iterations go on
    assert not any(value.any() for value in state(plain).values())


def test_folding_takes_a_layer_alone_an_embedding_and_what_is_wrapped():
    layer = parametrizations.spectral_norm(nn.Linear(3, 2))
    assert type(fold_norms(layer)) is nn.Linear
    table = parametrizations.spectral_norm(nn.Embedding(5, 4))
    labels = torch.arange(5)
    close(fold_norms(nn.Sequential(table))(labels), evaluated(table, labels))
    assert isinstance(fold_norms(nn.DataParallel(nn.Sequential(layer))), nn.Sequential)


def test_spectral_norm_can_be_put_back():
    network = course("discriminator")
    small = shrink_channels(network)
    normed = restore_spectral_norm(small)
    assert normed.spec == dataclasses.replace(small.spec, norm="spectral")
    for key, weight in effective_weights(normed).items():
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(gp.prunable_weights(normed)[key], small.get_parameter(key))
    with torch.no_grad():
        for key, slot in weight_slots(small).items():
            slot.raw.copy_(effective_weights(normed)[key])  # of norm one: nothing changes any more
    x, again = network.batch, restore_spectral_norm(small)
    torch.testing.assert_close(evaluated(again, x), evaluated(small, x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="spec whose norm is 'none'"):
        restore_spectral_norm(network)
