"""Which is faster at equal digit-FID: a generator with fewer channels in dense kernels, or one with zeros as a twin."""

import copy
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import ganprune as gp
from benchmarks.record import Row
from benchmarks.sparse_inference import (
    TORCH,
    TRAINED,
    Call,
    Setting,
    clock_of,
    generator_of,
    onnx_arm,
    pruned,
    repeated,
    run_torch,
)
from benchmarks.timing import compare, keep_freed_memory
from ganprune.experiments.arms import arms_of
from ganprune.experiments.claims import recovered
from ganprune.experiments.studies import CHANNEL_RATIOS, RECOVERED
from ganprune.records.store import read_store

MINUTES = 3


@dataclass(frozen=True)
class Pair:
    """Two smaller generators that came out equally good.

    Attributes:
        channel_ratio: share of the channels that the first one lacks.
        digit_fid: what it came to after training on, the median of the seeds.
        sparsity: of the second one, with which training on comes to the same; the median of the seeds.
        lowest_sparsity: of the seeds'.
        highest_sparsity: of the seeds'.
        seeds: how many there are.
    """

    channel_ratio: float
    digit_fid: float
    sparsity: float
    lowest_sparsity: float
    highest_sparsity: float
    seeds: int


def sparsity_of(digit_fid: float, curve: Mapping[float, float]) -> float:
    """The sparsity at which a curve of digit-FID first comes to a value; between points its logarithm is linear.

    The value is taken for the curve's end where it lies beyond it, and for 0 where it lies below the first point.
    """
    points = sorted(curve.items())
    for (left, below), (right, above) in zip(points, points[1:], strict=False):
        if digit_fid <= below:
            return left
        if digit_fid <= above:
            share = math.log(digit_fid / below) / math.log(above / below)
            return left + share * (right - left)
    return points[-1][0]


def recorded_pairs() -> list[Pair]:
    """The pairs of the shipped records, seed by seed; ratios without a record are left out."""
    rows, arms = read_store(), arms_of("laptop")
    control = recovered(arms.control).values(rows, "digit_fid")
    curves = {s: recovered(arms.recovery(s)).values(rows, "digit_fid") for s in RECOVERED}
    pairs = []
    for ratio in CHANNEL_RATIOS:
        found = recovered(arms.fewer_channels(ratio)).values(rows, "digit_fid")
        equal = {
            seed: sparsity_of(
                value, {0.0: control[seed]} | {s: c[seed] for s, c in curves.items() if seed in c}
            )
            for seed, value in found.items()
        }
        if equal:
            each = list(equal.values())
            middle = statistics.median(found.values()), statistics.median(each)
            pairs.append(Pair(ratio, *middle, min(each), max(each), len(each)))
    return pairs


def arms_of_pair(pair: Pair, network: nn.Module, setting: Setting, folder: Path) -> dict[str, Call]:
    """The smaller generator in the ways of PyTorch and in ONNX Runtime, and the sparse twin."""
    small = gp.shrink_channels(network, pair.channel_ratio).eval()
    last = copy.deepcopy(small).to(memory_format=torch.channels_last)
    z = gp.sample_latents(setting.images, network.spec.latent_dim)
    path = folder / f"{pair.channel_ratio}.onnx"
    if not path.is_file():
        gp.export_onnx(path, small)
    twin = gp.sparse_twin(pruned(network, pair.sparsity), threads=setting.threads)
    ways = (small, True), (last, True), (small, False), (last, False)
    arms: dict[str, Call] = {
        name: lambda net=net, products=products: run_torch(net, z, products)
        for name, (net, products) in zip(TORCH, ways, strict=True)
    }
    return arms | {"onnx": onnx_arm(path, z.numpy(), setting.threads), "twin": lambda: twin(z)}


def rows_of(pair: Pair, setting: Setting, arms: dict[str, Call], rounds: int) -> Iterator[Row]:
    """PyTorch's best and ONNX Runtime over the twin, while all take turns."""
    passes = max(1, 32 // setting.images)
    clock, read = clock_of(setting)
    times = compare({name: repeated(arm, passes) for name, arm in arms.items()}, rounds, read=read)
    images = "one image" if setting.images == 1 else f"{setting.images} images"
    for other, what in ((min(TORCH, key=times.median), "PyTorch's best"), ("onnx", "ONNX Runtime")):
        ratio = times.ratio(other, "twin")
        yield Row(
            f"{pair.channel_ratio:.0%} of the channels taken out (digit-FID {pair.digit_fid:.3g}), {what}, over an "
            f"equally good twin with {pair.sparsity:.0%} zeros: {images} on one thread",
            ratio.value,
            "×",
            details={
                "low": ratio.low,
                "high": ratio.high,
                **asdict(pair),
                "small_ms": 1e3 * times.median(other) / passes,
                "twin_ms": 1e3 * times.median("twin") / passes,
                "clock": clock,
            },
        )


def measure(quick: bool) -> Iterator[Row]:
    """The time of the smaller generator in PyTorch, and in ONNX Runtime, over that of the equally good twin."""
    keep_freed_memory()
    pairs = [Pair(0.5, 1.0, 0.5, 0.5, 0.5, 1)] if quick else recorded_pairs()
    settings = [Setting(8, 2, 1, ())] if quick else [Setting(TRAINED, n, 1, ()) for n in (1, 16, 64)]
    network, before = generator_of(settings[0].width), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for setting in settings:
                for pair in pairs:
                    arms = arms_of_pair(pair, network, setting, Path(folder))
                    yield from rows_of(pair, setting, arms, 2 if quick else 31)
    finally:
        torch.set_num_threads(before)
