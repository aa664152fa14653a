"""Whole channels that stay masked while a network is trained on: it can be shrunk at any time."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from unseen_networks import build

import ganprune as gp
from ganprune.channels.parts import ChannelError
from ganprune.channels.shrinking import plan_channels
from ganprune.channels.surgery import keep_channels, mask_channels, remove_channels
from ganprune.masks.apply import apply_mask
from ganprune.masks.keep import keep_mask
from ganprune.masks.mask import Mask, MaskError

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, 0.003),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.003, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.001, momentum=0.5),
}


class ClassEmbedding(nn.Module):
    """Batch norm with a scale per class, from an embedding under spectral norm as in SN-GAN."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False)
        self.scale, self.last = spectral_norm(nn.Embedding(3, 4)), nn.Conv2d(4, 2, 1)
        self.shift = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x, label):
        h = self.norm(self.conv(x)) * (1 + self.scale(label))[:, :, None, None] + self.shift
        return self.last(torch.relu(h))


def networks(name):
    """A network, a batch for it and the channels that go."""
    torch.manual_seed(0)
    gan = gp.dcgan(width=4, latent_dim=6, device="cpu")
    if name == "generator":
        network, inputs = gan.generator, (torch.randn(8, 6),)
    elif name == "discriminator":
        network, inputs = gan.discriminator, (torch.randn(8, 1, 28, 28),)
    elif name == "embedding":
        network, inputs = ClassEmbedding(), (torch.randn(6, 2, 5, 5), torch.arange(6) % 3)
    else:
        network, inputs = build(name)
    return network, inputs, dict(plan_channels(network, 0.5, inputs=inputs).removed)


NETWORKS = ("generator", "discriminator", "embedding", "residual", "grouped", "1-D")


def evaluated(network, inputs):
    with torch.no_grad(), gp.eval_mode(network):
        return network(*inputs)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))


def steps(network, inputs, optimizer, count, ema=None):
    """A loop as a reader writes it; the seed differs from step to step, and every parameter has a gradient."""
    network.train()
    target = torch.linspace(-1, 1, evaluated(network, inputs).numel())
    for step in range(count):
        optimizer.zero_grad()
        noisy = (inputs[0] + 0.1 * step, *inputs[1:])
        for _ in range(2):  # gradients are accumulated
            (network(*noisy).flatten() - target).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if ema is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 0.1)
                for kept, current in zip(ema.buffers(), network.buffers(), strict=True):
                    kept.copy_(current)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_masked_network_is_the_shrunk_one(name, optimizer):
    network, inputs, channels = networks(name)
    optimizer = OPTIMIZERS[optimizer](network.parameters())
    steps(network, inputs, optimizer, 3)  # moments that want to move on
    ema = copy.deepcopy(network).requires_grad_(False).eval()
    before = {key: p.detach().clone() for key, p in network.named_parameters()}
    with keep_channels(network, channels, optimizer, inputs, ema=ema) as keeper:
        held = [(slot.raw, bits == 0) for slot, bits in zip(keeper._slots, keeper._working, strict=True)]
        for _ in range(4):
            steps(network, inputs, optimizer, 3, ema)
            assert not any(raw[gone].any() or raw.grad[gone].any() for raw, gone in held)
            keeper.check()
    for masked in (network, ema):
        close(evaluated(remove_channels(masked, channels, inputs), inputs), evaluated(masked, inputs))
    assert all(not torch.equal(p, before[key]) for key, p in network.named_parameters())


def test_the_mask_of_the_weights_alone_lets_channels_come_back():
    """Why there is more to hold than weights: a leaky ReLU lets biases move away from zero."""
    network, inputs, channels = networks("discriminator")
    optimizer = OPTIMIZERS["Adam"](network.parameters())
    with keep_mask(network, mask_channels(network, channels), optimizer):
        steps(network, inputs, optimizer, 5)
    small = remove_channels(network, channels)
    assert (evaluated(small, inputs) - evaluated(network, inputs)).abs().max() > 1e-3


