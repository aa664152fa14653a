"""Networks of one's own without some channels: their fixed reshapes take what is there, and files bring them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

import ganprune as gp
from ganprune.channels import ChannelError
from ganprune.networks import CustomSpec, trust
from ganprune.networks.reshapes import find_reshapes, fitted_reshapes
from ganprune.networks.shrunk import ShrunkSpec


class Fixed(nn.Module):
    """As most public generators are written: the number of channels stands in the code."""

    latent_dim = 5

    def __init__(self, width: int = 8, how: str = "view") -> None:
        super().__init__()
        self.width, self.how = width, how
        self.first, self.norm = nn.Linear(5, width * 16), nn.BatchNorm2d(width)
        self.middle = spectral_norm(nn.Conv2d(width, 6, 3, padding=1))
        self.scale = nn.Linear(5, 6)
        self.last = nn.ConvTranspose2d(6, 1, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z)
        shapes = {
            "view": lambda: h.view(-1, self.width, 4, 4),
            "samples": lambda: h.view(len(z), self.width, 4, 4),
            "reshape": lambda: torch.reshape(h, (-1, self.width, 4, 4)),
            "unflatten": lambda: h.unflatten(1, (self.width, 4, 4)),
        }
        h = self.middle(functional.relu(self.norm(shapes[self.how]())))
        h = functional.relu(h * self.scale(z).view(-1, 6, 1, 1))
        return torch.tanh(self.last(h))


def make(how: str = "view", width: int = 8) -> nn.Module:
    return Fixed(width, how)


def adapted(width: int = 8) -> nn.Module:
    class Bare(Fixed):
        def forward(self, z: Tensor) -> Any:
            return {"image": super().forward(z[:, :, 0, 0])}

    return gp.adapt(Bare(width), (5, 1, 1), output="image")


class Equal(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(outputs, inputs, 3, 3)),
            nn.Parameter(torch.zeros(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * 0.1, self.bias, padding=1)


class Equalised(nn.Module):
    latent_dim = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Equal(1, 8), nn.LeakyReLU(0.2), Equal(8, 1))

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.layers(z.view(-1, 1, 4, 4)))


@pytest.mark.parametrize("how", ["view", "samples", "reshape", "unflatten"])
def test_reshapes_with_a_fixed_number_of_channels_are_made_to_fit(how: str) -> None:
    torch.manual_seed(0)
    network = Fixed(how=how).eval()
    small = gp.shrink_channels(network, 0.5)
    assert small.first.out_features == 64
    assert small.middle.out_channels == 3
    for batch in (1, 3, 7):
        assert small(torch.randn(batch, 5)).shape == (batch, 1, 8, 8)
    assert len(fitted_reshapes(small)) == 2
    assert list(small.state_dict()) == [key for key in small.state_dict() if "parametrizations" not in key]
    again = gp.shrink_channels(small, 0.5)
    assert again.first.out_features == 32
    assert again(torch.randn(3, 5)).shape == (3, 1, 8, 8)


def test_networks_that_need_no_help_get_none() -> None:
    generator = gp.mlp_gan(hidden=(8, 8), device="cpu").generator
    assert not fitted_reshapes(gp.shrink_channels(generator, 0.5))
    assert find_reshapes(Fixed(), (torch.randn(2, 5),)) == (0, 1)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_tracers_and_exporters_see_the_channels_that_there_are() -> None:
    small, other = gp.shrink_channels(Fixed().eval(), 0.5), torch.randn(7, 5)
    traced = torch.jit.trace(small, (torch.randn(3, 5),))
    sizes = ({0: torch.export.Dim("n")},)
    exported = torch.export.export(small, (torch.randn(3, 5),), dynamic_shapes=sizes).module()
    for one in (traced, exported):
        torch.testing.assert_close(one(other), small(other))


def test_hooks_of_ones_own_stay() -> None:
    small, calls = gp.shrink_channels(Fixed().eval(), 0.5), []
    small.register_forward_hook(lambda *_: calls.append(1), always_call=True)
    smaller = gp.shrink_channels(small, 0.5)
    calls.clear()
    with pytest.raises(RuntimeError):
        smaller(torch.randn(3, 4))
    assert calls == [1]


def test_an_error_in_the_network_leaves_nothing_behind() -> None:
    small = gp.shrink_channels(Fixed().eval(), 0.5)
    with pytest.raises(RuntimeError):
        small(torch.randn(3, 4))
    assert torch.randn(2, 12).view(-1, 4, 3).shape == (2, 4, 3)
    with pytest.raises(RuntimeError):
        torch.randn(2, 6).view(2, 4, 1)
    assert small(torch.randn(3, 5)).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("path", ["make", "adapted", "Equalised"])
@pytest.mark.parametrize("how", ["shrink", "compact", "twice"])
def test_shrunk_networks_are_saved_and_loaded(tmp_path: Path, path: str, how: str) -> None:
    named = f"{__name__}:{path}"
    judge = gp.dcgan(width=4, device="cpu").discriminator
    file = tmp_path / "small.safetensors"
    with trust(named), gp.masks.register_layer(Equal, effective=lambda layer: layer.weight * 0.1):
        torch.manual_seed(0)
        generator = CustomSpec(named).build().eval()
        if how == "compact":
            gp.prune(generator, 0.9, allocation="uniform")
            small = gp.channels.compact(generator).network
        else:
            small = gp.shrink_channels(generator, 0.5)
        small = gp.shrink_channels(small, 0.5) if how == "twice" else small
        gan = gp.GAN(small, judge)
        if how != "compact":
            gp.prune(gan, 0.5)
            counts = [sum(p.numel() for p in network.parameters()) for network in (small, generator)]
            assert counts[0] < counts[1]
        else:
            gan.masks["generator"] = gp.Mask.nonzero(small)
        gp.save(file, gan)
        loaded = gp.load(file, "cpu")
        torch.testing.assert_close(
            gp.sample(loaded.generator, 5), gp.sample(gan.generator, 5), rtol=0, atol=0
        )
        assert loaded.generator.spec == small.spec
        other = gp.GAN(loaded.generator, _Any())
        other.masks["generator"] = loaded.masks["generator"]
        gp.train(gp.TrainState(other, gp.TrainConfig(steps=1, batch_size=4)), _Images(), show_progress=False)
        other.masks.check()
    with pytest.raises(gp.core.CheckpointError, match="imported only where you name it yourself"):
        gp.load(file, "cpu")


class _Any(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1).mean(1)


class _Images:
    def batch(self, n: int, seed: int, step: int) -> Tensor:
        return torch.zeros(n, 1, 8, 8)


def test_a_spec_that_no_file_knows_is_refused() -> None:
    network = Fixed().eval()
    network.spec = object()
    with pytest.raises(ChannelError, match="it is not known how the spec object looks for a smaller network"):
        gp.shrink_channels(network, 0.5)


def test_a_file_names_layers_and_sizes_alone() -> None:
    for wrong in ({"plain": {"a": {"kind": "Module"}}}, {"sizes": {"a": {"forward": 3}}}):
        with pytest.raises(ValueError, match="a shrunk network has sizes in_channels"):
            ShrunkSpec({"model": "CustomSpec", "path": "a:B"}, **wrong)
