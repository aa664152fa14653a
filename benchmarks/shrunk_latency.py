"""What fewer channels save: latency of 64 images, dense generator over one with a tenth of the arithmetic."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

import ganprune as gp
from benchmarks.record import Row
from benchmarks.timing import compare, keep_freed_memory
from ganprune.channels import plan_channels, remove_channels

MINUTES = 3
WIDTHS = (32, 64, 128)
LEFT = 0.1
"""Share of the multiply-accumulates that the smaller generator has."""


def run(network: nn.Module, z: torch.Tensor, passes: int) -> None:
    """Makes a few batches of images in a row with PyTorch's own kernels."""
    with torch.inference_mode():
        for _ in range(passes):
            network(z)


def measure(quick: bool) -> Iterator[Row]:
    """One row for each width: how many times faster, with its 95% interval over rounds."""
    keep_freed_memory()
    rounds, passes, batch_size = (2, 1, 2) if quick else (20, 4, 64)
    z = gp.sample_latents(batch_size, 64)
    for width in (8,) if quick else WIDTHS:
        dense = gp.dcgan(width=width, device="cpu").generator.eval()
        plan = plan_channels(dense, macs_fraction=LEFT)
        small = remove_channels(dense, plan.removed)
        arms = {"dense": partial(run, dense, z, passes), "shrunk": partial(run, small, z, passes)}
        times = compare(arms, rounds)
        ratio = times.ratio("dense", "shrunk")
        yield Row(
            f"latency of {batch_size} images, dense over {1 - LEFT:.0%} fewer multiply-accumulates, width {width}",
            ratio.value,
            "×",
            details={
                "low": ratio.low,
                "high": ratio.high,
                "dense_ms": 1e3 * times.median("dense") / passes,
                "shrunk_ms": 1e3 * times.median("shrunk") / passes,
                "channels": list(small.spec.channels),
                "macs_fraction": plan.macs_fraction,
            },
        )
