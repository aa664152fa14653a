"""Which weights are prunable, what they are called however the network is wrapped, and norms that fit them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

import ganprune as gp
from ganprune.masks.left_out import left_out
from ganprune.masks.names import canonical_name, unwrap
from ganprune.masks.spectral import settled_spectral_norms
from ganprune.masks.weights import effective_weights, prunable_weights


class Own(nn.Module):
    """A network with a part of its own called ``module``."""

    def __init__(self):
        super().__init__()
        self.module, self.head = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.module(x))


WRAPPERS = {
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "compiled and averaged": lambda network: AveragedModel(torch.compile(network, backend="eager")),
    "averaged and compiled": lambda network: torch.compile(AveragedModel(network), backend="eager"),
}


class TestNames:
    def test_a_part_called_module_keeps_its_name(self):
        assert list(prunable_weights(Own())) == ["module.0.weight", "head.weight"]
        mask = gp.prune(Own(), 0.5, protect="module")
        assert list(mask) == ["head.weight"]

    @pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
    def test_wrappers_add_nothing(self, wrap):
        network = Own()
        wrapped = wrap(network)
        assert list(prunable_weights(wrapped)) == list(prunable_weights(network))
        assert isinstance(unwrap(wrapped), Own)
        names = [name for name, _ in wrapped.named_parameters()]
        assert {canonical_name(name, wrapped) for name in names} == {n for n, _ in network.named_parameters()}
        mask = gp.prune(wrapped, 0.5, protect=[name for name in names if name.endswith("head.weight")])
        assert list(mask) == ["module.0.weight"]
        gp.masks.check_mask(unwrap(wrapped), mask)

    def test_a_wrapper_inside_a_network(self):
        network = nn.ModuleDict({"features": nn.DataParallel(nn.Linear(2, 2)), "head": Own()})
        assert list(prunable_weights(network)) == [
            "features.weight",
            "head.module.0.weight",
            "head.head.weight",
        ]

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("layers.conv1.parametrizations.weight.original", "layers.conv1.weight"),
            ("layers.conv1.parametrizations.weight.original1", "layers.conv1.weight"),
            ("conv1.weight_orig", "conv1.weight"),
            ("weight_v", "weight"),
            ("_orig_mod.layers._orig_mod.conv1.weight", "layers.conv1.weight"),
            ("module.conv1.weight", "module.conv1.weight"),
        ],
    )
    def test_what_parametrisations_and_compilation_add_goes(self, name, expected):
        assert canonical_name(name) == expected


class TestWhichWeights:
    def test_empty_and_integer_weights_are_none(self):
        network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(2, 2))
        network[1].weight = nn.Parameter(torch.empty(0, 2))
        network[2].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
        assert list(prunable_weights(network)) == ["0.weight"]
        assert gp.prune(network, 0.5).kept == 2
        with pytest.raises(ValueError, match="empty"):
            prunable_weights(network[1])

    def test_what_is_left_out_is_listed(self):
        network = nn.ModuleDict(
            {
                "linear": parametrizations.weight_norm(nn.Linear(2, 2)),
                "labels": nn.Embedding(3, 4),
                "memory": nn.LSTM(2, 2),
                "norm": nn.BatchNorm1d(2),
                "frozen": nn.Embedding(3, 4).requires_grad_(False),
            }
        )
        assert list(left_out(network)) == ["labels.weight", "memory.weight_ih_l0", "memory.weight_hh_l0"]
        assert "frozen.weight" in left_out(network.requires_grad_(False))


class TestSettledSpectralNorms:
    @pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
    @pytest.mark.parametrize(
        "layer", [lambda: nn.Linear(30, 20), lambda: nn.Conv2d(5, 6, 3), lambda: nn.ConvTranspose2d(5, 6, 3)]
    )
    def test_stale_vectors_give_the_true_norm_inside_and_come_back(self, norm, layer):
        torch.manual_seed(0)
        network = nn.Sequential(norm(layer()))
        with torch.no_grad():
            for buffer in network.buffers():
                buffer.copy_(nn.functional.normalize(torch.randn_like(buffer), dim=0))
        before = [buffer.clone() for buffer in network.buffers()]
        dim = 1 if isinstance(network[0], nn.ConvTranspose2d) else 0

        def largest_singular_value():
            weight = effective_weights(network)["0.weight"].movedim(dim, 0).flatten(1)
            return torch.linalg.matrix_norm(weight, 2).item()

        assert largest_singular_value() > 2
        with pytest.raises(KeyError), settled_spectral_norms(network):
            assert largest_singular_value() == pytest.approx(1, abs=0.05)
            raise KeyError
        assert all(torch.equal(buffer, old) for buffer, old in zip(network.buffers(), before, strict=True))

    def test_vectors_that_fit_are_left_alone(self):
        network = parametrizations.spectral_norm(nn.Linear(8, 8))
        for _ in range(30):
            network(torch.randn(2, 8))
        before = effective_weights(network)["weight"]
        with settled_spectral_norms(network):
            assert torch.equal(effective_weights(network)["weight"], before)
