"""Which is faster at equal digit-FID: a generator with fewer channels in dense kernels, or one with zeros as a twin."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import ganprune as gp
from benchmarks.record import Row
from benchmarks.sparse_inference import (
    BATCHES,
    TORCH,
    TRAINED,
    Call,
    Setting,
    clock_of,
    generator_of,
    onnx_arm,
    pruned,
    repeated,
    torch_arms,
)
from benchmarks.timing import compare, keep_freed_memory
from ganprune.experiments.equal_quality import Pair, recorded_pairs

MINUTES = 3


def arms_of_pair(pair: Pair, network: nn.Module, setting: Setting, folder: Path) -> dict[str, Call]:
    """The smaller generator in the ways of PyTorch and in ONNX Runtime, and the sparse twin."""
    small = gp.shrink_channels(network, pair.channel_ratio).eval()
    z = gp.sample_latents(setting.images, network.spec.latent_dim)
    path = folder / f"{pair.channel_ratio}.onnx"
    if not path.is_file():
        gp.export_onnx(path, small)
    twin = gp.sparse_twin(pruned(network, pair.sparsity), threads=setting.threads)
    arms = torch_arms(small, z)
    return arms | {"onnx": onnx_arm(path, z.numpy(), setting.threads), "twin": lambda: twin(z)}


def rows_of(pair: Pair, setting: Setting, arms: dict[str, Call], rounds: int) -> Iterator[Row]:
    """PyTorch's best and ONNX Runtime over the twin, while all take turns."""
    passes = max(1, 32 // setting.images)
    clock, read = clock_of(setting)
    times = compare({name: repeated(arm, passes) for name, arm in arms.items()}, rounds, read=read)
    for other, what in ((min(TORCH, key=times.median), "PyTorch's best"), ("onnx", "ONNX Runtime")):
        ratio = times.ratio(other, "twin")
        yield Row(
            f"{pair.channel_ratio:.0%} of the channels taken out (digit-FID {pair.digit_fid:.3g}), {what}, over an "
            f"equally good twin with {pair.sparsity:.0%} zeros: {setting}",
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
    pairs = [Pair(0.5, 0.3, 1.0, 0.5, 0.5, 0.5, 1)] if quick else recorded_pairs()
    settings = [Setting(8, 2, 1, ())] if quick else [Setting(TRAINED, n, 1, ()) for n in BATCHES]
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
