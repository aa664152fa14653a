"""A convolution taken as a product is the convolution: values and gradients, for every shape it applies to."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from unseen_networks import UNSEEN, build

import ganprune as gp
from ganprune.networks.fast_convolutions import fast_convolutions


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and the gradients of a curved function of it with respect to input and parameters."""
    y = layer(x)
    wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.square().sum() + y.sum(), wanted)]


def assert_same_as_convolution(layer: nn.Module, x: Tensor, **tolerance: float) -> None:
    expected = [*results(layer, x), layer(x).detach()]
    with fast_convolutions(layer):
        found = results(layer, x)
        with torch.no_grad():  # narrow layers change their form only here
            found.append(layer(x))
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
    batch=st.sampled_from([1, 3, 32]),
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


def test_it_takes_the_product_where_the_general_kernel_is_slow() -> None:
    gan = gp.dcgan(width=4, device="cpu")
    called = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            called.append(func)
            return func(*args, **(kwargs or {}))

    with fast_convolutions(gan.generator), Spy():
        gan.generator(torch.randn(2, 64))
    assert called.count(torch.conv_transpose2d) == 2  # the two in the middle
    called.clear()
    with fast_convolutions(gan.generator), torch.no_grad(), Spy():
        gan.generator(torch.randn(32, 64))
    assert called.count(torch.conv_transpose2d) == 1  # of width 4 the third is narrow; 3 is no multiple of 2
    assert called.count(torch.conv2d) == 2  # that one and the grey image, by blocks
    called.clear()
    with fast_convolutions(gan.discriminator), Spy():
        gan.discriminator(torch.randn(2, 1, 28, 28))
    assert called.count(torch.conv2d) == 3  # all but the last; the image needs no gradient here


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

    for layer in (
        Scaled(1, 2, 4),
        nn.Conv2d(2, 4, 4, groups=2),
        nn.Conv2d(1, 2, 3, 2, 1, dilation=2),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.Conv2d(1, 2, 3, 2, 1, padding_mode="circular"),
        nn.ConvTranspose2d(2, 1, 4, 2, 1, output_padding=1),
    ):
        x = torch.randn(2, layer.in_channels, 8, 8, requires_grad=True)
        assert_same_as_convolution(layer, x, rtol=0.0, atol=0.0)


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
        (nn.ConvTranspose2d(8, 1, 4, 2, 1), torch.randn(32, 8, 14, 14)),
        (nn.ConvTranspose2d(8, 4, 4, 2, 1), torch.randn(4, 8, 7, 7)),
        (nn.ConvTranspose2d(8, 8, 4), torch.randn(4, 8, 1, 1)),
        (nn.Conv2d(8, 1, 4), torch.randn(4, 8, 4, 4)),
    ):
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            expected = layer(x)
            for recorded in (True, False):
                with fast_convolutions(layer), torch.set_grad_enabled(recorded):
                    assert layer(x).dtype == expected.dtype == torch.bfloat16
                    torch.testing.assert_close(layer(x), expected, rtol=0.02, atol=0.02)
        exact = results(copy.deepcopy(layer).double(), x.detach().double().requires_grad_())
        with torch.autocast("cpu", torch.bfloat16), fast_convolutions(layer):
            found = results(layer, x)
        for a, b in zip(found, exact, strict=True):
            assert (a.double() - b).norm() <= 0.02 * b.norm()
