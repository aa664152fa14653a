"""Profile, device and precision: where and how large things run."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from ganprune.core.checks import check_choice

PROFILES = ("smoke", "laptop", "gpu")


PRECISIONS = ("auto", "float32", "bfloat16")


T = TypeVar("T")


def as_device(device: str | torch.device | None = None) -> torch.device:
    """The device meant by ``device``; None means the best one of this machine.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", a ``torch.device``, or None.

    Raises:
        ValueError: if the name is unknown or this machine lacks the device.
    """
    if device is None:
        return default_device()
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'cpu', 'cuda', 'cuda:N' or 'mps', got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device; use 'cpu'")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no MPS device; use 'cpu'")
    return chosen


def default_device() -> torch.device:
    """CUDA, else MPS, else CPU; the environment variable ``GANPRUNE_DEVICE`` overrides the order."""
    named = os.environ.get("GANPRUNE_DEVICE")
    if named:
        return as_device(named)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@dataclass(frozen=True)
class Profile:
    """The size at which a notebook runs, and the device it runs on.

    A profile changes sizes only: every cell runs in every profile.
    """

    name: str
    device: torch.device

    def pick(self, *, smoke: T, laptop: T, gpu: T) -> T:
        """The value that belongs to this profile."""
        return {"smoke": smoke, "laptop": laptop, "gpu": gpu}[self.name]


def profile(name: str | None = None, device: str | torch.device | None = None) -> Profile:
    """The profile of this process.

    Args:
        name: "smoke" (tests: seconds), "laptop" (two CPU cores: minutes) or "gpu" (full size). None reads the
            environment variable ``GANPRUNE_PROFILE`` and falls back to "laptop".
        device: as for :func:`as_device`.

    Raises:
        ValueError: if the name is none of the three.
    """
    chosen = check_choice("profile", name or os.environ.get("GANPRUNE_PROFILE") or "laptop", PROFILES)
    return Profile(chosen, as_device(device))


_PROBED: dict[str, str] = {}


def best_precision(device: str | torch.device) -> str:
    """ "bfloat16" where autocast to it is faster on this device, else "float32".

    Processors without bfloat16 instructions emulate them several times slower, so a small convolution is timed
    forward and backward in both precisions (well under a second, once per process). ``GANPRUNE_PRECISION``
    overrides it.
    """
    named = os.environ.get("GANPRUNE_PRECISION")
    if named:
        if named not in PRECISIONS[1:]:
            raise ValueError(f"GANPRUNE_PRECISION must be float32 or bfloat16, got {named!r}")
        return named
    device = torch.device(device)
    if device.type not in _PROBED:
        _PROBED[device.type] = "bfloat16" if _bfloat16_gain(device) > 1.05 else "float32"
    return _PROBED[device.type]


def _bfloat16_gain(device: torch.device) -> float:
    """Time of a float32 step over that of a bfloat16 step: median over pairs, so that a busy moment decides nothing."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return 0.0
    if device.type == "mps":
        return 0.0
    convolution = nn.Conv2d(32, 64, 4, 2, 1, device=device).to(memory_format=torch.channels_last)
    images = torch.ones(64, 32, 16, 16, device=device).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()  # as inside a network, where the gradient goes on to the layer before

    def seconds(reduced: bool) -> float:
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            loss = convolution(images).float().sum()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    ratios = [seconds(False) / seconds(True) for _ in range(5 + 25)][5:]  # the first ones warm up
    return statistics.median(ratios)
