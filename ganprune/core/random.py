"""Random numbers that depend on a seed, a step and a stream alone."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def step_seed(seed: int, step: int, stream: str = "") -> int:
    """A seed in [0, 2**32) for one step of one stream of random numbers.

    Seed, step and stream are hashed together, because CPU generators ignore the high 32 bits of a seed. A
    training loop that reseeds at each step has no random state to save: step 700 draws the same numbers whether
    or not steps 0 to 699 ran in this process.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{stream}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def seeded(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh random generator on ``device``, seeded."""
    return torch.Generator(device=device).manual_seed(operator.index(seed))


@contextmanager
def keep_random_state(device: str | torch.device = "cpu") -> Iterator[None]:
    """The global random states of the CPU and of a device are at the end of the block what they were before."""
    place = torch.device(device)
    cuda = []
    if place.type == "cuda" and torch.cuda.is_available():
        cuda = [torch.cuda.current_device() if place.index is None else place.index]
    with torch.random.fork_rng(devices=cuda):
        yield
