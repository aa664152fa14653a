"""What fewer channels save: latency of 64 images, dense generator over shrunk ones, on the CPU in float32."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

import ganprune as gp
from benchmarks.record import Row
from benchmarks.timing import Times, compare, keep_freed_memory
from ganprune.channels.folding import fold_norms
from ganprune.channels.shrinking import plan_channels
from ganprune.channels.surgery import remove_channels
from ganprune.networks.fast_convolutions import fast_convolutions

MINUTES = 3
BATCH_SIZE = 64
PASSES = 40
"""In a row, so that each network finds the machine as it leaves it itself, as in use."""
SPARSITY = 0.9
BARS = {32: 2.5, 64: 4.0}
LEFT = 0.1
FRACTIONS = (0.7, 0.5, 0.3, 0.2, LEFT, 0.05)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def forward(network: nn.Module, z: torch.Tensor, layout: torch.memory_format) -> Callable[[], object]:
    """A function that makes a few batches of images in a row, as ``gp.sample`` does; weights in that layout."""
    network = fold_norms(network).eval().to(memory_format=layout)

    def run() -> None:
        with torch.inference_mode(), fast_convolutions(network):
            for _ in range(PASSES):
                network(z)

    return run


def fastest(times: Times, network: str) -> str:
    """The arm of a network whose layout takes the least time."""
    return min((f"{network}, {layout}" for layout in LAYOUTS), key=times.median)


def measure(quick: bool) -> Iterator[Row]:
    """Ratios at 90% fewer multiply-accumulates, the curve, and unstructured sparsity beside it.

    Each network runs in both memory layouts, and the faster one of each counts. No network pays for page
    faults; in a fresh process the dense one may, and is slower.
    """
    keep_freed_memory()
    rounds, round_to = (2, 1) if quick else (20, 8)
    for width, bar in {8: 2.5}.items() if quick else BARS.items():
        generator = gp.dcgan(width=width, device="cpu").generator
        z = gp.sample_latents(2 if quick else BATCH_SIZE, 64)
        masked = copy.deepcopy(generator)
        gp.prune(masked, sparsity=SPARSITY)
        networks: dict[str, nn.Module] = {"dense": generator, "masked": masked}
        shares = {}
        for fraction in FRACTIONS:
            plan = plan_channels(generator, macs_fraction=fraction, round_to=round_to)
            networks[f"shrunk {fraction}"] = remove_channels(generator, plan.removed)
            shares[fraction] = plan.macs_fraction
        arms = {
            f"{name}, {layout}": forward(network, z, LAYOUTS[layout])
            for name, network in networks.items()
            for layout in LAYOUTS
        }
        times = compare(arms, rounds)
        best = {name: fastest(times, name) for name in networks}
        speedups = {f: times.ratio(best["dense"], best[f"shrunk {f}"]) for f in FRACTIONS}
        chosen = best[f"shrunk {LEFT}"]
        yield Row(
            f"latency of {len(z)} images, dense over {1 - LEFT:.0%} fewer multiply-accumulates, width {width}",
            speedups[LEFT].value,
            "×",
            at_least=bar,
            details={
                "low": speedups[LEFT].low,
                "high": speedups[LEFT].high,
                "dense_ms": 1e3 * times.median(best["dense"]) / PASSES,
                "shrunk_ms": 1e3 * times.median(chosen) / PASSES,
                "channels": list(networks[f"shrunk {LEFT}"].spec.channels),
                "macs_fraction": shares[LEFT],
                "layouts": [arm.partition(", ")[2] for arm in (best["dense"], chosen)],
            },
        )
        ratio = times.ratio(best["masked"], best["dense"])
        yield Row(
            f"latency of {len(z)} images, {SPARSITY:.0%} of the weights masked over dense, width {width}",
            ratio.value,
            "×",
            details={
                "low": ratio.low,
                "high": ratio.high,
                "masked_ms": 1e3 * times.median(best["masked"]) / PASSES,
            },
        )
        yield Row(
            f"latency of {len(z)} images, dense over {1 - FRACTIONS[-1]:.0%} fewer, and the curve, width {width}",
            speedups[FRACTIONS[-1]].value,
            "×",
            details={
                "macs_fraction": [1.0, *(shares[f] for f in FRACTIONS)],
                "speedup": [1.0, *(speedups[f].value for f in FRACTIONS)],
                "low": [1.0, *(speedups[f].low for f in FRACTIONS)],
                "high": [1.0, *(speedups[f].high for f in FRACTIONS)],
            },
        )
