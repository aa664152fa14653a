"""Train the digit classifier that ships with the package.

Run as ``python -m ganprune.experiments.digit_classifier``. It trains on the 50,000 images of MNIST's train
split with a fixed recipe, reports accuracy on validation, and looks at the test split once, at the end.
"""

from __future__ import annotations

import argparse
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import safetensors
import torch

from ganprune.core.device import as_device
from ganprune.core.tensors import hash_weights
from ganprune.data.sources import mnist
from ganprune.metrics.classifier import ClassifierConfig, accuracy, train_classifier
from ganprune.metrics.extractor import digit_classifier_path, save_classifier

COMMAND = "python -m ganprune.experiments.digit_classifier"
logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, measures and saves the digit classifier.

    Args:
        arguments: command-line arguments; default those of the process.

    Returns:
        The exit status, 0.
    """
    recipe = ClassifierConfig()
    parser = argparse.ArgumentParser(prog=COMMAND, description="Train the digit classifier behind digit-FID.")
    parser.add_argument("--out", type=Path, default=digit_classifier_path(), help="file to write")
    parser.add_argument("--epochs", type=int, default=recipe.epochs, help="passes over the train split")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="seed of everything random")
    parser.add_argument("--device", default=None, help="cpu, cuda or mps; default the best one present")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    config = ClassifierConfig(epochs=options.epochs, seed=options.seed)
    device = as_device(options.device)
    digits = mnist(device=device)
    begin = time.perf_counter()
    network = train_classifier(digits, config, device, announce=logger.info)
    seconds = time.perf_counter() - begin
    validation = accuracy(network, digits.validation)
    test = accuracy(network, digits.test)
    metadata = {
        "dataset": digits.name,
        "trained_on": f"train split, {len(digits.train)} images",
        "config": asdict(config),
        "validation_accuracy": round(validation, 4),
        "test_accuracy": round(test, 4),
        "command": COMMAND,
        "precision": "float32",
        "device": device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }
    path = save_classifier(options.out, network, metadata)
    logger.info(
        "validation accuracy %.4f, test accuracy %.4f, %.0f s, hash %s, saved to %s (%d bytes)",
        validation,
        test,
        seconds,
        hash_weights(network),
        path,
        path.stat().st_size,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
