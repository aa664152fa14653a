"""A convolution taken as a product is the convolution: values and gradients, for every shape it applies to."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from unseen_networks import UNSEEN, build

import ganprune as gp
from ganprune.networks.fast_convolutions import fast_convolutions


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and the gradients of a curved function of it with respect to input and parameters."""
    y = layer(x)
    wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.square().sum() + y.sum(), wanted)]


def assert_same_as_convolution(layer: nn.Module, x: Tensor, **tolerance: float) -> None:
    expected = results(layer, x)
    with fast_convolutions(layer):
        found = results(layer, x)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, **tolerance)


@settings(max_examples=150, deadline=None)
@given(
    transposed=st.booleans(),
    inputs=st.sampled_from([1, 2, 3, 9]),
    outputs=st.sampled_from([1, 2, 3, 9]),
    side=st.sampled_from([(1, 1), (4, 4), (5, 7), (2, 6)]),
    kernel=st.sampled_from([(4, 4), (6, 4), (3, 3), (2, 3), (2, 2), (1, 1)]),
    stride=st.sampled_from([1, 2, 3, (2, 1)]),
    padding=st.sampled_from([0, 1, (1, 0), (2, 1)]),
    bias=st.booleans(),
    needs_input=st.booleans(),
    channels_last=st.booleans(),
    batch=st.sampled_from([1, 3]),
)
def test_values_and_gradients_are_those_of_the_convolution(
    transposed: bool,
    inputs: int,
    outputs: int,
    side: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    bias: bool,
    needs_input: bool,
    channels_last: bool,
    batch: int,
) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(inputs, outputs, kernel, stride, padding, bias=bias).double()
    x = torch.randn(batch, inputs, *side, dtype=torch.float64)
    if channels_last:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    x.requires_grad_(needs_input)
    try:
        layer(x)
    except RuntimeError as error:
        with fast_convolutions(layer), pytest.raises(RuntimeError, match=str(error)[:12]):
            layer(x)
        return
    assert_same_as_convolution(layer, x)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("norm", ["spectral", "batch"])
def test_the_networks_of_the_course_are_the_same_networks(shape: tuple, norm: str, width: int) -> None:
    gan = gp.dcgan(shape, width, norm=norm, device="cpu")
    for network in (gan.generator.double().eval(), gan.discriminator.double().eval()):
        x = torch.randn(2, 64) if network is gan.generator else torch.randn(2, *shape)
        assert_same_as_convolution(network, x.double().requires_grad_())


@pytest.mark.parametrize("name", UNSEEN)
def test_networks_never_seen_stay_the_same(name: str) -> None:
    network, inputs = build(name)
    network = network.double().eval()
    doubles = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    expected = network(*doubles)
    with fast_convolutions(network):
        torch.testing.assert_close(network(*doubles), expected)


def test_layers_it_does_not_know_are_left_alone() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Equalised(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, weight / 2, bias)

    class Padded(nn.ConvTranspose2d):
        def _output_padding(self, *args: object, **options: object) -> list[int]:  # type: ignore[override]
            return [1, 1]

    replaced = nn.Conv2d(1, 2, 8)
    replaced._conv_forward = lambda x, weight, bias: nn.functional.conv2d(x, 3 * weight, bias)
    for layer in (
        Scaled(1, 2, 4),
        Equalised(1, 2, 4, 2, 1),
        Equalised(2, 3, 8),
        Padded(2, 1, 4, 2, 1),
        replaced,
        nn.Conv2d(2, 4, 4, groups=2),
        nn.Conv2d(1, 2, 3, 2, 1, dilation=2),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.Conv2d(1, 2, 3, 2, 1, padding_mode="circular"),
        nn.ConvTranspose2d(2, 1, 4, 2, 1, output_padding=1),
    ):
        x = torch.randn(2, layer.in_channels, 8, 8, requires_grad=True)
        assert_same_as_convolution(layer, x, rtol=0.0, atol=0.0)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [spectral_norm, weight_norm, nn.utils.spectral_norm, nn.utils.weight_norm])
def test_normalised_weights_are_computed_once_per_call(norm: Callable[[nn.Module], nn.Module]) -> None:
    """In training mode each reading of a spectrally normalised weight moves its vectors."""
    torch.manual_seed(0)
    for layer, x in (
        (nn.Conv2d(2, 3, 8), torch.randn(2, 2, 8, 8)),
        (nn.Conv2d(1, 3, 4, 2, 1), torch.randn(2, 1, 8, 8)),
        (nn.ConvTranspose2d(3, 2, 4), torch.randn(2, 3, 1, 1)),
        (nn.ConvTranspose2d(3, 1, 4, 2, 1), torch.randn(2, 3, 4, 4)),
    ):
        network = norm(layer.double()).train()
        twin = gp.networks.copy_network(network)
        with fast_convolutions(network):
            found = [network(x.double()) for _ in range(2)]
        torch.testing.assert_close(found, [twin(x.double()) for _ in range(2)])
        torch.testing.assert_close(network.state_dict(), twin.state_dict())


def test_hooks_are_called_as_ever() -> None:
    layer, seen = nn.Conv2d(1, 2, 4, 2, 1), []
    layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output) or output + 1)
    x = torch.randn(2, 1, 8, 8)
    expected = layer(x)
    with fast_convolutions(layer):
        torch.testing.assert_close(layer(x), expected)
    assert len(seen) == 2


def test_afterwards_all_is_as_before_even_after_an_error() -> None:
    layer = nn.Sequential(nn.Conv2d(1, 2, 4), spectral_norm(nn.Conv2d(2, 1, 5)))
    before = [set(vars(m)) for m in layer.modules()]
    with pytest.raises(ZeroDivisionError), fast_convolutions(layer), fast_convolutions(layer):
        1 / 0  # noqa: B018
    assert [set(vars(m)) for m in layer.modules()] == before
    assert "forward" not in vars(copy.deepcopy(layer)[0])


def test_in_bfloat16_it_differs_by_rounding_alone() -> None:
    torch.manual_seed(0)
    for layer, x in (
        (nn.Conv2d(1, 8, 4, 2, 1), torch.randn(4, 1, 28, 28)),
        (nn.ConvTranspose2d(8, 1, 4, 2, 1), torch.randn(4, 8, 14, 14)),
        (nn.ConvTranspose2d(8, 8, 4), torch.randn(4, 8, 1, 1)),
        (nn.Conv2d(8, 1, 4), torch.randn(4, 8, 4, 4)),
    ):
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            expected = layer(x)
            with fast_convolutions(layer):
                assert layer(x).dtype == expected.dtype == torch.bfloat16
                torch.testing.assert_close(layer(x), expected, rtol=0.02, atol=0.02)
        exact = results(copy.deepcopy(layer).double(), x.detach().double().requires_grad_())
        with torch.autocast("cpu", torch.bfloat16), fast_convolutions(layer):
            found = results(layer, x)
        for a, b in zip(found, exact, strict=True):
            assert (a.double() - b).norm() <= 0.02 * b.norm()