def test_dead_channels_do_no_harm_in_batch_norm():
    network, inputs, channels = networks("generator")
    optimizer = OPTIMIZERS["SGD"](network.parameters())
    with keep_channels(network, channels, optimizer):
        steps(network, inputs, optimizer, 1200)  # 0.9 ** 1200 is no float32 any more
    norm, gone = network.layers.norm1, list(channels["layers.deconv1"])
    assert not norm.running_mean[gone].any()
    assert float(norm.running_var[gone].max()) < 1e-30
    assert all(bool(torch.isfinite(p).all()) for p in network.parameters())
    close(evaluated(remove_channels(network, channels), inputs), evaluated(network, inputs))


def test_behind_a_sigmoid_the_weights_that_read_the_channels_are_held_too():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)
    )
    inputs, channels = (torch.randn(4, 2, 6, 6),), {"0": [1, 2]}
    optimizer = OPTIMIZERS["Adam"](network.parameters())
    with keep_channels(network, channels, optimizer, inputs, consumers=True):
        steps(network, inputs, optimizer, 10)
    close(evaluated(remove_channels(network, channels, inputs), inputs), evaluated(network, inputs))


def test_what_is_held_beside_the_mask_does_not_count_as_sparsity():
    network, _, channels = networks("generator")
    expected = mask_channels(copy.deepcopy(network), channels)
    optimizer = OPTIMIZERS["SGD"](network.parameters())
    with keep_channels(network, channels, optimizer) as keeper:
        assert keeper.mask == expected
        assert keeper.mask.total == sum(w.numel() for w in gp.prunable_weights(network).values())
        assert set(keeper.others) == {
            f"layers.norm{n}.{end}" for n in (1, 2, 3) for end in ("weight", "bias")
        }
        fewer = Mask({key: kept & (kept.cumsum(-1) < 3) for key, kept in keeper.mask.items()})
        keeper.update(fewer)  # the mask may go on to change, as in gradual pruning
        keeper.check()
        assert keeper.mask == fewer


def parts(seed):
    torch.manual_seed(seed)
    gan = gp.dcgan(width=2, latent_dim=6, seed=seed, device="cpu")
    network = gan.discriminator
    return network, copy.deepcopy(network).requires_grad_(False), OPTIMIZERS["Adam"](network.parameters())


def test_a_run_that_is_stopped_goes_on_as_if_nothing_had_happened():
    channels, inputs = {"layers.conv1": [0], "layers.conv3": [1, 4]}, (torch.randn(4, 1, 28, 28),)
    (network, ema, optimizer), stored = parts(0), io.BytesIO()
    with keep_channels(network, channels, optimizer, ema=ema) as keeper:
        steps(network, inputs, optimizer, 3, ema)
        torch.save([one.state_dict() for one in (network, ema, optimizer)], stored)
        network.load_state_dict(network.state_dict())  # in place: the keeper stays
        keeper.check()
        steps(network, inputs, optimizer, 3, ema)
    stored.seek(0)
    twin, twin_ema, twin_optimizer = others = parts(1)
    for one, values in zip(others, torch.load(stored), strict=True):
        one.load_state_dict(values)
    with keep_channels(twin, channels, twin_optimizer, ema=twin_ema):
        steps(twin, inputs, twin_optimizer, 3, twin_ema)
    for one, other in ((network, twin), (ema, twin_ema)):
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_the_loop_of_the_package_and_its_checkpoint(tmp_path):
    data, channels = gp.mnist("cpu"), {"layers.deconv1": [1], "layers.deconv3": [0]}
    gan = gp.dcgan(width=2, latent_dim=4, device="cpu")
    config = gp.TrainConfig(steps=4, batch_size=4, loss="non-saturating", precision="float32")

    def kept(state):
        gan = state.gan
        return keep_channels(gan.generator, channels, state.optimizers["generator"], ema=gan.generator_ema)

    def save(state):
        if state.step == 2:
            state.save(tmp_path / "state.safetensors")

    state = gp.TrainState(gan, config)
    with kept(state):
        gp.train(state, data.train, [save], show_progress=False)
    resumed = gp.TrainState.load(tmp_path / "state.safetensors", "cpu")
    with kept(resumed):
        gp.train(resumed, data.train, show_progress=False)
    z = (torch.randn(5, 4),)
    for name, network in gan.networks().items():
        other = resumed.gan.networks()[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in network.state_dict().items())
    for network in (gan.generator, gan.generator_ema):
        close(evaluated(remove_channels(network, channels), z), evaluated(network, z))


