"""Whether a second thread changes what zeros save: the sparse twin and dense kernels, on one thread and then on two."""

from collections.abc import Iterator

from benchmarks.record import Row
from benchmarks.sparse_inference import BATCHES, SHOWN, TRAINED, Setting, measured

MINUTES = 3


def measure(quick: bool) -> Iterator[Row]:
    """Ratios as in ``sparse_inference``, those with one thread first: threads that wait in a pool cost processor time.

    On two threads the time is that of the clock on the wall, so that these are left out while the machine is busy.
    """
    sizes = [(8, 2)] if quick else [(TRAINED, images) for images in BATCHES]
    settings = [Setting(*size, threads, (SHOWN,)) for threads in (1, 2) for size in sizes]
    return measured(settings, quick)
