"""Narrow transposed convolutions on the CPU: the way they would else take over the form by blocks."""

import itertools
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.record import Row
from benchmarks.timing import compare
from ganprune.networks import fast_convolutions as convolutions

MINUTES = 1
CALLS = 10
WIDTHS = (8, 16, 32, 64)
BATCH_SIZES = (1, 8, 32, 64)


def else_over_blocks(layer: nn.ConvTranspose2d, x: torch.Tensor, rounds: int) -> float:
    """Time of torch's kernel, or for a grey image of the product over patches, over that of blocks."""
    made: dict[str, object] = {}

    def other() -> None:
        for _ in range(CALLS):
            if layer.out_channels > 1:
                layer(x)
            else:
                size = [2 * side for side in x.shape[2:]]
                convolutions._added_up(x, layer.weight, size, layer.stride, layer.padding)

    def blocks() -> None:
        for _ in range(CALLS):
            convolutions._by_blocks(layer, made, x)

    with torch.inference_mode():
        return compare({"other": other, "blocks": blocks}, rounds).ratio("other", "blocks").value


def measure(quick: bool) -> Iterator[Row]:
    """For each number of outputs the least gain of the shapes that take the form, and the ratios of all."""
    widths, batch_sizes, rounds = ((8,), (2,), 2) if quick else (WIDTHS, BATCH_SIZES, 15)
    for outputs in (1, 2) if quick else (1, *WIDTHS[:-1]):
        found, gains = {}, []
        for inputs, batch_size in itertools.product(widths, batch_sizes):
            if inputs >= outputs:
                layer = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
                layer = layer.to(memory_format=torch.channels_last)
                x = torch.randn(batch_size, inputs, *(2 * [14 if outputs == 1 else 7]))
                x = x.contiguous(memory_format=torch.channels_last)
                found[inputs, batch_size] = else_over_blocks(layer, x, rounds)
                if convolutions._splits_into_blocks(layer, x):
                    gains.append(found[inputs, batch_size])
        yield Row(
            f"transposed convolution, outputs: {outputs}; "
            f"{'product over patches' if outputs == 1 else 'torch'} over blocks, least "
            + ("where blocks are taken" if gains else "(blocks are not taken)"),
            min(gains or found.values()),
            "×",
            details={
                "shapes": [f"{inputs} channels, {n} images" for inputs, n in found],
                "ratios": list(found.values()),
            },
        )
