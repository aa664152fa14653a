"""How large and how slow a network is: parameters, non-zeros, multiply-accumulates, file size, latency.

Two counts of work are kept apart. ``macs`` is what dense kernels execute, zeros included; it is what time
depends on. ``effective_macs`` leaves out the products with a zero weight; only kernels that skip zeros would
gain from them.
"""

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
from ganprune.metrics.macs import (
    Inputs,
    call_arguments,
    compressed_bytes,
    count_nonzero,
    count_parameters,
    file_bytes,
    measure_work,
    network_sparsity,
)


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass, measured after a warm-up.

    Args:
        seconds: Median over the repetitions.
        lower: Lower quartile, in seconds.
        upper: Upper quartile, in seconds.
        batch_size: Inputs in one pass.
        repeats: Number of timed passes.
        threads: CPU threads that torch may use.
        device: Where it ran.
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
    """What ``complexity`` found.

    Args:
        parameters: Number of parameters.
        nonzero: How many of them are not zero.
        prunable: Number of prunable weights.
        prunable_nonzero: How many of them are kept: not zero, or not pruned by the mask that was given.
        prunable_layers: Their canonical names.
        sparsity: Share of zeros among the prunable weights (of pruned weights, if a mask was given).
        network_sparsity: Share of zeros among all parameters.
        macs: Multiply-accumulates of dense kernels for one input.
        effective_macs: Those whose weight is not zero.
        file_bytes: Size of the state dict as a safetensors file, zeros stored like any number.
        compressed_bytes: Size of the same file after zlib compression, to which zeros cost little.
        latency: Time of one forward pass (None if it was not asked for).
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
    model: nn.Module, batch_size: int = 64, inputs: Inputs = None, repeats: int = 20, warmup: int = 5
) -> Latency:
    """Median time of a forward pass in eval mode.

    Args:
        model: The network; it is left as it was.
        batch_size: Inputs in one pass; ignored if ``inputs`` is given.
        inputs: A whole batch; default latents (or images) of the shape that the model's spec names.
        repeats: Timed passes, at least 1.
        warmup: Passes before them, at least 0.

    Returns:
        Median and quartiles, with batch size, threads and device.

    Raises:
        ValueError: If a number is outside its range, or ``inputs`` is missing and the model does not say what
            it takes.
    """
    batch_size, repeats = check_integer("batch_size", batch_size, 1), check_integer("repeats", repeats, 1)
    warmup = check_integer("warmup", warmup, 0)
    batch = call_arguments(model, batch_size, inputs)
    device = batch[0].device
    times = []
    with eval_mode(model), keep_random_state(device):
        for turn in range(warmup + repeats):
            _wait(device)
            begin = time.perf_counter()
            model(*batch)
            _wait(device)
            if turn >= warmup:
                times.append(time.perf_counter() - begin)
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive") if repeats > 1 else times * 3
    return Latency(median, lower, upper, len(batch[0]), repeats, torch.get_num_threads(), str(device))


def complexity(
    model: nn.Module,
    mask: Mask | None = None,
    inputs: Inputs = None,
    batch_size: int | None = 64,
    repeats: int = 20,
) -> ComplexityReport:
    """Size, work, storage and latency of a network in one report; the network is left as it was.

    Args:
        model: The network.
        mask: If given, its prunable weights are the ones counted, and every weight that it prunes must be
            zero.
        inputs: As for ``macs``; default what the model's spec names.
        batch_size: Inputs in one timed pass; None leaves the latency out.
        repeats: Timed passes.

    Returns:
        The report.

    Raises:
        ValueError: If ``inputs`` is missing and the model does not say what it takes, or it has no prunable
            weight.
        MaskError: If a weight that the mask prunes is not zero.
    """
    if mask is not None:
        check_mask(model, mask)
        names, prunable, kept = tuple(mask), mask.total, mask.kept
    else:
        weights = prunable_weights(model)
        names, prunable = tuple(weights), sum(weight.numel() for weight in weights.values())
        kept = sum(int(weight.count_nonzero()) for weight in weights.values())
    work = measure_work(model, inputs)
    timed = None
    if batch_size is not None:
        batch = None
        if inputs is not None:
            batch = tuple(
                one.repeat(-(-batch_size // len(one)), *[1] * (one.dim() - 1))[:batch_size]
                for one in call_arguments(model, 1, inputs)
            )
        timed = latency(model, batch_size, batch, repeats)
    return ComplexityReport(
        parameters=count_parameters(model),
        nonzero=count_nonzero(model),
        prunable=prunable,
        prunable_nonzero=kept,
        prunable_layers=names,
        sparsity=1 - kept / prunable,
        network_sparsity=network_sparsity(model),
        macs=round(work.dense),
        effective_macs=round(work.dense - work.skipped),
        file_bytes=file_bytes(model),
        compressed_bytes=compressed_bytes(model),
        latency=timed,
    )


def _wait(device: torch.device) -> None:
    """Wait until an accelerator has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
