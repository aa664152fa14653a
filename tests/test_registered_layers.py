"""Layers of one's own, registered: counted, scored by what they compute with, masked, kept, shrunk or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ganprune as gp
from ganprune.channels import ChannelError, channel_groups, keep_channels, remove_channels
from ganprune.masks import effective_weights, left_out, registration_of


class EqualLinear(nn.Module):
    """Equalised learning rate: a weight of variance one, and a multiplier at run time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(outputs, inputs)),
            nn.Parameter(torch.randn(outputs)),
        )
        self.scale = inputs**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.scale, self.bias * 0.5)


class EqualConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.scale, self.padding = (inputs * size * size) ** -0.5, size // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * self.scale, padding=self.padding)


class Scaled(nn.Module):
    """A plain layer inside, and the multiplier outside."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.module, self.factor = nn.Linear(inputs, outputs), (2 / inputs) ** 0.5
        nn.init.normal_(self.module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) * self.factor


class OwnSpectral(nn.Linear):
    """A spectral norm written by hand."""

    def norm(self) -> Tensor:
        return torch.linalg.matrix_norm(self.weight, 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight / self.norm(), self.bias)


class Modulated(nn.Module):
    """A convolution whose weight depends on the sample (StyleGAN2)."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3))
        self.style = nn.Linear(style, inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        n, c, h, side = x.shape
        weight = self.weight * self.style(w).view(n, 1, c, 1, 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        out = functional.conv2d(x.reshape(1, n * c, h, side), weight.flatten(0, 1), padding=1, groups=n)
        return out.view(n, -1, h, side)


class Styled(nn.Module):
    latent_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.map, self.start = EqualLinear(4, 6), nn.Parameter(torch.randn(1, 8, 4, 4))
        self.first, self.last = Modulated(8, 8, 6), EqualConv(8, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        w = torch.relu(self.map(z))
        return torch.tanh(self.last(torch.relu(self.first(self.start.expand(len(z), -1, -1, -1), w))))


@pytest.fixture
def registered():
    made = [
        gp.register_layer(EqualLinear, effective=lambda layer: layer.weight * layer.scale),
        gp.register_layer(EqualConv, effective=lambda layer: layer.weight * layer.scale),
        gp.register_layer(Scaled, "module.weight", lambda layer: layer.module.weight * layer.factor),
        gp.register_layer(OwnSpectral, effective=lambda layer: layer.weight / layer.norm()),
        gp.register_layer(Modulated, output_dim=1),
    ]
    torch.manual_seed(0)
    yield made
    for one in made:
        one.remove()


def mixed() -> nn.Sequential:
    """Layers whose raw weights are of one scale, and whose effective ones are not."""
    return nn.Sequential(EqualLinear(64, 32), nn.ReLU(), Scaled(32, 16), nn.ReLU(), nn.Linear(16, 4))


def test_a_registration_ends_with_its_block_and_remove() -> None:
    layer = EqualLinear(3, 2)
    with gp.register_layer(EqualLinear) as first:
        assert registration_of(layer) is first
        second = gp.register_layer(EqualLinear, weight="weight")
        first.remove()
        assert registration_of(layer) is second
        second.remove()
    assert registration_of(layer) is None
    with pytest.raises(ValueError, match="has no prunable weight.*gp.register_layer"):
        gp.prunable_weights(layer)


def test_a_warning_names_the_remedy() -> None:
    network = nn.Sequential(nn.Linear(4, 4), EqualLinear(4, 512))
    with pytest.warns(UserWarning, match=r"gp\.register_layer\(EqualLinear\) makes those of your own layers"):
        gp.score(network, "magnitude")


@pytest.mark.usefixtures("registered")
def test_weights_are_listed_once_under_their_own_names() -> None:
    assert list(gp.prunable_weights(mixed())) == ["0.weight", "2.module.weight", "4.weight"]
    names = ["map.weight", "first.weight", "first.style.weight", "last.weight"]
    styled = Styled()
    assert list(gp.prunable_weights(styled)) == names
    assert list(left_out(styled)) == ["start"]


@pytest.mark.usefixtures("registered")
def test_magnitude_is_that_of_the_weight_in_use() -> None:
    network = mixed()
    wanted = {
        "0.weight": network[0].weight * 64**-0.5,
        "2.module.weight": network[2].module.weight * 0.25,
        "4.weight": network[4].weight,
    }
    scores = gp.score(network, "magnitude")
    for key, weight in wanted.items():
        torch.testing.assert_close(scores[key], weight.detach().abs())
    spectral = OwnSpectral(6, 5)
    (effective,) = effective_weights(spectral).values()
    assert torch.linalg.matrix_norm(effective, 2) == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["taylor", "snip", "wanda", "synflow"])
def test_scores_are_those_of_the_plain_network(name: str) -> None:
    """A layer with a multiplier is scored like a plain layer that has the product for its weight."""
    network, x = mixed(), torch.randn(8, 64)
    plain = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        for number, weight in enumerate(effective_weights(network).values()):
            plain[2 * number].weight.copy_(weight)
        plain[0].bias.copy_(network[0].bias * 0.5)
        plain[2].bias.copy_(network[2].module.bias * network[2].factor)
        plain[4].bias.copy_(network[4].bias)
    given: dict = {"inputs": x}
    if name in ("taylor", "snip"):
        given = {"loss_fn": lambda model: [model(x).square().sum()]}
    found, wanted = gp.score(network, name, **given), gp.score(plain, name, **given)
    for one, other in zip(found.values(), wanted.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*belong to layers that are not pruned.*start")
@pytest.mark.usefixtures("registered")
def test_masks_are_applied_and_kept() -> None:
    network = Styled()
    mask = gp.prune(network, 0.8)
    assert mask.sparsity == pytest.approx(0.8, abs=0.005)
    assert set(mask) == {"map.weight", "first.weight", "first.style.weight", "last.weight"}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    with gp.keep_mask(network, mask, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            network(torch.randn(4, 4)).sum().backward()
            optimizer.step()
    gp.check_mask(network, mask)
    assert gp.complexity(network, mask, batch_size=None).sparsity == mask.sparsity


@pytest.mark.usefixtures("registered")
def test_products_are_counted_where_they_are_computed() -> None:
    network = Styled()
    macs = {"map.weight": 24, "first.weight": 576 * 16, "first.style.weight": 48, "last.weight": 8 * 16}
    report = gp.complexity(network, batch_size=None)
    assert report.macs == report.effective_macs == sum(macs.values())
    rows = gp.layer_report(network, inputs=torch.randn(3, 4))
    assert {row["name"]: row["macs"] for row in rows} == macs
    with torch.no_grad():
        network.first.weight[:, :4] = 0
    assert gp.complexity(network, batch_size=None).effective_macs == report.macs - 288 * 16
    assert gp.complexity(mixed(), inputs=torch.randn(2, 64), batch_size=None).macs == 64 * 32 + 512 + 64


@pytest.mark.usefixtures("registered")
def test_channels_are_removed_where_the_layer_is_one_product_and_a_bias() -> None:
    network = nn.Sequential(
        EqualConv(2, 8),
        nn.LeakyReLU(0.2),
        EqualConv(8, 6),
        nn.ReLU(),
        nn.Flatten(),
        Scaled(6 * 16, 5),
        EqualLinear(5, 2),
    )
    x = torch.randn(3, 2, 4, 4)
    same = gp.shrink_channels(network, 0.0, inputs=x)
    torch.testing.assert_close(same(x), network(x), rtol=1e-4, atol=1e-5)
    small = gp.shrink_channels(network, 0.5, inputs=x)
    assert [tuple(weight.shape[:2]) for weight in gp.prunable_weights(small).values()] == [
        (4, 2), (3, 4), (3, 48), (2, 3),
    ]  # fmt: skip
    assert list(gp.prunable_weights(small)) == list(gp.prunable_weights(network))
    assert isinstance(network[0], EqualConv)


@pytest.mark.usefixtures("registered")
def test_channels_are_masked_and_kept_in_the_layers_themselves() -> None:
    network, x = (
        nn.Sequential(EqualLinear(6, 8), nn.ReLU(), Scaled(8, 6), nn.ReLU(), nn.Linear(6, 2)),
        torch.randn(5, 6),
    )
    removed = gp.channels.plan_channels(network, 0.5, inputs=x).removed
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    with keep_channels(network, removed, optimizer, x):
        for _ in range(2):
            optimizer.zero_grad()
            network(x).sum().backward()
            optimizer.step()
    small = remove_channels(network, removed, x)
    assert [layer.weight.shape[0] for layer in (small[0], small[2].module)] == [4, 3]
    torch.testing.assert_close(small(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("registered")
def test_channels_of_other_layers_are_refused_with_a_reason() -> None:
    network = Styled()
    reasons = {group.name: group.reason for group in channel_groups(network)}
    assert "first (Modulated) is a layer of your own that is not one convolution" in reasons["first"]
    chain = nn.Sequential(OwnSpectral(4, 8), nn.ReLU(), OwnSpectral(8, 2))
    small = gp.shrink_channels(chain, 0.5, inputs=torch.randn(3, 4))
    assert small[0].out_features == 4
    with pytest.raises(ChannelError, match="layer of your own"):
        gp.shrink_channels(_Squared(4, 4), 0.5, inputs=torch.randn(3, 4))


class _Squared(EqualLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


@pytest.mark.filterwarnings("ignore:.*belong to layers that are not pruned")
@pytest.mark.usefixtures("registered")
def test_what_is_wrong_is_named() -> None:
    with gp.register_layer(EqualLinear, weight="w"), pytest.raises(ValueError, match="has no parameter 'w'"):
        gp.prunable_weights(mixed())
    with (
        gp.register_layer(EqualLinear, effective=lambda layer: layer.weight.T),
        pytest.raises(
            ValueError, match=r"effective of EqualLinear must give the weight in the shape of 0.weight"
        ),
    ):
        gp.score(mixed(), "magnitude")
    with (
        gp.register_layer(EqualLinear, effective=lambda layer: layer.weight + 1),
        pytest.raises(ValueError, match="does not keep zeros in: 0.weight"),
    ):
        gp.prune(mixed(), 0.5)
    with pytest.raises(ValueError, match="cannot tell which of .* inputs the weights of first.weight"):
        gp.score(Styled(), "wanda", inputs=torch.randn(3, 4))


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="cls must be a class of torch.nn.Module"):
        gp.register_layer(EqualLinear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="effective must be a function of the layer, got int"):
        gp.register_layer(EqualLinear, effective=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight must be the name of a parameter"):
        gp.register_layer(EqualLinear, weight="0.")
    with pytest.raises(ValueError, match="output_dim must be an integer of at least 0"):
        gp.register_layer(EqualLinear, output_dim=-1)
