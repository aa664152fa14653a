"""Where the images come from: MNIST inside the package, Fashion-MNIST and CIFAR-10 through torchvision."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganprune.core.checks import check_choice
from ganprune.core.device import as_device, standard_defaults
from ganprune.core.files import cache_dir
from ganprune.data.folders import folder_of, image_folder
from ganprune.data.splits import DataError, ImageData, three_splits

DATASETS = ("mnist", "fashion-mnist", "cifar10")


@standard_defaults()
def mnist(device: str | torch.device | None = None, image_size: int = 28) -> ImageData:
    """MNIST, shipped with the package: 50,000 train, 10,000 validation, 10,000 test.

    Validation is drawn at random from the official training set with :data:`SPLIT_SEED`: the official files are
    ordered by writer, so a contiguous part would be another distribution. Each file's SHA-256 sum is verified when
    it is read. The MNIST database is by Yann LeCun, Corinna Cortes and Christopher J. C. Burges and is licensed
    CC BY-SA 3.0.

    Args:
        device: where the images go; None for the best device.
        image_size: 28, or 32 for a black border of two pixels on each side.

    Raises:
        DataError: if a file is missing or damaged.
        ValueError: if image_size is neither 28 nor 32.
    """
    if image_size not in (28, 32):
        raise ValueError(f"image_size must be 28 or 32, got {image_size!r}")
    place = as_device(device)
    folder = Path(__file__).parents[1] / "assets" / "mnist"
    official = {}
    for part in ("train", "t10k"):
        images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", folder)
        labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", folder)
        if image_size == 32:
            images = torch.nn.functional.pad(images, (2, 2, 2, 2))
        official[part] = images.unsqueeze(1), labels.long()
    return three_splits("mnist", official["train"], official["t10k"], place)


def fashion_mnist(
    root: str | Path | None = None, device: str | torch.device | None = None, download: bool = True
) -> ImageData:
    """Fashion-MNIST (Xiao et al. 2017) through torchvision's own class; same splits and interface as :func:`mnist`.

    Args:
        root: folder of the files; None for the package's cache folder.
        device: where the images go; None for the best device.
        download: fetch the files if they are not there.

    Raises:
        DataError: if the files are missing and cannot be downloaded, or are damaged.
    """
    return _torchvision("fashion-mnist", "FashionMNIST", root, device, download)


def cifar10(
    root: str | Path | None = None, device: str | torch.device | None = None, download: bool = True
) -> ImageData:
    """CIFAR-10 (Krizhevsky 2009), 3 × 32 × 32; arguments and errors as for :func:`fashion_mnist`."""
    return _torchvision("cifar10", "CIFAR10", root, device, download)


def load_data(
    name: str,
    root: str | Path | None = None,
    device: str | torch.device | None = None,
    image_shape: tuple[int, ...] = (3, 64, 64),
) -> ImageData:
    """A data set by name: "mnist", "fashion-mnist", "cifar10" or "folder:DIR".

    Args:
        name: one of :data:`DATASETS`, or "folder:" and the path of a folder, for :func:`image_folder`.
        root: folder of the files of a downloaded data set; unused for MNIST, which ships with the package.
        device: where the images go; None for the best device.
        image_shape: (channels, side, side) of the images of a folder; the others have a shape of their own.

    Raises:
        ValueError: if the name is unknown.
        DataError: if the files are missing or damaged.
    """
    if isinstance(name, str) and (found := folder_of(name)) is not None:
        return image_folder(found[0], image_shape[1], image_shape[0], found[1], device)
    check_choice("data", name, DATASETS, ", or folder:DIR")
    if name == "mnist":
        return mnist(device)
    return fashion_mnist(root, device) if name == "fashion-mnist" else cifar10(root, device)


def _read_idx(path: Path, folder: Path) -> Tensor:
    """The array in a gzipped IDX file, after its SHA-256 sum was compared with the folder's SHA256SUMS."""
    mend = "Install the package again: its data files ship with it."
    if not path.is_file():
        raise DataError(f"MNIST file missing: expected {path}. {mend}")
    compressed = path.read_bytes()
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    found = hashlib.sha256(compressed).hexdigest()
    if found != sums[path.name]:
        raise DataError(
            f"MNIST file damaged: {path} has SHA-256 {found[:12]}…, expected {sums[path.name][:12]}…. {mend}"
        )
    content = gzip.decompress(compressed)
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return torch.frombuffer(bytearray(content[4 + 4 * dimensions :]), dtype=torch.uint8).reshape(shape)


@standard_defaults()
def _torchvision(
    name: str, class_name: str, root: str | Path | None, device: str | torch.device | None, download: bool
) -> ImageData:
    """Read a data set with torchvision, and turn what can go wrong into one sentence that helps.

    torchvision verifies MD5 sums of the archives it downloads, and a file that fails is fetched again or refused,
    so a partial download is never taken for a whole one. Fashion-MNIST's archives are verified on each reading.
    """
    from torchvision import datasets  # a slow import that MNIST does not need

    place = as_device(device)
    folder = Path(root) if root is not None else cache_dir() / "data"
    dataset_class = getattr(datasets, class_name)
    where = folder / class_name / "raw" if class_name == "FashionMNIST" else folder
    parts = []
    try:
        if class_name == "FashionMNIST":
            _refuse_damaged(dataset_class, where)
        for train in (True, False):
            parts.append(dataset_class(str(folder), train=train, download=download))
    except DataError:
        raise
    except Exception as error:  # torchvision raises RuntimeError, URLError, OSError and EOFError alike
        raise DataError(
            f"{name} is not complete at {where} ({type(error).__name__}: {error}). With a network connection, run "
            f"again to download it; without one, copy torchvision's files for {class_name} there, or name their folder "
            "by root= (--data-root on the command line)."
        ) from error
    arrays = []
    for part in parts:
        images = torch.as_tensor(part.data)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        arrays.append((images, torch.as_tensor(part.targets).long()))
    expected = {"fashion-mnist": 60_000, "cifar10": 50_000}[name]
    if (len(arrays[0][0]), len(arrays[1][0])) != (expected, 10_000):
        raise DataError(
            f"{name} at {where} has {len(arrays[0][0])} + {len(arrays[1][0])} images; delete it and run again."
        )
    return three_splits(name, arrays[0], arrays[1], place)


def _refuse_damaged(dataset_class: Any, folder: Path) -> None:
    """torchvision trusts unpacked MNIST-like files of any length: look at what lies there before it does."""
    for url_name, md5 in dataset_class.resources:
        archive = folder / url_name
        unpacked = folder / url_name.removesuffix(".gz")
        if archive.is_file() and hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest() != md5:
            raise DataError(
                f"fashion-mnist file damaged: {archive} fails its MD5 sum. Delete it and run again."
            )
        if unpacked.is_file():
            head = unpacked.read_bytes()[:16]
            dimensions = head[3] if len(head) > 3 else 0
            shape = (
                struct.unpack(f">{dimensions}I", head[4 : 4 + 4 * dimensions]) if dimensions in (1, 3) else ()
            )
            if not shape or unpacked.stat().st_size != 4 + 4 * dimensions + math.prod(shape):
                raise DataError(
                    f"fashion-mnist file damaged: {unpacked} is not whole. Delete it and run again."
                )
