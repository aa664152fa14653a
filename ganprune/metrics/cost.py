"""What a network costs, in one report: parameters, non-zeros, multiply-accumulates, file size, latency."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ganprune.core.checks import check_integer
from ganprune.core.modes import eval_mode
from ganprune.core.random import keep_random_state
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.masks.weights import prunable_weights
from ganprune.metrics.size import (
    compressed_bytes,
    count_nonzero,
    count_parameters,
    file_bytes,
    network_sparsity,
)
from ganprune.metrics.work import Inputs, call_arguments, count_samples, device_of, measure_work


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass, measured after a warm-up.

    Attributes:
        seconds: median over the repetitions.
        lower: lower quartile, in seconds.
        upper: upper quartile, in seconds.
        batch_size: inputs in one pass.
        repeats: number of timed passes.
        threads: CPU threads that torch may use.
        device: where it ran.
    """

    seconds: float
    lower: float
    upper: float
    batch_size: int
    repeats: int
    threads: int
    device: str


@dataclass(frozen=True)
class ComplexityReport:
    """What :func:`complexity` found.

    Attributes:
        parameters: number of parameters.
        nonzero: how many of them are not zero.
        prunable: number of prunable weights.
        prunable_nonzero: how many of them are kept: not zero, or not pruned by the mask that was given.
        prunable_layers: their canonical names.
        sparsity: share of zeros among the prunable weights (of pruned weights, if a mask was given).
        network_sparsity: share of zeros among all parameters.
        macs: multiply-accumulates of dense kernels for one input.
        effective_macs: those whose weight is not zero.
        file_bytes: size of the state dict as a safetensors file, zeros stored like any number.
        compressed_bytes: size of the same file after zlib compression, to which zeros cost little.
        latency: time of one forward pass (None if it was not asked for).
    """

    parameters: int
    nonzero: int
    prunable: int
    prunable_nonzero: int
    prunable_layers: tuple[str, ...]
    sparsity: float
    network_sparsity: float
    macs: int
    effective_macs: int
    file_bytes: int
    compressed_bytes: int
    latency: Latency | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON; the latency's entries get the prefix ``latency_``."""
        row = asdict(self)
        row["prunable_layers"] = list(self.prunable_layers)
        timing = row.pop("latency") or {}
        return row | {f"latency_{key}": value for key, value in timing.items()}


@torch.no_grad()
def latency(
    network: nn.Module,
    batch_size: int = 64,
    inputs: Inputs = None,
    repeats: int = 20,
    warmup: int = 5,
    samples: int | None = None,
) -> Latency:
    """Median time of a forward pass in evaluation mode.

    Args:
        network: any module; it is left as it was.
        batch_size: inputs in one pass; not used if ``inputs`` is given.
        inputs: a whole batch; default latents (or images) of the shape that the network's spec names.
        repeats: timed passes, at least 1.
        warmup: passes before them, at least 0.
        samples: number of inputs in a batch that is given, as for :func:`ganprune.metrics.macs`.

    Returns:
        Median and quartiles, with batch size, threads and device.

    Raises:
        ValueError: if a number is outside its range, or ``inputs`` is missing and the network does not say what it
            takes.
    """
    batch_size, repeats = check_integer("batch_size", batch_size, 1), check_integer("repeats", repeats, 1)
    warmup = check_integer("warmup", warmup, 0)
    arguments = call_arguments(network, batch_size, inputs)
    samples, device = count_samples(arguments, samples), device_of(arguments)
    times = []
    with eval_mode(network), keep_random_state(device):
        for turn in range(warmup + repeats):
            _wait(device)
            begin = time.perf_counter()
            network(*arguments)
            _wait(device)
            if turn >= warmup:
                times.append(time.perf_counter() - begin)
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive") if repeats > 1 else times * 3
    return Latency(median, lower, upper, samples, repeats, torch.get_num_threads(), str(device))


def complexity(
    network: nn.Module,
    mask: Mask | None = None,
    inputs: Inputs = None,
    batch_size: int | None = 64,
    repeats: int = 20,
    samples: int | None = None,
) -> ComplexityReport:
    """Size, work, storage and latency of a network in one report; the network is left as it was.

    Args:
        network: any module.
        mask: if given, its prunable weights are the ones counted, and every weight that it prunes must be zero.
        inputs: a batch, which is also the one that is timed; default what the network's spec names.
        batch_size: inputs in one timed pass where no ``inputs`` are given; None leaves the latency out.
        repeats: timed passes.
        samples: number of inputs in a batch that is given, as for :func:`ganprune.metrics.macs`.

    Raises:
        ValueError: if ``inputs`` is missing and the network does not say what it takes, or it has no prunable weight.
        MaskError: if a weight that the mask prunes is not zero.
    """
    if mask is not None:
        check_mask(network, mask)
        names, prunable, kept = tuple(mask), mask.total, mask.kept
    else:
        weights = prunable_weights(network)
        names, prunable = tuple(weights), sum(weight.numel() for weight in weights.values())
        kept = sum(int(weight.count_nonzero()) for weight in weights.values())
    work = measure_work(network, inputs, samples)
    timed = None
    if batch_size is not None:
        timed = latency(network, batch_size, inputs, repeats, samples=samples)
    return ComplexityReport(
        parameters=count_parameters(network),
        nonzero=count_nonzero(network),
        prunable=prunable,
        prunable_nonzero=kept,
        prunable_layers=names,
        sparsity=1 - kept / prunable,
        network_sparsity=network_sparsity(network),
        macs=round(work.dense),
        effective_macs=round(work.dense - work.skipped),
        file_bytes=file_bytes(network),
        compressed_bytes=compressed_bytes(network),
        latency=timed,
    )


def _wait(device: torch.device) -> None:
    """Wait until an accelerator has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
