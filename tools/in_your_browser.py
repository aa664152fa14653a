"""Make what the book's page "A pruned generator in your browser" loads: kernel, networks and recorded pictures.

    python tools/in_your_browser.py           to _build/in-your-browser
    python tools/in_your_browser.py FOLDER    to FOLDER/in-your-browser

The networks ship with the package (``python -m ganprune.experiments.page_files`` made them). The pictures are for
browsers that cannot draw: the same digits, drawn here by PyTorch.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

import kernel
import numpy as np
import torch
from javascript import FetchError
from PIL import Image

from ganprune.core.files import owned_in_turn
from ganprune.experiments.page_files import ASSETS, SPARSITIES, dense_onnx_path, page_path
from ganprune.inference.sparse_file import SparseFile, load_sparse

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "_build" / "in-your-browser"
DIGITS = (64, 8)
"""Digits on the page and on the landing page."""
GAP, COLUMNS = 2, 8


def name_of(sparsity: float) -> str:
    """The name of a network's files, without an ending."""
    return page_path(sparsity).stem


def uniform(seed: int, count: int) -> np.ndarray:
    """SplitMix with 32 bits, as ``book/_static/in-your-browser/latents.js`` has it: numbers in (0, 1).

    The source of the idea is Steele, Lea and Flood (2014).
    """
    with np.errstate(over="ignore"):
        bits = np.uint32(seed) + np.arange(1, count + 1, dtype=np.uint32) * np.uint32(0x9E3779B9)
        bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        bits ^= bits >> np.uint32(16)
    return (bits + 0.5) / 2**32


def normals(seed: int, count: int) -> np.ndarray:
    """An even number of standard normal numbers by Box and Muller's method, float32; the page draws the same ones."""
    radius, angle = uniform(seed, count).reshape(-1, 2).T
    radius, angle = np.sqrt(-2 * np.log(radius)), 2 * np.pi * angle
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1).astype(np.float32)


def images_of(file: SparseFile, count: int, seed: int = 0) -> np.ndarray:
    """Images in [-1, 1] of a file's network for the page's latents, made by PyTorch's dense layers.

    Returns:
        Of shape (count, height, width).
    """
    latents = normals(seed, count * file.program.latent[0]).reshape(count, -1)
    with torch.inference_mode():
        return file.network(torch.from_numpy(latents)).numpy().reshape(count, *file.program.image[1:])


def sheet(images: np.ndarray) -> Image.Image:
    """Images in rows of eight, black between them."""
    height, width = (side + GAP for side in images.shape[1:])
    canvas = np.zeros((len(images) // COLUMNS * height - GAP, COLUMNS * width - GAP), np.uint8)
    for number, image in enumerate(images):
        top, left = number // COLUMNS * height, number % COLUMNS * width
        canvas[top : top + height - GAP, left : left + width - GAP] = np.rint(127.5 * (image + 1))
    return Image.fromarray(canvas)


def fingerprint() -> str:
    """A hash of everything that the made files depend on."""
    state = hashlib.sha256()
    for path in (Path(__file__), kernel.SOURCE, Path(kernel.__file__), *sorted(ASSETS.iterdir())):
        state.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def prepare(target: Path = TARGET) -> Path:
    """Write kernel, networks and pictures to ``in-your-browser`` below a folder, unless they are there already.

    Returns:
        The folder ``target``, whose content the site serves.

    Raises:
        kernel.AssemblyError, javascript.FetchError: the kernel could not be assembled.
    """
    folder, stamp = target / "in-your-browser", target.with_name(f"{target.name}.stamp")
    made_from = fingerprint()
    with owned_in_turn(target):
        there = folder.is_dir() and stamp.is_file() and stamp.read_text(encoding="utf-8") == made_from
        if not there:
            write_files(folder)
            stamp.write_text(made_from, encoding="utf-8")
    return target


def write_files(folder: Path) -> None:
    """Write kernel, networks and pictures to a folder, in the place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    kernel.assemble(folder / "sparse.wasm")
    shutil.copyfile(dense_onnx_path(), folder / dense_onnx_path().name)
    for sparsity in SPARSITIES:
        shutil.copyfile(page_path(sparsity), folder / page_path(sparsity).name)
        images = images_of(load_sparse(page_path(sparsity)), max(DIGITS))
        for digits in DIGITS:
            sheet(images[:digits]).save(folder / f"{name_of(sparsity)}-{digits}.png", optimize=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=TARGET)
    try:
        print(prepare(parser.parse_args().folder))
    except (FetchError, kernel.AssemblyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
