"""Sparse twins: a pruned network that makes images without multiplying by its zeros."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ganprune.core.checks import check_integer
from ganprune.inference.program import InferenceError, Program, size_of
from ganprune.inference.sparse_file import SparseFile
from ganprune.inference.tables import build_tables
from ganprune.inference.tracing import trace_program
from ganprune.masks.mask import Mask
from ganprune.networks.checking import check_latents

BLOCK = 16
"""Images that are computed side by side; fewer take as long."""


class SparseTwin:
    """What :func:`sparse_twin` returns: call it with latents.

    Attributes:
        program: the operations, with the weights that they use.
        threads: how many blocks of 16 images are computed at a time.
    """

    def __init__(self, program: Program, threads: int = 1) -> None:
        self.program, self.threads = program, check_integer("threads", threads, 1)
        self._run = _kernel()
        self._tables = build_tables(program)
        self._free: deque[NDArray[np.float32]] = deque()  # memory of blocks that are done
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def __call__(self, latents: Tensor | ArrayLike) -> Tensor:
        """Images for latents.

        Args:
            latents: shape ``(N, *latent)``, a tensor on any device or an array.

        Returns:
            float32 on the CPU, shape ``(N, *image)``.

        Raises:
            TypeError: if the latents are complex.
            ValueError: if the shape is another.
        """
        check_latents(latents if isinstance(latents, Tensor) else np.asarray(latents), self.program.latent)
        given = latents.detach().float().cpu() if isinstance(latents, Tensor) else latents
        batch = np.ascontiguousarray(given, np.float32)
        flat = batch.reshape(len(batch), size_of(self.program.latent))
        images = np.empty((len(batch), size_of(self.program.image)), np.float32)
        begins = range(0, len(batch), BLOCK)
        if self._pool is None or len(begins) < 2:
            for begin in begins:
                self._make(flat, images, begin)
        else:
            list(self._pool.map(lambda begin: self._make(flat, images, begin), begins))
        return torch.from_numpy(images).reshape(-1, *self.program.image)

    def _make(self, batch: NDArray[np.float32], images: NDArray[np.float32], begin: int) -> None:
        """Images of one block, in memory of its own."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _aligned_zeros(self._tables.pixels * BLOCK)
        self._run(memory, batch, images, begin, *self._tables.arrays)
        self._free.append(memory)

    def __repr__(self) -> str:
        program = self.program
        return (
            f"SparseTwin({len(program.operations)} operations, {program.nonzeros:,} weights that are not zero, "
            f"sparsity {program.sparsity:.4f}, threads {self.threads})"
        )


def sparse_twin(
    network: nn.Module | Program | SparseFile,
    mask: Mask | None = None,
    threads: int = 1,
    labels: int | None = None,
) -> SparseTwin:
    """A twin of a network for inference alone, in which zeros cost nothing.

    Dense kernels multiply by zeros, so that a pruned network is as slow as before. The twin walks over the non-zero
    weights of each output channel and computes 16 images side by side (direct sparse convolution, Park et al. 2017,
    with images in the place of pixels). It shares nothing with the network, and does not follow it when that changes.

    Args:
        network: a generator in whatever mode, left as it was; the twin computes what it does in evaluation mode. Or a
            program, such as that of a sparse file.
        mask: applied to a copy of the network; None if its pruned weights are zero already.
        threads: so many threads share the images, 16 at a time. Nobody else's number of threads changes.
        labels: the one class that the twin of an adapted, class-conditional generator draws; one twin for each class.

    Returns:
        A callable: latents ``(N, *latent)``, as a tensor or an array, to images ``(N, *image)``, float32 on the CPU.
        They are those of the network up to rounding. The first call in a process compiles for some seconds.

    Raises:
        InferenceError: if the network computes something that a program does not have, which is named; or if numba,
            which compiles the kernels, is not installed.
        ValueError: if ``threads`` is no integer of at least 1, the mask does not fit, or there is no such class.
    """
    threads = check_integer("threads", threads, 1)
    if isinstance(network, SparseFile):
        network = network.program
    if isinstance(network, Program):
        for name, given in (("mask", mask), ("labels", labels)):
            if given is not None:
                raise ValueError(f"{name} must be None for a program, whose weights are what they are")
        return SparseTwin(network, threads)
    return SparseTwin(trace_program(network, mask, labels), threads)


def _kernel() -> Callable[..., Any]:
    try:
        from ganprune.inference.kernels import run_block
    except ImportError as error:
        raise InferenceError(
            "a sparse twin needs numba, which is not installed: pip install 'ganprune[sparse]'"
        ) from error
    return run_block


def _aligned_zeros(count: int) -> NDArray[np.float32]:
    """Zeros that begin at a multiple of 64 bytes, where vectors of 16 numbers do not cross lines of the cache."""
    whole = np.zeros(count + 16, np.float32)
    begin = -whole.ctypes.data // 4 % 16
    return whole[begin : begin + count]
