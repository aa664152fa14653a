"""Importances of channels: of the weights that leave with a channel, of what flows through it, or by chance."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from tools.channel_networks import course, courses, drawn_networks, evaluated, state
from tools.coupling import entries, units_of
from tools.small_gans import equal
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from unseen_networks import build

import ganprune as gp
from ganprune.channels import (
    IMPORTANCES,
    ChannelError,
    channel_groups,
    channel_importance,
    fold_norms,
    plan_channels,
    remove_channels,
)


def flags_of(network, *roles):
    """Which entries of parameters go with each channel of each group that may go."""
    groups = [group for group in channel_groups(network, network.batch) if group.prunable]
    assume(groups)
    return {g.name: [entries(network, unit, *roles) for unit in units_of(g)] for g in groups}


def sums(flags, values):
    """The sum of what goes with each channel."""
    return {
        key: torch.stack([sum(value[one[name]].sum() for name, value in values.items()) for one in some])
        for key, some in flags.items()
    }


def agree(found, expected):
    assert found.keys() == expected.keys()
    for key, values in found.items():
        torch.testing.assert_close(values, expected[key].to(values.dtype), rtol=1e-5, atol=1e-12)


@given(drawn_networks() | courses())
@settings(max_examples=20)
def test_magnitudes_are_those_of_all_weights_that_leave(network):
    before, batch, plain = state(network), network.batch, fold_norms(network)
    flags, weights = flags_of(plain), {key: w.detach() for key, w in gp.prunable_weights(plain).items()}
    expected = sums(flags, {key: weight.abs() for key, weight in weights.items()})
    agree(channel_importance(network, "l1", inputs=batch), expected)
    expected = sums(flags, {key: weight.square() for key, weight in weights.items()})
    agree(channel_importance(network, "l2", inputs=batch), {k: v.sqrt() for k, v in expected.items()})
    norms = {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm) and m.affine}
    scales = {f"{name}.weight": norm.weight.detach().abs() for name, norm in norms.items()}
    bare = next(
        key for key in [*flags, ""] if not any(f[s].any() for f in flags.get(key, ()) for s in scales)
    )
    if bare:
        with pytest.raises(ChannelError, match=f"{bare} is followed by no batch norm with a scale"):
            channel_importance(network, "bn", inputs=batch)
    else:
        agree(channel_importance(network, "bn", inputs=batch), sums(flags, scales))
    assert equal(state(network), before)


@given(drawn_networks() | courses())
@settings(max_examples=20)
def test_taylor_is_the_square_of_the_change_in_what_reads_a_channel(network):
    plain = fold_norms(network).eval()
    batch, flags, weights, expected = network.batch, flags_of(plain, "input"), gp.prunable_weights(plain), {}
    loss_fn = lambda model: (model(part).square().mean() for part in batch.split(2))
    for loss in loss_fn(plain):
        gradients = torch.autograd.grad(loss, [*weights.values()])
        products = {k: (g * w).detach() for (k, w), g in zip(weights.items(), gradients, strict=True)}
        for key, values in sums(flags, products).items():
            expected[key] = expected.get(key, 0) + values.square()
    agree(channel_importance(network.eval(), "taylor", loss_fn, batch), expected)
    assert all(parameter.grad is None for parameter in network.parameters())


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
    single = lambda model: model(batches[0]).sum()  # a loss may be returned, too
    returned = channel_importance(network, "taylor", single, batches)
    assert equal(returned, channel_importance(network, "taylor", lambda model: [single(model)], batches))


def test_taylor_of_a_generator_goes_through_the_discriminator_and_changes_nothing():
    gan = gp.dcgan(width=2, latent_dim=4, device="cpu")
    before = {name: state(network) for name, network in gan.networks().items()}
    loss_fn = gp.generator_loss(gan, batches=2, batch_size=4)
    found = channel_importance(gan.generator, "taylor", loss_fn)["layers.deconv3"]
    probe = copy.deepcopy(gan.generator)
    weight = probe.layers.deconv4.weight
    for channel in range(2):
        moved = []
        for factor in (1.001, 0.999):
            weight.data.copy_(gan.generator.layers.deconv4.weight.detach())
            weight.data[channel] *= factor
            moved.append(torch.stack(list(loss_fn(probe))))
        slope = (moved[0] - moved[1]) / 0.002
        torch.testing.assert_close(found[channel], slope.square().sum(), rtol=0.05, atol=1e-12)
    assert all(equal(state(network), before[name]) for name, network in gan.networks().items())


@pytest.mark.parametrize("name", ["activation", "apoz"])
def test_activations_are_measured_behind_the_activation_function_on_all_batches(name):
    network, batches = course("generator"), [torch.randn(4, 6), torch.randn(2, 6)]
    outputs = []
    handle = network.layers.relu2.register_forward_hook(lambda layer, given, out: outputs.append(out.clone()))
    for z in batches:
        evaluated(network, z)
    handle.remove()
    rows = torch.cat(outputs).movedim(1, 0).flatten(1)
    expected = rows.abs().mean(1) if name == "activation" else (rows > 0).float().mean(1)
    found = channel_importance(network, name, inputs=batches)
    torch.testing.assert_close(found["layers.deconv2"], expected)
    assert equal(found, channel_importance(network, name, inputs=iter(batches)))  # no batch is lost
    plans = [plan_channels(network, 0.5, name, inputs=some) for some in (batches, iter(batches))]
    assert plans[0] == plans[1]


def test_activations_of_coupled_layers_are_summed():
    network, (x,) = build("grouped")
    outputs = []
    for index in (1, 3):
        network[index].register_forward_hook(lambda layer, given, out: outputs.append(out.clone()))
    evaluated(network, x)
    each = sum(out.abs().mean((0, 2, 3)) for out in outputs)
    (group,) = (g for g in channel_groups(network, x) if g.prunable)
    indices = next(m.indices for m in group.members if m.name == "0")
    expected = torch.stack([each[list(some)].sum() for some in indices])
    torch.testing.assert_close(channel_importance(network, "activation", inputs=x)["0"], expected)


def test_random_importance_has_a_seed():
    network = course("generator")
    first, again, other = (channel_importance(network, "random", seed=seed) for seed in (1, 1, 2))
    assert equal(first, again)
    assert not any(torch.equal(first[key], other[key]) for key in first)


NAN = "'taylor' is NaN or infinite in layers.deconv1, layers.deconv2"


@pytest.mark.parametrize(
    ("name", "loss_fn", "message"),
    [
        ("size", None, f"importance must be one of {', '.join(IMPORTANCES)}, got 'size'"),
        ("taylor", None, "'taylor' needs loss_fn"),
        ("taylor", lambda model: [], "loss_fn must yield at least one"),
        ("taylor", lambda model: [model(model.batch)], "loss_fn must yield scalar losses"),
        ("taylor", lambda model: [model(model.batch).mean() * float("nan")], NAN),
    ],
)
def test_importances_refuse_what_they_cannot_do(name, loss_fn, message):
    for function in (channel_importance, lambda model, *rest: plan_channels(model, 0.5, *rest)):
        with pytest.raises(ValueError, match=message):
            function(course("generator"), name, loss_fn)
    with pytest.raises(ValueError, match="protect names nothing"):
        channel_importance(course("generator"), protect=["nothing"])
