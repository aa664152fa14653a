"""Latents of the shape that a generator takes, and samples that change nothing."""

import numpy as np
import pytest
import torch
from torch import nn

import ganprune as gp
from ganprune.networks import built_here, draw_latents, latent_dim_of, latent_shape_of


class FromVectors(nn.Module):
    """Reshapes latents (N, 8) to maps itself, then transposed convolutions."""

    latent_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(8, 4, 7), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 1, 4, 4)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layers(z[:, :, None, None]))


class FromMaps(FromVectors):
    """Wants maps of one pixel (N, 8, 1, 1), as PyTorch's DCGAN example does."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layers(z))


class Viewing(nn.Module):
    """Views the output of a convolution in another shape, which only works in the ordinary memory layout."""

    latent_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.ConvTranspose2d(8, 16, 7), nn.ConvTranspose2d(4, 1, 4, 2, 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.first(z[:, :, None, None])
        return torch.tanh(self.last(h.view(len(h), 4, 14, 14)))


def test_sampling_is_seeded_and_changes_nothing():
    gan = gp.dcgan(width=4, device="cpu")
    gan.generator.train()
    gan.generator.layers.norm1.eval()
    state = {k: v.clone() for k, v in gan.generator.state_dict().items()}
    modes = [m.training for m in gan.generator.modules()]
    random = torch.get_rng_state()
    images = gp.sample(gan.generator, 10, seed=3, batch_size=4)
    assert images.shape == (10, 1, 28, 28) and not images.requires_grad
    assert torch.allclose(images, gp.sample(gan.generator, 10, seed=3, batch_size=10), atol=1e-6)
    assert not torch.equal(images, gp.sample(gan.generator, 10, seed=4))
    assert all(torch.equal(state[k], v) for k, v in gan.generator.state_dict().items())
    assert modes == [m.training for m in gan.generator.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(
        images, gp.sample(gan.generator, latents=gp.sample_latents(10, 64, seed=3), batch_size=4)
    )


def test_latents_are_standard_normal():
    z = gp.sample_latents(20_000, 8, seed=1)
    assert z.mean().abs() < 0.02 and (z.std() - 1).abs() < 0.02
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got 0"):
        gp.sample_latents(0, 8)
    with pytest.raises(ValueError, match=r"latent_dim must be an integer of at least 1, got 2\.5"):
        gp.sample_latents(4, 2.5)
    assert torch.equal(gp.sample_latents(np.int64(4), np.int64(8)), gp.sample_latents(4, 8))


def test_a_generator_of_ones_own_names_its_latents():
    own = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="generator Linear must have an attribute latent_dim"):
        latent_dim_of(own)
    own.latent_dim = 3
    assert gp.sample(own, 4).shape == (4, 2)


@pytest.mark.parametrize("bad", [0, 2.5, "8", True])
def test_a_latent_dimension_that_is_none_is_refused(bad):
    own = nn.Linear(3, 2)
    own.latent_dim = bad
    with pytest.raises(
        ValueError, match="latent_dim of the generator Linear must be an integer of at least 1"
    ):
        latent_dim_of(own)


def test_latents_have_the_shape_that_the_generator_takes():
    for network, shape in ((FromVectors(), (8,)), (FromMaps(), (8, 1, 1)), (Viewing(), (8,))):
        state = {key: value.clone() for key, value in network.state_dict().items()}
        random = torch.get_rng_state()
        assert latent_shape_of(network) == shape
        assert gp.sample(network, 4).shape[2:] == (28, 28)
        assert draw_latents(network, 4, seed=2).shape == (4, *shape)
        assert torch.equal(draw_latents(network, 4, seed=2).flatten(1), gp.sample_latents(4, 8, seed=2))
        assert network.training
        assert torch.equal(random, torch.get_rng_state())
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_a_generator_may_say_itself_what_shape_its_latents_have():
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    network.latent_shape = (np.int64(2), 2, 2)
    assert latent_shape_of(network) == (2, 2, 2)
    assert gp.sample(network, 3).shape == (3, 2)


def test_waves_and_volumes_begin_with_points():
    wave = nn.Sequential(nn.ConvTranspose1d(4, 1, 16), nn.Tanh())
    volume = nn.Sequential(nn.ConvTranspose3d(4, 1, 2), nn.Tanh())
    wave.latent_dim = volume.latent_dim = 4
    assert gp.sample(wave, 3).shape == (3, 1, 16)
    assert gp.sample(volume, 3).shape == (3, 1, 2, 2, 2)


def test_a_generator_that_fails_raises_its_own_error():
    class Broken(FromVectors):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no file found")

    with pytest.raises(RuntimeError, match="no file found"):
        gp.sample(Broken(), 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "make", [lambda: gp.mlp_gan(hidden=(8,), device="cpu"), lambda: gp.dcgan(width=4, device="cpu")]
)
def test_networks_of_other_dtypes_are_sampled(make, dtype):
    generator = make().generator
    expected = gp.sample(generator, 3)
    images = gp.sample(generator.to(dtype), 3)
    assert images.dtype == torch.float32
    assert torch.allclose(images, expected, atol=0.1)
    assert draw_latents(generator, 3).dtype == dtype


def test_integer_parameters_say_nothing_about_latents():
    class Permuted(nn.Module):
        latent_dim = 4

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.tensor([1, 0]), requires_grad=False)
            self.layer = nn.Linear(4, 2)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.layer(z)[:, self.table]

    network = Permuted()
    assert torch.equal(gp.sample(network, 3), network(gp.sample_latents(3, 4)).detach())


def test_a_network_that_gives_a_tuple_is_named():
    class Two(nn.Linear):
        latent_dim = 3

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return super().forward(z), z

    with pytest.raises(TypeError, match=r"Two must give images \(N, C, H, W\) as one tensor, got tuple"):
        gp.sample(Two(3, 2), 1)
    with pytest.raises(TypeError, match=r"Two must give logits \(N,\) as one tensor, got tuple"):
        gp.networks.check_output(Two(3, 2), (torch.zeros(1),), "logits (N,)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layers.deconv2.weight", "its parameter layers.deconv2.weight has them too"),
        ("layers.norm1.running_var", "its buffer layers.norm1.running_var has them too"),
    ],
)
def test_samples_that_are_not_finite_are_refused_and_the_reason_is_named(name, said, value):
    generator = gp.dcgan(width=4, norm="none", device="cpu").generator
    generator.state_dict()[name].view(-1)[0] = value if said.startswith("its par") else -value
    with pytest.raises(
        gp.networks.NotFiniteError, match="samples of DCGANGenerator must be finite, got"
    ) as caught:
        gp.sample(generator, 5)
    assert said in str(caught.value)
    adapted = gp.adapt(generator)
    for refuse in (lambda: gp.sample(adapted, 5), lambda: gp.networks.check_generator(adapted)):
        with pytest.raises(gp.networks.NotFiniteError, match=said):
            refuse()


def test_a_forward_pass_that_is_not_finite_is_told_from_weights_that_are_not():
    class Odd(nn.Linear):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return super().forward(z) / (z[:, :1] > 0)

    z = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [-2.0, 0.0, 0.0]])
    with pytest.raises(
        ValueError, match="got 2 of 3 with NaN or infinity; its parameters and buffers are finite"
    ):
        gp.sample(Odd(3, 2), latents=z)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(4, 64, dtype=torch.complex64), "latents must be real numbers, got torch.complex64"),
        (np.zeros((4, 64), complex), "latents must be real numbers, got complex128"),
        ([[0.0] * 64], "latents must be a tensor or an array, got list"),
    ],
)
def test_latents_are_real_numbers(latents, message):
    with pytest.raises(TypeError, match=message):
        gp.sample(gp.dcgan(width=4, device="cpu").generator, latents=latents)


def test_sampling_computes_what_the_network_computes():
    class Halved(nn.Conv2d):
        def _conv_forward(
            self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
        ) -> torch.Tensor:
            return super()._conv_forward(x, weight / 2, bias)

    network = nn.Sequential(Halved(3, 1, 1, bias=False)).eval()
    x = torch.ones(1, 3, 1, 1)
    assert torch.equal(gp.sample(network, latents=x), network(x).detach())
    gan = gp.dcgan(width=4, device="cpu")
    gan.generator.layers.deconv4 = Halved(
        4, 1, 1, bias=False
    )  # a part of the user's own in a network of ours
    z = gp.sample_latents(2, 64)
    with gp.eval_mode(gan.generator):
        assert torch.allclose(gp.sample(gan.generator, latents=z), gan.generator(z).detach(), atol=1e-6)


def test_networks_of_this_package_are_told_from_others():
    gan = gp.dcgan(width=4, device="cpu")
    assert built_here(gan.generator) and built_here(gan.discriminator) and built_here(gan.generator_ema)
    assert built_here(gp.mlp_gan(hidden=(4,), device="cpu").generator)

    class Derived(gp.networks.convolutional.DCGANGenerator):
        """Carries a spec of the package and may do anything in its forward."""

    assert not built_here(Derived(gan.spec.generator))
    assert not built_here(nn.Sequential(nn.Linear(2, 2)))
    gan.generator.layers.tanh = Viewing()
    assert not built_here(gan.generator)
    assert not built_here(FromVectors())
