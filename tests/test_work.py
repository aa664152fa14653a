"""Multiply-accumulates of attention, of recurrent layers and of unusual calls, by hand formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganprune import metrics


class Attention(nn.Module):
    """PyTorch's fused attention of a sequence to itself, without a projection."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


class First(nn.Module):
    """The first output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def recurrent(kind: type[nn.RNNBase], gates: int, width: int = 4, **options: int) -> object:
    layer = kind(4, width, batch_first=True, **options)
    sides, depth = 1 + layer.bidirectional, layer.num_layers
    later = (depth - 1) * sides * gates * width * (sides * width + width)
    return pytest.param(
        First(layer), 8 * (sides * gates * width * (4 + width) + later), id=f"{kind.__name__}{options}"
    )


ENCODER = 4 * 8 * 16 + 2 * 8 * 8 * 4 + 2 * 8 * 4 * 6  # projections, the two products, the feed-forward pair
FUSED = [
    pytest.param(
        nn.Sequential(nn.Linear(4, 4, bias=False), Attention()), 8 * 16 + 2 * 8 * 8 * 4, id="attention"
    ),
    pytest.param(
        nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True), ENCODER, id="encoder layer"
    ),
    pytest.param(
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True),
            3,
            enable_nested_tensor=False,
        ),
        3 * ENCODER,
        id="encoder",
    ),
    recurrent(nn.LSTM, 4),
    recurrent(nn.GRU, 3),
    recurrent(nn.RNN, 1),
    recurrent(nn.LSTM, 4, width=5, num_layers=2, bidirectional=True),
]


@pytest.mark.parametrize(("network", "expected"), FUSED)
@pytest.mark.parametrize("batch", [1, 3])
def test_macs_of_attention_and_recurrent_layers_by_hand(
    network: nn.Module, expected: int, batch: int
) -> None:
    assert metrics.macs(network, torch.randn(batch, 8, 4)) == expected
    assert metrics.effective_macs(network.eval(), torch.randn(batch, 8, 4)) == expected


def test_macs_of_multihead_attention_by_hand() -> None:
    layer, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(1, 8, 4)
    assert metrics.macs(layer, (x, x, x)) == 4 * 8 * 16 + 2 * 8 * 8 * 4 == 1024
    with torch.no_grad():
        layer.out_proj.weight[:2] = 0
    assert metrics.effective_macs(layer, (x, x, x)) == 1024 - 8 * 8


def test_sequences_first_need_the_number_of_samples() -> None:
    network, x = First(nn.LSTM(4, 4)), torch.randn(8, 3, 4)
    assert metrics.macs(network, x, samples=3) == 8 * 4 * (16 + 16)


def test_measuring_leaves_the_choice_of_kernels_as_it_was() -> None:
    network, x = nn.TransformerEncoderLayer(4, 2, batch_first=True).eval(), torch.randn(2, 8, 4)
    onednn, fast = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    metrics.macs(network, x)
    with pytest.raises(AssertionError, match="embedding dimension"):
        metrics.macs(network, torch.randn(2, 8, 5))
    assert (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()) == (onednn, fast)


def test_a_learned_constant_expanded_over_the_batch_is_no_obstacle() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.last = nn.Parameter(torch.randn(1, 16, 4, 4)), nn.Conv2d(16, 8, 3)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.last(self.start.expand(len(z), -1, -1, -1))

    report = metrics.complexity(Constant(), inputs=torch.randn(2, 8), repeats=2)
    assert report.macs == 2 * 2 * 8 * 16 * 9
    assert report.latency.batch_size == 2


def test_networks_may_take_labels_numbers_and_nothing_to_count_by() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(3, 4), nn.Linear(4, 2, bias=False)

        def forward(self, scale: float, label: torch.Tensor | list[int]) -> torch.Tensor:
            return self.last(self.table(torch.as_tensor(label)) * scale)

    network = Labelled()
    assert metrics.macs(network, (0.5, torch.tensor([0, 1, 2]))) == 8
    assert metrics.complexity(network, inputs=(0.5, torch.tensor([0, 1])), repeats=1).macs == 8
    with pytest.raises(ValueError, match="samples must be given"):
        metrics.macs(network, (0.5, [0, 1]))
    assert metrics.complexity(network, inputs=(0.5, [0, 1]), samples=2, repeats=1).macs == 8