@pytest.mark.parametrize("wrap", ["compiled", "averaged"])
def test_names_without_what_wrappers_add(wrap):
    network, inputs, channels = networks("generator")
    optimizer = OPTIMIZERS["Adam"](network.parameters())
    averaged = torch.optim.swa_utils.AveragedModel(network)
    model = torch.compile(network, backend="eager") if wrap == "compiled" else network
    with keep_channels(model, channels, optimizer, inputs, ema=averaged):
        steps(model, inputs, optimizer, 2)
        averaged.update_parameters(network)
    for one in (network, averaged.module):
        close(evaluated(remove_channels(one, channels), inputs), evaluated(one, inputs))


def test_a_scale_that_came_back_is_found():
    network, _, channels = networks("generator")
    ema = copy.deepcopy(network)
    keeper = keep_channels(network, channels, OPTIMIZERS["SGD"](network.parameters()), ema=ema)
    for model in (network, ema):
        keeper.check()
        with torch.no_grad():
            model.layers.norm2.bias[channels["layers.deconv2"][0]] = 0.1
        with pytest.raises(MaskError, match=r"layers\.norm2\.bias has 1 non-zero"):
            keeper.check()
        apply_mask(network, keeper.mask, ema, keeper.others)
    network.layers.norm2.bias = nn.Parameter(network.layers.norm2.bias.detach())
    with pytest.raises(MaskError, match=r"layers\.norm2\.bias was replaced"):
        keeper.check()


def test_what_it_refuses_changes_nothing():
    network, _, channels = networks("generator")
    before = copy.deepcopy(network.state_dict())
    optimizer = OPTIMIZERS["SGD"](network.parameters())
    weights = [p for key, p in network.named_parameters() if "deconv" in key]
    dense, norm = Mask.dense(network), Mask({"layers.norm1.bias": torch.zeros(16).bool()})
    wrong = Mask({"layers.norm1.bias": torch.zeros(3).bool(), "nothing": torch.zeros(3).bool()})
    for call, error, message in (
        (
            lambda: keep_channels(network, {"layers.deconv4": [0]}, optimizer),
            ChannelError,
            "cannot be removed",
        ),
        (lambda: keep_channels(network, {"nothing": [0]}, optimizer), ValueError, "which is no layer"),
        (
            lambda: keep_channels(network, channels, None),
            TypeError,
            "optimizer must be a torch.optim.Optimizer",
        ),
        (
            lambda: keep_channels(network, channels, OPTIMIZERS["SGD"](weights)),
            ValueError,
            "optimizer does not hold layers.norm1",
        ),
        (
            lambda: keep_channels(network, channels, optimizer, ema=gp.dcgan(width=2).generator),
            ValueError,
            "does not fit the EMA copy: .*layers.norm1.weight has shape",
        ),
        (lambda: keep_mask(network, dense, optimizer, others=dict(norm)), TypeError, "others must be a Mask"),
        (lambda: keep_mask(network, dense, optimizer, others=dense), ValueError, "what the mask does not"),
        (
            lambda: keep_mask(network, dense, optimizer, others=wrong),
            ValueError,
            "nothing is missing; layers.norm1.bias has shape",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    with torch.no_grad():
        network.layers.norm1.bias[0] = before["layers.norm1.bias"][0] = float("nan")
    with pytest.raises(ValueError, match=r"must be finite, got NaN or infinity in: layers\.norm1\.bias"):
        keep_mask(network, dense, optimizer, others=norm)
    assert all(
        torch.equal(value.nan_to_num(), before[key].nan_to_num())
        for key, value in network.state_dict().items()
    )
