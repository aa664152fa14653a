"""The pruned generators that the book draws with in the reader's browser, and the command that makes them.

``python -m ganprune.experiments.page_files`` prunes the shipped pair of seed 0 in one shot by global magnitude, to each
sparsity of the page's slider, and trains each of them on. The dense one is trained on just as long, so that all had
the same training. Each is kept in the cache folder when it is trained, with its figures on the test split; what is
there is not made again, and several processes share the work.
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
from ganprune.networks.checkpoints import load, save
from ganprune.networks.gan import GAN
from ganprune.records.store import config_hash

SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
SEED = 0
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


def make(sparsities: Iterable[float] = SPARSITIES) -> list[GAN]:
    """The pairs of some sparsities, one after another."""
    return [recovered(sparsity) for sparsity in sparsities]


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="Make the pruned generators of the book's browser page.")
    parser.add_argument(
        "--only", type=float, nargs="+", default=SPARSITIES, choices=SPARSITIES, metavar="SPARSITY"
    )
    make(parser.parse_args().only)


if __name__ == "__main__":
    main()
