"""Data: real images in three splits, and points of the plane."""

from ganprune.data.folders import image_folder
from ganprune.data.sources import cifar10, fashion_mnist, load_data, mnist
from ganprune.data.splits import DataError, ImageData, Split
from ganprune.data.synthetic import gaussian_ring

__all__ = [
    "DataError",
    "ImageData",
    "Split",
    "cifar10",
    "fashion_mnist",
    "gaussian_ring",
    "image_folder",
    "load_data",
    "mnist",
]
