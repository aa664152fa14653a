"""A small data set: the first images of MNIST."""

from __future__ import annotations

import ganprune as gp
from ganprune.data.splits import ImageData, Split


def small_data(name: str = "mnist", count: int = 64) -> ImageData:
    """Return the first images of each split of MNIST, as a data set of their own."""
    whole = gp.mnist("cpu")
    parts = {
        split: Split(split, getattr(whole, split).images[:count], getattr(whole, split).labels[:count], name)
        for split in ("train", "validation", "test")
    }
    data = ImageData(name, **parts)
    for part in parts.values():
        object.__setattr__(part, "parent", data)
    return data
