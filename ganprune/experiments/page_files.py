"""The pruned generators that the book draws with in the reader's browser, and the command that makes them.

``python -m ganprune.experiments.page_files`` prunes the shipped pair of seed 0 in one shot by global magnitude, to each
sparsity of the page's slider, and trains each of them on. The dense one is trained on just as long, so that all had
the same training. A sparse file of each goes to the package's assets, with its figures on the test split in the header,
and of the dense one an ONNX file as well, for comparison. Trained pairs are kept in the cache folder: what is there is
not made again, and several processes share the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import ganprune
from ganprune.core.checks import check_choice
from ganprune.core.files import cache_dir, owned_in_turn
from ganprune.experiments.base import course_data
from ganprune.experiments.recovery import Recovery
from ganprune.inference.onnx_file import export_onnx
from ganprune.inference.sparse_file import save_sparse
from ganprune.networks.checkpoints import load, save
from ganprune.networks.gan import GAN
from ganprune.records.store import config_hash

SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
SEED = 0
ASSETS = Path(__file__).parents[1] / "assets" / "page"
FIGURES = ("digit_fid", "digit_fid_floor", "precision", "recall", "samples", "split")
COMMAND = "python -m ganprune.experiments.page_files"


def recovery_at(sparsity: float) -> Recovery:
    """What the generator of a sparsity is made by: the course's recovery, its settings unchanged."""
    return Recovery(sparsity=check_choice("sparsity", sparsity, SPARSITIES))


def recovered(sparsity: float) -> GAN:
    """The pair of a sparsity after its training, with its figures in ``metadata``; made unless the cache has it.

    Of several processes that want the same pair, one trains it, and the others wait.

    Raises:
        ValueError: if the page's slider has no such sparsity.
    """
    experiment = recovery_at(sparsity)
    path = cache_dir() / f"page-{config_hash(experiment)}-{SEED}.safetensors"
    with owned_in_turn(path):
        if not path.is_file():
            _make(experiment, path)
    return load(path, "cpu")


def _make(experiment: Recovery, path: Path) -> None:
    data = course_data()
    gan, dense = experiment.start(SEED, data)
    state, shared = experiment.recover(gan, dense, data, SEED)
    rows = experiment.measure(state, data, shared)
    (row,) = (row for row in rows if (row["network"], row["split"]) == ("generator_ema", "test"))
    save(path, state.gan, {**_remarks(experiment), **{name: row[name] for name in FIGURES}})


def _remarks(experiment: Recovery) -> dict[str, Any]:
    """What does not depend on the run; no time of day, so that the same run gives the same file."""
    return {
        "command": COMMAND,
        "experiment": experiment.label,
        "config": config_hash(experiment),
        "sparsity": experiment.sparsity,
        "seed": SEED,
        "steps": experiment.steps,
        "network": "generator_ema",
        "versions": {"ganprune": ganprune.__version__, "torch": torch.__version__},
    }


def page_path(sparsity: float, folder: str | Path | None = None) -> Path:
    """Where the sparse file of a sparsity lies: "dcgan-mnist-090.gps" for 0.9, among the package's assets."""
    percent = round(100 * check_choice("sparsity", sparsity, SPARSITIES))
    return Path(folder or ASSETS) / f"dcgan-mnist-{percent:03d}.gps"


def dense_onnx_path(folder: str | Path | None = None) -> Path:
    """Where the dense generator lies as ONNX, for the comparison with a runtime that does not skip zeros."""
    return page_path(0.0, folder).with_suffix(".onnx")


def make(sparsities: Iterable[float] = SPARSITIES, folder: str | Path | None = None) -> list[Path]:
    """Writes the sparse files of some sparsities, and the ONNX file beside that of the dense generator.

    Args:
        sparsities: some of :data:`SPARSITIES`.
        folder: where the files go; None for the package's assets.

    Returns:
        The files.

    Raises:
        ExportError: if the libraries of the extra ``export`` are missing.
    """
    paths = []
    for sparsity in sparsities:
        path = page_path(sparsity, folder)
        gan = recovered(sparsity)
        save_sparse(path, gan.generator_ema, gan.metadata)
        paths.append(path)
        if not sparsity:
            export_onnx(dense_onnx_path(folder), gan.generator_ema, metadata={"command": COMMAND})
            paths.append(dense_onnx_path(folder))
    return paths


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="Make the pruned generators of the book's browser page.")
    parser.add_argument(
        "--only", type=float, nargs="+", default=SPARSITIES, choices=SPARSITIES, metavar="SPARSITY"
    )
    parser.add_argument("--folder", help="where the files go (default: the package's assets)")
    options = parser.parse_args()
    make(options.only, options.folder)


if __name__ == "__main__":
    main()
