"""Sizes and work against closed forms and brute force; measuring changes nothing."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from unseen_networks import UNSEEN, build

import ganprune as gp
from ganprune import masks, metrics


def brute_force_macs(layer: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
    """Count multiplications one by one: (all, those with a non-zero weight), taps on padding included."""
    output = layer(inputs)
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        positions: object = range(output[..., 0].numel())
        taps = itertools.product(range(weight.shape[0]), range(weight.shape[1]))
    elif isinstance(layer, nn.Conv2d):
        positions = list(itertools.product(range(len(output)), *map(range, output.shape[2:])))
        taps = itertools.product(*map(range, weight.shape))
    else:  # a transposed convolution spreads each input pixel over its kernel
        positions = list(itertools.product(range(len(inputs)), *map(range, inputs.shape[2:])))
        taps = itertools.product(*map(range, weight.shape))
    taps = list(taps)
    dense = effective = 0
    for _ in positions:  # type: ignore[attr-defined]
        for tap in taps:
            dense += 1
            effective += int(weight[tap] != 0)
    return dense, effective


LAYERS = [
    pytest.param(nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 7, 5), id="convolution"),
    pytest.param(nn.Conv2d(4, 6, 3, groups=2, bias=False), (1, 4, 6, 6), id="grouped"),
    pytest.param(nn.Conv2d(4, 4, 3, groups=4, dilation=2), (1, 4, 6, 6), id="depth-wise"),
    pytest.param(nn.ConvTranspose2d(3, 2, 4, 2, 1), (2, 3, 4, 3), id="transposed"),
    pytest.param(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (1, 4, 3, 3), id="transposed grouped"),
    pytest.param(nn.Linear(5, 7), (3, 5), id="linear"),
    pytest.param(nn.Linear(5, 7), (2, 4, 5), id="linear on sequences"),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_macs_equal_multiplications_counted_one_by_one(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = copy.deepcopy(layer)
    kept = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        layer.weight *= kept
    inputs = torch.randn(shape)
    dense, effective = brute_force_macs(layer, inputs)
    assert metrics.macs(layer, inputs) * shape[0] == dense
    assert abs(metrics.effective_macs(layer, inputs) - effective / shape[0]) <= 0.5
    assert 0 < effective < dense


def test_macs_of_a_dcgan_have_a_closed_form() -> None:
    gan = gp.dcgan(width=8, latent_dim=16, device="cpu")
    generator = 16 * 32 * 16 + 4 * 4 * 32 * 16 * 9 + 7 * 7 * 16 * 8 * 16 + 14 * 14 * 8 * 1 * 16
    discriminator = 14 * 14 * 16 * 8 + 7 * 7 * 16 * 8 * 16 + 4 * 4 * 9 * 16 * 32 + 16 * 32
    assert metrics.macs(gan.generator) == generator
    assert metrics.macs(gan.discriminator) == discriminator
    assert metrics.effective_macs(gan.generator) == generator
    assert metrics.effective_macs(gan.discriminator) == discriminator


def test_products_outside_layers_count_in_full() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.linear(x)
            return rows @ rows.transpose(1, 2)

    model = Gram()
    nn.init.zeros_(model.linear.weight)
    inputs = torch.randn(2, 3, 4)
    assert metrics.macs(model, inputs) == 3 * 4 * 4 + 3 * 3 * 4
    assert metrics.effective_macs(model, inputs) == 3 * 3 * 4


def test_layers_may_be_called_by_keyword() -> None:
    class Named(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self:
                x = layer(input=x)
            return x

    layers = [nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.Conv2d(4, 2, 3)]
    x = torch.randn(1, 3, 5, 5)
    found = [metrics.complexity(net(*layers), inputs=x) for net in (Named, nn.Sequential)]
    assert found[0].effective_macs == found[1].effective_macs > 0


def test_report_counts_zeros_per_layer_and_per_network() -> None:
    gan = gp.dcgan(width=8, latent_dim=16, device="cpu")
    weights = masks.prunable_weights(gan.generator)
    mask = masks.Mask({name: torch.rand_like(weight) < 0.25 for name, weight in weights.items()})
    masks.apply_mask(gan.generator, mask)
    report = metrics.complexity(gan.generator, mask, batch_size=4, repeats=3)
    total = sum(p.numel() for p in gan.generator.parameters())
    zeros = sum(int((p == 0).sum()) for p in gan.generator.parameters())
    assert report.parameters == total == metrics.count_parameters(gan.generator)
    assert report.nonzero == total - zeros == metrics.count_nonzero(gan.generator)
    assert report.prunable == mask.total
    assert report.prunable_nonzero == mask.kept
    assert report.prunable_layers == tuple(weights)
    assert report.sparsity == pytest.approx(mask.sparsity)
    assert metrics.sparsity(gan.generator) == pytest.approx(mask.sparsity)
    assert report.network_sparsity == pytest.approx(zeros / total)
    assert report.effective_macs < report.macs
    row = json.loads(json.dumps(report.as_dict()))
    assert row["latency_batch_size"] == 4
    assert row["latency_threads"] == torch.get_num_threads()
    assert row["latency_lower"] <= row["latency_seconds"] <= row["latency_upper"]
    assert metrics.complexity(gan.generator, batch_size=None).as_dict().get("latency_seconds") is None


def test_spectral_norm_is_counted_by_its_raw_weight() -> None:
    gan = gp.dcgan(width=8, device="cpu")
    weights = masks.prunable_weights(gan.discriminator)
    mask = masks.Mask({name: torch.rand_like(weight) < 0.5 for name, weight in weights.items()})
    masks.apply_mask(gan.discriminator, mask)
    report = metrics.complexity(gan.discriminator, mask, batch_size=None)
    assert report.prunable_nonzero == mask.kept
    assert metrics.sparsity(gan.discriminator) == pytest.approx(mask.sparsity)
    assert 0.4 < report.effective_macs / report.macs < 0.6


def test_a_lost_mask_is_refused() -> None:
    gan = gp.dcgan(width=8, device="cpu")
    mask = masks.Mask(
        {
            n: torch.zeros_like(w, dtype=torch.bool)
            for n, w in list(masks.prunable_weights(gan.generator).items())[:1]
        }
    )
    with pytest.raises(masks.MaskError, match="non-zero weights under its mask"):
        metrics.complexity(gan.generator, mask)


def test_file_bytes_equal_the_file(tmp_path) -> None:
    model = gp.mlp_gan(device="cpu").generator
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert metrics.file_bytes(model) == (tmp_path / "model.safetensors").stat().st_size
    dense = metrics.compressed_bytes(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) < 0.1)
    assert metrics.file_bytes(model) == (tmp_path / "model.safetensors").stat().st_size
    assert metrics.compressed_bytes(model) < dense / 3


def test_tied_weights_are_stored_and_counted_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    assert metrics.count_parameters(model) == 36
    assert 36 * 4 < metrics.file_bytes(model) < 2 * 36 * 4
    assert metrics.macs(model, torch.randn(1, 6)) == 72


class Noisy(nn.Module):
    """Draws noise of its own and keeps running statistics, so that careless measuring would show."""

    latent_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.frozen = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout()
        self.frozen.eval()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.norm(self.first(z + torch.randn_like(z))))


def test_measuring_changes_no_state() -> None:
    model = Noisy()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    metrics.complexity(model, batch_size=4, repeats=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="inputs must be given for a Linear"):
        metrics.macs(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        metrics.latency(Noisy(), batch_size=0)
    with pytest.raises(ValueError, match="no prunable weight"):
        metrics.sparsity(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="has no parameters"):
        metrics.network_sparsity(nn.ReLU())


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 5, 3))


def test_layer_report_rows_add_up_to_the_whole() -> None:
    model, inputs = two_layers(), torch.randn(2, 2, 5, 5)
    model[0].requires_grad_(False)
    mask = masks.Mask({"3.weight": torch.rand(3, 100, generator=torch.Generator().manual_seed(0)) < 0.4})
    masks.apply_mask(model, mask)
    rows = metrics.layer_report(model, mask, inputs)
    assert [row["name"] for row in rows] == ["0.weight", "3.weight"]
    assert [row["prunable"] for row in rows] == [False, True]
    assert [row["outputs"] for row in rows] == [4, 3]
    assert rows[0]["sparsity"] == 0 and rows[1]["nonzero"] == mask.kept
    assert sum(row["macs"] for row in rows) == metrics.macs(model, inputs)
    assert sum(row["effective_macs"] for row in rows) == metrics.effective_macs(model, inputs)
    assert rows == metrics.layer_report(model, inputs=inputs)
    assert [row["macs"] for row in metrics.layer_report(model)] == [None, None]  # nothing says what it takes


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_layer_report_of_the_courses_networks_needs_no_inputs(network: str) -> None:
    model = gp.dcgan(width=4, device="cpu").networks()[network]
    rows = metrics.layer_report(model)
    assert sum(row["macs"] for row in rows) == metrics.macs(model)


@pytest.mark.parametrize("name", UNSEEN)
def test_layer_report_of_networks_never_seen(name: str) -> None:
    model, inputs = build(name)
    rows = metrics.layer_report(model, inputs=inputs)
    attention = 64 * 64 * (2 + 4) if name == "attention" else 0  # its two products lie outside all layers
    assert sum(row["macs"] for row in rows) + attention == pytest.approx(metrics.macs(model, inputs), abs=1)


def test_layer_report_warns_of_layers_below_one_weight_per_output() -> None:
    model = two_layers()
    kept = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    kept.view(-1)[:3] = True
    with pytest.warns(UserWarning, match=r"fewer weights than outputs are left in 0\.weight \(3 for 4\)"):
        rows = metrics.layer_report(model, masks.Mask({"0.weight": kept}))
    assert [row["starved"] for row in rows] == [True, False]


def test_layer_report_counts_the_outputs_of_a_grouped_transposed_convolution() -> None:
    row = metrics.layer_report(nn.ConvTranspose2d(4, 6, 3, groups=2))[0]
    assert (row["shape"], row["outputs"]) == ((4, 3, 3, 3), 6)


def test_layer_report_of_a_network_without_weights_and_of_a_mask_that_does_not_fit() -> None:
    assert metrics.layer_report(nn.ReLU()) == []
    with pytest.raises(ValueError, match=r"9\.weight is missing"):
        metrics.layer_report(two_layers(), masks.Mask({"9.weight": torch.ones(2, 2, dtype=torch.bool)}))


def test_layers_of_size_zero_cost_nothing() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        network = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 0))
    report = metrics.complexity(network, inputs=torch.randn(3, 4), repeats=1)
    assert (report.macs, report.effective_macs, report.prunable) == (8, 8, 8)
    rows = metrics.layer_report(network, inputs=torch.randn(3, 4))
    assert [(row["macs"], row["sparsity"], row["starved"]) for row in rows] == [(8, 0, False), (0, 0, False)]
