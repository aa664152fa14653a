"""Networks of your own are checked without a trace, and their arguments stay what they are."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import ganprune as gp
from ganprune.networks import CustomSpec, built_here, check_discriminator, check_generator, trust


class Noisy(nn.Module):
    """Draws random numbers and counts its calls, in evaluation mode too."""

    latent_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 16)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        h = functional.dropout(self.layer(z.flatten(1)[:, :3]), training=True) + torch.randn(len(z), 16)
        return torch.tanh(h).view(-1, 1, 4, 4)


class Judge(Noisy):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).mean((1, 2, 3))


def test_checking_a_network_leaves_no_trace() -> None:
    generator, judge = Noisy(), Judge()
    generator.layer.eval()
    modes = [part.training for network in (generator, judge) for part in network.modules()]
    random_state = torch.random.get_rng_state()
    assert check_generator(generator) == (1, 4, 4)
    check_discriminator(judge, (1, 4, 4))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert generator.calls == judge.calls == 0
    assert modes == [part.training for network in (generator, judge) for part in network.modules()]


@pytest.mark.parametrize("arguments", [{1: 2}, {"table": {1: 2}}, {"rows": [{"a": 1}, ({None: 1},)]}, 3])
def test_keys_that_json_would_turn_into_strings_are_refused(arguments: object) -> None:
    with pytest.raises(ValueError, match="arguments must be a mapping from names to values, got"):
        CustomSpec("module:Class", arguments)  # type: ignore[arg-type]


def test_arguments_are_held_as_json_holds_them() -> None:
    given = {"sizes": (1, [2, {"a": None}]), "scale": 0.5}
    assert CustomSpec("module:Class", given).arguments == {"sizes": [1, [2, {"a": None}]], "scale": 0.5}
    for bad in (float("nan"), {1, 2}, torch.ones(1)):
        with pytest.raises(ValueError, match="arguments must be values that JSON can hold"):
            CustomSpec("module:Class", {"scale": bad})


class Maps(nn.Module):
    """Takes maps of one pixel, computes in float64, has a layer that ``copy.deepcopy`` refuses."""

    latent_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.weight_norm(nn.ConvTranspose2d(3, 1, 4)).double()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(z))


class Pair(Judge):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits, logits  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_generators_of_another_shape_and_dtype_pass() -> None:
    assert check_generator(Maps()) == (1, 4, 4)
    with trust(f"{__name__}:Maps"):
        network = CustomSpec(f"{__name__}:Maps").build()
    assert not built_here(network)
    assert gp.GAN(network, Judge()).generator_ema(torch.zeros(2, 3, 1, 1).double()).shape == (2, 1, 4, 4)


def test_networks_that_give_something_else_are_named() -> None:
    message = r"critic must map images \(N, 1, 4, 4\) to logits \(N,\), got tuple"
    with pytest.raises(ValueError, match=message):
        check_discriminator(Pair(), (1, 4, 4), "critic")
    nameless = Noisy()
    nameless.latent_dim = "three"  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match="must have an attribute latent_dim, an integer of at least 1, got 'three'"
    ):
        check_generator(nameless)


def test_a_network_that_nobody_trusts_is_not_imported() -> None:
    with pytest.raises(
        ValueError, match=r"imported only where you name it yourself.*trust\('elsewhere:Net'\)"
    ):
        CustomSpec("elsewhere:Net").build()
