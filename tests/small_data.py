"""Small data sets whose splits know each other, as those of the package do."""

from __future__ import annotations

import dataclasses

import ganprune as gp
from ganprune.data.splits import ImageData, Split


def thin(split: Split, count: int) -> Split:
    """The first images of a split, still a part of its data set."""
    return dataclasses.replace(split, images=split.images[:count], labels=split.labels[:count])


def join(data: ImageData) -> ImageData:
    """The data set itself, after its splits were told that they belong to it."""
    for split in (data.train, data.validation, data.test):
        object.__setattr__(split, "parent", data)
    return data


def thin_all(data: ImageData, count: int) -> ImageData:
    """The first images of every split, as a data set of its own."""
    splits = {split.name: thin(split, count) for split in (data.train, data.validation, data.test)}
    return join(dataclasses.replace(data, **splits))


def small_mnist(count: int) -> ImageData:
    """The first images of each split of MNIST, on the CPU."""
    return thin_all(gp.mnist("cpu"), count)
