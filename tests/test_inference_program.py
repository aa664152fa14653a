"""A network as a list of operations: it computes the same, and what it cannot hold is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.channel_networks import COURSE, Do, close, course, evaluated, lively, state
from tools.inference_networks import Shaped, convolutions, residual
from torch import Tensor, nn
from torch.nn import functional
from unseen_networks import LinearFirst, SelfAttention

import ganprune as gp
from ganprune.inference import FoldedNetwork, InferenceError, Layer, Sum, trace_program


def check(network: nn.Module, inputs: Tensor | None = None) -> Any:
    """Fail unless the program computes what the network does; return it."""
    before = state(network)
    program = trace_program(network)
    assert all(torch.equal(value, before[key]) for key, value in state(network).items())
    z = torch.randn(5, *program.latent) if inputs is None else inputs
    close(FoldedNetwork(program)(z), evaluated(network, z))
    return program


@pytest.mark.parametrize("norm", ["spectral", "none", "batch"])
@pytest.mark.parametrize("name", COURSE)
def test_the_networks_of_the_course_are_one_line_of_their_layers(name: str, norm: str) -> None:
    if norm == "batch" and name.startswith("mlp"):
        norm = "none"
    network = course(name, norm=norm)
    program = check(network, network.batch)
    kept = [key.removesuffix(".weight") for key in gp.prunable_weights(network)]
    assert [layer.name for layer in program.operations] == kept
    assert [layer.source for layer in program.layers] == list(range(len(kept)))
    assert program.layers[0].activation == ("relu" if name == "generator" else "leaky_relu")


@settings(max_examples=60)
@given(network=convolutions())
def test_any_convolution_with_what_surrounds_it(network: Any) -> None:
    check(network)


def test_branches_norms_and_functional_forms() -> None:
    network = residual()
    program = check(network)
    assert [one.name for one in program.operations if isinstance(one, Sum)] == ["up", "again"]
    kinds = {one.name: one for one in program.layers}
    assert kinds["up.conv1"].upsample == kinds["up.skip"].upsample == 2
    assert kinds["up.conv1"].activation == "relu"  # the norm behind it is folded in
    assert (
        kinds["up.norm1"].nonzeros == 8
    )  # what it reads is read twice, so it is a layer: one weight per channel
    assert program.image == (1, 16, 16)


def test_batch_norm_goes_through_a_reshape_into_a_linear_layer() -> None:
    program = check(lively(LinearFirst()))
    assert [(layer.name, layer.kind) for layer in program.layers] == [
        ("first", "linear"),
        ("up", "conv_transpose2d"),
    ]


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_sound_is_maps_of_one_row(kind: Any) -> None:
    first, second = kind(4, 6, 5, 2, 1, bias=False), kind(6, 2, 3, dilation=2)
    network = lively(Shaped((4, 20), first, nn.BatchNorm1d(6), nn.ReLU(), second, nn.Tanh()))
    program = check(network)
    assert [layer.weight.shape[2] for layer in program.layers] == [1, 1]
    assert program.image == evaluated(network, torch.zeros(1, 4, 20)).shape[1:]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_batch_norm_is_folded_into_groups(kind: Any, groups: int) -> None:
    network = lively(Shaped((4, 3, 3), kind(4, 8, 3, groups=groups), nn.BatchNorm2d(8), nn.ReLU()))
    assert len(check(network).operations) == 1


@pytest.mark.parametrize(
    "layer",
    [
        Do(lambda x: x + torch.arange(4.0)[:, None, None]),
        Do(lambda x: 2 * x / 7 - 3),
        Do(lambda x: sum([x, x.tanh()])),  # type: ignore[arg-type]
        Do(lambda x: x.flatten(1).unflatten(1, (4, 3, 3)).contiguous()[:]),
        Do(lambda x: x.view(len(x), 2, 6, 3)),
        Do(lambda x: functional.leaky_relu_(x.clone(), 0.3)),
        nn.Sequential(nn.Dropout2d(), nn.BatchNorm2d(4, affine=False)),
        Do(lambda x: torch.cat([x, x.tanh()], 1)),
        Do(
            lambda x: torch.cat([torch.arange(2.0).view(1, 2, 1, 1).expand(len(x), 2, 3, 3), x, 2 * x], dim=1)
        ),
        nn.UpsamplingNearest2d(scale_factor=3),
        nn.Conv2d(4, 4, 3, padding="same"),
    ],
)
@pytest.mark.parametrize("before", [nn.Conv2d(4, 4, 1), nn.Tanh()])
@pytest.mark.parametrize("after", [nn.Flatten(), nn.ReLU()])
def test_ways_to_write_what_is_not_a_layer(layer: nn.Module, before: nn.Module, after: nn.Module) -> None:
    check(lively(Shaped((4, 3, 3), *(copy.deepcopy(part) for part in (before, layer, after)))).eval())


def test_a_value_that_is_read_twice_is_not_changed_for_one_reader() -> None:
    def both(x: Tensor) -> Tensor:
        return x.relu() + 2 * x

    check(Shaped((3, 4, 4), nn.Conv2d(3, 3, 3, padding=1), Do(both), nn.Tanh()))


def test_a_mask_is_applied_to_a_copy() -> None:
    network = course("generator")
    mask = gp.prune(copy.deepcopy(network), sparsity=0.75)
    program, before = trace_program(network, mask), state(network)
    gp.apply_mask(network, mask)
    close(FoldedNetwork(program)(network.batch), evaluated(network, network.batch))
    assert not all(torch.equal(value, before[key]) for key, value in state(network).items())
    assert program.sparsity == pytest.approx(mask.sparsity)


@settings(max_examples=20)
@given(sparsity=st.floats(0, 0.99))
def test_zeros_stay_zeros(sparsity: float) -> None:
    network = course("generator")
    mask = gp.prune(network, sparsity=sparsity) if sparsity else gp.Mask.dense(network)
    assert trace_program(network).nonzeros == mask.kept


class Normed(nn.Module):
    """A network that ends with what it read."""

    latent_dim = 3

    def forward(self, z: Tensor) -> Any:
        return z


REFUSED = {
    "instance norm": (nn.InstanceNorm2d(4), "looks across the images"),
    "group norm": (nn.GroupNorm(2, 4), "layers.1 computes .*export_onnx"),
    "batch norm without statistics": (
        nn.BatchNorm2d(4, track_running_stats=False),
        "statistics of the batch",
    ),
    "attention": (SelfAttention(4), "layers.1 computes .*export_onnx"),
    "reflection": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "zero padding"),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), "nearest"),
    "another factor": (nn.Upsample((5, 4)), "whole factor"),
    "max": (nn.MaxPool2d(2), "layers.1 computes max_pool2d"),
    "permuted": (Do(lambda x: x.permute(0, 2, 3, 1)), "permute"),
    "part": (Do(lambda x: x[:, :2]), "slice from"),
    "gate": (Do(lambda x: x * x.sigmoid()), "two values that depend"),
    "noise": (Do(lambda x: x + torch.randn(len(x), 1, 4, 4)), "such as noise"),
    "pixels": (Do(lambda x: x + torch.arange(4.0)), "a number for each pixel"),
    "rows": (Do(lambda x: torch.cat([x, x], 2)), "another axis than the channels"),
    "pixels beside": (
        Do(lambda x: torch.cat([x, torch.arange(16.0).view(1, 1, 4, 4).expand(len(x), 1, 4, 4)], 1)),
        "each image or pixel",
    ),
    "values": (Do(lambda x: x if float(x.sum()) > 0 else -x), "looks across the images"),
    "batch": (Do(lambda x: x * len(x)), "the number of images"),
    "PReLU": (nn.PReLU(4), "prelu"),
    "tuple": (Do(lambda x: (x, x)), "return one tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_program_cannot_hold_is_refused_with_its_name(name: str) -> None:
    torch.manual_seed(3)
    layer, message = REFUSED[name]
    network = Shaped((4, 4, 4), nn.Conv2d(4, 4, 1), layer)
    with pytest.raises(InferenceError, match=message) as caught:
        trace_program(network)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="network must be a torch.nn.Module, got str"):
        trace_program("generator")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attribute latent_dim"):
        trace_program(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="mask does not fit"):
        trace_program(course("generator"), gp.Mask.dense(course("discriminator")))
    with pytest.raises(TypeError, match="mask must be a Mask"):
        trace_program(course("generator"), {})  # type: ignore[arg-type]
    with pytest.raises(InferenceError, match="have one"):
        trace_program(Normed())
    network = Shaped((3,), nn.Linear(4, 2))
    with pytest.raises(
        InferenceError, match=r"shape \(3, 3\); latent_dim, latent_shape .* shape that it takes: mat1"
    ):
        trace_program(network)
    labelled = nn.Bilinear(3, 2, 2)
    labelled.latent_dim = 3
    with pytest.raises(
        InferenceError, match="say what it takes besides, such as labels, by gp.adapt: .*'input2'"
    ):
        trace_program(labelled)
    network = Shaped((3,), nn.Linear(3, 2))
    nn.init.constant_(network.layers[0].weight, float("nan"))
    with pytest.raises(InferenceError, match="layers.0 has weights that are NaN"):
        trace_program(network)


def test_layers_know_their_zeros() -> None:
    program = trace_program(course("generator"))
    assert program.nonzeros == sum(layer.nonzeros for layer in program.layers)
    assert 0 <= program.sparsity <= 1
    assert all(isinstance(one, Layer) for one in program.operations)
