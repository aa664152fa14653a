"""Chapter 2: what it writes by hand equals torch and the package, and its derivations hold for other sizes, too."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ganprune as gp
from ganprune.networks.build import SPECTRAL_GAIN

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "02_dcgan.ipynb"


def run_cells(*names: str, **namespace: Any) -> dict[str, Any]:
    """Runs cells of the chapter, by their ids, in a namespace of their own."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}
    namespace = {"copy": copy, "torch": torch, "nn": nn, "F": F, "gp": gp, "latent_dim": 64, **namespace}
    for name in names:
        exec(sources[name], namespace)
    return namespace


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


geometry = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2)).filter(
    lambda g: g[0] > 2 * g[2]
)


# --- Transposed convolutions ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(geometry, st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_stamps_equal_torch_and_have_the_derived_size(
    shape: tuple[int, int, int], channels: int, height: int, columns: int
) -> None:
    (k, stride, padding), stamp = shape, run_cells("scratch-deconv")["transposed_convolution"]
    maps, weight = noise(channels, height, columns), noise(channels, 2, k, k, seed=1)
    ours = stamp(maps, weight, stride, padding)
    assert ours.shape[1:] == tuple((n - 1) * stride + k - 2 * padding for n in (height, columns))
    expected = F.conv_transpose2d(maps[None], weight, None, stride, padding)[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(geometry, st.integers(2, 6))
def test_zero_insertion_is_the_same_layer(shape: tuple[int, int, int], side: int) -> None:
    k, stride, padding = shape
    insert = run_cells("solution-4-code")["by_zero_insertion"]
    maps, weight = noise(2, 3, side, side), noise(3, 4, k, k, seed=1)
    expected = F.conv_transpose2d(maps, weight, None, stride, padding)
    torch.testing.assert_close(insert(maps, weight, stride, padding), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", range(2, 8))
@pytest.mark.parametrize("stride", [2, 3])
def test_stamps_overlap_evenly_where_the_stride_divides_the_kernel(k: int, stride: int) -> None:
    counts = F.conv_transpose1d(torch.ones(1, 1, 30), torch.ones(1, 1, k), stride=stride)[0, 0, k:-k]
    assert set(counts.tolist()) == {k // stride, -(-k // stride)}


# --- Normalisation and size of the signal ---------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 99))
def test_batch_norm_equals_torch_over_several_batches(batch: int, channels: int, seed: int) -> None:
    normalise, layer = run_cells("scratch-bn")["batch_norm"], nn.BatchNorm2d(channels)
    nn.init.normal_(layer.weight)
    running = [torch.zeros(channels), torch.ones(channels)]
    for number, training in enumerate((True, True, False)):
        x = 3 * noise(batch, channels, 3, 3, seed=seed + number) + 1
        ours = normalise(x, layer.weight, layer.bias, running, training)
        torch.testing.assert_close(ours, layer.train(training)(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(running, [layer.running_mean, layer.running_var])


def test_signal_sizes_follow_the_prediction() -> None:
    """Equation: over random weights, the mean square is as predicted, and somewhat below where there is padding."""
    signal_sizes, ratios = run_cells("signal")["signal_sizes"], []
    for seed in range(12):
        network = gp.dcgan(width=16, norm="none", seed=seed, device="cpu").discriminator
        rows = signal_sizes(network, noise(16, 1, 28, 28, seed=seed), 0.02)
        ratios.append([(measured / predicted) ** 2 for _, measured, predicted in rows])
    assert ((torch.tensor(ratios).mean(0) > 0.3) & (torch.tensor(ratios).mean(0) < 1.1)).all()
    unpadded = nn.Sequential()
    unpadded.layers = nn.Sequential()
    unpadded.layers.add_module("conv1", nn.Conv2d(8, 512, 3, bias=False))
    nn.init.normal_(unpadded.layers.conv1.weight, 0.0, 0.02)
    _, measured, predicted = signal_sizes(unpadded, noise(16, 8, 9, 9), 0.1)[0]
    assert measured == pytest.approx(predicted, rel=0.05)


def test_a_layer_stretches_by_no_more_than_its_overlap_times_its_largest_singular_value() -> None:
    discriminator = gp.dcgan(width=4, norm="spectral", device="cpu").discriminator.eval()
    sides, bounds = {"conv1": 28, "conv2": 14, "conv3": 7, "conv4": 4}, []
    for name, side in sides.items():
        layer = getattr(discriminator.layers, name)
        x = noise(1, layer.in_channels, side, side).double()
        weight = layer.weight.detach().double()
        for _ in range(60):  # power iteration on the convolution itself
            y = F.conv2d(x / x.norm(), weight, None, layer.stride, layer.padding)
            x = torch.nn.grad.conv2d_input(x.shape, weight, y, layer.stride, layer.padding)
        one_pass = layer.stride[0] if side > 4 else layer.kernel_size[0]
        bounds.append(math.ceil(layer.kernel_size[0] / one_pass))
        assert y.norm() <= bounds[-1] * torch.linalg.matrix_norm(weight.flatten(1), 2)
    assert math.prod(bounds) == 8
    assert discriminator.spec.logit_gain == SPECTRAL_GAIN


# --- Training -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train_split() -> Any:
    return gp.mnist(device="cpu").train


@pytest.mark.parametrize("seed", [1, 2])
def test_the_loop_by_hand_is_gp_train(train_split: Any, seed: int) -> None:
    by_hand = run_cells("loop-d", "loop-g", "loop")["train_by_hand"]
    first, second = (gp.dcgan(width=8, norm="batch", seed=seed, device="cpu") for _ in range(2))
    ours = by_hand(first, train_split, steps=4, batch_size=32, seed=seed)
    config = gp.TrainConfig(
        steps=4,
        batch_size=32,
        loss="non-saturating",
        learning_rate=2e-4,
        betas=(0.5, 0.999),
        penalty=None,
        decay_from=1.0,
        precision="float32",
        channels_last=False,
        log_every=1,
        seed=seed,
    )
    history = gp.train(gp.TrainState(second, config), train_split).history
    theirs = [(row["discriminator_loss"], row["generator_loss"]) for row in history]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-5, rtol=0)


def test_the_average_is_the_sum_of_the_text(train_split: Any) -> None:
    gan = gp.dcgan(width=2, device="cpu")
    weights = [gan.generator.layers.deconv1.weight.detach().clone()]
    decays = [min(0.9, (1 + step) / (10 + step)) for step in range(12)]

    def remember(state: gp.TrainState) -> None:
        weights.append(state.gan.generator.layers.deconv1.weight.detach().clone())

    config = gp.TrainConfig(steps=12, batch_size=8, ema_decay=0.9, precision="float32")
    gp.train(gp.TrainState(gan, config), train_split, [remember])
    expected = math.prod(decays) * weights[0]
    for number, decay in enumerate(decays):
        expected += (1 - decay) * math.prod(decays[number + 1 :]) * weights[number + 1]
    torch.testing.assert_close(gan.generator_ema.layers.deconv1.weight, expected, atol=1e-6, rtol=1e-4)


def test_the_alarms_ring_where_the_text_says(train_split: Any) -> None:
    """A weak discriminator: its loss above 2, the generator's below 0. A strong one: its loss at zero."""
    histories = {}
    for name, norm, rate, rate_d in (("strong", "none", 1e-4, 2e-3), ("weak", "spectral", 1e-3, 4e-6)):
        config = gp.TrainConfig(
            steps=120,
            loss="hinge",
            penalty=None,
            betas=(0.5, 0.999),
            learning_rate=rate,
            discriminator_learning_rate=rate_d,
            decay_from=1.0,
            log_every=10,
        )
        gan = gp.dcgan(width=8, norm=norm, device="cpu")
        histories[name] = gp.train(gp.TrainState(gan, config), train_split).history
    last = histories["weak"][-1]
    assert last["discriminator_loss"] > 2
    assert last["generator_loss"] < 0
    assert min(row["discriminator_loss"] for row in histories["strong"]) < 0.05


# --- Latent space ---------------------------------------------------------------------------------------------


def test_the_arc_keeps_the_length_and_the_line_does_not() -> None:
    names = run_cells("slerp")
    start, end = names["start"], names["end"]
    arc = names["slerp"](start, end, 9)
    torch.testing.assert_close(arc[[0, -1]], torch.stack([start, end]))
    lengths = arc.norm(dim=1)
    assert lengths.min() > 0.99 * min(start.norm(), end.norm())
    assert names["line"].norm(dim=1).min() < 0.85 * min(start.norm(), end.norm())
