"""Profile, device and precision: where and how large things run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be 'cpu', 'cuda', 'cuda:N' or 'mps', got {device!r}")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device; use 'cpu'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices, from cuda:0 on"
        )
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


def best_precision(device: str | torch.device) -> str:
    """The precision for training on a device: "bfloat16" if its processor computes in bfloat16, else "float32".

    The answer follows from the instructions that the processor has, so every process on a machine gets the same one:

    - CPU: bfloat16 with AVX-512 BF16 or AMX; others would emulate it, several times slower.
    - CUDA: bfloat16 if the GPU has it in hardware (compute capability 8.0, "Ampere", or later).
    - Apple's GPUs (MPS): float32.

    The environment variable ``GANPRUNE_PRECISION`` ("float32" or "bfloat16") overrides it.

    Raises:
        ValueError: if ``GANPRUNE_PRECISION`` is something else.
    """
    named = os.environ.get("GANPRUNE_PRECISION")
    if named:
        if named not in PRECISIONS[1:]:
            raise ValueError(f"GANPRUNE_PRECISION must be float32 or bfloat16, got {named!r}")
        return named
    return "bfloat16" if has_bfloat16(torch.device(device)) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for bfloat16 that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def placement_of(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype in which a network computes: those of its first floating-point parameter, else buffer.

    Parameters may hold integers (tables of indices), which say nothing about the dtype of inputs. A network without
    floating-point tensors takes float32 on the CPU.
    """
    for tensors in (network.parameters(), network.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


@contextmanager
def standard_defaults() -> Iterator[None]:
    """PyTorch's own defaults inside the block: new tensors are float32 and on the CPU.

    Code that calls ``torch.set_default_dtype`` or works under ``with torch.device(...)`` would otherwise decide what
    our networks and data are made of.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
