"""Networks and their specs: shapes, seeds, plain values, copies."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import ganprune as gp
from ganprune.networks.registry import MODEL_SPECS, spec_from_dict, spec_to_dict

SPECS = ("DCGANDiscriminatorSpec", "DCGANGeneratorSpec", "MLPDiscriminatorSpec", "MLPGeneratorSpec")
SHAPES = [(1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["spectral", "batch", "none"])
def test_dcgan_shapes_and_ranges(shape, norm):
    gan = gp.dcgan(shape, width=4, latent_dim=7, norm=norm, device="cpu")
    images = gan.generator(torch.randn(5, 7))
    assert images.shape == (5, *shape)
    assert images.abs().max() <= 1
    assert gan.discriminator(images).shape == (5,)


@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_mlp_shapes(norm):
    gan = gp.mlp_gan((1, 28, 28), latent_dim=5, hidden=(8, 9), norm=norm, device="cpu")
    assert gan.discriminator(gan.generator(torch.randn(3, 5))).shape == (3,)
    plane = gp.mlp_gan((2,), latent_dim=2, hidden=(8,), device="cpu")
    assert plane.generator(torch.randn(3, 2)).shape == (3, 2)
    assert not any(isinstance(m, nn.Tanh) for m in plane.generator.modules())


def test_width_scales_channels():
    spec = gp.dcgan(width=5, device="cpu").spec
    assert spec.generator.channels == (20, 10, 5)
    assert spec.discriminator.channels == (5, 10, 20)


def test_dcgan_initialisation():
    gan = gp.dcgan(width=32, norm="batch", device="cpu")
    for network in (gan.generator, gan.discriminator):
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.weight.numel() > 10_000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
                assert module.weight.mean().item() == pytest.approx(0.0, abs=1e-3)
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight.mean().item() == pytest.approx(1.0, abs=0.02)
                assert module.bias.abs().max() == 0


def test_seed_determines_weights_and_leaves_the_global_stream_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, other = (gp.dcgan(width=4, seed=seed, device="cpu") for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    weights = [gan.generator.layers.deconv1.weight for gan in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_spectral_norm_bounds_every_layer():
    gan = gp.dcgan(width=8, norm="spectral", device="cpu")
    for _ in range(30):  # power iterations
        gan.discriminator(torch.randn(4, 1, 28, 28))
    gan.discriminator.eval()
    for name in ("conv1", "conv2", "conv3", "conv4"):
        weight = getattr(gan.discriminator.layers, name).weight
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    "spec",
    [
        gp.networks.DCGANGeneratorSpec(8, (5, 3, 2), (3, 32, 32)),
        gp.networks.DCGANDiscriminatorSpec((2, 3, 5), (3, 32, 32), "batch"),
        gp.networks.MLPGeneratorSpec(3, (4,), (2,)),
        gp.networks.MLPDiscriminatorSpec((4, 2), (2,), "spectral"),
    ],
)
def test_specs_survive_json_and_rebuild_the_network(spec):
    again = spec_from_dict(json.loads(json.dumps(spec_to_dict(spec))))
    assert again == spec
    shapes = [{k: v.shape for k, v in s.build().state_dict().items()} for s in (spec, again)]
    assert shapes[0] == shapes[1]
    assert again.build().spec == spec


def test_specs_allow_uneven_channels():
    network = gp.networks.DCGANGeneratorSpec(8, (7, 1, 5)).build()
    assert network(torch.randn(2, 8)).shape == (2, 1, 28, 28)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gp.networks.DCGANGeneratorSpec(channels=(1, 2)),
            r"channels must hold 3 positive integers, got \(1, 2\)",
        ),
        (
            lambda: gp.networks.DCGANGeneratorSpec(latent_dim=0),
            "latent_dim must be an integer of at least 1, got 0",
        ),
        (
            lambda: gp.networks.MLPGeneratorSpec(hidden=(8, 2.5)),
            r"hidden must hold positive integers, got \(8, 2.5\)",
        ),
        (lambda: gp.networks.MLPGeneratorSpec(hidden=8), "hidden must hold positive integers, got 8"),
        (
            lambda: gp.dcgan((28, 28), device="cpu"),
            r"image_shape must hold 3 positive integers, got \(28, 28\)",
        ),
        (
            lambda: gp.networks.DCGANGeneratorSpec(image_shape=(1, 48, 48)),
            r"image_shape must be \(channels, 28, 28\)",
        ),
        (
            lambda: gp.networks.DCGANDiscriminatorSpec(norm="layer"),
            "norm must be one of spectral, batch, none, got 'layer'",
        ),
        (
            lambda: gp.networks.MLPDiscriminatorSpec(norm="batch"),
            "norm of an MLP discriminator must be spectral or none",
        ),
        (lambda: gp.dcgan(width=0, device="cpu"), "width must be an integer of at least 1, got 0"),
        (lambda: spec_from_dict({"model": "os.system"}), "model must be one of"),
        (lambda: spec_from_dict({"model": "MLPGeneratorSpec", "rogue": 1}), "does not fit MLPGeneratorSpec"),
    ],
)
def test_bad_specs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(3, 9), (3, 8, 1, 1), (8,)])
def test_wrong_latents_are_refused(shape):
    generator = gp.networks.DCGANGeneratorSpec(8, (4, 4, 4)).build()
    with pytest.raises(ValueError, match=r"z must have shape \(N, 8\), got"):
        generator(torch.zeros(shape))


def test_registered_models_are_all_buildable():
    assert set(MODEL_SPECS) >= set(SPECS)
    for name in SPECS:
        assert isinstance(MODEL_SPECS[name]().build(), nn.Module)


def test_ema_is_a_frozen_equal_copy():
    gan = gp.dcgan(width=4, device="cpu")
    assert not any(p.requires_grad for p in gan.generator_ema.parameters())
    assert not gan.generator_ema.training
    for kept, current in zip(gan.generator_ema.parameters(), gan.generator.parameters(), strict=True):
        assert torch.equal(kept, current) and kept.data_ptr() != current.data_ptr()


def test_gan_can_be_copied_whole():
    gan = gp.dcgan(width=4, device="cpu")
    twin = copy.deepcopy(gan)
    twin.generator.layers.deconv1.weight.data.zero_()
    assert gan.generator.layers.deconv1.weight.abs().sum() > 0


def test_specs_hold_plain_numbers_whoever_made_them(tmp_path):
    made = [
        gp.dcgan((1, 28, np.int64(28)), np.int64(4), np.int32(6), device="cpu"),
        gp.mlp_gan((np.int64(2),), np.int64(3), (np.int64(5), torch.tensor(4)), device="cpu"),
    ]
    same = [
        gp.dcgan((1, 28, 28), 4, 6, device="cpu"),
        gp.mlp_gan((2,), 3, (5, 4), device="cpu"),
    ]
    for gan, twin in zip(made, same, strict=True):
        assert gan.spec == twin.spec
        gp.save(tmp_path / "gan", gan)
        assert gp.load(tmp_path / "gan", "cpu").spec == twin.spec
    gain = gp.networks.DCGANDiscriminatorSpec(logit_gain=np.float32(2)).logit_gain
    assert type(gain) is float


def test_global_defaults_do_not_reach_new_networks():
    expected = gp.dcgan(width=4, device="cpu").generator.state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            gan = gp.dcgan(width=4, device="cpu")
            images = gp.sample(gan.generator, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    for key, value in gan.generator.state_dict().items():
        assert value.dtype == expected[key].dtype
        assert torch.equal(value, expected[key])
    assert (images.dtype, images.device.type) == (torch.float32, "cpu")


class Remembering(nn.Module):
    """Keeps what it computed last, as many networks do for a look inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 3), {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.layer(x)
        self.seen["sum"] = self.last.sum()
        return self.last


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)), nn.Tanh()),
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)), nn.Tanh()),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        Remembering,
    ],
    ids=["old weight norm", "old spectral norm", "weight norm", "remembering"],
)
def test_networks_that_hold_computed_tensors_can_be_copied(make):
    network, x = make(), torch.randn(4, 3)
    network(x)  # in training mode, with a history of gradients
    twin = gp.GAN(network, nn.Linear(3, 1)).generator_ema
    network.eval()
    assert torch.equal(twin(x), network(x))
    before = network(x).clone()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2.0)
    assert not torch.equal(twin(x), before)  # the copy computes with its own parameters
    assert torch.equal(network(x), before)
