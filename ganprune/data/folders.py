"""Images of one's own: a folder of PNG and JPEG files, read into three splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ganprune.core.checks import check_choice, check_integer
from ganprune.core.device import as_device, standard_defaults
from ganprune.core.random import seeded, step_seed
from ganprune.data.splits import DataError, ImageData, Split

PREFIX = "folder:"
SUFFIXES = (".png", ".jpg", ".jpeg")
SIZES = (28, 128)
"""The shortest and the longest side of the images."""
LEAST_IMAGES = 60
"""So that the validation and the test split, a tenth each, have the six images that density and coverage need."""


@standard_defaults()
def image_folder(
    folder: str | Path,
    size: int = 64,
    channels: int = 3,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> ImageData:
    """The images of a folder: a tenth for validation, a tenth for test, the rest for training.

    Files ending in .png, .jpg and .jpeg count, in sub-folders too. If the folder has sub-folders, each of them is a
    class. Images are turned as their EXIF tag says, scaled so that the shorter side is ``size``, cropped to their
    middle, and made grey or RGB; transparency is dropped. All lie in memory: 64 × 64 pixels in colour take 12 KiB each.

    Args:
        folder: holds the images, or one folder of them per class.
        size: the side of the square images in pixels, 28 to 128.
        channels: 3 for RGB, 1 for grey.
        seed: determines the splits, whatever else is random; part of the data set's name unless it is 0.
        device: where the images go; None for the best device.

    Returns:
        The data set, whose name is "folder:…"; :func:`load_data` reads it again from that name. Without sub-folders
        it has one class, and evaluation needs an extractor that was trained on other images.

    Raises:
        DataError: if there is no such folder, it has fewer than 60 images, some of them lie beside the folders of
            classes, or files cannot be read; the files are named.
        ValueError: if ``size``, ``channels`` or ``seed`` is outside of its range.
    """
    if check_integer("size", size, SIZES[0]) > SIZES[1]:
        raise ValueError(f"size must be an integer from {SIZES[0]} to {SIZES[1]}, got {size!r}")
    check_choice("channels", channels, (1, 3))
    check_integer("seed", seed, 0)
    place, folder = as_device(device), Path(folder)
    files, labels, classes = _list_files(folder)
    if len(files) < LEAST_IMAGES:
        raise DataError(
            f"{folder} must hold at least {LEAST_IMAGES} images ({', '.join(SUFFIXES)}), so that each split can be "
            f"measured, got {len(files)}"
        )
    images = _read_all(files, size, channels)
    name = f"{PREFIX}{folder.as_posix()}" + (f"?seed={seed}" if seed else "")
    order = torch.randperm(len(files), generator=seeded(step_seed(seed, 0, "folder splits")), device="cpu")
    held = len(files) // 10
    parts = {"validation": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
    splits = {}
    for part, rows in parts.items():
        rows = rows.sort().values
        splits[part] = Split(part, images[rows].to(place), labels[rows].to(place), name)
    data = ImageData(name, splits["train"], splits["validation"], splits["test"], max(1, len(classes)))
    for split in splits.values():
        object.__setattr__(split, "parent", data)
    return data


def folder_of(name: str) -> tuple[str, int] | None:
    """The folder and the seed in the name of such a data set; None for another one.

    Raises:
        ValueError: if the name has no folder, or a seed that is no integer.
    """
    if not name.startswith(PREFIX):
        return None
    folder, _, seed = name.removeprefix(PREFIX).partition("?seed=")
    if not folder or (seed and not seed.isdecimal()):
        raise ValueError(f"data must be {PREFIX}DIR or {PREFIX}DIR?seed=N, got {name!r}")
    return folder, int(seed or 0)


def _list_files(folder: Path) -> tuple[list[Path], Tensor, list[str]]:
    """All images in order of their names, their classes as numbers, and the names of the classes."""
    if not folder.is_dir():
        raise DataError(f"image folder not found: expected a folder at {folder}")
    loose = _images_in(folder.iterdir())
    groups = {sub.name: _images_in(sub.rglob("*")) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    groups = {name: files for name, files in groups.items() if files}
    if loose and groups:
        raise DataError(
            f"{folder} has {len(loose)} images beside the folders of classes {', '.join(groups)}; move them into one"
        )
    if not groups:
        return loose, torch.zeros(len(loose), dtype=torch.int64), []
    files = [file for some in groups.values() for file in some]
    numbers = [number for number, some in enumerate(groups.values()) for _ in some]
    return files, torch.tensor(numbers), list(groups)


def _images_in(paths: object) -> list[Path]:
    found = (path for path in paths if path.suffix.lower() in SUFFIXES)  # type: ignore[attr-defined]
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def _read_all(files: Sequence[Path], size: int, channels: int) -> Tensor:
    """The images as uint8, shape (N, channels, size, size); DataError that names all that cannot be read."""
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    bad = []
    for number, file in enumerate(files):
        try:
            images[number] = _read(file, size, channels)
        except Exception as error:  # Pillow raises a dozen kinds
            bad.append(f"{file} ({type(error).__name__}: {' '.join(str(error).split())})")
    if bad:
        more = f"; and {len(bad) - 8} more" if len(bad) > 8 else ""
        raise DataError(
            f"{len(bad)} of {len(files)} images cannot be read, mend or remove them: {'; '.join(bad[:8])}{more}"
        )
    return images


def _read(file: Path, size: int, channels: int) -> Tensor:
    from PIL import Image, ImageOps  # a slow import that MNIST does not need
    from torchvision.transforms.functional import pil_to_tensor

    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    return pil_to_tensor(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
